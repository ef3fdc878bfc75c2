"""Proofs of models that do without parameters, or without a token that ends the answer."""

import copy
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from abc_toolkit import checker
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.models.savings import SAVINGS, Saving
from abc_toolkit.models.transformer import DecoderOnly
from abc_toolkit.positions import NoPE
from abc_toolkit.proof import certify
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.proof.certificate import document
from abc_toolkit.proof.enumeration import Kind, Reading, kinds_of
from abc_toolkit.proof.forward import receptive_field_logits
from abc_toolkit.proof.receptive_field import ReceptiveField, ReceptiveFields
from abc_toolkit.proof.rounding import BoundedModel
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.runs.description import describe
from abc_toolkit.runs.files import sha256
from abc_toolkit.runs.weights import tensors_of
from abc_toolkit.tasks import Addition
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.proof.test_rounding import Arithmetic, Array, between, lead

TASK = Addition(max_length=2, base=2, end="layout", leading_zero=True)
UNEQUAL = Addition(max_length=2, base=2, end="layout", leading_zero=True, padding="none")
HEADS = {TASK: 2, UNEQUAL: 4}
NUM_TOKENS = len(TASK.vocabulary)


def window(task: Addition) -> Window:
    """The digits of the query's place and those of the place below, or the leading zero where there are none.

    Operands of one width share a head for each place, which averages them; others have heads of their own.
    """
    heads, rules = HEADS[task], []
    for below in (0, 1):
        place = (Condition("place", below, "place"),)
        for i in (1, 2):
            head = below if heads == 2 else 2 * below + i - 1
            rules.append(Rule("decoder", 0, head, f"operand {i}", place, query_string="target"))
    rules += [Rule("decoder", 0, head, "zero", (), query_string="target", fallback=True) for head in range(heads)]
    return Window(type(task).__name__, 0, 1, heads, tuple(rules), {}, backbone="decoder-only")


Norm = Literal["pre", "post", "none"]
SETTINGS: dict[str, tuple[tuple[Saving, ...], Norm]] = {
    "no norm": ((), "none"),
    "no biases": (("biases", "thresholds"), "pre"),
    "tied output": (("output",), "none"),
    "arc": (("arc",), "pre"),
    "tied arc": (("arc", "output"), "post"),
    "no scores": (("scores",), "pre"),
    "shared values": (("scores", "values"), "none"),
    "tied feed-forward": (("feedforward",), "pre"),
    "tied feed-forward without biases": (("feedforward", "biases", "thresholds"), "none"),
    "lean": (tuple(saving for saving in SAVINGS if saving not in ("thresholds", "feedforward")), "none"),
    "all": (SAVINGS, "none"),
}


def model_of(task: Addition, savings: tuple[Saving, ...], norm: Norm, dim: int = 8, hidden: int = 16) -> DecoderOnly:
    sizes = Architecture(
        0, 1, dim, HEADS[task], hidden, norm, position=NoPE(), backbone="decoder-only", savings=savings
    )
    return DecoderOnly(NUM_TOKENS, sizes, Windowed(window(task), NoPE()))


def drawn(name: str, dim: int = 8) -> DecoderOnly:
    torch.manual_seed(list(SETTINGS).index(name))
    model = model_of(TASK, *SETTINGS[name], dim).eval()
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            if own.endswith(("bias", "scales")):
                parameter.normal_()
    return model


def kinds(model: DecoderOnly) -> list[Kind]:
    rule = TASK.local_rule()
    assert rule is not None
    layout = TASK.layout((2, 2))
    reading = Reading(TabledRule(TASK, rule), layout)
    fields = ReceptiveFields(model.position.window, layout)  # type: ignore[attr-defined]
    return kinds_of(TASK, [(reading, (2, 2), (2, 2), fields.at(query)) for query in range(len(layout.target))])


def logits_of(model: DecoderOnly, field: ReceptiveField, tokens: Array, how: Arithmetic) -> Array:
    """Logits of a receptive field, `[row, token]`, by the names of the weights and the savings."""
    w = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    savings, norm, dim = model.architecture.savings, model.architecture.norm, model.architecture.model_dim
    if "arc" in savings:
        radius, first, step = w["embedding.arc"]
        angles = first + step * np.arange(NUM_TOKENS)
        w["embedding.weight"] = np.zeros((NUM_TOKENS, dim))
        w["embedding.weight"][:, :2] = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    w = {name: value.astype(how.dtype) for name, value in w.items()}
    if "output" in savings:
        w["output.weight"] = w["embedding.weight"]
    at = "decoder.0"
    if "feedforward" in savings:
        w[f"{at}.feedforward.3.weight"] = w[f"{at}.feedforward.0.weight"].T * w[f"{at}.feedforward.3.scales"]
    none = how.dtype(0)

    def linear(x: Array, name: str) -> Array:
        weight = w[f"{name}.weight"]
        return how.linear(x, weight, w.get(f"{name}.bias", np.zeros(len(weight), how.dtype)))

    def normed(x: Array, name: str) -> Array:
        if norm == "none":
            return x
        return how.norm(x, w[f"{name}.weight"], w.get(f"{name}.bias", none))

    leaves = [w["embedding.weight"][tokens[:, n]] * how.dtype(math.sqrt(dim)) for n in range(tokens.shape[1])]
    table, row = field.tables["decoder", 0], 0
    x = leaves[field.streams[0].index(field.streams[1][0])]

    def attention(x: Array) -> Array:
        read = [normed(leaf, f"{at}.self_norm") if norm == "pre" else leaf for leaf in leaves]
        name, parts = f"{at}.self_attention", []
        width = dim // HEADS[TASK]
        for head in range(HEADS[TASK]):
            part = slice(None) if "values" in savings else slice(head * width, (head + 1) * width)
            pairs = zip(table.index[head, row].tolist(), table.bias[head, row].tolist(), strict=True)
            opened = [(key, how.dtype(bias)) for key, bias in pairs if bias > -math.inf]
            if "scores" in savings:
                values = [linear(read[key], f"{name}.value")[:, part] for key, _ in opened]
                scores = [np.full(len(x), bias) for _, bias in opened]
            else:
                both = [linear(read[key], f"{name}.key_value") for key, _ in opened]
                values = [own[:, dim:][:, part] for own in both]
                query, scale = linear(x, f"{name}.query")[:, part], how.dtype(width**-0.5)
                scores = [
                    how.total(query * own[:, :dim][:, part]) * scale + bias
                    for own, (_, bias) in zip(both, opened, strict=True)
                ]
            parts.append(how.attended(np.stack(scores), np.stack(values)))
        if "values" not in savings:
            return linear(np.concatenate(parts, axis=1), f"{name}.output")
        scaled = [scale * own for scale, own in zip([how.dtype(1), *w[f"{name}.scales"]], parts, strict=True)]
        return how.total(np.stack(scaled, axis=-1))

    def feedforward(x: Array) -> Array:
        return linear(np.maximum(linear(x, f"{at}.feedforward.0"), 0), f"{at}.feedforward.3")

    for part, update in (("self_norm", attention), ("feedforward_norm", feedforward)):
        name = f"{at}.{part}"
        x = x + update(normed(x, name)) if norm == "pre" else normed(x + update(x), name)
    return linear(normed(x, "decoder_norm") if norm == "pre" else x, "output")


@pytest.mark.parametrize("dim", [2, 8])
@pytest.mark.parametrize("name", SETTINGS)
def test_no_order_of_summation_goes_beyond_the_bound(name: str, dim: int) -> None:
    model = drawn(name, dim)
    bounded, draw = BoundedModel(model), np.random.default_rng(0)
    for kind in kinds(model):
        found, field = bounded.margins(kind), kind.enumeration.field
        rows = torch.arange(0, len(kind.assignments), max(1, len(kind.assignments) // 12))
        tokens, required = kind.enumeration.tokens(kind.assignments[rows])
        exact = logits_of(model, field, tokens.numpy(), Arithmetic(np.float64))
        np.testing.assert_allclose(bounded.logits(field, tokens).numpy(), exact, atol=1e-9, rtol=1e-9)
        np.testing.assert_allclose(found.margin[rows].numpy(), lead(exact, required), atol=1e-9, rtol=1e-9)
        own = receptive_field_logits(model, field, tokens).double().numpy()
        for rounded in (
            own,
            *(logits_of(model, field, tokens.numpy(), Arithmetic(np.float32, draw)) for _ in range(6)),
        ):
            rounded = rounded.astype(np.float64)
            apart = np.abs(between(rounded, required) - between(exact, required)).max(axis=1)
            assert (apart <= found.rounding[rows].numpy()).all()
            assert (lead(rounded, required) >= found.slack[rows].numpy()).all()


@lru_cache
def trained(name: str, task: Addition = TASK) -> DecoderOnly:
    """A small model that adds."""
    torch.manual_seed(0)
    model = model_of(task, *SETTINGS[name], 4 if task == TASK else 8)
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 3)] if task.padding == "longest" else [(3, 1), (2, 3), (3, 3)]
    for step in range(300):
        problems = task.sample(generator, 128, shapes[step % len(shapes)])
        logits = predict(model, problems, task.layout(problems.shape))
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten()).backward()
        optimizer.step()
    return model.eval()


def written(path: Path, task: Addition, model: DecoderOnly) -> dict[str, Any]:
    """A run's files that the checker reads, and the certificate."""
    save_file(tensors_of(model), path / "weights.safetensors")
    (path / "window.json").write_text(model.position.window.to_json())  # type: ignore[attr-defined]
    found = document(
        certify(task, model),
        basis_of(task, model),
        task=describe(task),
        architecture=describe(model.architecture),
        weights=sha256(path / "weights.safetensors"),
        window=sha256(path / "window.json"),
        versions={},
    )
    (path / "certificate.json").write_text(json.dumps(found))
    return found


def checked(path: Path) -> int:
    files = {name: str(path / name) for name in ("certificate.json", "weights.safetensors", "window.json")}
    certificate, weights, window = files.values()
    return checker.main([certificate, "--weights", weights, "--window", window])


@pytest.mark.parametrize(
    ("name", "task"),
    [("lean", TASK), ("shared values", UNEQUAL)],
)
def test_the_checker_agrees(name: str, task: Addition, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(name, task)
    found = written(tmp_path, task, model)
    assert found["verdict"] == "correct", found["reason"]
    assert "end" not in found["layout"]["segments"]
    assert checked(tmp_path) == 0, capsys.readouterr()
    for length in (1, 7, 60):
        problems = task.sample(torch.Generator().manual_seed(0), 50, (length, length))
        assert (predict(model, problems, task.layout(problems.shape)).argmax(-1) == problems.target).all()


def test_the_checker_refuses_other_savings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The savings are part of what the certificate is of: with others the weights do not fit, or nothing is known."""
    found = written(tmp_path, TASK, trained("lean"))
    own = list(SETTINGS["lean"][0])
    for savings, status, line in (
        ([], 2, "the weights have no tensor"),
        ([saving for saving in own if saving != "output"], 2, "the weights have no tensor output.weight"),
        ([saving for saving in own if saving != "scores"], 2, "heads that share their values have no scores"),
        ([*own, "norms"], 3, "nothing is known of the saving 'norms'"),
        ("biases", 2, "architecture, savings"),
    ):
        changed = found | {"architecture": found["architecture"] | {"savings": savings}}
        (tmp_path / "certificate.json").write_text(json.dumps(changed))
        assert checked(tmp_path) == status
        captured = capsys.readouterr()
        assert line in captured.out + captured.err


def test_a_wrong_answer_of_a_target_without_an_end_is_found() -> None:
    """The last digit of an answer that nothing ends is predicted too."""
    model = copy.deepcopy(trained("lean"))
    with torch.no_grad():
        model.get_parameter("decoder.0.self_attention.scales").zero_()  # blind to the carry
    certificate = certify(TASK, model.eval())
    assert certificate.verdict == "wrong"
    assert certificate.problem is not None
