"""The packages of the wheel: those in `abc_toolkit/`, and `configs/`, which is shipped as `abc_toolkit/configs`.

All else is in pyproject.toml, which can either find packages or map one to another folder, but not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["abc_toolkit*"]), "abc_toolkit.configs"],
    package_dir={"abc_toolkit.configs": "configs"},
    package_data={
        "abc_toolkit": ["py.typed"],
        "abc_toolkit.configs": ["*.yaml", "*/*.yaml"],
        "abc_toolkit.report.page": ["page.html"],
    },
)
