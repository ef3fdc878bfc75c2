import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions, digit_layout
from abc_toolkit.models import attention
from abc_toolkit.models.attention import KEYS_A_SLOT, Attention, AttentionPath
from abc_toolkit.models.base import Architecture, Maps, predict
from abc_toolkit.models.transformer import (
    DecoderOnly,
    EncoderDecoder,
    LayerCache,
    Storage,
    Transformer,
    TransformerModel,
)
from abc_toolkit.positions import AttentionPosition, Cyclic, NoPE, PositionMethod, RoPE, Sinusoidal, Site
from abc_toolkit.tasks import Addition, Problems
from abc_toolkit.vocabulary import BOS
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.lowering import dense_bias, matrices, open_keys, site_positions
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.grids import covering
from tests.windows.test_rules import crowded_windows, layouts, visible_oracle

TASK = Addition(padding="none")
SHAPES = [(3, 2), (1, 1)]
DIM, HEADS, HIDDEN, LAYERS = 8, 2, 12, 2
BASE = Architecture(1, LAYERS, DIM, HEADS, HIDDEN)

OWN_PLACE = (Condition("place", 0, "place"),)
RULES = [
    Rule("encoder", 0, 0, "operand 2", OWN_PLACE, query_segment="operand 1"),
    Rule("encoder", 0, 1),
    Rule("decoder", 0, 0, "answer", (Condition("place", 1, "place"),), 0.5),
    # Mostly keys that are yet to be written: under the causal mask the early rows are closed.
    Rule("decoder", 0, 1, "answer", (Condition("place", 2),)),
    Rule("decoder", 1, 0, None, (Condition("raw", 0, "raw"),), -1.0),
    Rule("cross", 0, 0, "operand 1", OWN_PLACE),
    Rule("cross", 0, 1, "operand 2", OWN_PLACE, 1.5),
    Rule("cross", 0, 1, "operator", (), -0.5, fallback=True),
    Rule("cross", 1, 0, "operator"),
]


class Distance(AttentionPosition):
    """Scales keys by their place and takes a multiple of their distance off."""

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return q, k * (1 + 0.1 * k_positions.coordinates["place"][..., None])

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        distance = q_positions.coordinates["raw"][:, None] - k_positions.coordinates["raw"]
        return (-0.2 * distance).expand(HEADS, -1, -1)


class DistanceMethod(NoPE):
    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return Distance()


def window(num_encoder_layers: int) -> Window:
    rules = tuple(rule for rule in RULES if num_encoder_layers or rule.site != "encoder")
    return Window("Addition", num_encoder_layers, LAYERS, HEADS, rules, {})


def position(name: str, num_encoder_layers: int) -> PositionMethod:
    own = {
        "NoPE": NoPE(),
        "sinusoidal": Sinusoidal(),
        "sinusoidal of two": Sinusoidal(("place", "segment"), base=100.0),
        "cyclic": Cyclic(),
        "distance": DistanceMethod(),
    }
    if name in own:
        return own[name]
    return Windowed(window(num_encoder_layers), own[name.removeprefix("windowed ")])


WINDOWED = ["windowed NoPE", "windowed cyclic", "windowed sinusoidal of two", "windowed distance"]
POSITIONS = ["NoPE", "sinusoidal", "sinusoidal of two", "cyclic", *WINDOWED]
MODELS = covering(("pre", "post"), (0, 1), POSITIONS)
STRINGS = [("pre", None, name) for name in POSITIONS] + [("post", None, "sinusoidal of two")]


def make(norm: str, num_encoder_layers: int | None, name: str) -> TransformerModel:
    """A model with random weights; without a number of encoder layers, one that reads a single string."""
    kind = DecoderOnly if num_encoder_layers is None else EncoderDecoder
    encoder = num_encoder_layers or 0
    architecture = replace(BASE, norm=norm, num_encoder_layers=encoder)
    model = kind(len(TASK.vocabulary), architecture, position(name, encoder)).double().eval()
    for parameter in model.parameters():  # zeros and ones would hide a bias or a norm left out
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(params=MODELS, ids=lambda param: " ".join(map(str, param)))
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    torch.manual_seed(0)
    return make(*request.param)


@pytest.fixture(params=MODELS + STRINGS, ids=lambda param: " ".join(map(str, param)))
def either(request: pytest.FixtureRequest) -> TransformerModel:
    torch.manual_seed(0)
    return make(*request.param)


@pytest.fixture(params=SHAPES, ids=str)
def case(request: pytest.FixtureRequest, generator: torch.Generator) -> tuple[Problems, Layout, Tensor]:
    """Problems, their layout, and the true prefix."""
    return draw(generator, request.param)


def draw(generator: torch.Generator, shape: tuple[int, ...]) -> tuple[Problems, Layout, Tensor]:
    problems = TASK.sample(generator, 3, shape)
    return problems, TASK.layout(shape), nn.functional.pad(problems.target[:, :-1], (1, 0), value=BOS)


Case = tuple[Problems, Layout, Tensor]


def stepped(model: TransformerModel, source: Tensor, prefix: Tensor, layout: Layout) -> Tensor:
    """Logits under a given prefix, a step at a time."""
    state = model.decoder_state(source, model.plan(layout))
    logits = []
    for i, tokens in enumerate(prefix.unbind(1)):
        assert state.step == i
        logits.append(model.step(tokens, state))
    assert state.step == prefix.shape[1]
    return torch.stack(logits, dim=1)


def paths(model: TransformerModel) -> list[AttentionPath]:
    return ["dense", "gathered"] if isinstance(model.position, Windowed) else ["dense"]


@torch.no_grad()
def test_every_way_of_computing_is_the_same(either: TransformerModel, case: Case) -> None:
    problems, layout, prefix = case
    expected = either(problems.source, prefix, layout)
    for path in paths(either):
        either.attend(path)
        assert either.path == path
        torch.testing.assert_close(either(problems.source, prefix, layout), expected, atol=1e-12, rtol=1e-12)
        for ahead in (1, 2, 3, prefix.shape[1]):
            plan = either.plan(layout, len(prefix), ahead)
            assert plan.ahead == ahead
            assert plan.gathers == (path == "gathered")
            state = either.decoder_state(problems.source, plan)
            pieces = [either.advance(piece, state) for piece in prefix.split(ahead, dim=1)]
            assert state.step == prefix.shape[1]
            torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_pieces_may_be_of_any_size_and_be_gone_back_to(either: TransformerModel, generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (7, 5))
    expected = either(problems.source, prefix, layout)
    for path in paths(either):
        either.attend(path)
        state = either.decoder_state(problems.source, either.plan(layout, 3, 4))
        # The tokens of a piece after those that are kept are wrong guesses.
        for size, kept in ((1, 1), (4, 1), (4, 2), (2, 2), (3, 1), (2, 2)):
            start = state.step
            tokens = prefix[:, start : start + size].clone()
            tokens[:, kept:] = (tokens[:, kept:] + 5) % len(TASK.vocabulary)
            logits = either.advance(tokens, state)[:, :kept]
            torch.testing.assert_close(logits, expected[:, start : start + kept], atol=1e-12, rtol=1e-12)
            state.go_back(start + kept)
        assert state.step == prefix.shape[1]


@torch.no_grad()
def test_encoding_in_pieces_is_encoding(model: EncoderDecoder, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    problems, layout, _ = case
    lengths: list[int] = []
    forward = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda m, x, *a: lengths.append(x.shape[1]) or forward(m, x, *a))
    for path in paths(model):
        model.attend(path)
        expected = model.encode(problems.source, layout.source)
        length, two_queries = len(layout.source), 2 * len(problems) * HEADS * len(layout.source)
        for cells in (1, two_queries, 2**25):
            monkeypatch.setattr(attention, "_CELLS", cells)
            lengths.clear()
            encoded = model.encode_in_pieces(problems.source, layout.source)
            torch.testing.assert_close(encoded, expected, atol=1e-12, rtol=1e-12)
            if cells == two_queries and path == "gathered":
                assert sum(lengths) == len(model.encoder) * length
            else:
                size = {1: 1, two_queries: 2, 2**25: length}[cells]
                assert lengths == [min(size, length - i) for i in range(0, length, size)] * len(model.encoder)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_gathered_gradient_is_the_dense_one(norm: str, name: str, generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (3, 2))
    model = make(norm, 1, name)
    found = {}
    for path in paths(model):
        model.attend(path)
        model.zero_grad()
        model(problems.source, prefix, layout).square().mean().backward()
        found[path] = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key, gradient in found["dense"].items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found["gathered"][key], gradient, atol=1e-11 * scale, rtol=0)


@torch.no_grad()
def test_step_by_step_is_teacher_forced(either: TransformerModel, case: Case) -> None:
    problems, layout, prefix = case
    whole = either(problems.source, prefix, layout)
    assert whole.shape == (3, len(layout.target), len(TASK.vocabulary))
    assert whole.isfinite().all()
    torch.testing.assert_close(stepped(either, problems.source, prefix, layout), whole, atol=1e-12, rtol=1e-12)
    assert torch.equal(predict(either, problems, layout), whole)


@torch.no_grad()
def test_step_by_step_is_teacher_forced_with_a_fallback_in_the_decoder(generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (3, 2))
    # At first, the vertical's key is in the future. Is the row closed, so that the fallback opens?
    rules = (
        Rule("decoder", 0, 0, "answer", (Condition("place", 1),)),
        Rule("decoder", 0, 0, None, (Condition("raw", 0),), fallback=True),
    )
    method = Windowed(window(0).with_rules(rules), NoPE())
    model = EncoderDecoder(len(TASK.vocabulary), replace(BASE, num_encoder_layers=0), method).double()
    whole = model(problems.source, prefix, layout)
    torch.testing.assert_close(stepped(model, problems.source, prefix, layout), whole, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_no_logit_sees_the_future(either: TransformerModel, case: Case) -> None:
    problems, layout, prefix = case
    whole = either(problems.source, prefix, layout)
    for i in range(prefix.shape[1]):
        changed = prefix.clone()
        changed[:, i:] = (changed[:, i:] + 3) % len(TASK.vocabulary)
        logits = either(problems.source, changed, layout)
        torch.testing.assert_close(logits[:, :i], whole[:, :i], atol=1e-13, rtol=0)
        assert ((logits[:, i] - whole[:, i]).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_batch_does_not_matter(either: TransformerModel, case: Case) -> None:
    problems, layout, prefix = case
    whole = either(problems.source, prefix, layout)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(either(problems.source[order], prefix[order], layout), whole[order], atol=1e-12, rtol=0)
    for i in range(3):
        alone = either(problems.source[i : i + 1], prefix[i : i + 1], layout)
        torch.testing.assert_close(alone, whole[i : i + 1], atol=1e-12, rtol=0)


@torch.no_grad()
def test_maps(model: EncoderDecoder, case: Case) -> None:
    problems, layout, prefix = case
    maps: dict[tuple[str, int], Tensor] = {}
    logits = model(problems.source, prefix, layout, maps)
    torch.testing.assert_close(logits, model(problems.source, prefix, layout), atol=1e-12, rtol=1e-12)
    sizes = {"encoder": (len(layout.source), len(layout.source)), "decoder": 2 * (len(layout.target),)}
    sizes["cross"] = (len(layout.target), len(layout.source))
    expected = {("encoder", layer): sizes["encoder"] for layer in range(len(model.encoder))}
    expected |= {(site, layer): sizes[site] for site in ("decoder", "cross") for layer in range(LAYERS)}
    assert {key: tuple(weights.shape) for key, weights in maps.items()} == {
        key: (3, HEADS, *size) for key, size in expected.items()
    }
    for (site, layer), weights in maps.items():
        totals = weights.sum(-1)
        torch.testing.assert_close(totals, totals.round(), atol=1e-12, rtol=0)
        is_open = torch.ones(weights.shape[1:], dtype=torch.bool)
        if site == "decoder":
            is_open = is_open.tril()
        if isinstance(model.position, Windowed):
            is_open = is_open & (
                dense_bias(model.position.window, site, layer, *site_positions(site, layout)) > -math.inf
            )  # type: ignore[arg-type]
        assert ((weights > 0) == is_open).all()
    # The encoder's maps without the decoder's.
    encoder_only: dict[tuple[str, int], Tensor] = {}
    model.encode(problems.source, layout.source, encoder_only)
    assert set(encoder_only) == {key for key in maps if key[0] == "encoder"}


@torch.no_grad()
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("num_encoder_layers", [0, 1, 2])
def test_layers_are_those_of_torch(norm: str, num_encoder_layers: int, case: Case) -> None:
    problems, layout, prefix = case
    model = make(norm, num_encoder_layers, "sinusoidal")
    kwargs = {"dropout": 0.0, "batch_first": True, "norm_first": norm == "pre", "dtype": torch.float64}

    def copied(theirs: nn.Module, ours: nn.Module) -> nn.Module:
        names = [("self_attn", "self_attention"), ("multihead_attn", "cross_attention")]
        for name, own in names[: 1 + hasattr(ours, "cross_attention")]:
            attention, own = getattr(theirs, name), getattr(ours, own)
            for kind in ("weight", "bias"):
                packed = torch.cat([getattr(own.query, kind), getattr(own.key_value, kind)])
                getattr(attention, f"in_proj_{kind}").copy_(packed)
            attention.out_proj.load_state_dict(own.output.state_dict())
        norms = [n for n in ("self_norm", "cross_norm", "feedforward_norm") if hasattr(ours, n)]
        for i, name in enumerate(norms, 1):
            getattr(theirs, f"norm{i}").load_state_dict(getattr(ours, name).state_dict())
        theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
        theirs.linear2.load_state_dict(ours.feedforward[3].state_dict())
        return theirs.eval()

    def embedded(tokens: Tensor, positions: Positions) -> Tensor:
        x = model.embedding.weight[tokens] * math.sqrt(DIM)
        return model.positioning.embed(x, positions)

    memory = embedded(problems.source, layout.source)
    for block in model.encoder:
        memory = copied(nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, **kwargs), block)(memory)
    if norm == "pre" and num_encoder_layers:
        memory = model.encoder_norm(memory)
    x = embedded(prefix, layout.target)
    future = torch.ones(prefix.shape[1], prefix.shape[1], dtype=torch.bool).triu(1)
    for block in model.decoder:
        x = copied(nn.TransformerDecoderLayer(DIM, HEADS, HIDDEN, **kwargs), block)(x, memory, tgt_mask=future)
    if norm == "pre":
        x = nn.functional.layer_norm(x, (DIM,), model.decoder_norm.weight, model.decoder_norm.bias)
    expected = x @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(model(problems.source, prefix, layout), expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_encoder_of_no_layers_passes_embeddings_through(norm: str, case: Case) -> None:
    problems, layout, _ = case
    model = make(norm, 0, "cyclic")
    embedded = model.positioning.embed(model.embedding.weight[problems.source] * math.sqrt(DIM), layout.source)
    torch.testing.assert_close(model.encode(problems.source, layout.source), embedded, atol=1e-14, rtol=0)


@torch.no_grad()
def test_nothing_is_sized_by_length(model: EncoderDecoder, generator: torch.Generator) -> None:
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for shape in [(3, 2), (41, 57)]:
        problems, layout, prefix = draw(generator, shape)
        assert model(problems.source, prefix, layout).isfinite().all()
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before
    sizes = {size for shape in before.values() for size in shape}
    assert sizes <= {len(TASK.vocabulary), DIM, 2 * DIM, HIDDEN}
    # What is saved is all there is.
    other = make("pre" if model.decoder[0].pre else "post", len(model.encoder), "NoPE")
    other.load_state_dict(model.state_dict())


def test_position_replaces_the_architectures() -> None:
    architecture = replace(BASE, position=Sinusoidal())
    assert EncoderDecoder(13, architecture).position == Sinusoidal()
    assert EncoderDecoder(13, architecture, NoPE()).position == NoPE()


def test_dropout_only_while_training(generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (3, 2))
    model = EncoderDecoder(13, replace(BASE, dropout=0.3))
    plain = EncoderDecoder(13, BASE)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(problems.source, prefix, layout), plain(problems.source, prefix, layout))
    model.train()
    outputs = [model(problems.source, prefix, layout) for _ in range(2)]
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("name", ["NoPE", "windowed NoPE"])
def test_every_parameter_gets_a_finite_gradient(name: str, generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (3, 2))
    model = make("pre", 1, name)
    model(problems.source, prefix, layout).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).any()


def test_a_model_can_be_copied_after_use(generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (3, 2))
    model = make("pre", 1, "windowed NoPE")
    expected = model(problems.source, prefix, layout)
    assert torch.equal(copy.deepcopy(model)(problems.source, prefix, layout), expected)


@pytest.mark.parametrize("path", ["dense", "gathered"])
def test_validation_under_inference_mode_does_not_spoil_training(
    path: AttentionPath, generator: torch.Generator
) -> None:
    model = make("pre", 1, "windowed cyclic")
    model.attend(path)
    problems = TASK.sample(generator, 3, (4, 5))
    with torch.inference_mode():
        # Made here for the first time, and kept.
        layout = TASK.layout((4, 5))
        validated = predict(model, problems, layout)
    logits = predict(model, problems, layout)
    assert torch.equal(logits, validated)
    logits.square().sum().backward()


@torch.no_grad()
@pytest.mark.parametrize("name", ["NoPE", "sinusoidal", "windowed NoPE"])
def test_decoding_beyond_the_layout_fails(name: str, generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (1, 1))
    model = make("pre", 0, name)
    for path in paths(model):
        model.attend(path)
        state = model.decoder_state(problems.source, model.plan(layout))
        for tokens in prefix.unbind(1):
            model.step(tokens, state)
        with pytest.raises(ValueError, match="the layout has 3 target tokens; no further one"):
            model.step(prefix[:, 0], state)
        state = model.decoder_state(problems.source, model.plan(layout, ahead=2))
        model.advance(prefix[:, :2], state)
        with pytest.raises(ValueError, match="the layout has 3 target tokens; no further one"):
            model.advance(prefix[:, :2], state)
        assert state.step == 2


# Which keys the cache keeps.


def open_cells(own: Window, layout: Layout) -> list[set[tuple[int, int]]]:
    """Keys of the first decoder layer that each query reads, with their heads, found by comparing each with each."""
    bias = visible_oracle(own, "decoder", 0, layout.target, layout.prefix)
    return [
        {(key, head) for head, rows in enumerate(bias) for key, value in enumerate(rows[query]) if value > -math.inf}
        for query in range(len(layout.target))
    ]


def stored(own: Window, layout: Layout, ahead: int) -> Storage:
    table = open_keys(own, "decoder", 0, *site_positions("decoder", layout))
    assert table is not None
    return Storage.for_table(table, len(layout.prefix), ahead)


def most_alive(read: Sequence[set[tuple[int, int]]], ahead: int) -> int:
    """Most keys that must be held at once: a key is written up to `ahead - 1` queries before its own."""
    last = {key: query for query, cells in enumerate(read) for key, _ in cells}
    return max(sum(key <= written and last[key] > written - ahead for key in last) for written in range(len(read)))


def unravelled(number: int, heads: int) -> tuple[int, int, int]:
    """Row, key or value, and head of a place in a flattened `[row, 2, head]`."""
    return number // (2 * heads), number // heads % 2, number % heads


def simulate(storage: Storage, read: Sequence[set[tuple[int, int]]], pieces: Sequence[tuple[int, int]]) -> None:
    """Decodes pieces, each of a size and a number of tokens that are kept of it, with a cache of numbers."""
    assert storage.rows is not None
    assert storage.gather is not None
    rows = storage.rows.tolist()
    assert all(0 <= row < storage.num_rows for row in rows)
    heads = storage.gather.index.shape[1]
    held = [-1] * storage.num_rows
    start = 0
    for size, kept in pieces:
        for key in range(start, start + size):
            held[rows[key]] = key
        for query in range(start, start + size):
            for key, _ in read[query]:
                assert held[rows[key]] == key
            # What attention fetches of `[row, key or value, head]`, flattened.
            is_open = storage.gather.bias[query] > -math.inf
            if storage.gather.open_rows is not None:
                is_open &= storage.gather.open_rows[query] > 0
            fetched = set()
            for head, slot in is_open.nonzero().tolist():
                row, of_key, of_head = unravelled(int(storage.gather.rows[query, head, 0, slot]), heads)
                assert (of_key, of_head) == (0, head)
                value = unravelled(int(storage.gather.rows[query, head, 1, slot]), heads)
                assert value == (row, 1, head)
                fetched.add((held[row], head))
            assert fetched == read[query]
        start += kept


@st.composite
def pieces_of(draw: st.DrawFn, length: int, ahead: int, goes_back: bool) -> list[tuple[int, int]]:
    """Sizes of pieces that cover a target, and how many tokens of each are kept."""
    pieces, start = [], 0
    while start < length:
        size = min(length - start, draw(st.integers(1, ahead)))
        pieces.append((size, draw(st.integers(1, size)) if goes_back else size))
        start += pieces[-1][1]
    return pieces


def check_storage(own: Window, layout: Layout, data: st.DataObject) -> None:
    read = open_cells(own, layout)
    length = len(read)
    for ahead in {1, 2, data.draw(st.integers(1, length)), length}:
        storage = stored(own, layout, ahead)
        assert storage.num_rows == most_alive(read, ahead) + 1
        for goes_back in (False, True):
            simulate(storage, read, data.draw(pieces_of(length, ahead, goes_back)))
        simulate(storage, read, [(1, 1)] * length)
        simulate(storage, read, [(min(ahead, length - i), 1) for i in range(length)])


@settings(max_examples=100)
@given(crowded_windows("decoder"), layouts(longest=9), st.data())
def test_the_cache_holds_what_will_be_read(own: Window, layout: Layout, data: st.DataObject) -> None:
    check_storage(own, layout, data)


def line(*conditions: Condition, head: int = 0, segment: str | None = None) -> Rule:
    return Rule("decoder", 0, head, segment, conditions)


# Lines of a decoder, and how many rows their cache needs at any length from 10.
OFFSETS = [line(Condition("raw", 3, "raw")), line(Condition("place", 1, "place"), segment="answer", head=1)]
LINES = {
    "own": ([line(Condition("raw", 0, "raw"))], 1),
    "offsets": (OFFSETS, 4),
    "fixed": ([line(Condition("raw", 4)), line(Condition("index", 0), segment="answer", head=1)], 1 + 1),
    "fixed and offsets": ([*OFFSETS, line(Condition("raw", 2))], 4 + 1),
    "nothing": ([line(Condition("raw", -1, "raw"))], 0),
}
REVERSAL = [line(Condition("raw_from_end", 0, "raw"))]


@settings(max_examples=25)
@given(st.sampled_from([*(rules for rules, _ in LINES.values()), REVERSAL]), st.integers(1, 24), st.data())
def test_the_cache_of_usual_lines(rules: list[Rule], length: int, data: st.DataObject) -> None:
    check_storage(window(0).with_rules(rules), digit_layout((("operand 1", 1),), length), data)


@pytest.mark.parametrize("name", LINES)
def test_the_cache_of_offsets_does_not_grow_with_the_length(name: str) -> None:
    rules, num_rows = LINES[name]
    for length in (10, 5_000):
        for ahead in (1, 3):
            storage = stored(window(0).with_rules(rules), digit_layout((("operand 1", 1),), length), ahead)
            # One more is shared by what nobody reads; of a piece all keys are there at once, but fixed ones.
            more = 0 if name == "nothing" else ahead - 1
            assert storage.num_rows <= num_rows + more + 1
            if ahead == 1:
                assert storage.num_rows == num_rows + 1


def test_the_cache_of_a_reversal_holds_half() -> None:
    # Of tokens 0 .. 20, 10 .. 20 read themselves or one before; the eleven up to the middle are held until then.
    assert stored(window(0).with_rules(REVERSAL), digit_layout((("operand 1", 1),), 20), 1).num_rows == 11 + 1


def test_a_cache_keeps_tokens_in_their_rows() -> None:
    def numbers(*tokens: int) -> Tensor:
        return torch.tensor(tokens, dtype=torch.float)[None, :, None, None, None].expand(2, -1, 2, 3, 4)

    plain = LayerCache(Storage(4))
    assert torch.equal(plain.append(numbers(5)), numbers(5))
    assert torch.equal(plain.append(numbers(6, 7)), numbers(5, 6, 7))
    plain.held = 2
    assert torch.equal(plain.append(numbers(8)), numbers(5, 6, 8))

    chosen = LayerCache(Storage(2, torch.tensor([0, 1, 0, 1])))
    assert torch.equal(chosen.append(numbers(5)), numbers(5, 0))
    assert torch.equal(chosen.append(numbers(6, 7)), numbers(7, 6))
    assert torch.equal(chosen.append(numbers(8)), numbers(7, 8))


# What a step costs.

SHORT_LINES = [
    *(Rule("decoder", layer, head, None, (Condition("raw", 2 * head, "raw"),)) for layer in (0, 1) for head in (0, 1)),
    Rule("cross", 0, 0, "operand 1", OWN_PLACE),
    Rule("cross", 0, 1, "operand 2", OWN_PLACE, 1.5),
    Rule("cross", 0, 1, "operator", (), -0.5, fallback=True),
    Rule("cross", 1, 0, "operand 2", (Condition("place", 1, "place"),)),
    Rule("cross", 1, 1, "operator"),
]


def short_lines() -> EncoderDecoder:
    method = Windowed(window(0).with_rules(SHORT_LINES), NoPE())
    return EncoderDecoder(len(TASK.vocabulary), replace(BASE, num_encoder_layers=0), method).double().eval()


def spoil(cells: Tensor, num_heads: int, read: set[tuple[int, int]], named: Tensor) -> None:
    """Makes large what a step does not read of `[batch, row, 2, head, dim]`, and no number what it does not fetch."""
    unread = torch.ones(cells.shape[1], num_heads, dtype=torch.bool)
    for row, head in read:
        unread[row, head] = False
    cells.masked_fill_(unread[:, None, :, None], 1e6)
    unnamed = torch.ones(cells.shape[1:4].numel(), dtype=torch.bool)
    unnamed[named.flatten()] = False
    cells.masked_fill_(unnamed.view(cells.shape[1:4])[..., None], math.nan)


@torch.no_grad()
@pytest.mark.parametrize(
    "rules", [SHORT_LINES, [rule for rule in RULES if rule.site != "encoder"]], ids=["short", "any"]
)
@pytest.mark.parametrize("new", [1, 3])
def test_a_step_reads_nothing_but_open_keys(rules: list[Rule], new: int, generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (6, 4))
    own = window(0).with_rules(rules)
    method = Windowed(own, NoPE())
    model = EncoderDecoder(len(TASK.vocabulary), replace(BASE, num_encoder_layers=0), method).double().eval()
    model.attend("gathered")
    expected = model(problems.source, prefix, layout)
    bias = {name: matrix > -math.inf for name, matrix in matrices(own, layout).items()}
    spoilt = 0
    for start in range(prefix.shape[1] - new + 1):
        state = model.decoder_state(problems.source, model.plan(layout, ahead=new))
        for tokens in prefix[:, :start].unbind(1):
            model.step(tokens, state)
        queries = range(start, start + new)
        for layer, (cache, storage) in enumerate(zip(state.caches, state.plan.own, strict=True)):
            cross = state.plan.cross[layer].gather
            assert cross is not None
            assert storage.gather is not None
            assert storage.rows is not None
            cells = bias[f"cross.{layer}"][:, start : start + new].nonzero().tolist()
            spoil(state.memory[layer], HEADS, {(key, head) for head, _, key in cells}, cross.rows[start : start + new])
            if cache._kept is not None:
                cells = [
                    (int(storage.rows[key]), head)
                    for head, query, key in bias[f"decoder.{layer}"].nonzero().tolist()
                    if query in queries and key < start
                ]
                spoil(cache._kept, HEADS, set(cells), storage.gather.rows[start : start + new])
                spoilt += int(cache._kept.isnan().sum())
            assert state.memory[layer].isnan().any()
        logits = model.advance(prefix[:, start : start + new], state)
        torch.testing.assert_close(logits, expected[:, start : start + new], atol=1e-12, rtol=1e-12)
    assert spoilt or new > 1


@torch.no_grad()
def test_a_step_costs_the_same_at_every_position_and_length(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = short_lines()
    model.attend("gathered")
    gathered = Attention._gathered
    read: list[tuple[int, ...]] = []
    monkeypatch.setattr(Attention, "_gathered", lambda *a: read.append(tuple(a[-1].rows.shape)) or gathered(*a))
    seen = set()
    for shape in ((6, 5), (300, 200)):
        problems, layout, prefix = draw(generator, shape)
        state = model.decoder_state(problems.source, model.plan(layout))
        for tokens in prefix.unbind(1):
            read.clear()
            model.step(tokens, state)
            kept = [cache._kept.shape for cache in state.caches if cache._kept is not None]
            seen.add((tuple(read), tuple(kept)))
    # Of each layer, the own keys and the source's: `[query, head, key and value, slot]`; three rows and one shared.
    fetched = ((1, HEADS, 2, 1), (1, HEADS, 2, 2), (1, HEADS, 2, 1), (1, HEADS, 2, 1))
    assert seen == {(fetched, 2 * ((3, 3 + 1, 2, HEADS, DIM // HEADS),))}


# Which path is taken.


class Whole(AttentionPosition):
    """A method whose logits depend on more than a query and a key."""

    pointwise = False


class WholeMethod(NoPE):
    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return Whole()


WITHOUT_WINDOW = "it has no window, so that every key is open to every query"
NOT_POINTWISE = "Whole is not pointwise: a logit depends on more than its query and key"


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (NoPE(), WITHOUT_WINDOW),
        (Sinusoidal(), WITHOUT_WINDOW),
        (WholeMethod(), WITHOUT_WINDOW),
        (Windowed(window(0).with_rules(SHORT_LINES), WholeMethod()), NOT_POINTWISE),
    ],
    ids=["NoPE", "sinusoidal", "not pointwise", "not pointwise in a window"],
)
def test_what_cannot_be_gathered_says_why(method: PositionMethod, reason: str, generator: torch.Generator) -> None:
    model = EncoderDecoder(len(TASK.vocabulary), replace(BASE, num_encoder_layers=0), method).eval()
    with pytest.raises(UserError) as error:
        model.attend("gathered")
    assert str(error.value) == f"this model's attention cannot be gathered: {reason}"
    assert model.path == "auto"
    # Other ways are open to it: with `auto`, it is dense at any length.
    for path in ("dense", "auto"):
        model.attend(path)
        plan = model.plan(TASK.layout((200, 200)))
        assert all(storage.gather is None and storage.rows is None for storage in plan.own)
        assert all(scope.gather is None for scope in plan.cross)
        assert not plan.gathers
        assert model.num_slots(TASK.layout((3, 2))) == 2 * LAYERS * [0]


@torch.no_grad()
def test_auto_is_a_matter_of_length(generator: torch.Generator) -> None:
    model = short_lines()
    assert model.path == "auto"
    for length in (3, 4 * KEYS_A_SLOT):
        problems, layout, prefix = draw(generator, (length, length))
        plan = model.plan(layout, ahead=5)
        assert plan.gathers == (length > 3)
        expected = model(problems.source, prefix, layout)
        state = model.decoder_state(problems.source, plan)
        pieces = [model.advance(piece, state) for piece in prefix.split(5, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-12, rtol=1e-12)


def test_gathering_means_every_attention() -> None:
    layout = TASK.layout((4 * KEYS_A_SLOT, 4 * KEYS_A_SLOT))
    for site, gathers in (("decoder", (False, True)), ("cross", (True, False))):
        whole = Rule(site, 1, 0)  # type: ignore[arg-type]
        method = Windowed(window(0).with_rules([*SHORT_LINES, whole]), NoPE())
        plan = EncoderDecoder(13, replace(BASE, num_encoder_layers=0), method).plan(layout)
        own, cross = ([part.gather is not None for part in parts] for parts in (plan.own, plan.cross))
        assert (own, cross) == ([True, gathers[0]], [True, gathers[1]])
        assert not plan.gathers


def test_slots_are_counted() -> None:
    model = short_lines()
    layout = TASK.layout((3, 2))
    # A slot in each of two heads; in the first layer the second head has a fallback beside its line.
    for path, numbers in (("auto", [2, 4, 2, 2]), ("gathered", [2, 4, 2, 2]), ("dense", [0, 0, 0, 0])):
        model.attend(path)  # type: ignore[arg-type]
        assert model.num_slots(layout) == numbers


@torch.no_grad()
def test_maps_are_dense_whatever_the_path(generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (3, 2))
    model = make("pre", 1, "windowed cyclic")
    found = []
    for path in paths(model):
        model.attend(path)
        maps: dict[tuple[str, int], Tensor] = {}
        model(problems.source, prefix, layout, maps)
        found.append(maps)
    assert set(found[0]) == set(found[1])
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@torch.no_grad()
def test_pieces_keep_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layout = short_lines(), TASK.layout((6, 5))
    monkeypatch.setattr(attention, "_CELLS", 1000)
    model.attend("dense")
    # 2 heads of 12 keys of the source, and of 8 of the target, to a query.
    assert [model.plan(layout, batch, 100).ahead for batch in (1, 3, 500)] == [41, 13, 1]
    model.attend("gathered")
    # 2 heads, each with at most 2 keys and values of 4 channels.
    assert [model.plan(layout, batch, 100).ahead for batch in (1, 3, 500)] == [31, 10, 1]
    assert model.plan(layout, 1, 7).ahead == 7
    # The own keys count as well: here 8 in each head.
    method = Windowed(window(0).with_rules([Rule("decoder", 1, 1)]), NoPE())
    model = EncoderDecoder(len(TASK.vocabulary), replace(BASE, num_encoder_layers=0), method)
    model.attend("gathered")
    assert len(layout.prefix) == 8
    assert [model.plan(layout, batch, 100).ahead for batch in (1, 3)] == [1000 // (2 * 8 * 2 * 4), 2]


class Learned(AttentionPosition, nn.Module):
    """A bias a head, learned."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.full((num_heads, 3), 7.0))

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        return self.slopes.sum(1)[:, None, None].expand(-1, len(q_positions), len(k_positions))


class LearnedMethod(NoPE):
    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return Learned(num_heads)


def learned(model: EncoderDecoder) -> list[Tensor]:
    return [parameter for name, parameter in model.named_parameters() if "slopes" in name]


def test_a_method_initialises_its_own_parameters() -> None:
    parameters = learned(EncoderDecoder(13, BASE, LearnedMethod()))
    assert len(parameters) == 1 + 2 * LAYERS
    assert all((parameter == 7).all() for parameter in parameters)


def test_parameters_of_a_method_inside_a_window_are_the_models() -> None:
    assert len(learned(EncoderDecoder(13, BASE, Windowed(window(1), LearnedMethod())))) == 1 + 2 * LAYERS


# A single string.


@torch.no_grad()
def test_a_string_is_read_by_the_plain_stack(case: Case) -> None:
    """The target's logits of a decoder-only model are the plain stack's, told the coordinates of every token."""
    problems, layout, prefix = case
    model = make("pre", None, "sinusoidal of two")
    stack = Transformer(DIM, LAYERS, HEADS, HIDDEN, position=Sinusoidal(("place", "segment"), base=100.0)).double()
    stack.layers.load_state_dict(model.decoder.state_dict())
    stack.norm.load_state_dict(model.decoder_norm.state_dict())
    tokens = torch.cat([problems.source, prefix], dim=1)
    x = stack(model.embedding(tokens) * DIM**0.5, layout.string.target)
    expected = model.output(x)[:, problems.source.shape[1] :]
    torch.testing.assert_close(model(problems.source, prefix, layout), expected, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_every_token_of_the_source_matters_to_a_string(case: Case) -> None:
    problems, layout, prefix = case
    model = make("pre", None, "sinusoidal of two")
    whole = model(problems.source, prefix, layout)
    for i in range(problems.source.shape[1]):
        changed = problems.source.clone()
        changed[:, i] = (changed[:, i] + 3) % len(TASK.vocabulary)
        assert ((model(changed, prefix, layout) - whole).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_a_long_source_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (7, 5))
    model = make("pre", None, "cyclic")
    whole = model(problems.source, prefix, layout)
    pieces: list[int] = []
    forward = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda m, x, *a: pieces.append(x.shape[1]) or forward(m, x, *a))
    tokens = len(layout.source) + len(layout.target)
    monkeypatch.setattr(attention, "_CELLS", 4 * 3 * HEADS * tokens)
    state = model.decoder_state(problems.source, model.plan(layout, 3, 2))
    assert pieces == [n for n in (4, 4, 4, 1) for _ in range(LAYERS)]
    assert state.step == 0
    torch.testing.assert_close(model.advance(prefix[:, :2], state), whole[:, :2], atol=1e-12, rtol=1e-12)


# The plain stack.


def test_the_plain_stack_by_default() -> None:
    assert Transformer()(torch.randn(8, 100, 256)).shape == (8, 100, 256)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_the_plain_stack_is_that_of_torch(causal: bool, norm: str) -> None:
    stack = Transformer(DIM, LAYERS, HEADS, HIDDEN, causal=causal, norm=norm, position=NoPE()).double().eval()  # type: ignore[arg-type]
    for parameter in stack.parameters():
        nn.init.normal_(parameter, std=0.5)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, 0.0, batch_first=True, norm_first=norm == "pre")
    final = copy.deepcopy(stack.norm) if norm == "pre" else None
    theirs = nn.TransformerEncoder(layer.double(), LAYERS, final, enable_nested_tensor=False).eval()
    for block, other in zip(stack.layers, theirs.layers, strict=True):
        assert isinstance(other, nn.TransformerEncoderLayer)
        own = block.self_attention
        other.self_attn.in_proj_weight.copy_(torch.cat([own.query.weight, own.key_value.weight]))
        other.self_attn.in_proj_bias.copy_(torch.cat([own.query.bias, own.key_value.bias]))
        other.self_attn.out_proj.load_state_dict(own.output.state_dict())
        other.linear1.load_state_dict(block.feedforward[0].state_dict())
        other.linear2.load_state_dict(block.feedforward[3].state_dict())
        other.norm1.load_state_dict(block.self_norm.state_dict())
        other.norm2.load_state_dict(block.feedforward_norm.state_dict())
    x = torch.randn(3, 7, DIM, dtype=torch.double)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.double) if causal else None
    torch.testing.assert_close(stack(x), theirs(x, mask, is_causal=causal), atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_the_plain_stack_adds_positions() -> None:
    method = Sinusoidal()
    stack = Transformer(DIM, LAYERS, HEADS, HIDDEN, position=method).eval()
    without = Transformer(DIM, LAYERS, HEADS, HIDDEN, position=NoPE()).eval()
    without.load_state_dict(stack.state_dict())
    x = torch.randn(2, 5, DIM)
    positions = Positions(("text",), {"raw": torch.arange(5), "segment": torch.zeros(5, dtype=torch.long)})
    torch.testing.assert_close(stack(x), without(method.embed(x, positions)))
    later = Positions(("text",), dict(positions.coordinates) | {"raw": torch.arange(5) + 9})
    torch.testing.assert_close(stack(x, later), without(method.embed(x, later)))


@torch.no_grad()
def test_the_plain_stack_gives_its_attention() -> None:
    for causal, side in ((True, "decoder"), (False, "encoder")):
        maps: Maps = {}
        Transformer(DIM, LAYERS, HEADS, HIDDEN, causal=causal)(torch.randn(2, 5, DIM), maps=maps)
        assert set(maps) == {(side, layer) for layer in range(LAYERS)}
        for weights in maps.values():
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, 5))
            assert (weights.triu(1) == 0).all() == causal


def test_the_plain_stack_refuses_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="num_heads 3 does not divide"):
        Transformer(DIM, num_heads=3)
    with pytest.raises(UserError, match="RoPE needs an even number of channels"):
        Transformer(6, num_heads=2, position=RoPE())
