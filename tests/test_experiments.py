"""The scripts in `experiments/` import what the package has; nothing else checks them."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "experiments"
SCRIPTS = sorted(path for path in FOLDER.glob("*/*.py") if not path.stem.startswith("test_"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_script_can_be_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    before = set(sys.modules)
    runpy.run_path(str(path), run_name="imported")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(FOLDER):
            del sys.modules[name]  # scripts in two folders may have one name
