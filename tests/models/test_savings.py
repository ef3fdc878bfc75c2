"""Parameters that a model does without: what it then computes, counts, saves and refuses."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, Model, predict, prefix_of
from abc_toolkit.models.savings import SAVINGS, ArcEmbedding, Saving
from abc_toolkit.models.transformer import DecoderOnly, EncoderDecoder, EncoderOnly
from abc_toolkit.positions import CoPE, NoPE, RoPE, T5RelativeBias
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.weights import fill, tensors_of
from abc_toolkit.tasks import Addition
from abc_toolkit.tasks.base import Interface
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window

TASK = Addition(max_length=3, padding="none")
SHAPE = (3, 2)
OWN, BELOW = ((Condition("place", offset, "place"),) for offset in (0, 1))
# Two open keys in a head, heads with none at some places, a bias, a key for queries that have none.
RULES = tuple(
    Rule("decoder", layer, head, f"operand {i}", where, 0.5 * (i - 1), query_string="target")
    for layer in range(2)
    for head, where in enumerate((OWN, BELOW))
    for i in (1, 2)
)
RULES += (Rule("decoder", 1, 1, "operator", (), fallback=True),)
WINDOW = Window("Addition", 0, 2, 3, RULES, {}, backbone="decoder-only")
LEAN = Architecture(0, 2, 2, 3, 4, norm="none", position=NoPE(), backbone="decoder-only", savings=SAVINGS)


def lean(*savings: Saving, **changes: Any) -> DecoderOnly:
    torch.manual_seed(0)
    architecture = replace(LEAN, savings=savings, **changes)
    model = DecoderOnly(len(TASK.vocabulary), architecture, Windowed(WINDOW, architecture.positions)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "scales")):
                parameter.normal_()
    return model


def count(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def by_hand(model: DecoderOnly, source: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """Logits `[problem, target, token]` of a model with all savings, from the names of its weights."""
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    radius, first, step = w["embedding.arc"]
    angles = first + step * np.arange(len(TASK.vocabulary))
    table = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    string = TASK.layout(SHAPE).string
    names, queries, keys = string.target.names, string.target.coordinates, string.prefix.coordinates
    is_open = {name: keys["segment"].numpy() == names.index(name) for name in ("operand 1", "operand 2", "operator")}
    x = math.sqrt(2) * table[np.concatenate([source, prefix], axis=1)]
    for layer in range(2):
        read, added = x @ w[f"decoder.{layer}.self_attention.value.weight"].T, np.zeros_like(x)
        for query in range(x.shape[1]):
            for head, scale in enumerate([1, *w[f"decoder.{layer}.self_attention.scales"]]):
                logit = np.full(x.shape[1], -np.inf)
                if head < 2 and queries["string"][query] == 1:
                    near = keys["place"].numpy() == int(queries["place"][query]) - head
                    for number, name in enumerate(("operand 1", "operand 2")):
                        logit[near & is_open[name]] = 0.5 * number
                if (layer, head) == (1, 1) and np.isinf(logit).all():
                    logit[is_open["operator"]] = 0
                logit[query + 1 :] = -np.inf
                if np.isfinite(logit).any():
                    weights = np.exp(logit) / np.exp(logit).sum()
                    added[:, query] += scale * np.einsum("k,bkd->bd", weights, read)
        x = x + added
        matrix, scales = w[f"decoder.{layer}.feedforward.0.weight"], w[f"decoder.{layer}.feedforward.3.scales"]
        x = x + (np.maximum(x @ matrix.T, 0) * scales) @ matrix
    return x[:, source.shape[1] :] @ table.T


def test_a_model_with_all_savings_computes_what_they_say() -> None:
    model = lean(*SAVINGS)
    problems = TASK.sample(torch.Generator().manual_seed(0), 6, SHAPE)
    expected = by_hand(model, problems.source.numpy(), prefix_of(problems.target).numpy())
    for path in ("dense", "gathered"):
        model.attend(path)
        found = predict(copy.deepcopy(model).double(), problems, TASK.layout(SHAPE)).detach()
        torch.testing.assert_close(found, torch.from_numpy(expected))


@pytest.mark.parametrize("savings", [("scores",), ("scores", "values"), SAVINGS], ids=len)
@pytest.mark.parametrize("path", ["dense", "gathered"])
def test_decoding_in_pieces_gives_the_same(savings: tuple[Saving, ...], path: Any) -> None:
    model = lean(*savings, model_dim=6)
    model.attend(path)
    problems, layout = TASK.sample(torch.Generator().manual_seed(0), 6, SHAPE), TASK.layout(SHAPE)
    whole = predict(model, problems, layout)
    for size in (1, 2):
        state = model.decoder_state(problems.source, model.plan(layout, len(problems), size))
        pieces = [model.advance(piece, state) for piece in prefix_of(problems.target).split(size, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    maps: Any = {}
    string = layout
    torch.testing.assert_close(model(problems.source, prefix_of(problems.target), string, maps), whole)
    assert {weights.shape[1] for weights in maps.values()} == {3}


def test_each_saving_takes_its_parameters_away() -> None:
    dim, hidden, heads, layers, tokens = 6, 4, 3, 2, len(TASK.vocabulary)
    norms = (2 * layers + 1) * dim
    attention = 4 * (dim * dim + dim)
    feedforward = 2 * dim * hidden + hidden + dim
    full = 2 * tokens * dim + tokens + layers * (attention + feedforward)
    sizes: dict[str, Any] = {"model_dim": dim, "norm": "pre"}
    assert count(lean(**sizes)) == full + 2 * norms
    assert count(lean(model_dim=dim)) == full
    saved: dict[tuple[Saving, ...], int] = {
        ("biases",): norms + tokens + layers * 5 * dim,
        ("thresholds",): layers * hidden,
        ("output",): tokens * dim,
        ("arc",): tokens * dim - 3,
        ("arc", "output"): 2 * tokens * dim - 3,
        ("scores",): layers * (2 * dim * dim + 2 * dim),
        ("scores", "values"): layers * (3 * dim * dim + 3 * dim - (heads - 1)),
        ("feedforward",): layers * (dim * hidden - hidden),
    }
    for savings, number in saved.items():
        model = lean(*savings, **sizes)
        assert count(model) == full + 2 * norms - number, savings
        model.train()
        problems = TASK.sample(torch.Generator().manual_seed(0), 64, SHAPE)
        logits = predict(model, problems, TASK.layout(SHAPE))
        functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    # The width of 2 that heads do not divide: an arc, one map of values, a scale, two units with thresholds and scales.
    everything = replace(LEAN, num_decoder_layers=1, num_heads=2, feedforward_dim=2)
    assert count(DecoderOnly(13, replace(everything, savings=SAVINGS))) == 3 + 4 + 1 + 2 * 2 + 2
    own = tuple(saving for saving in SAVINGS if saving not in ("thresholds", "feedforward"))
    assert count(DecoderOnly(13, replace(everything, savings=own))) == 3 + 4 + 1 + 2 * (2 + 1 + 2)


def test_shared_parameters_are_saved_once_and_loaded() -> None:
    model, other = lean(*SAVINGS), lean(*SAVINGS)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    tensors = tensors_of(model)
    assert sum(tensor.numel() for tensor in tensors.values()) == count(model)
    fill(other, tensors)
    problems = TASK.sample(torch.Generator().manual_seed(0), 6, SHAPE)
    outputs = [predict(each, problems, TASK.layout(SHAPE)) for each in (model, other, copy.deepcopy(other))]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_parameter("embedding.arc")[0] *= 2
    assert not torch.equal(predict(twin, problems, TASK.layout(SHAPE)), outputs[0])
    assert torch.equal(predict(model, problems, TASK.layout(SHAPE)), outputs[0])


def test_an_arc_is_rounded_once() -> None:
    torch.manual_seed(1)
    arc = ArcEmbedding(13, 5)
    exact = copy.deepcopy(arc).double().weight
    assert arc.weight.shape == (13, 5)
    assert torch.equal(arc.weight, exact.float())
    torch.testing.assert_close(exact.norm(dim=1), exact.new_full((13,), arc.arc[0].item()))
    assert torch.equal(arc(torch.tensor([[3, 12]])), arc.weight[[3, 12]][None])


def test_position_biases_weigh_open_keys() -> None:
    """Without scores, attention goes by biases alone: those of a window, of a position method."""
    torch.manual_seed(0)
    sizes = Architecture(0, 1, 8, 2, 8, position=T5RelativeBias(), backbone="decoder-only", savings=("scores",))
    model = DecoderOnly(len(TASK.vocabulary), sizes).eval()
    problems = TASK.sample(torch.Generator().manual_seed(0), 6, SHAPE)
    maps: Any = {}
    model(problems.source, prefix_of(problems.target), TASK.layout(SHAPE), maps)
    weights = maps["decoder", 0]
    torch.testing.assert_close(weights, weights[:1].expand_as(weights))
    assert (weights[0, 0, -1] - weights[0, 0, -1].mean()).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"savings": ("values",)}, "--model.savings values: .*: add scores"),
        ({"savings": ("nothing",)}, "--model.savings names 'nothing': choose from biases, thresholds"),
        ({"savings": ("arc",), "model_dim": 1, "num_heads": 1}, "arc needs two dimensions: give --model.model_dim"),
        ({"savings": ("output",), "block": "llama", "norm": "pre"}, "--model.block llama saves no parameters"),
        ({"savings": ("output",), "backbone": "mamba", "norm": "pre"}, "--model.backbone mamba saves no parameters"),
        ({"savings": (), "block": "llama", "model_dim": 6}, "leave out --model.norm none"),
        ({"savings": (), "backbone": "mamba", "model_dim": 6}, "leave out --model.norm none"),
        ({"savings": ()}, "--model.num_heads 3 does not divide --model.model_dim 2"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        replace(LEAN, **changes)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("position", [RoPE(), CoPE()])
def test_positions_that_act_on_queries_need_scores(position: Any) -> None:
    with pytest.raises(UserError, match=r"--model.savings scores: .*: choose another --model.position"):
        DecoderOnly(13, Architecture(model_dim=8, num_heads=2, position=position, savings=("scores",)))


@pytest.mark.parametrize(("saving", "named"), [("output", "outputs are not"), ("arc", "inputs are no tokens")])
def test_tasks_without_tokens_are_refused(saving: Saving, named: str) -> None:
    sizes = Architecture(1, 1, 8, 2, 8, savings=(saving,), backbone="encoder-only")
    with pytest.raises(UserError, match=f"--model.savings {saving}: the task's {named}.*: leave it out"):
        EncoderOnly(Interface(1, input_dim=3), sizes)


def test_records_and_weights_of_other_models_stay_what_they_were() -> None:
    plain = Architecture()
    described = describe(plain)
    assert "savings" not in described
    assert rebuild(described, Architecture, whole=True) == plain
    own = replace(LEAN, model_dim=6, savings=("biases", "output"))
    assert describe(own)["savings"] == ["biases", "output"]
    assert rebuild(describe(own), Architecture, whole=True) == own
    with pytest.raises(UserError, match="lacks the setting 'block'"):
        rebuild({name: value for name, value in described.items() if name != "block"}, Architecture, whole=True)
    model = EncoderDecoder(13, Architecture(1, 1, 8, 2, 8, norm="none"))
    assert not any("norm" in name for name in model.state_dict())
