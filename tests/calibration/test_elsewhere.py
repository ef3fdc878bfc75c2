"""Calibration of maps from elsewhere: a run that begins without a fit, and files that are no such maps."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from abc_toolkit.calibration import AttentionMaps
from abc_toolkit.models.base import prefix_of
from abc_toolkit.runs.files import save_tensors
from abc_toolkit.tasks import Parity, Shape
from abc_toolkit.windows.rules import Window

Abc = Callable[..., tuple[int, str, str]]
TASK = Parity(max_length=3)
OWN = Path("runs", "parity")
ROOT = Path(__file__).parent.parent.parent
NAMES_OF_README = {"AttentionMaps": AttentionMaps, "prefix_of": prefix_of}
OPTIONS = ("--task", "Parity", "--task.max_length", "3")


def ideal(shape: Shape, heads: int = 2) -> Tensor:
    """Attention of a model of one string: each digit's query attends to its bit in head 0, all else evenly."""
    source, target = TASK.num_tokens(shape)
    weights = torch.ones(heads, source + target, source + target).tril()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    for place in range(source):
        weights[0, source + place] = 0
        weights[0, source + place, source - 1 - place] = 1
    return weights


def tensors(change: Callable[[Tensor], Tensor] = lambda weights: weights, name: str = "decoder.0") -> dict[str, Tensor]:
    return {f"{shape[0]}/{name}": change(ideal(shape)) for shape in TASK.training_shapes()}


def write(path: Path, named: Mapping[str, Tensor], solved: Mapping[str, int] | None = None) -> None:
    counts = {name.partition("/")[0]: 8 for name in named} if solved is None else solved
    save_tensors(path, {name: part.contiguous() for name, part in named.items()}, {"solved": json.dumps(counts)})


def test_a_run_that_begins_with_maps_is_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abc: Abc) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("maps.safetensors"), tensors())
    status, _, error = abc("calibrate", "--maps", "maps.safetensors", *OPTIONS)
    assert (status, f"Next:  abc retrain --run {OWN}" in error) == (0, True)
    window = Window.load(OWN / "calibrate/window.json")
    assert (window.backbone, window.num_heads, window.num_decoder_layers) == ("decoder-only", 2, 1)
    sizes = ("--model.model_dim", "32", "--model.feedforward_dim", "64", "--stopping.decay_steps", "50")
    assert abc("retrain", *sizes)[0] == 0
    status, said, _ = abc("certify")
    assert (status, "correct at every length" in said) == (0, True)
    status, said, _ = abc("evaluate", "--samples", "20")
    assert (status, "vanilla" in said, "retrained" in said) == (0, False, True)
    assert abc("solve", "--check", "1011")[:2] == (0, "1\tright\n")
    record = json.loads((OWN / "calibrate/record.json").read_text())
    assert record["model"]["backbone"] == "decoder-only"
    # Another file for the same run makes what was trained inside the old window stale.
    write(Path("other.safetensors"), tensors(lambda weights: weights.flip(0)))
    status, _, error = abc("calibrate", "--maps", "other.safetensors", *OPTIONS)
    assert (status, error.count("\n")) == (2, 1)
    assert abc("calibrate", "--maps", "other.safetensors", *OPTIONS, "--overwrite")[0] == 0
    assert "stale" in abc("evaluate", "--samples", "5", "--overwrite")[2]


def shapes_beyond() -> dict[str, Tensor]:
    return tensors() | {"4/decoder.0": ideal((4,))}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "is not a whole file of attention maps"),
        (tensors(name="decoder.1"), "holds the maps decoder.1: name them by site and layer"),
        (tensors(name="self.0"), "holds the maps self.0: name them by site and layer"),
        (tensors(name="cross.0"), "holds the maps cross.0: name them by site and layer"),
        (tensors(lambda weights: weights[:, :-1]), "and parity has 3 queries and 3 keys there"),
        (tensors(lambda weights: weights[0]), "and parity has 3 queries and 3 keys there"),
        (tensors(lambda weights: weights - 0.5), "holds no attention weights"),
        (tensors(lambda weights: weights * 2), "holds no attention weights"),
        (tensors(lambda weights: weights / 0), "holds no attention weights"),
        (tensors() | {"2/decoder.0": ideal((2,), 3)}, "holds maps of 2 and 3 heads"),
        (shapes_beyond(), "holds maps of the shape 4, which is none of parity up to max_length 3"),
        (tensors(lambda weights: weights * 0 + torch.eye(weights.shape[-1])), "the window is not sufficient"),
    ],
)
def test_files_that_are_no_such_maps_are_refused_in_one_line(
    named: dict[str, Tensor], message: str, tmp_path: Path, abc: Abc
) -> None:
    path = tmp_path / "maps.safetensors"
    write(path, named)
    lines = () if "sufficient" not in message else ("--method.complete", "false")
    status, _, error = abc("calibrate", "--maps", str(path), *OPTIONS, "--run", str(tmp_path / "own"), *lines)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "own" / "calibrate").exists()


def test_maps_do_not_go_with_a_fit_nor_with_a_task_of_another_run(pipeline: Path, tmp_path: Path, abc: Abc) -> None:
    path = tmp_path / "maps.safetensors"
    write(path, tensors())
    for words, message in (
        (("--maps", str(path), *OPTIONS), "has a fit of its own: name another folder with --run"),
        (("--task", "Copy", "--overwrite"), "name another folder with --run"),
        (("--maps", str(tmp_path / "none"), "--run", str(tmp_path / "x")), "is not a whole file of attention maps"),
    ):
        run = () if "--run" in words else ("--run", str(pipeline))
        status, _, error = abc("calibrate", *words, *run)
        assert (status, error.count("\n")) == (2, 1)
        assert message in error


@pytest.mark.slow
def test_the_readme_calibrates_a_gpt2_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abc: Abc
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    task, generator = Parity(max_length=4), torch.Generator().manual_seed(0)
    sizes = {"n_positions": 9, "n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
    dropped = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(vocab_size=4, attn_implementation="eager", **sizes, **dropped)
    gpt2 = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(gpt2.parameters(), 3e-3)
    for step in range(500):
        problems = task.sample(generator, 64, (1 + step % 4,))
        string = torch.cat([problems.source, prefix_of(problems.target)], dim=1)
        logits = gpt2(string).logits[:, problems.source.shape[1] :]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(lines[0], {"task": task, "gpt2": gpt2, "torch": torch, "Path": Path, **NAMES_OF_README})
    run = ("--run", str(tmp_path / "own"))
    words = ("--maps", "maps.safetensors", "--task", "Parity", "--task.max_length", "4")
    assert abc("calibrate", *words, *run)[0] == 0
    assert abc("retrain", *run)[0] == 0
    status, said, _ = abc("certify", *run)
    assert (status, "correct at every length" in said) == (0, True)
