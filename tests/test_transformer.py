import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from abc_toolkit.calibration.window import Condition, Rule, Window, Windowed
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import AttentionPosition, Cyclic, NoPE, PositionMethod, Sinusoidal, Site
from abc_toolkit.tasks import Addition, Problems
from abc_toolkit.transformer import Architecture, Transformer, teacher_forced
from abc_toolkit.vocabulary import BOS

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


def window(num_encoder_layers: int) -> Window:
    rules = tuple(rule for rule in RULES if num_encoder_layers or rule.site != "encoder")
    return Window("Addition", num_encoder_layers, LAYERS, HEADS, rules, {})


def position(name: str, num_encoder_layers: int) -> PositionMethod:
    own = {
        "NoPE": NoPE(),
        "sinusoidal": Sinusoidal(),
        "sinusoidal of two": Sinusoidal(("place", "segment"), base=100.0),
        "cyclic": Cyclic(),
    }
    if name in own:
        return own[name]
    return Windowed(window(num_encoder_layers), own[name.removeprefix("windowed ")])


POSITIONS = ["NoPE", "sinusoidal", "sinusoidal of two", "cyclic", "windowed NoPE", "windowed cyclic"]
MODELS = [(norm, encoder, name) for norm in ("pre", "post") for encoder in (0, 1) for name in POSITIONS]


def make(norm: str, num_encoder_layers: int, name: str) -> Transformer:
    architecture = replace(BASE, norm=norm, num_encoder_layers=num_encoder_layers)
    model = Transformer(len(TASK.vocabulary), architecture, position(name, num_encoder_layers)).double().eval()
    for parameter in model.parameters():  # zeros and ones would hide a bias or a norm left out
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(params=MODELS, ids=lambda param: " ".join(map(str, param)))
def model(request: pytest.FixtureRequest) -> Transformer:
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


def stepped(model: Transformer, source: Tensor, prefix: Tensor, layout: Layout) -> Tensor:
    """Logits under a given prefix, a step at a time."""
    state = model.decoder_state(source, layout)
    logits = []
    for i, tokens in enumerate(prefix.unbind(1)):
        assert state.step == i
        logits.append(model.step(tokens, state))
    assert state.step == prefix.shape[1]
    return torch.stack(logits, dim=1)


@torch.no_grad()
def test_step_by_step_is_teacher_forced(model: Transformer, case: Case) -> None:
    problems, layout, prefix = case
    whole = model(problems.source, prefix, layout)
    assert whole.shape == (3, len(layout.target), len(TASK.vocabulary))
    assert whole.isfinite().all()
    torch.testing.assert_close(stepped(model, problems.source, prefix, layout), whole, atol=1e-12, rtol=1e-12)
    assert torch.equal(teacher_forced(model, problems, layout), whole)


@torch.no_grad()
def test_step_by_step_is_teacher_forced_with_a_fallback_in_the_decoder(generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (3, 2))
    # At first, the vertical's key is in the future. Is the row closed, so that the fallback opens?
    rules = (
        Rule("decoder", 0, 0, "answer", (Condition("place", 1),)),
        Rule("decoder", 0, 0, None, (Condition("raw", 0),), fallback=True),
    )
    method = Windowed(window(0).with_rules(rules), NoPE())
    model = Transformer(len(TASK.vocabulary), replace(BASE, num_encoder_layers=0), method).double()
    whole = model(problems.source, prefix, layout)
    torch.testing.assert_close(stepped(model, problems.source, prefix, layout), whole, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_no_logit_sees_the_future(model: Transformer, case: Case) -> None:
    problems, layout, prefix = case
    whole = model(problems.source, prefix, layout)
    for i in range(prefix.shape[1]):
        changed = prefix.clone()
        changed[:, i:] = (changed[:, i:] + 3) % len(TASK.vocabulary)
        logits = model(problems.source, changed, layout)
        torch.testing.assert_close(logits[:, :i], whole[:, :i], atol=1e-13, rtol=0)
        assert ((logits[:, i] - whole[:, i]).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_batch_does_not_matter(model: Transformer, case: Case) -> None:
    problems, layout, prefix = case
    whole = model(problems.source, prefix, layout)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(problems.source[order], prefix[order], layout), whole[order], atol=1e-12, rtol=0)
    for i in range(3):
        alone = model(problems.source[i : i + 1], prefix[i : i + 1], layout)
        torch.testing.assert_close(alone, whole[i : i + 1], atol=1e-12, rtol=0)


@torch.no_grad()
def test_maps(model: Transformer, case: Case) -> None:
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
            is_open = is_open & (model.position.window.site_bias(site, layer, layout) > -math.inf)  # type: ignore[arg-type]
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
        return model.position.embed(x, positions)

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
    embedded = model.position.embed(model.embedding.weight[problems.source] * math.sqrt(DIM), layout.source)
    torch.testing.assert_close(model.encode(problems.source, layout.source), embedded, atol=1e-14, rtol=0)


@torch.no_grad()
def test_nothing_is_sized_by_length(model: Transformer, generator: torch.Generator) -> None:
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
    assert Transformer(13, architecture).position == Sinusoidal()
    assert Transformer(13, architecture, NoPE()).position == NoPE()


def test_dropout_only_while_training(generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (3, 2))
    model = Transformer(13, replace(BASE, dropout=0.3))
    plain = Transformer(13, BASE)
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


def test_validation_under_inference_mode_does_not_spoil_training(generator: torch.Generator) -> None:
    model = make("pre", 1, "windowed cyclic")
    problems = TASK.sample(generator, 3, (4, 5))
    with torch.inference_mode():
        # Made here for the first time, and kept.
        layout = TASK.layout((4, 5))
        validated = teacher_forced(model, problems, layout)
    logits = teacher_forced(model, problems, layout)
    assert torch.equal(logits, validated)
    logits.square().sum().backward()


@torch.no_grad()
@pytest.mark.parametrize("name", ["NoPE", "sinusoidal"])
def test_stepping_beyond_the_layout_fails(name: str, generator: torch.Generator) -> None:
    problems, layout, prefix = draw(generator, (1, 1))
    model = make("pre", 0, name)
    state = model.decoder_state(problems.source, layout)
    for tokens in prefix.unbind(1):
        model.step(tokens, state)
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        model.step(prefix[:, 0], state)


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


def learned(model: Transformer) -> list[Tensor]:
    return [parameter for name, parameter in model.named_parameters() if "slopes" in name]


def test_a_method_initialises_its_own_parameters() -> None:
    parameters = learned(Transformer(13, BASE, LearnedMethod()))
    assert len(parameters) == 1 + 2 * LAYERS
    assert all((parameter == 7).all() for parameter in parameters)


def test_parameters_of_a_method_inside_a_window_are_the_models() -> None:
    assert len(learned(Transformer(13, BASE, Windowed(window(1), LearnedMethod())))) == 1 + 2 * LAYERS
