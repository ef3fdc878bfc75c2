"""Loading exports: the library, the hub's mixin, and folders that someone else has changed."""

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.phases.sharing import format as folders
from abc_toolkit.phases.sharing import pretrained
from abc_toolkit.phases.sharing.pretrained import PretrainedModel
from abc_toolkit.runs.files import canonical_hash
from abc_toolkit.runs.folder import build_model
from abc_toolkit.tasks import Parity
from tests.phases.sharing.exports import resealed

Abc = Callable[..., tuple[int, str, str]]
OWN = """
from dataclasses import dataclass
from abc_toolkit.tasks import Parity

@dataclass(frozen=True)
class Own(Parity):
    pass
"""


def _refused(abc: Abc, *words: str) -> None:
    """`abc solve` and Python refuse the folder `shared` in the same one line."""
    status, out, err = abc("solve", "--model", "shared", "101")
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert all(word in err for word in words), err
    with pytest.raises(UserError) as raised:
        abc_toolkit.from_pretrained("shared" if Path("shared").is_dir() else Path("shared"))
    assert " ".join(str(raised.value).split()) in " ".join(err.split())


def _solves(abc: Abc, *told: str) -> None:
    status, out, err = abc("solve", "--model", "shared", "101", "10110")
    assert (status, out) == (0, "0\n1\n"), err
    assert len(err.splitlines()) == len(told), err
    assert all(text in err for text in told), err


def test_a_model_is_all_that_is_needed(shared: Path) -> None:
    model = abc_toolkit.from_pretrained("shared")
    assert model.task == Parity(max_length=3)
    assert model.phase == "retrain"
    assert model.certificate is not None
    assert model.certificate["verdict"] == "correct"
    assert model.window is not None
    assert not model.model.training
    problems = ["1" * 40, "1" * 41]
    assert model.solve(problems) == model.solve(problems, attention="gathered") == ["0", "1"]
    assert model.check_answers(problems, ["0", "0"]) == [True, False]
    assert abc_toolkit.solve(problems, model=shared) == ["0", "1"]
    assert repr(model) == "PretrainedModel('shared', task=Parity(max_length=3, form='scratchpad'))"
    with pytest.raises(UserError, match="problem 1 cannot be solved by this model"):
        model.solve(["102"])


def test_a_model_is_saved_as_it_was(shared: Path) -> None:
    model = abc_toolkit.from_pretrained(shared)
    model.save_pretrained("copy")
    assert {p.name: p.read_bytes() for p in Path("copy").iterdir()} == {
        p.name: p.read_bytes() for p in shared.iterdir()
    }
    with pytest.raises(UserError, match="copy is there already"):
        model.save_pretrained("copy")
    model.save_pretrained("copy", overwrite=True)
    assert sorted(os.listdir()) == ["copy", "shared"]


def test_the_checker_agrees_with_the_files_of_an_export(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from abc_toolkit.checker import main

    words = ["shared/certificate.json", "--weights", "shared/model.safetensors", "--window", "shared/window.json"]
    assert main(words) == 0
    assert "agrees" in capsys.readouterr().out


# What is no export, or no longer.


def test_a_place_without_an_export_is_refused(abc: Abc, shared: Path) -> None:
    shutil.rmtree(shared)
    _refused(abc, "there is no export at shared")
    shared.write_text("a file")
    _refused(abc, "there is no export at shared")
    shared.unlink()
    shared.mkdir()
    _refused(abc, "holds no config.json")
    for name in ("nowhere", "a/b/c", "../x", "a b/c", "x/.."):
        with pytest.raises(UserError, match="there is no export at"):
            abc_toolkit.from_pretrained(name)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "3", '"text"', "[" * 500, "{}", '{"format": 1}', '{"a": 1, "a": 2}', "\ufeff{}"]
)
def test_a_configuration_that_is_none_is_refused(content: str, abc: Abc, shared: Path) -> None:
    (shared / "config.json").write_text(content)
    _refused(abc, "config.json")


def test_another_format_is_refused(abc: Abc, shared: Path) -> None:
    for version in (0, 2, True, 1.5, "1", None):
        resealed(shared, lambda config, version=version: config.update(format=version))
        _refused(abc, f"is of format {version}, and this version reads format 1")
    resealed(shared, lambda config: config.update(format=1, library_name="transformers"))
    _refused(abc, "is not of this toolkit")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "window.json", "certificate.json"])
def test_a_file_that_was_changed_or_is_missing_is_refused(name: str, abc: Abc, shared: Path) -> None:
    path = shared / name
    content = path.read_bytes()
    at = content.index(b'"decoder') if b'"decoder' in content else len(content) - 9
    path.write_bytes(content[: at + 1] + bytes([content[at + 1] ^ 1]) + content[at + 2 :])
    _refused(abc, name, "was changed after the export")
    path.write_bytes(content[:-20])
    _refused(abc, name)
    path.unlink()
    _refused(abc, name)
    path.mkdir()
    _refused(abc, name, "is no file")


def test_an_edited_card_is_told_of(abc: Abc, shared: Path) -> None:
    with (shared / "README.md").open("a") as card:
        card.write("It is also certified for addition.\n")
    _solves(abc, "README.md is not the card that was exported")
    (shared / "README.md").unlink()
    _solves(abc, "README.md is not the card that was exported")


def test_files_outside_the_folder_are_not_read(abc: Abc, shared: Path) -> None:
    for name in ("window.json", "config.json"):
        shutil.move(shared / name, f"{name}.real")
        (shared / name).symlink_to(Path(f"{name}.real").resolve())
        _refused(abc, f"{name} is a link that leads out of the folder")
        (shared / name).unlink()
        (shared / name).symlink_to(name)
        _refused(abc, name)
        (shared / name).unlink()
        shutil.move(f"{name}.real", shared / name)
    (shared / "README.md").rename("README.md")
    (shared / "README.md").symlink_to("../README.md")
    _solves(abc, "README.md is not the card")
    Path("link").symlink_to("shared")  # the folder itself is the user's to name
    assert abc("solve", "--model", "link", "101")[:2] == (0, "0\n")
    for name in ("../window.json", "/etc/passwd", "sub/window.json", "weights.py"):
        config = json.loads((shared / "config.json").read_text())
        del config["hash"]
        config["files"][name] = config["files"].get("window.json")
        (shared / "config.json").write_text(json.dumps(config | {"hash": canonical_hash(config)}))
        _refused(abc, "lacks parts that an export has, or has others")
        del config["files"][name]


def test_a_certificate_of_other_weights_is_stale(abc: Abc, shared: Path) -> None:
    tensors = load_file(shared / "model.safetensors")
    tensors["unembed.weight" if "unembed.weight" in tensors else next(iter(tensors))] *= 1.01
    save_file(tensors, shared / "model.safetensors", {"format": "pt"})
    resealed(shared)
    model = abc_toolkit.from_pretrained("shared")
    assert model.certificate is None
    assert "it is stale, being of another weights" in model.warnings[0]
    assert "does not hold" in abc("solve", "--model", "shared", "101")[2]


def test_another_certificate_is_not_shown_as_holding(abc: Abc, shared: Path) -> None:
    path = shared / "certificate.json"
    stated = json.loads(path.read_text())
    hashes = stated["hashes"]
    for change, reason in (
        ({"hashes": hashes | {"window": "ab"}}, "another window"),
        ({"hashes": hashes | {"task": "ab"}}, "another task"),
        ({"hashes": {}}, "another weights"),
        ({"argument": 0}, "its argument is version 0"),
        ({"schema": 2}, "of schema 2"),
        ({"verdict": "right"}, "unknown"),
    ):
        path.write_text(json.dumps(stated | change))
        resealed(shared)
        _solves(abc, reason)
        assert abc_toolkit.from_pretrained(shared).certificate is None
    path.write_bytes(b"\xff")
    resealed(shared)
    _solves(abc, "does not hold")


def test_weights_of_another_model_are_refused(abc: Abc, shared: Path) -> None:
    path = shared / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    for change, words in (
        ({name: tensors[name][:-1].contiguous()}, f"{name} is float32 ["),
        ({name: tensors[name].double()}, f"{name} is float64"),
        ({"more": tensors[name].clone()}, "it has 'more', which the model has not"),
    ):
        save_file(tensors | change, path, {"format": "pt"})
        resealed(shared)
        _refused(abc, "model.safetensors does not hold the weights of the model described", words)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    resealed(shared)
    _refused(abc, f"it lacks '{name}'")
    path.write_bytes(b"PK\x03\x04 an archive of pickles")
    resealed(shared)
    _refused(abc, "does not hold the weights")


@pytest.mark.parametrize(
    "change",
    [{"model_dim": 2**10}, {"model_dim": 2**40}, {"num_decoder_layers": 10**12}, {"feedforward_dim": 10**30}],
    ids=str,
)
def test_a_model_larger_than_its_weights_is_refused_before_it_takes_memory(
    change: dict[str, int], abc: Abc, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: Any) -> Any:
        assert torch.empty(0).is_meta, "it takes memory"
        return build_model(*arguments)

    monkeypatch.setattr(pretrained, "build_model", build)
    resealed(shared, lambda config: config["architecture"].update(change))
    _refused(abc, "does not hold the weights of the model described")
    with pytest.raises(UserError) as raised:
        abc_toolkit.from_pretrained(shared)
    assert "it takes memory" not in str(raised.value)


def test_a_window_of_another_model_is_refused(abc: Abc, shared: Path) -> None:
    path = shared / "window.json"
    window = json.loads(path.read_text())
    for change, words in (
        ({"num_heads": window["num_heads"] + 1}, "heads"),
        ({"schema": 9}, "schema"),
        ({"rules": 3}, "wrong kind"),
        ({"calibration": {}}, "is not the window that config.json describes"),
    ):
        path.write_text(json.dumps(window | change))
        resealed(shared)
        _refused(abc, "window.json", words)


# Whose code runs.


def test_a_foreign_class_is_not_loaded_unless_it_is_trusted(abc: Abc, shared: Path) -> None:
    Path("mine_shared.py").write_text(f"open('ran', 'w').close()\n{OWN}")
    resealed(shared, lambda config: config["task"].update(class_path="mine_shared.Own"))
    _refused(abc, "names mine_shared.Own, a class that is not the toolkit's", "add --trust mine_shared")
    assert not Path("ran").exists()
    with pytest.raises(UserError, match="not the toolkit's"):
        abc_toolkit.from_pretrained("shared", trust="other")
    assert abc("solve", "--model", "shared", "--trust", "mine_shared", "101")[:2] == (0, "0\n")
    assert abc_toolkit.from_pretrained("shared", trust=["mine_shared"]).solve(["11"]) == ["0"]
    sys.modules.pop("mine_shared")


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "abc_toolkit.cli.main.main", "x"])
def test_a_class_that_is_none_of_the_contract_is_refused(path: str, abc: Abc, shared: Path) -> None:
    config = json.loads((shared / "config.json").read_text())
    for part in ("task", "position"):
        described = {"class_path": path, "init_args": {"args": "touch ran"}}
        changed = (
            {"task": described} if part == "task" else {"architecture": config["architecture"] | {part: described}}
        )
        resealed(shared, lambda own, changed=changed: own.update(config | changed) or own.pop("hash"))
        _refused(abc, "config.json")
    assert not Path("ran").exists()


def test_a_task_that_reads_files_is_not_loaded(abc: Abc, shared: Path) -> None:
    Path("text").write_text("secret")
    settings = {"path": "text", "max_length": 3, "scored": None, "held_out_path": None, "held_out_share": 0.1}
    described = {"class_path": "abc_toolkit.tasks.LanguageModel", "init_args": settings | {"vocabulary": None}}
    resealed(shared, lambda config: config.update(task=described))
    _refused(abc, "reads files")


# Anything at all in the configuration.

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**40)
    | st.floats(allow_nan=True)
    | st.sampled_from(
        ("", "x", "../x", "fit", "retrain", "os.system", "abc_toolkit.tasks.Addition", "abc_toolkit.positions.RoPE")
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(("class_path", "init_args", "max_length", "a")), inner, max_size=2)
    ),
    max_leaves=4,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _places(item, (*path, key))
    return found


@given(data=st.data())
def test_mutated_configurations_load_or_are_refused(data: Any, certified_once: tuple[Path, Path]) -> None:
    original = folders.read(certified_once[1])
    config = copy.deepcopy(dict(original.config))
    for _ in range(data.draw(st.integers(1, 2))):
        places = _places({name: config[name] for name in config if name != "files"})
        *path, last = data.draw(st.sampled_from(places or [("task",)]))
        inner: Any = config
        for key in path:
            inner = inner[key]
        how = data.draw(st.sampled_from(("value", "gone", "more")))
        if how == "value":
            inner[last] = data.draw(VALUES)
        elif how == "gone":
            inner.pop(last)
        elif isinstance(inner, dict):
            inner[data.draw(st.sampled_from(("class_path", "files", "x", "savings")))] = data.draw(VALUES)
    folder = certified_once[1].parent / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(certified_once[1], folder)
    (folder / "config.json").write_text(json.dumps(config | {"hash": canonical_hash(config)}))
    with suppress(UserError):
        PretrainedModel(folders.read(folder)).solve(["101"])


@given(cut=st.integers(0, 4000), byte=st.integers(0, 255), remove=st.integers(0, 3))
def test_spoilt_bytes_are_refused(cut: int, byte: int, remove: int, certified_once: tuple[Path, Path]) -> None:
    folder = certified_once[1].parent / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(certified_once[1], folder)
    path = folder / "config.json"
    content = path.read_bytes()
    cut %= len(content) - 4
    path.write_bytes(content[:cut] + bytes([byte]) + content[cut + remove :])
    try:
        found = folders.read(folder)
    except UserError:
        return
    assert found.config == folders.read(certified_once[1]).config  # white space, or the same byte


# The hub.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """The hub library with a cache as it makes one, and no network."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub library is not installed")
    from abc_toolkit.phases.sharing import hub

    calls: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        if name != "user/parity":
            raise huggingface_hub.errors.HfHubHTTPError("404 Client Error:\nnot found", response=_Response())
        cache = tmp_path / "models--user--parity"
        (cache / "blobs").mkdir(parents=True, exist_ok=True)
        revision = cache / "snapshots" / "abc"
        revision.mkdir(parents=True, exist_ok=True)
        for path in Path("shared").iterdir():
            if not (revision / path.name).exists():
                shutil.copy(path, cache / "blobs" / path.name)
                (revision / path.name).symlink_to(Path("..", "..", "blobs", path.name))
        return str(revision)

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, **options: Any) -> Any:
            calls.append({"created": options["repo_id"]})
            return type("Repository", (), {"repo_id": options["repo_id"]})

        def upload_folder(self, **options: Any) -> str:
            shutil.copytree(options["folder_path"], "uploaded")
            calls.append({"uploaded": options["repo_id"], "message": options["commit_message"]})
            return "https://hub/commit"

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    return calls


class _Response:
    headers: dict[str, str] = {}  # noqa: RUF012
    request = None
    status_code = 404


def test_a_model_comes_from_the_hub_and_goes_there(hub: list[dict[str, Any]], shared: Path) -> None:
    local = abc_toolkit.from_pretrained("shared")
    assert not hub
    model = abc_toolkit.from_pretrained("user/parity", revision="abc", token="secret", local_files_only=True)
    asked = hub.pop()
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == ("user/parity", "abc", True)
    assert set(asked["allow_patterns"]) == set(folders.NAMES)
    assert model.solve(["101"]) == ["0"]
    assert model.certificate == local.certificate
    for each in (local, model):
        shutil.rmtree("uploaded", ignore_errors=True)
        assert each.push_to_hub("user/other", commit_message="first") == "https://hub/commit"
        assert hub == [{"created": "user/other"}, {"uploaded": "user/other", "message": "first"}]
        hub.clear()
        uploaded = {path.name: path.read_bytes() for path in Path("uploaded").iterdir()}
        assert uploaded == {path.name: path.read_bytes() for path in shared.iterdir()}


def test_the_mixin_loads_and_saves_a_folder(hub: list[dict[str, Any]], shared: Path) -> None:
    from huggingface_hub import ModelCard, ModelHubMixin

    from abc_toolkit.phases.sharing.hub import HubModel

    model = HubModel.from_pretrained("shared")
    assert isinstance(model, ModelHubMixin)
    assert isinstance(model, PretrainedModel)
    model.save_pretrained("deep/copy", push_to_hub=True, repo_id="user/copy")
    assert {path.name for path in Path("deep/copy").iterdir()} == {path.name for path in shared.iterdir()}
    assert hub[-1]["uploaded"] == "user/copy"
    card = ModelCard.load(shared / "README.md")
    assert card.data.library_name == "abc_toolkit"
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_type == "exact_match"
    (shared / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not of this toolkit"):
        HubModel.from_pretrained("shared")


def test_what_cannot_be_fetched_is_refused(hub: list[dict[str, Any]], shared: Path) -> None:
    with pytest.raises(UserError, match=r"user/nosuch cannot be fetched from the Hub: .*404") as raised:
        abc_toolkit.from_pretrained("user/nosuch")
    assert "\n" not in str(raised.value)
    (shared / "window.json").write_text("{}")
    with pytest.raises(UserError, match=r"window\.json was changed after the export"):
        abc_toolkit.from_pretrained("user/parity")


def test_without_the_hub_library_folders_are_loaded_and_names_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "abc_toolkit.phases.sharing.hub", raising=False)
    model = abc_toolkit.from_pretrained("shared")
    assert model.solve(["101"]) == ["0"]
    for call in (lambda: abc_toolkit.from_pretrained("user/parity"), lambda: model.push_to_hub("user/parity")):
        with pytest.raises(UserError, match=r"need its library: pip install 'abc_toolkit\[hub\]'"):
            call()
