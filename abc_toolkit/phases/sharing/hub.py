"""Exported models on the Hugging Face Hub, by the mixin of its library. Only this module needs the library."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from abc_toolkit.errors import UserError
from abc_toolkit.phases.sharing import format as folders
from abc_toolkit.phases.sharing.format import LIBRARY, NAMES
from abc_toolkit.phases.sharing.pretrained import PretrainedModel
from abc_toolkit.runs.trust import trusting


class HubModel(  # pyright: ignore[reportIncompatibleMethodOverride] - to upload is what the mixin does
    ModelHubMixin, PretrainedModel, library_name=LIBRARY, tags=["attention-bias-calibration"]
):
    """An exported model that the hub library can fetch and upload."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Path | str, **options: Any) -> "HubModel":  # type: ignore[override]
        """Loads a folder, or a repository of the Hub.

        The mixin's own would take `config.json` as it is, before it is checked.

        Args:
            pretrained_model_name_or_path: The folder, or the name of the repository.
            options: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` as in the mixin, and
                `trust`, as in `abc_toolkit.from_pretrained`.

        Raises:
            UserError: If it cannot be fetched, or is no export that can be loaded.
        """
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, trust: Any = (), **options: Any) -> "HubModel":  # type: ignore[override]
        with trusting(*([trust] if isinstance(trust, str) else trust)):
            if Path(model_id).is_dir():
                return cls(folders.read(Path(model_id)))
            try:
                folder = Path(snapshot_download(model_id, allow_patterns=list(NAMES), **options))
            except Exception as error:  # of the library, of the network, of the disk
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"{model_id} cannot be fetched from the Hub: {reason}") from error
            # The library keeps a repository's files beside its revisions, which hold links to them.
            return cls(folders.read(folder, within=folder.parent.parent))

    def save_pretrained(self, save_directory: Path | str, *, overwrite: bool = False, **options: Any) -> str | None:  # type: ignore[override]
        """Writes the export, as it was read, into another folder: whole or not at all.

        Args:
            save_directory: The folder to make; folders that are to hold it are made too.
            overwrite: Replace a folder that is an export and nothing else.
            options: `push_to_hub`, `repo_id` and options of `push_to_hub`, as in the mixin. An export has a
                configuration and a card already, so that those that the mixin hands on are not used.

        Returns:
            The address of the commit, if it was also uploaded.
        """
        for name in ("config", "model_card_kwargs"):
            options.pop(name, None)
        push, repo_id = options.pop("push_to_hub", False), options.pop("repo_id", None)
        Path(save_directory).absolute().parent.mkdir(parents=True, exist_ok=True)
        PretrainedModel.save_pretrained(self, save_directory, overwrite=overwrite)
        return self.push_to_hub(repo_id or Path(save_directory).name, **options) if push else None
