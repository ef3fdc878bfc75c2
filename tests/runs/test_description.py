"""What stands in records is rebuilt as it was, and nothing else is."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.calibration import Places
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.positions import Compose, Cyclic, NoPE, PositionMethod, Sinusoidal, WindowedBias
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.tasks import Addition, Parity, Task

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True)
class Inner:
    number: int = 1


@dataclass(frozen=True)
class AnyFields(PositionMethod):
    """Fields of every kind that plain data can hold."""

    inner: Inner = Inner()
    inners: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (1, "a")
    listed: list[int] = field(default_factory=list)
    by_name: Mapping[str, float] = field(default_factory=dict)
    path: Path | None = None
    one_of: Literal["a", 2] = "a"
    mixed: int | str | list[int] = 1
    careless: str = None  # type: ignore[assignment]
    anything: Any = None
    method: PositionMethod | None = None

    def build(self, sizes: Any) -> Any:
        raise NotImplementedError


VALUES = [
    (Addition(max_length=4), Task),
    (Parity(form="label"), Task),
    (Architecture(norm="post", position=NoPE()), Architecture),
    (Architecture(position=Compose((Cyclic(period=4), WindowedBias()))), Architecture),
    (Sinusoidal(("place", "segment"), base=10.0), PositionMethod),
    (Places(min_attention=0.5), Places),
    (
        AnyFields(Inner(3), (Inner(), Inner(2)), (4, "b"), [5], {"c": 6.5}, Path("d"), 2, [7], "e", (8, "f"), NoPE()),
        AnyFields,
    ),
]


def _through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(("value", "kind"), VALUES)
def test_settings_survive_the_record(value: object, kind: type) -> None:
    assert rebuild(_through_json(describe(value)), kind, whole=True) == value


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"class_path": "pathlib.Path", "init_args": {}}, "is no Task"),
        ({"class_path": "os.path"}, "is no Task"),
        ({"class_path": "builtins.eval", "init_args": {"source": "1"}}, "is no Task"),
        ({"class_path": "abc_toolkit.runs.folder.os.system"}, "add --trust abc_toolkit.runs.folder.os"),
        ({"class_path": "abc_toolkit.tasks.Task", "init_args": {}}, "is no Task|does not name the class"),
        ({"class_path": "abc_toolkit.models.base.Architecture", "init_args": {}}, "is no Task"),
        ({"class_path": "abc_toolkit.tasks.NoSuch"}, "is no Task"),
        ({"class_path": "abc_toolkit.nosuch.Task"}, "add --trust abc_toolkit.nosuch"),
        ({"class_path": "nosuch.Task"}, "a class that is not the toolkit's.* add --trust nosuch "),
        ({"class_path": "Parity"}, "no module.Class"),
        ({"class_path": ".evil.Task"}, "no module.Class"),
        ({"class_path": ["os", "system"]}, "no module.Class"),
        ({"class_path": "a\x1b[2J.Task"}, "no module.Class"),
        ({}, "does not name the class of Task"),
        ({"max_length": 3}, "does not name the class of Task"),
        ([], r"Task cannot be \[\]"),
        (3, "Task cannot be 3"),
        ("x" * 999, "Task cannot be 'x+ "),
        ({"class_path": "abc_toolkit.tasks.Parity", "init_args": 3}, "cannot be 3"),
        ({"class_path": "abc_toolkit.tasks.Parity", "init_args": {"max_length": "3"}}, "max_length cannot be '3'"),
        ({"class_path": "abc_toolkit.tasks.Parity", "init_args": {"max_length": True}}, "max_length cannot be True"),
        ({"class_path": "abc_toolkit.tasks.Parity", "init_args": {"max_length": 3.0}}, "max_length cannot be 3.0"),
        ({"class_path": "abc_toolkit.tasks.Parity", "init_args": {"max_length": 0}}, "Parity refuses: .*at least 1"),
        ({"class_path": "abc_toolkit.tasks.Parity", "init_args": {"form": "x"}}, "form cannot be 'x'"),
        (
            {"class_path": "abc_toolkit.tasks.Parity", "init_args": {"nosuch": 3}},
            "'nosuch', which Parity does not have",
        ),
        ({"class_path": "abc_toolkit.tasks.Parity", "args": [3]}, "'args' beside the class"),
        ({"class_path": "abc_toolkit.tasks.Parity", "init_args": {}}, "lacks the setting 'max_length' of Parity"),
    ],
)
def test_nothing_is_built_but_what_is_asked_for(described: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        rebuild(described, Task, "some/record.json", whole="lacks" in words)
    assert "some/record.json" in str(caught.value)
    assert str(caught.value).isprintable()


def test_defaults_hold_where_a_description_need_not_be_whole() -> None:
    assert rebuild({"class_path": "abc_toolkit.tasks.Parity", "init_args": {}}, Task) == Parity()
    assert rebuild({"class_path": "abc_toolkit.tasks.Parity"}, Task) == Parity()
    with pytest.raises(UserError, match="lacks the setting 'num_encoder_layers' of Architecture"):
        rebuild({}, Architecture, whole=True)


def _places(described: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a description, and each key in it."""
    items = described.items() if isinstance(described, dict) else enumerate(described)
    for key, value in list(items):
        yield described, key
        if isinstance(value, dict | list):
            yield from _places(value)


@given(data=st.data())
def test_a_changed_description_gives_a_value_of_the_kind_or_one_line(data: st.DataObject) -> None:
    value, kind = data.draw(st.sampled_from(VALUES))
    described = _through_json(describe(value))
    holder, key = data.draw(st.sampled_from(list(_places(described))))
    if data.draw(st.booleans()):
        holder[key] = data.draw(JSON)
    else:
        del holder[key]
    loaded, said = set(sys.modules), ""
    try:
        assert isinstance(rebuild(described, kind, whole=data.draw(st.booleans())), kind)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert {name for name in set(sys.modules) - loaded if not name.startswith("abc_toolkit.")} == set()


def test_runs_of_earlier_versions_name_classes_by_modules_that_are_gone() -> None:
    for path in (
        "abc_toolkit.tasks.parity.Parity",
        "abc_toolkit.tasks.Parity",
        "abc_toolkit.tasks.digits.parity.Parity",
    ):
        assert rebuild({"class_path": path, "init_args": {}}, Task) == Parity()
    with pytest.raises(UserError, match=r"add --trust abc_toolkit\.tasks\.parity"):
        rebuild({"class_path": "abc_toolkit.tasks.parity.Nosuch", "init_args": {}}, Task)
