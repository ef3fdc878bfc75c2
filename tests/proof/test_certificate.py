"""The file of a certificate: reading, refusals, and the comparison of every field."""

import copy
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch

from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import NoPE
from abc_toolkit.proof import certify
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.proof.certificate import (
    CertificateError,
    difference,
    document,
    foreign,
    read_certificate,
)
from abc_toolkit.runs.description import describe
from abc_toolkit.runs.files import canonical_hash
from abc_toolkit.tasks import Parity
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window

WEIGHTS, WINDOW = "0" * 64, "f" * 64
VERSIONS = {"abc_toolkit": "1", "torch": "2"}
MEASURED = ("deviations", "outside")


@lru_cache
def text() -> str:
    """A certificate as it is written, of a model of parity that is set by hand."""
    torch.manual_seed(0)
    task = Parity(max_length=3)
    lines = (
        Rule("cross", 0, 0, "operand 1", (Condition("place", 0, "place"),)),
        Rule("decoder", 0, 0, None, (Condition("raw", 0, "raw"),)),
    )
    sizes = Architecture(num_encoder_layers=0, num_decoder_layers=1, model_dim=16, feedforward_dim=64, num_heads=1)
    position = Windowed(Window("Parity", 0, 1, 1, lines, {}), NoPE())
    model = EncoderDecoder(len(task.vocabulary), sizes, position).eval()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        problems = task.sample(generator, 64, (3,))
        prefix = torch.cat([torch.zeros(64, 1, dtype=torch.long), problems.target[:, :-1]], dim=1)
        logits = model(problems.source, prefix, task.layout((3,)))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten()).backward()
        optimizer.step()
    certificate = certify(task, model.eval())
    found = document(
        certificate,
        basis_of(task, model),
        task=describe(task),
        architecture=describe(sizes),
        weights=WEIGHTS,
        window=WINDOW,
        versions=VERSIONS,
    )
    assert certificate.verdict == "correct", certificate.reason
    return json.dumps(found, indent=2)


def fresh() -> dict[str, Any]:
    return json.loads(text())


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each field and each entry of a document, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, own in items:
        yield (*path, key)
        yield from paths(own, (*path, key))


def parent(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def refusal(changed: Any) -> str:
    """The one line with which a text or a document is refused."""
    with pytest.raises(CertificateError) as caught:
        read_certificate(changed if isinstance(changed, str) else json.dumps(changed))
    message = str(caught.value)
    assert message
    assert len(message.splitlines()) == 1
    return message


def test_what_is_written_is_read() -> None:
    assert read_certificate(text()) == fresh()
    assert difference(fresh(), fresh()) is None
    assert foreign(fresh(), fresh()) is None
    wrong = {name: value for name, value in fresh().items() if name not in figures()} | {"verdict": "undecided"}
    for name in ("tokens", "positions", "layout", "rule", "identities"):
        wrong[name] = None
    assert read_certificate(json.dumps(wrong)) == wrong
    assert "bound" in refusal({**wrong, "verdict": "correct"}) or "tokens" in refusal({**wrong, "verdict": "correct"})


def figures() -> list[str]:
    return list(fresh())[list(fresh()).index("assumptions") + 1 :]


# What is refused.


def test_every_field_is_needed() -> None:
    for name in fresh():
        changed = fresh()
        del changed[name]
        words = {"verdict": "it states no verdict", "schema": "of schema"}
        assert words.get(name, f"its field {name} is missing") in refusal(changed)


@pytest.mark.parametrize(
    "value", [True, None, "x", 1.5, [], {}, math.nan, math.inf, -math.inf, [math.nan], {"a": 1e999}]
)
def test_every_field_has_its_type(value: Any) -> None:
    for name, own in fresh().items():
        same = type(value) is type(own) or (isinstance(own, float) and type(value) in (int, float))
        finite = "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value)
        if (same and finite and name != "verdict") or (name == "problem" and isinstance(value, str)):
            continue
        if name == "problem" and value is None:
            continue
        refusal({**fresh(), name: value})


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_are_numbers_wherever_they_are(word: str) -> None:
    numbers = [path for path in paths(fresh()) if isinstance(parent(fresh(), path)[path[-1]], float)]
    assert len(numbers) > 10
    for path in numbers:
        changed = fresh()
        parent(changed, path)[path[-1]] = "HERE"
        refusal(json.dumps(changed).replace('"HERE"', word))


@pytest.mark.parametrize(
    "changed",
    [
        "",
        "{",
        "null",
        "[]",
        "1",
        '"correct"',
        "{}",
        "\x00",
        "verdict",
        '{"schema": 3}',
        '{"verdict": "correct"}',
        '{"verdict": "correct", "schema": 3}',
        '{"verdict": [], "schema": 3}',
        '{"verdict": {}, "schema": 3}',
        '{"verdict": "perhaps\\n", "schema": 3}',
        '{"verdict": "correct", "schema": "3"}',
        '{"verdict": "correct", "schema": "3\\n4"}',
        "[" * 300 + "]" * 300,
        "[" * 10**5,
        '{"a":' * 10**5,
        "9" * 10**4,
    ],
    ids=lambda own: own[:30] + str(len(own)),
)
def test_what_is_no_certificate_is_refused_in_a_line(changed: str) -> None:
    refusal(changed)


@pytest.mark.parametrize("depth", [50, 200, 300, 400, 500, 600, 700, 800, 900, 990, 1000, 1500, 5000, 10**5])
@pytest.mark.parametrize("pair", ["[]", ('{"a":', "}")])
def test_what_is_nested_deep_is_read_or_refused(depth: int, pair: Any) -> None:
    nested = pair[0] * depth + "1" + pair[1] * depth
    changed = json.dumps(fresh() | {"task": "HERE"}).replace('"HERE"', nested)
    if pair == "[]" or depth > 900:
        refusal(changed)
    else:
        found = outcome(lambda: read_certificate(changed))
        assert isinstance(found, dict | CertificateError)


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except CertificateError as error:
        return error


@pytest.mark.parametrize("schema", [0, 1, 2, 4, -3, 3.0, "3", True, None, [3], {"3": 3}])
def test_another_schema_is_refused(schema: Any) -> None:
    assert "schema" in refusal({**fresh(), "schema": schema})


@pytest.mark.parametrize(
    "name", ["comment", "", "Verdict", "verdict ", "a\nb", "\ud800", "é", "x" * 10**4, "scheme\r\x85\u2028"]
)
def test_an_unknown_field_is_refused(name: str) -> None:
    message = refusal({**fresh(), name: 1})
    assert message.encode()  # it can be printed
    assert "field" in message


@pytest.mark.parametrize("verdict", ["wrong", "undecided"])
def test_what_only_a_correct_model_has_is_refused_of_others(verdict: str) -> None:
    assert "bound" in refusal({**fresh(), "verdict": verdict}) or "field" in refusal({**fresh(), "verdict": verdict})
    for name in figures():
        kept = {key: value for key, value in fresh().items() if key not in figures() or key == name}
        assert name in refusal({**kept, "verdict": verdict})


# What is compared.


def others(value: Any) -> list[Any]:
    """Values that are not a field's, of its own type and of others."""
    if isinstance(value, bool):
        return [not value, int(value)]
    if isinstance(value, int):
        return [value + 1, value - 1, -value - 1, float(value), str(value), None, 10**400]
    if isinstance(value, float):
        changed = [value * (1 + 1e-4), value + 1, -value - 1, str(value), None, 10**400, -(10**400), True]
        return [own for own in changed if own != value]
    if isinstance(value, str):
        return [value + " ", value.upper() if value.upper() != value else value.lower() + "x", None, [value]]
    if isinstance(value, list):
        return [[*value, 0], value[:-1] if value else {}, value + value if value else None, {"0": value}]
    if isinstance(value, dict):
        return [
            {**value, "more": 0},
            list(value.items()) or [0],
            None,
            {key: value[key] for key in list(value)[1:]} if value else 0,
        ]
    return [0, "", False, []]


def test_every_change_of_a_field_is_seen() -> None:
    """Every field and every entry, except measured deviations, which have a test of their own."""
    found = fresh()
    every = [path for path in paths(found) if path[0] not in MEASURED]
    table = [path for path in every if path[:2] == ("rule", "table")]
    every = [path for path in every if path not in table] + random.Random(0).sample(table, 12)
    assert len(every) > 150
    for path in every:
        value = parent(found, path)[path[-1]]
        for other in others(value):
            stated = copy.deepcopy(found)
            parent(stated, path)[path[-1]] = other
            message = difference(stated, found)
            assert message is not None, (path, value, other)
            assert path[0] in message
            assert len(message.splitlines()) == 1
        if isinstance(path[-1], str) and len(path) > 1:  # those of the document itself are missed where it is read
            stated = copy.deepcopy(found)
            del parent(stated, path)[path[-1]]
            assert difference(stated, found) is not None, path


def test_figures_may_differ_in_their_last_digits_alone() -> None:
    found = fresh()
    for name in ("smallest_margin", "largest_rounding", "smallest_slack"):
        for factor, close in ((1 + 1e-9, True), (1 - 1e-9, True), (1 + 1e-5, False), (1 - 1e-5, False)):
            stated = fresh()
            stated[name] *= factor
            assert (difference(stated, found) is None) == close, (name, factor)


def test_what_was_measured_need_only_be_within_the_bound() -> None:
    found = fresh()
    most = found["largest_rounding"]
    for value in (0, 0.0, most / 2, most):
        stated = fresh()
        stated["outside"] = value
        stated["deviations"] = dict.fromkeys(stated["deviations"], value)
        assert difference(stated, found) is None
    for value in (-1e-9, most * 1.01, 10**400, -(10**400), math.nan, math.inf, True, False, None, "0", [0], {}):
        stated = fresh()
        name = random.Random(str(value)).choice(list(stated["deviations"]))
        stated["deviations"][name] = value
        assert "deviations" in str(difference(stated, found)), value
        stated = fresh()
        stated["outside"] = value
        if not isinstance(value, dict):  # which is refused where it is read
            assert "outside" in str(difference(stated, found)), value
    for change in (lambda own: own.popitem(), lambda own: own.update(more=0.0), lambda own: own.clear()):
        stated = fresh()
        change(stated["deviations"])
        assert "deviations" in str(difference(stated, found))
    stated = fresh()
    stated["largest_rounding"] = 1e9  # no bound of its own making
    stated["outside"] = 1e8
    assert difference(stated, found) is not None


def test_whose_it_is_is_told_by_hashes_and_versions() -> None:
    facts = {"hashes": {"weights": WEIGHTS, "window": WINDOW}, "versions": VERSIONS}
    assert foreign(fresh(), facts) is None
    for name in fresh()["hashes"]:
        for value in ("1" * 64, "", None, 1):
            stated = fresh()
            stated["hashes"][name] = value
            assert f"the hash of its {name} differs" == foreign(stated, fresh())
        stated = fresh()
        del stated["hashes"][name]
        assert foreign(stated, fresh()) is not None
    for name in VERSIONS:
        stated = fresh()
        stated["versions"][name] = "3"
        assert foreign(stated, facts) == f"it was made with {name} 3, and {VERSIONS[name]} is installed"
        del stated["versions"][name]
        assert foreign(stated, facts) is not None
    for argument in (0, 2, -1):
        assert f"version {argument}" in str(foreign({**fresh(), "argument": argument}, facts))


def test_hashes_are_of_what_stands_beside_them() -> None:
    found = fresh()
    assert set(found["hashes"]) == {
        *("weights", "window", "architecture", "task", "tokens", "positions", "layout", "rule", "identities")
    }
    for name, value in found["hashes"].items():
        if name not in ("weights", "window"):
            canonical = json.dumps(found[name], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
            assert value == hashlib.sha256(canonical.encode("utf-8")).hexdigest()
    assert (found["hashes"]["weights"], found["hashes"]["window"]) == (WEIGHTS, WINDOW)
    assert canonical_hash({"b": [1, "é"], "a": None}) == hashlib.sha256(b'{"a":null,"b":[1,"\\u00e9"]}').hexdigest()


def test_the_document_states_the_verdict() -> None:
    found = fresh()
    assert found["verdict"] == "correct"
    assert found["kinds"] == len(found["parts"])
    assert found["assignments"] == sum(part["assignments"] for part in found["parts"])
    assert found["smallest_margin"] == min(part["smallest_margin"] for part in found["parts"])
    assert found["largest_rounding"] == max(part["largest_rounding"] for part in found["parts"])
    assert found["smallest_slack"] == min(part["smallest_slack"] for part in found["parts"]) > 0
    assert found["smallest_slack"] <= found["smallest_margin"]
    assert max(found["deviations"].values()) <= found["largest_rounding"]
    assert set(found["bound"]["sizes"]) == {"s0"}
    assert found["longest"] == max(found["bound"]["sizes"].values())
    assert found["layouts"] == found["longest"]
    assert found["tokens_gone_through"] == sum(2 * n + 1 for n in range(1, found["longest"] + 1))
    assert set(found["meaning"]) == {"proved", "runs", "held_to", "longest"}
