"""What a user may get wrong of position methods: one line each that names it, and nothing is written."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from abc_toolkit import positions
from abc_toolkit.errors import UserError
from abc_toolkit.layout import digit_layout
from abc_toolkit.positions import (
    DAPE,
    FIRE,
    Abacus,
    AlgebraicPE,
    ALiBi,
    Compose,
    CoPE,
    DAPEv2,
    DynamicYaRN,
    KerpleLog,
    Learned,
    ModelSizes,
    NoPE,
    PositionCoupling,
    PositionMethod,
    RandomizedPositions,
    RoPE,
    ShawRelative,
    Sinusoidal,
    T5RelativeBias,
    TransformerXLBias,
    WindowedBias,
    YaRN,
)
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.folder import Run
from abc_toolkit.testing.discovery import subclasses

Abc = Callable[..., tuple[int, str, str]]
TINY = (
    *("--task", "Addition", "--task.max_length", "2", "--trainer.max_steps", "2", "--trainer.validate_every", "2"),
    *("--trainer.accelerator", "cpu", "--data.validation_problems", "8"),
    *("--model.model_dim", "24", "--model.feedforward_dim", "16"),
)
ODD = ("--model.num_heads", "8")  # so that a head is 3 wide
OUTSIDE = """
from abc_toolkit.positions import PositionMethod

class Plain(PositionMethod):
    pass
"""


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Checks that a command ended with one line that has the words, in their order."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert word in err, err
        err = err.partition(word)[2]


def named(name: str, **settings: Any) -> dict[str, Any]:
    """A method as a configuration has it."""
    return {"class_path": name, "init_args": settings}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fit(abc: Abc) -> Callable[..., tuple[int, str, str]]:
    """`abc fit` of a tiny model with a method as a configuration has it; it must leave nothing behind."""

    def run(position: Any, *words: str) -> tuple[int, str, str]:
        Path("c.yaml").write_text(yaml.safe_dump({"fit": {"model": {"position": position}}}))
        result = abc("fit", *TINY, *words, "--config", "c.yaml")
        Path("c.yaml").unlink()
        assert result[0] == 0 or not list(Path().iterdir())
        return result

    return run


@pytest.mark.parametrize(
    ("position", "words", "message"),
    [
        *(
            (name, ODD, (f"{name} needs an even number of channels", "has 3", "num_heads"))
            for name in ("RoPE", "YaRN", "DynamicYaRN")
        ),
        (named("RoPE", fraction=0), (), ("RoPE needs an even number of channels", "has 0", "fraction")),
        (named("AlgebraicPE", structure="grid"), ODD, ("of a grid needs an even head width", "has 3", "num_heads")),
        ("AlgebraicPE", ("--model.num_heads", "24"), ("needs a head width of at least 2", "has 1", "num_heads")),
        (named("AlgebraicPE", structure="tree"), (), ("needs the coordinate path", "choose the structure sequence")),
        ("TreePE", (), ("needs the coordinate 'path'", "choose another position method")),
        (named("TreePE", depth=20), (), ("needs a model_dim of depth times branching, 40", "has 24")),
        # names
        ("rope", (), ("--model.position rope does not exist: choose from ALiBi", "did you mean RoPE?")),
        (named("abc_toolkit.positions.Alibi"), (), ("Alibi does not exist", "did you mean ALiBi?")),
        (named("abc_toolkit.positions.biase.Alibi"), (), ("Alibi does not exist", "did you mean ALiBi?")),
        (named("nowhere.Mine"), (), ("--model.position: nowhere.Mine: No module named 'nowhere'", "PYTHONPATH")),
        (
            named("abc_toolkit.tasks.Parity"),
            (),
            ("Import path abc_toolkit.tasks.Parity", "PositionMethod (see abc fit"),
        ),
        ("abc_toolkit.positions.PositionMethod", (), ("PositionMethod is not a dataclass", "@dataclass(frozen=True)")),
        (named("Compose", methods=["Rope"]), (), ("Compose: --methods Rope does not exist", "did you mean RoPE?")),
        (named("DAPE", base="Rope"), (), ("DAPE: --base Rope does not exist", "did you mean RoPE?")),
        (named("RandomizedPositions", inner="Rope"), (), ("--inner Rope does not exist", "did you mean RoPE?")),
        ([], (), ("--model.position: Not a valid subclass of PositionMethod (see",)),
        # settings
        (named("ALiBi", slope=1), (), ("ALiBi: there is no setting slope",)),
        (named("Compose", methods=[named("ALiBi", slope=1)]), (), ("ALiBi: there is no setting slope",)),
        (named("Compose"), (), ("Compose: missing: methods",)),
        (named("RandomizedPositions"), (), ("RandomizedPositions: missing: inner",)),
        (named("RandomizedPositions", inner=None), (), ("RandomizedPositions: --inner: ", "It is given no value")),
        (named("Sinusoidal", base="ten"), (), ("Sinusoidal: --base: Expected a number. Got value: ten",)),
        (named("Sinusoidal", base=None), (), ("Sinusoidal: --base: Expected a number. It is given no value",)),
        (named("Sinusoidal", base=[1, 2]), (), ("Sinusoidal: --base: Expected a number. Got value: [",)),
        (named("Sinusoidal", base=-1), (), ("--model.position.base -1: give at least 1",)),
        (named("Sinusoidal", coordinates="raw"), (), ("Sinusoidal: --coordinates: Expected a tuple",)),
        (named("Sinusoidal", coordinates=[]), (), ("coordinates cannot be (): give a tuple of names of coordinates",)),
        (named("Learned", capacity=1.5), (), ("Learned: --capacity: Expected a whole number. Got value: 1.5",)),
        (named("ALiBi", cross="perhaps"), (), ("ALiBi: --cross: Expected a true or false",)),
        (named("AlgebraicPE", structure="ring"), (), ("AlgebraicPE: --structure: Expected one of 'sequence'",)),
        *(
            (named(name, coordinate="rank"), (), ("the layout has no coordinate 'rank': choose one of column",))
            for name in ("Learned", "RoPE", "AlgebraicPE", "ALiBi", "ShawRelative")
        ),
        (named("Learned", coordinate="index"), (), ("Learned: the coordinate index has the value -1", "another one")),
        # capacities
        (named("Learned", capacity=4), (), ("Learned: position 4 is beyond the capacity of 4: raise capacity",)),
        (
            named("Abacus", capacity=3, max_offset=2),
            (),
            ("Abacus: position 3 is beyond the capacity of 3: raise capacity or lower max_offset",),
        ),
        (named("Abacus", capacity=3), (), ("--model.position.max_offset 100: give at least 1 and at most 3",)),
        (named("PositionCoupling", capacity=4), (), ("PositionCoupling: position 4 is beyond the capacity of 4",)),
        (
            named("RandomizedPositions", inner="ALiBi", capacity=3),
            (),
            ("RandomizedPositions: position", "is beyond the capacity of 3: raise capacity"),
        ),
        (
            named("RandomizedPositions", inner="Learned"),
            (),
            ("RandomizedPositions draws from 2048 numbers and Learned has a capacity of 1024: raise the capacity",),
        ),
        (named("T5RelativeBias", max_distance=16), (), ("16 buckets of one distance each", "give more than 16")),
        # methods together
        (named("Compose", methods=[]), (), ("Compose has no methods: give a tuple of at least one position method",)),
        (
            named("Compose", methods=["RoPE", "AlgebraicPE"]),
            (),
            ("Compose: RoPE and AlgebraicPE both rotate queries and keys: keep one of them",),
        ),
        (
            named("Compose", methods=[named("DAPE", base="RoPE"), named("RandomizedPositions", inner="YaRN")]),
            (),
            ("Compose: DAPE and RandomizedPositions both rotate",),
        ),
        (
            named("Compose", methods=["Abacus", named("DAPE", base="Abacus")]),
            (),
            ("Abacus and Abacus in one model would overwrite each other's positions: keep one of them",),
        ),
        (
            named("Compose", methods=[named("RandomizedPositions", inner=name) for name in ("ALiBi", "Sinusoidal")]),
            (),
            ("RandomizedPositions and RandomizedPositions in one model would overwrite",),
        ),
        (
            named("RandomizedPositions", inner=named("RandomizedPositions", inner="ALiBi")),
            (),
            ("RandomizedPositions and RandomizedPositions in one model would overwrite",),
        ),
        (
            named("RandomizedPositions", inner="WindowedBias"),
            (),
            ("RandomizedPositions: WindowedBias opens keys by their distance", "in a Compose"),
        ),
        (named("DAPE", base="WindowedBias"), (), ("DAPE: WindowedBias closes keys", "in a Compose")),
        (
            named("DAPEv2", base=named("Compose", methods=["ALiBi", "WindowedBias"])),
            (),
            ("DAPEv2: Compose closes keys", "in a Compose"),
        ),
    ],
)
def test_a_fit_is_refused_in_one_line_and_leaves_nothing(
    position: Any, words: tuple[str, ...], message: tuple[str, ...], fit: Callable[..., tuple[int, str, str]]
) -> None:
    refused(fit(position, *words), *message)


def test_a_method_that_a_run_could_not_record_is_not_trained(
    fit: Callable[..., tuple[int, str, str]], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_plain.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(folder))
    refused(fit(named("my_plain.Plain")), "Plain is not a dataclass", "put @dataclass(frozen=True) before the class")


@pytest.mark.parametrize(
    "method",
    [
        Learned(capacity=6),
        Abacus(capacity=6, max_offset=2),
        PositionCoupling(capacity=6),
        RandomizedPositions(ALiBi(), capacity=6),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_length_beyond_the_capacity_is_not_evaluated(
    method: PositionMethod, abc: Abc, fit: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = fit(describe(method))
    assert status == 0, err
    message = f"{type(method).__name__}: position", "is beyond the capacity of 6: raise capacity"
    for decode in ("parallel", "steps"):
        refused_so = abc("evaluate", "--weights", "fit", "--length", "10x", "--samples", "4", "--decode", decode)
        refused(refused_so, *message)
    refused(abc("solve", "--weights", "fit", f"{'1' * 20}+{'2' * 20}"), *message)
    assert [path.name for path in Path("runs", "addition").iterdir()] == ["fit"]
    status, _, err = abc("evaluate", "--weights", "fit", "--length", "1x", "--samples", "4")
    assert status == 0, err


def methods_with(annotation: Any) -> list[tuple[type[PositionMethod], str]]:
    """The classes of the package with a field of a type, and the field."""
    public = {vars(positions)[name] for name in positions.__all__}
    classes = sorted(set(subclasses(PositionMethod)) & public, key=lambda kind: kind.__name__)
    return [(kind, field.name) for kind in classes for field in fields(kind) if field.type == annotation]  # type: ignore[arg-type]


NUMBERS = [(kind, name) for annotation in (int, float) for kind, name in methods_with(annotation)]
COORDINATES = [(kind, name) for kind, name in methods_with(str) if name == "coordinate"]
FIRST = {RandomizedPositions: (NoPE(),)}


def refusal(kind: type[PositionMethod], field: str, value: Any) -> str:
    """The message with which a class refuses a value of a field; empty where it takes the value."""
    try:
        kind(*FIRST.get(kind, ()), **{field: value})
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "field"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_numbers_are_checked_when_a_method_is_made(kind: type[PositionMethod], field: str) -> None:
    for value in ("ten", None, [1], -1, float("nan"), float("inf"), True):
        message = refusal(kind, field, value)
        assert field in message, value
        assert "\n" not in message


@pytest.mark.parametrize(("kind", "field"), COORDINATES, ids=lambda part: getattr(part, "__name__", part))
def test_coordinates_are_checked_when_a_method_is_made(kind: type[PositionMethod], field: str) -> None:
    give = "give the name of a coordinate, such as raw or place"
    for value in ("a rank", "", 3, None, ["raw"], ("raw",)):
        assert refusal(kind, field, value) == f"{kind.__name__}: {field} cannot be {value!r}: {give}"


@pytest.mark.parametrize("kind", [*(kind for kind, _ in COORDINATES), Sinusoidal], ids=lambda kind: kind.__name__)
def test_a_coordinate_that_the_layout_lacks_is_named_with_those_that_it_has(kind: type[PositionMethod]) -> None:
    field = "coordinates" if kind is Sinusoidal else "coordinate"
    model = kind(**{field: ("rank",) if kind is Sinusoidal else "rank"}).build(ModelSizes(8, 2, 1, 1))
    layout = digit_layout((("operand 1", 3),), 3)
    names = "column, index, place, raw, raw_from_end, row, segment"

    def run() -> None:
        positions, x, heads = model.prepare(layout).target, torch.zeros(1, 4, 8), torch.zeros(1, 2, 4, 4)
        model.embed(x, positions)
        hooks = model.at("decoder", 0)
        hooks.rotate(heads, heads, positions, positions)
        hooks.bias(positions, positions)
        hooks.transform(heads, heads, heads, positions, positions)

    with pytest.raises(UserError) as raised:
        run()
    assert str(raised.value) == f"the layout has no coordinate 'rank': choose one of {names}"


def test_the_fields_that_are_checked_are_all_that_there_are() -> None:
    assert len(NUMBERS) >= 30
    takers = {Learned, RoPE, YaRN, DynamicYaRN, AlgebraicPE, T5RelativeBias, ALiBi, KerpleLog, FIRE}
    assert {kind for kind, _ in COORDINATES} == takers | {ShawRelative, TransformerXLBias}


@pytest.mark.parametrize("value", ["raw", (), ("raw", "a rank"), ["raw"], None], ids=repr)
def test_several_coordinates_are_a_tuple_of_some(value: Any) -> None:
    with pytest.raises(UserError) as raised:
        Sinusoidal(value)
    assert str(raised.value).startswith(
        f"Sinusoidal: coordinates cannot be {value!r}: give a tuple of names of coordinates"
    )


@pytest.mark.parametrize("made", [RandomizedPositions, DAPE, DAPEv2, lambda method: Compose((method,))])
@pytest.mark.parametrize("method", ["ALiBi", ALiBi, 3], ids=str)
def test_a_method_is_made_of_methods(made: Callable[[Any], PositionMethod], method: Any) -> None:
    with pytest.raises(UserError, match=r"^\w+: .+ is not a position method: give position methods$"):
        made(method)


@pytest.mark.parametrize(
    "method",
    [
        Compose((NoPE(), NoPE())),
        Compose((Compose((ALiBi(),)), NoPE())),
        Compose((WindowedBias(), WindowedBias(2), CoPE())),
        Compose((Learned(), Learned("place"))),
        Compose((RandomizedPositions(ALiBi()), Sinusoidal(), Abacus(), PositionCoupling())),
        Compose((RandomizedPositions(KerpleLog()), WindowedBias())),
        RandomizedPositions(Compose((ALiBi(), Learned(capacity=2048)))),
        DAPE(DAPE(RandomizedPositions(ALiBi()))),
    ],
    ids=lambda method: type(method).__name__,
)
def test_what_has_a_meaning_is_not_refused(method: PositionMethod, fit: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = fit(describe(method))
    assert status == 0, err
    record = json.loads(Path("runs", "addition", "fit", "record.json").read_text())
    assert rebuild(record["model"]["position"], PositionMethod) == method
    model = Run(Path("runs", "addition")).load_model("fit")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
