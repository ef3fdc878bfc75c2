"""Attention Bias Calibration: transformers that learn arithmetic on short numbers and do it on long ones."""

import importlib
import os
import re
import sys
from contextlib import suppress
from typing import Any

_PUBLIC = {
    "fit": "phases.training",
    "retrain": "phases.training",
    "calibrate": "phases.calibrate",
    "evaluate": "phases.evaluate",
    "certify": "phases.certify",
    "explain": "phases.explain",
    "report": "phases.report",
    "run_all": "phases.pipeline",
    "export": "phases.sharing.export",
    "from_pretrained": "phases.sharing.pretrained",
    "solve": "phases.solve",
    "check_answers": "phases.solve",
    "sweep": "sweeps.engine",
    "summarize": "sweeps.summary",
    "trusting": "runs.trust",
}


def _survive_the_environment() -> None:
    """Lets the toolkit be imported where variables of the environment would make its libraries fail.

    A notebook names the backend of its figures in `MPLBACKEND`, which another Python that it starts may not have;
    matplotlib fails on that as it is imported, whether anything is drawn on a screen or not. Lightning fails on ranks
    that are no numbers.
    """
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if not re.fullmatch(r"\s*[+-]?\d+\s*", os.environ.get(name, "0")):
            del os.environ[name]
    backend = os.environ.get("MPLBACKEND")
    if backend and "matplotlib" not in sys.modules:
        del os.environ["MPLBACKEND"]
        with suppress(ImportError):  # the checker of certificates does without
            import matplotlib

            with suppress(ValueError):
                matplotlib.rcParams["backend"] = backend
        os.environ["MPLBACKEND"] = backend


_survive_the_environment()


def __getattr__(name: str) -> Any:
    """The public functions, loaded when they are asked for: the checker of certificates needs none of them."""
    if name == "__version__":
        from importlib.metadata import version

        return version("abc_toolkit")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC, "__version__"]
