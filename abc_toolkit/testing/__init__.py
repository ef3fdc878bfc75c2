"""Contract tests that a user's own task or position method inherits. They need the extra: `abc_toolkit[testing]`.

```python
from abc_toolkit.testing import TaskContract


class TestMine(TaskContract):
    cases = {"small": Mine(max_length=3)}
```
"""

import importlib
from typing import Any

try:
    import hypothesis  # noqa: F401
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"abc_toolkit.testing needs {error.name}: install 'abc_toolkit[testing]'", name=error.name
    ) from error

_PUBLIC = {
    "TaskContract": "task_contract",
    "DigitTaskContract": "digit_contract",
    "NumberContract": "digit_contract",
    "TaskCase": "digit_contract",
    "Example": "digit_contract",
    "PositionContract": "position_contract",
    "PositionCase": "position_contract",
}

# A failed check then shows its values, as one in a test file does.
pytest.register_assert_rewrite(*sorted({f"{__name__}.{module}" for module in _PUBLIC.values()}))


def __getattr__(name: str) -> Any:
    """The contracts, each loaded when it is asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
