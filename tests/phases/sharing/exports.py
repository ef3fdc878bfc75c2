"""Exports that are changed, with hashes made right again as a sender of bad intent would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abc_toolkit.runs.files import canonical_hash, sha256


def resealed(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda config: None) -> None:
    """Changes a configuration and makes its hashes right for the files that there are."""
    config = json.loads((folder / "config.json").read_text())
    del config["hash"]
    change(config)
    config["files"] = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != "config.json"}
    (folder / "config.json").write_text(json.dumps(config | {"hash": canonical_hash(config)}))
