"""Exported models as objects: `from_pretrained`, and what can be asked of such a model."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.attention import AttentionPath
from abc_toolkit.models.base import Architecture, Model
from abc_toolkit.phases.sharing import format as folders
from abc_toolkit.phases.sharing.format import CARD, CONFIG, WEIGHTS, Export
from abc_toolkit.phases.solve import Solver
from abc_toolkit.proof.certificate import ARGUMENT, read_certificate
from abc_toolkit.report import console
from abc_toolkit.runs import weights
from abc_toolkit.runs.description import rebuild
from abc_toolkit.runs.files import canonical_hash, sha256
from abc_toolkit.runs.folder import CERTIFICATE, WINDOW, build_model
from abc_toolkit.runs.trust import trusting
from abc_toolkit.tasks import Task
from abc_toolkit.windows.rules import Window, WindowError


class PretrainedModel:
    """A model that was exported from a run, with all that it needs.

    Attributes:
        export: The folder's content.
        phase: The phase that trained it: `retrain`, or `fit` for a vanilla model.
        task: The task.
        architecture: The architecture.
        window: The window; `None` for a vanilla model.
        model: The model, in evaluation mode.
        certificate: The certificate that it is right at every length; `None` if there is none that holds.
        warnings: What whoever loads it should know, each a line.

    Args:
        export: The folder's content.

    Raises:
        UserError: If it names classes that are not trusted, or its parts do not belong together.
    """

    def __init__(self, export: Export) -> None:
        source = export.path / CONFIG
        self.export = export
        self.phase: Literal["fit", "retrain"] = export.config["phase"]
        self.task: Task = rebuild(export.config["task"], Task, source, whole=True)
        if folders.names_files(self.task):
            raise UserError(f"{source} has a task that reads files, which no export has: name another")
        self.architecture: Architecture = rebuild(export.config["architecture"], Architecture, source, whole=True)
        self.window = _window(export)
        self.model = _model(export, self.task, self.architecture, self.window)
        self.certificate, stale = certificate_of(export.config, export.files)
        self.warnings: list[str] = []
        if stale is not None:
            self.warnings.append(f"Warning: the certificate in {export.path} does not hold: {stale}.")
        if export.edited:
            self.warnings.append(f"Warning: {export.path / CARD} is not the card that was exported.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.export.path)!r}, task={self.task})"

    def solve(self, problems: Sequence[str], *, attention: AttentionPath = "auto") -> list[str]:
        """Solves problems with the model's own answers, decoded step by step.

        Args:
            problems: Problems as a person writes them, such as 123+989.
            attention: dense, gathered or auto, as for `abc solve`.

        Returns:
            An answer each, as a person writes it.

        Raises:
            UserError: If a problem is not one of the task's, or the task has none that can be written.
        """
        asked = Solver.of_export(self, attention)
        return asked.answers(asked.read_all(problems))

    def check_answers(self, problems: Sequence[str], answers: Sequence[str]) -> list[bool]:
        """Whether answers are right, by the task's oracle; `solve` itself never asks it."""
        asked = Solver.of_export(self, "auto")
        pairs = zip(asked.read_all(problems), answers, strict=True)
        return [asked.right(problem, answer) for problem, answer in pairs]

    def save_pretrained(self, save_directory: Path | str, *, overwrite: bool = False) -> None:
        """Writes the export, as it was read, into another folder: whole or not at all.

        Args:
            save_directory: The folder to make.
            overwrite: Replace a folder that is an export and nothing else.

        Raises:
            UserError: If something else is there, or it cannot be written.
        """
        config = dict(self.export.config)
        sealed = config | {"hash": canonical_hash(config)}
        folders.write(Path(save_directory), sealed, self.export.files, overwrite)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the export to the Hugging Face Hub.

        Args:
            repo_id: The name there, such as user/name.
            options: Options of `ModelHubMixin.push_to_hub`, such as `private`, `token` and `commit_message`.

        Returns:
            The address of the commit.

        Raises:
            UserError: If the hub library is not installed.
        """
        return hub_class()(self.export).push_to_hub(repo_id, **options)


def from_pretrained(
    name: Path | str,
    *,
    trust: Sequence[str] | str = (),
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> PretrainedModel:
    """Loads a model that `abc export` wrote.

    Nothing that it holds is run, but for classes of modules that are trusted, and every file is compared with its hash.

    Args:
        name: Its folder, or the name of a repository on the Hugging Face Hub, such as user/name, if there is no such
            folder.
        trust: Modules or packages whose classes it may name, besides the toolkit's own.
        revision: Of a repository: the branch, tag or commit.
        cache_dir: Of a repository: where it is kept.
        token: Of a repository: the access token.
        local_files_only: Of a repository: take what was fetched before, and fetch nothing.

    Returns:
        The model, its task and its window.

    Raises:
        UserError: If there is no such export, it was changed, or it names classes that are not trusted.
    """
    with trusting(*([trust] if isinstance(trust, str) else trust)):
        if isinstance(name, Path) or Path(name).is_dir():
            found = PretrainedModel(folders.read(Path(name)))
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and ".." not in name:
            of_hub = {"revision": revision, "cache_dir": cache_dir, "token": token}
            found: PretrainedModel = hub_class().from_pretrained(name, local_files_only=local_files_only, **of_hub)
        else:
            raise UserError(f"there is no export at {name}: name a folder, or a repository on the Hub as user/name")
    for warning in found.warnings:
        console.remark(warning)
    return found


def hub_class() -> Any:
    """The class of models that the hub library fetches and uploads.

    Raises:
        UserError: If the library is not installed.
    """
    try:
        from abc_toolkit.phases.sharing.hub import HubModel
    except ImportError:
        raise UserError("models on the Hugging Face Hub need its library: pip install 'abc_toolkit[hub]'") from None
    return HubModel


def certificate_of(config: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[dict[str, Any] | None, str | None]:
    """The certificate of an export that holds, if there is one; else the reason why the one there does not, in words.

    Args:
        config: The export's configuration.
        files: Its files.
    """
    if CERTIFICATE not in files:
        return None, None
    try:
        stated = read_certificate(files[CERTIFICATE].decode())
    except ValueError as error:
        return None, " ".join(str(error).split())
    facts = {"weights": sha256(files[WEIGHTS]), "window": sha256(files[WINDOW])}
    facts |= {name: canonical_hash(config[name]) for name in ("task", "architecture")}
    for name, value in facts.items():
        if stated["hashes"].get(name) != value:
            return None, f"it is stale, being of another {name}"
    if stated["argument"] != ARGUMENT:
        return None, f"its argument is version {stated['argument']}, and this is version {ARGUMENT}"
    if stated["verdict"] != "correct":
        says = "the model is wrong" if stated["verdict"] == "wrong" else "nothing can be decided"
        return None, f"it says that {says} ({stated['reason']})"
    return stated, None


def _window(export: Export) -> Window | None:
    if WINDOW not in export.files:
        return None
    path = export.path / WINDOW
    try:
        window = Window.from_json(export.files[WINDOW].decode())
    except (WindowError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    if window.calibration != export.config["window"]:
        raise UserError(f"{path} is not the window that {CONFIG} describes: export the run anew")
    return window


def _model(export: Export, task: Task, architecture: Architecture, window: Window | None) -> Model:
    """The model with its weights.

    It is first built without memory, as an export may describe a larger model than its weights are of.
    """
    try:
        tensors = weights.parse(export.files[WEIGHTS])
        depth = architecture.num_encoder_layers + architecture.num_decoder_layers
        if depth > len(tensors):
            raise ValueError(f"it has {len(tensors)} tensors, and the model {depth} layers")
        with torch.device("meta"):
            weights.check_fit(build_model(task, architecture, window), tensors)
        model = build_model(task, architecture, window)
        weights.fill(model, tensors)
    except WindowError as error:
        raise UserError(f"{export.path / WINDOW} cannot be used: {error}") from None
    except Exception as error:  # settings of foreign origin, and classes of the user's, may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{export.path / WEIGHTS} does not hold the weights of the model described ({reason})"
        ) from None
    return model.eval()
