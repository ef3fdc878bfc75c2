"""What a user adds lives outside the package: a position method, named by class path on the command line."""

import io
import json
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.positions import NoPE, PositionMethod
from abc_toolkit.runs.folder import Run, build_model
from abc_toolkit.tasks import Parity

Abc = Callable[..., tuple[int, str, str]]

OWN_POSITION = Path(__file__).parent.parent / "experiments" / "own_position"
# The most lines of code, without imports, that docs/own_position.md gives for a method.
LINES = {"Fading": 8, "Scaled": 12}
SOURCES = {name: (OWN_POSITION / f"{name.lower()}.py").read_text() for name in LINES}
SETTINGS = {"Fading": {"capacity": 8}, "Scaled": {"start": 0.5}}


def lines_of_code(source: str) -> int:
    """Lines that hold code other than imports: no comments, no docstrings, nothing blank."""
    lines, statement = set(), []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if statement and statement[0].type != tokenize.STRING and statement[0].string not in ("from", "import"):
                lines |= {line for part in statement for line in range(part.start[0], part.end[0] + 1)}
            statement = []
        elif token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            statement.append(token)
    return len(lines)


@pytest.fixture(params=SOURCES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's with the method, which Python finds and the package knows nothing of."""
    module = f"my_{name.lower()}"
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / f"{module}.py").write_text(SOURCES[name])
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    yield module
    sys.modules.pop(module, None)


def configured(path: Path, class_path: str, settings: dict[str, object]) -> str:
    """A configuration of a tiny model with the method."""
    position = {"class_path": class_path, "init_args": settings}
    sizes = {"num_encoder_layers": 1, "model_dim": 16, "num_heads": 2, "feedforward_dim": 16}
    fit = {
        "model": sizes | {"position": position},
        "data": {"validation_problems": 8},
        "trainer": {"max_steps": 8, "validate_every": 4, "accelerator": "cpu"},
    }
    path.write_text(yaml.safe_dump({"task": {"class_path": "Parity", "init_args": {"max_length": 3}}, "fit": fit}))
    return str(path)


def test_a_method_is_trained_recorded_and_loaded_by_its_class_path(
    name: str, module: str, abc: Abc, tmp_path: Path
) -> None:
    config = configured(tmp_path / "mine.yaml", f"{module}.{name}", SETTINGS[name])
    status, _, err = abc("fit", "--config", config)
    assert status == 0, err
    run = Path("runs", "parity")
    described = {"class_path": f"{module}.{name}", "init_args": SETTINGS[name]}
    assert json.loads((run / "fit" / "record.json").read_text())["model"]["position"] == described

    sys.modules.pop(module)  # as in a process that has not met it
    evaluate = ("evaluate", "--length", "2x", "--samples", "8", "--sets", "uniform")
    status, _, err = abc(*evaluate)
    assert status == 2
    assert f"fit/record.json names {module}.{name}, a class that is not the toolkit's" in err
    assert f"add --trust {module} " in err
    assert module not in sys.modules
    status, _, err = abc(*evaluate, "--trust", module)
    assert status == 0, err
    (row,) = json.loads((run / "evaluate" / "results.json").read_text())
    assert (row["length"], row["samples"]) == (6, 8)

    model = Run(run).load_model("fit")
    assert (type(model.position).__module__, type(model.position).__name__) == (module, name)
    assert {field: getattr(model.position, field) for field in SETTINGS[name]} == SETTINGS[name]
    slopes = [tensor for key, tensor in load_file(run / "fit" / "weights.safetensors").items() if "slope" in key]
    assert [tuple(slope.shape) for slope in slopes] == [(2, 1, 1)] * (3 if name == "Scaled" else 0)
    assert all((slope != 0.5).all() for slope in slopes)  # of the encoder, the decoder and cross-attention: trained

    status, _, err = abc("fit", "--config", str(run / "fit" / "config.yaml"), "--run", "again")
    assert status == 0, err
    weights = (Path(folder, "fit", "weights.safetensors").read_bytes() for folder in (run, "again"))
    assert len(set(weights)) == 1


def test_classes_are_found_in_the_current_folder(abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", ".", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    Path("beside.py").write_text(SOURCES["Fading"])
    path, finders = list(sys.path), list(sys.meta_path)
    config = configured(tmp_path / "mine.yaml", "beside.Fading", {"capacity": 8})
    for words in (("fit", "--config", config), ("solve", "--weights", "fit", "--trust", "beside", "1")):
        status, _, err = abc(*words)
        sys.modules.pop("beside")
        assert status == 0, err
    assert (sys.path, sys.meta_path) == (path, finders)


def test_it_does_what_it_says(name: str, module: str) -> None:
    method = vars(__import__(module))[name](**SETTINGS[name])
    assert isinstance(method, PositionMethod)
    task = Parity(max_length=3)
    problems = task.sample(torch.Generator().manual_seed(0), 4, (3,))
    outputs = []
    for position in (method, NoPE()):
        torch.manual_seed(0)
        model = build_model(task, Architecture(1, 1, 16, 2, 16, position=position), None).eval()
        outputs.append(predict(model, problems, task.layout((3,))))
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


def test_it_is_as_short_as_the_documentation_says(name: str) -> None:
    assert lines_of_code(SOURCES[name]) <= LINES[name]


def test_lines_of_code_are_those_that_do_something() -> None:
    source = '"""A.\n\nB."""\nimport os\n\n# c\nclass D:\n    """E."""\n    f = (\n        1,  # g\n        2,\n    )\n'
    assert lines_of_code(source) == 5
