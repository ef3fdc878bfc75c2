"""`abc export`: what it writes, that it is there whole or not at all, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.phases.sharing import format as folders
from abc_toolkit.phases.sharing.card import write_card
from abc_toolkit.phases.sharing.pretrained import from_pretrained
from abc_toolkit.positions import FIRE
from abc_toolkit.proof.certificate import _FACTS
from abc_toolkit.runs.files import sha256
from abc_toolkit.runs.folder import Run
from abc_toolkit.tasks import Addition, LinearRegression, Parity, Task
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings
from tests.small_runs import resealed

Abc = Callable[..., tuple[int, str, str]]
FILES = {"README.md", "certificate.json", "config.json", "model.safetensors", "window.json"}


def _refused(answer: tuple[int, str, str], *words: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert all(word in err for word in words), err


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _head(folder: Path) -> dict[str, Any]:
    _, head, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head)


def test_a_run_is_exported_and_the_export_solves_without_it(abc: Abc, certified: Path) -> None:
    problems = ("101", "1101001", "1" * 50)
    expected = abc("solve", "--run", str(certified), *problems)
    assert expected[0] == 0
    before = _contents(certified)
    status, out, err = abc("export", str(certified), "shared")
    assert (status, out) == (0, "")
    assert "abc solve --model shared" in err
    assert _contents(certified) == before
    assert {path.name for path in Path("shared").iterdir()} == FILES
    assert Path("shared/model.safetensors").read_bytes() == (certified / "retrain/weights.safetensors").read_bytes()
    assert Path("shared/certificate.json").read_bytes() == (certified / "certify/certificate.json").read_bytes()
    shutil.rmtree("runs")
    Path("elsewhere").mkdir()
    shutil.move("shared", "elsewhere/model")
    assert abc("solve", "--model", "elsewhere/model", *problems) == expected
    _, checked, _ = abc("solve", "--model", "elsewhere/model", "--check", *problems)
    assert [line.split("\t")[1] for line in checked.splitlines()] == ["right"] * 3
    assert {path.name for path in Path().iterdir()} == {"elsewhere"}


def test_the_newest_run_is_exported_where_none_is_named(abc: Abc, certified: Path) -> None:
    for words in (("one",), ("two", "--run", str(certified)), (str(certified), "three")):
        assert abc("export", *words)[0] == 0
    assert len({sha256(Path(name, "config.json")) for name in ("one", "two", "three")}) == 1


def test_what_is_described_is_what_the_run_recorded(certified: Path) -> None:
    abc_toolkit.export(Path("shared"), run=certified, license="apache-2.0")
    config = json.loads(Path("shared/config.json").read_text())
    record = Run(certified).record("retrain")
    assert (config["task"], config["architecture"]) == (record["task"], record["model"])
    assert config["window"]["class_path"] == "abc_toolkit.calibration.lines.Places"
    assert config["training"]["seed"] == record["seed"]
    assert config["files"] == {name: sha256(Path("shared", name)) for name in FILES - {"config.json"}}
    card, head = Path("shared/README.md").read_text(), _head(Path("shared"))
    assert head["library_name"] == "abc_toolkit"
    assert head["license"] == "apache-2.0"
    assert {"parity", "certified"} <= set(head["tags"])
    rows = [row for row in json.loads((certified / "evaluate/results.json").read_text()) if row["weights"] == "retrain"]
    results = head["model-index"][0]["results"]
    assert [result["metrics"][0]["value"] for result in results] == [row["value"] for row in rows]
    assert "16 problems" in results[0]["metrics"][0]["name"]
    stated = json.loads(Path("shared/certificate.json").read_text())
    assert all(assumption in card for assumption in stated["assumptions"])
    assert str(certified) not in card
    problem = card.partition("model.solve([")[2].partition("]")[0]
    assert from_pretrained(Path("shared")).solve([json.loads(problem)])


def test_the_settings_in_the_card_are_those_of_the_training(abc: Abc, certified: Path) -> None:
    abc_toolkit.export(Path("shared"), run=certified)
    card = Path("shared/README.md").read_text()
    Path("settings.yaml").write_text(card.partition("```yaml\n")[2].partition("```")[0])
    for phase in ("fit", "calibrate", "retrain"):
        assert f"abc {phase} --config settings.yaml" in card
        status, out, err = abc(phase, "--config", "settings.yaml", "--print_config")
        assert status == 0, err
        printed, recorded = yaml.safe_load(out), Run(certified).record(phase)["arguments"]
        assert printed["seed" if "seed" in recorded else "problems"] == recorded.get("seed", recorded.get("problems"))
        for group in ("data", "optimizer", "stopping", "trainer"):
            assert printed.get(group) == recorded.get(group), (phase, group)


def test_the_vanilla_model_is_exported_by_name(abc: Abc, certified: Path) -> None:
    assert abc("export", "shared", "--weights", "fit")[0] == 0
    assert {path.name for path in Path("shared").iterdir()} == FILES - {"certificate.json", "window.json"}
    assert "certified" not in _head(Path("shared"))["tags"]
    assert "the vanilla model has none" in Path("shared/README.md").read_text()
    for weights in ((), ("--weights", "fit")):
        assert abc("solve", "--model", "shared", *weights, "101") == abc("solve", "--weights", "fit", "101")
    _refused(abc("solve", "--model", "shared", "--weights", "retrain", "101"), "--weights retrain", "'fit'")
    _refused(abc("solve", "--model", "shared", "--run", "runs/parity", "101"), "--model shared", "give one")
    gathered = abc("solve", "--model", "shared", "--attention", "gathered", "101")
    _refused(gathered, "--attention gathered", "the model in shared", "no window")


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        (Addition(max_length=2), {}),
        (Addition(max_length=2, base=16), {"num_encoder_layers": 1}),
        (Parity(max_length=3), {"backbone": "decoder-only"}),
        (Addition(max_length=2), {"position": FIRE()}),
        (LinearRegression(max_length=3, dim=2), {"block": "llama"}),
    ],
    ids=["addition", "base 16", "decoder-only", "FIRE", "in context"],
)
def test_logits_are_bit_for_bit_those_of_the_run(task: Task, sizes: dict[str, Any], tmp_path: Path) -> None:
    trainer = TrainerSettings(max_steps=2, validate_every=2, accelerator="cpu", progress_bar=False)
    model = Architecture(model_dim=16, feedforward_dim=16, num_heads=2, **sizes)
    settings: dict[str, Any] = {"trainer": trainer, "data": Data(batch_size=8, validation_problems=8)}
    run = tmp_path / "run"
    abc_toolkit.fit(task, run=run, model=model, stopping=Stopping(1.0, 0.0), **settings)
    own = Run(run).load_model("fit")
    export = abc_toolkit.export(tmp_path / "shared", run=run, weights="fit")
    shutil.rmtree(run)
    found = from_pretrained(export)
    assert found.task == task
    assert found.architecture == model.for_task(task.interface.decoded)
    assert own.state_dict().keys() == found.model.state_dict().keys()
    shape = task.training_shapes()[-1]
    batch = task.sample(torch.Generator().manual_seed(1), 16, shape)
    with torch.no_grad():
        logits = [predict(each, batch, task.layout(shape)) for each in (own, found.model)]
    assert torch.equal(*logits)
    assert logits[0].isfinite().all()


def test_a_model_inside_a_window_is_bit_for_bit_that_of_the_run(certified: Path) -> None:
    export = abc_toolkit.export(Path("shared"), run=certified)
    found, run = from_pretrained(export), Run(certified)
    own, task = run.load_model("retrain"), found.task
    assert found.window == run.window()
    for length in (3, 17):
        batch = task.sample(torch.Generator().manual_seed(1), 16, (length,))
        with torch.no_grad():
            logits = [predict(each, batch, task.layout((length,))) for each in (own, found.model)]
        assert torch.equal(*logits)


# Certificates.


def test_a_certificate_that_does_not_hold_is_left_out_and_the_card_says_why(abc: Abc, certified: Path) -> None:
    folder = certified / "certify"
    stated = json.loads((folder / "certificate.json").read_text())
    facts = {name: stated[name] for name in _FACTS}
    for verdict, words in (("wrong", "the model is wrong (11 makes 0)"), ("undecided", "nothing can be decided (11 m")):
        (folder / "certificate.json").write_text(json.dumps(facts | {"verdict": verdict, "reason": "11 makes 0"}))
        resealed(folder)
        status, _, err = abc("export", f"shared {verdict}")
        assert status == 0
        assert words in err
        shared = Path(f"shared {verdict}")
        assert words in (shared / "README.md").read_text()
        assert not (shared / "certificate.json").exists()
        assert "certified" not in _head(shared)["tags"]
        assert from_pretrained(shared).certificate is None


def test_a_stale_certificate_is_left_out(abc: Abc, certified: Path) -> None:
    shutil.copy(certified / "fit/weights.safetensors", certified / "retrain/weights.safetensors")
    resealed(certified / "retrain")
    status, _, err = abc("export", "shared")
    assert status == 0
    assert "is stale" in err
    assert not Path("shared/certificate.json").exists()
    assert "is stale" in Path("shared/README.md").read_text()
    assert "model-index" not in _head(Path("shared"))  # the evaluation is of the other weights too


# What is refused.


@pytest.mark.parametrize("damaged", ["weights.safetensors", "window.json", "record.json", "training.json"])
def test_a_run_that_was_changed_is_refused(damaged: str, abc: Abc, pipeline: Path) -> None:
    path = pipeline / "retrain" / damaged
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    _refused(abc("export", "shared"), damaged)
    assert os.listdir() == ["runs"]


def test_an_evaluation_or_a_certificate_that_was_changed_is_refused(abc: Abc, certified: Path) -> None:
    for phase, name in (("evaluate", "results.json"), ("certify", "certificate.json")):
        path = certified / phase / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        _refused(abc("export", "shared"), name, "was changed")
        path.write_bytes(content)
    results = certified / "evaluate/results.json"
    rows = json.loads(results.read_text())
    for other in ({}, [3], [{"weights": "retrain"}], [rows[0] | {"samples": "many"}]):
        results.write_text(json.dumps(other))
        resealed(certified / "evaluate")
        _refused(abc("export", "shared"), "holds no rows of an evaluation")
    assert not Path("shared").exists()


def test_what_is_not_finished_is_refused(abc: Abc, pipeline: Path) -> None:
    shutil.rmtree(pipeline / "retrain")
    _refused(abc("export", "shared"), "no finished 'retrain'", "abc retrain --run")
    shutil.move(pipeline / "fit", pipeline / ".fit.partial")
    (pipeline / ".fit.partial/progress.ckpt").touch()
    _refused(abc("export", "shared", "--weights", "fit"), "interrupted", "--resume")
    assert os.listdir() == ["runs"]


def test_a_task_that_reads_files_is_refused(abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("the cat sat on the mat. " * 40)
    words = ["--task", "LanguageModel", "--task.path", "text", "--task.max_length", "8", "--model.model_dim", "16"]
    trainer = ["--trainer.max_steps", "2", "--trainer.validate_every", "2", "--data.validation_problems", "4"]
    assert abc("fit", "--run", "run", *words, *trainer)[0] == 0
    _refused(abc("export", "run", "shared", "--weights", "fit"), "reads files")
    assert not Path("shared").exists()


def test_only_an_export_is_replaced(abc: Abc, certified: Path) -> None:
    assert abc("export", "shared", "--weights", "fit")[0] == 0
    before = _contents(Path("shared"))
    _refused(abc("export", "shared"), "is there already", "--overwrite")
    for name, content in (("notes.txt", b"mine"), (".git", None)):
        path = Path("shared", name)
        path.mkdir() if content is None else path.write_bytes(content)
        _refused(abc("export", "shared", "--overwrite"), "is not replaced", f"also holds {name}")
        path.rmdir() if content is None else path.unlink()
    Path("link").symlink_to("shared")
    Path("broken").symlink_to("nowhere")
    Path("empty").mkdir()
    for name in ("link", "broken", "empty", "runs", "runs/parity"):
        _refused(abc("export", name, "--overwrite"), f"{name} is not replaced")
    assert _contents(Path("shared")) == before
    assert abc("export", "shared", "--overwrite")[0] == 0
    assert {path.name for path in Path("shared").iterdir()} == FILES
    assert sorted(os.listdir()) == ["broken", "empty", "link", "runs", "shared"]


def test_an_interrupted_export_leaves_nothing(abc: Abc, certified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "flush", interrupt)
    assert abc("export", "shared")[0] == 130
    assert os.listdir() == ["runs"]


def test_a_full_disk_leaves_what_was_there(abc: Abc, certified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert abc("export", "shared", "--weights", "fit")[0] == 0
    before = _contents(Path())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "flush", full)
    _refused(abc("export", "shared", "--overwrite"), "No space left on device")
    assert _contents(Path()) == before
    assert sorted(os.listdir()) == ["runs", "shared"]


KILLED = """
import os, signal, sys
from pathlib import Path
from abc_toolkit.phases.sharing import format

calls = 0
def killing(own, last):
    def called(*arguments, **options):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*arguments, **options)
    return called

files = {"README.md": b"new", "model.safetensors": b"new"}
config = format.sealed({"phase": "fit", "task": {}, "architecture": {}, "window": None, "training": {},
                        "versions": {}}, files)
base = Path(sys.argv[1])
for last in range(1, 20):
    for kind in ("empty", "full"):
        folder = base / f"{kind} {last}"
        folder.mkdir()
        if kind == "full":
            format.write(folder / "shared", config, files | {"README.md": b"old"})
        child = os.fork()
        if not child:
            for owner, name in ((Path, "write_bytes"), (Path, "mkdir"), (os, "replace"), (format, "flush"),
                                (format, "save_json"), (format.shutil, "rmtree")):
                setattr(owner, name, killing(getattr(owner, name), last))
            format.write(folder / "shared", config, files, overwrite=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), folder, flush=True)
"""


def test_a_killed_export_leaves_all_of_it_or_nothing_and_the_next_one_repairs(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    killed = between = 0
    for line in done.stdout.splitlines():
        status, path = line.split(" ", 1)
        folder = Path(path)
        killed += status == "-9"
        found = folder / "shared"
        whole = {"README.md", "config.json", "model.safetensors"}
        assert not found.exists() or {file.name for file in found.iterdir()} == whole, path
        old = folder.name.startswith("full") and not found.exists()
        files = {"README.md": b"newer", "model.safetensors": b"newer"}
        config = folders.sealed({"phase": "fit"}, files)
        if old:  # killed between its two renamings: what was there comes back, and is not replaced unasked
            between += 1
            with pytest.raises(UserError, match="is there already"):
                folders.write(found, config, files)
            assert (found / "README.md").read_bytes() == b"old"
        folders.write(found, config, files, overwrite=True)
        assert [file.name for file in folder.iterdir()] == ["shared"], path
        assert (found / "README.md").read_bytes() == b"newer"
    assert between == 1
    assert 20 < killed < len(done.stdout.splitlines())


def test_a_card_of_what_no_evaluation_saw(tmp_path: Path) -> None:
    config: dict[str, Any] = {"phase": "fit", "task": {"class_path": "x.Y"}, "window": None, "versions": {}}
    config["training"] = {"settings": {"fit": {}}, "seed": 3, "results": {}}
    card = write_card(Parity(), config, [], None, "no proof was tried", None)
    assert "The export has no evaluation of this model." in card
    assert "Nothing: no proof was tried." in card
    assert "license" not in card
