"""Beam search, against all targets that there are, and against greedy decoding; candidates in place of guesses."""

from itertools import product

import pytest
import torch
from torch import Tensor

from abc_toolkit.layout import raw_layout
from abc_toolkit.models import decoding
from abc_toolkit.models.base import Architecture, DecodingModel, DecodingPlan, prefix_of
from abc_toolkit.models.decoding import beam_search, greedy
from abc_toolkit.models.mamba import MambaLanguageModel
from abc_toolkit.models.transformer import DecoderOnly, EncoderDecoder, TransformerModel
from abc_toolkit.positions import NoPE, Sinusoidal
from abc_toolkit.tasks import Addition
from abc_toolkit.vocabulary import EOS
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window

KINDS: dict[str, type[DecodingModel]] = {
    "encoder-decoder": EncoderDecoder,
    "decoder-only": DecoderOnly,
    "mamba": MambaLanguageModel,
}
TOKENS = 4
LENGTH = 3


def model_of(kind: str, seed: int, scale: float = 3.0) -> DecodingModel:
    """A random model whose predictions are far from even."""
    torch.manual_seed(seed)
    encoder = int(kind == "encoder-decoder")
    position = NoPE() if kind == "mamba" else Sinusoidal(("raw", "segment"))
    sizes = Architecture(encoder, 1, 8, 2, 8, position=position, backbone=kind)  # type: ignore[arg-type]
    model = KINDS[kind](TOKENS, sizes).double().eval()
    with torch.no_grad():
        model.output.weight *= scale
    return model


def ended(target: Tensor) -> Tensor:
    """A target with `EOS` from its first one on."""
    return target.masked_fill(target.eq(EOS).cummax(dim=-1).values, EOS)


def likeliest(model: DecodingModel, source: Tensor, penalty: float) -> tuple[Tensor, float]:
    """The target of the best score of all that there are, and the score."""
    rows = torch.tensor(list(product(range(TOKENS), repeat=LENGTH)))
    rows = ended(rows).unique(dim=0)
    layout = raw_layout(LENGTH, source.shape[1])
    with torch.no_grad():
        logits = model(source.expand(len(rows), -1), prefix_of(rows), layout)
    by_token = logits.log_softmax(-1).gather(2, rows[..., None])[..., 0]
    before = torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1]], dim=1).eq(EOS)  # what comes after the end
    numbers = (~before).sum(dim=1)
    scores = by_token.masked_fill(before, 0).sum(dim=1) / ((5 + numbers) / 6) ** penalty
    return rows[scores.argmax()], float(scores.max())


@pytest.mark.parametrize("penalty", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_with_beams_for_all_targets_it_finds_the_best(kind: str, penalty: float) -> None:
    for seed in range(6):
        model = model_of(kind, seed)
        sources = torch.randint(2, TOKENS, (3, 4), generator=torch.Generator().manual_seed(seed))
        plan = model.plan(raw_layout(LENGTH, 4), len(sources) * TOKENS**LENGTH)
        found = beam_search(model, sources, plan, TOKENS**LENGTH, penalty)
        expected = [likeliest(model, source[None], penalty)[0] for source in sources]
        assert found.tolist() == torch.stack(expected).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_without_a_penalty_is_greedy(kind: str) -> None:
    lengths = set()
    for seed in range(8):
        model = model_of(kind, seed)
        sources = torch.randint(2, TOKENS, (5, 4), generator=torch.Generator().manual_seed(seed))
        plan = model.plan(raw_layout(7, 4), 5)
        found = greedy(model, sources, plan)
        assert torch.equal(beam_search(model, sources, plan, 1, 0.0), found)
        lengths.update((found != EOS).sum(dim=1).tolist())
    assert len(lengths) > 2  # some end early, some do not


def test_a_problem_is_searched_as_if_alone() -> None:
    model = model_of("encoder-decoder", 3)
    sources = torch.randint(2, TOKENS, (6, 4), generator=torch.Generator().manual_seed(0))
    plan = model.plan(raw_layout(6, 4), 12)
    together = beam_search(model, sources, plan, 2)
    alone = [beam_search(model, source[None], plan, 2) for source in sources]
    assert torch.equal(together, torch.cat(alone))


def test_more_beams_than_tokens() -> None:
    model = model_of("encoder-decoder", 1)
    plan = model.plan(raw_layout(1, 4), 5)
    assert beam_search(model, torch.tensor([[2, 3, 2, 2]]), plan, 5).shape == (1, 1)


def chained(seed: int, encoder: bool) -> tuple[DecodingModel, Tensor, DecodingPlan]:
    """A model inside a window whose next token depends on the one before it, with sources and their plan."""
    torch.manual_seed(seed)
    task = Addition(max_length=3)
    own, below = (Condition("place", offset, "place") for offset in (0, 1))
    site = "cross" if encoder else "decoder"
    asked = None if encoder else "target"
    rules = (
        Rule(site, 0, 0, "operand 1", (own,), query_string=asked),
        Rule(site, 0, 1, "operand 2", (own,), query_string=asked),
        Rule("decoder", 0, 1, "answer", (below,), query_string=asked),
    )
    kind = "encoder-decoder" if encoder else "decoder-only"
    window = Window("Addition", 0, 1, 2, rules, {}, backbone=kind)
    sizes = Architecture(0, 1, 16, 2, 16, position=NoPE(), backbone=kind)
    model = KINDS[kind](len(task.vocabulary), sizes, Windowed(window, NoPE())).eval()
    with torch.no_grad():
        model.output.weight *= 8
        model.output.bias[EOS] = -30.0
    assert isinstance(model, TransformerModel)
    model.attend("gathered")
    problems = task.sample(torch.Generator().manual_seed(seed), 3, (700, 700))
    return model, problems.source, model.plan(task.layout((700, 700)), 3, 256)


@pytest.mark.parametrize("encoder", [True, False])
def test_candidates_change_no_token_and_save_calls(encoder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = 0
    for seed in range(4):
        model, source, plan = chained(seed, encoder)
        calls: list[int] = []
        advance = model.advance
        monkeypatch.setattr(model, "advance", lambda *words, calls=calls, own=advance: calls.append(1) or own(*words))
        for batch in (1, 3):
            found = {}
            for few in (0, 40):
                monkeypatch.setattr(decoding, "_FEW", few)
                calls.clear()
                found[few] = greedy(model, source[:batch], plan), len(calls)
            assert torch.equal(found[0][0], found[40][0])
            assert found[40][1] <= found[0][1] + 5
            saved += found[40][1] < found[0][1] / 5
    assert saved >= 2  # where tokens depend on those before them in earnest


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_a_state_go_on_by_themselves(kind: str) -> None:
    model = model_of(kind, 2)
    source = torch.randint(2, TOKENS, (2, 4), generator=torch.Generator().manual_seed(0))
    plan = model.plan(raw_layout(5, 4), 6)
    with torch.no_grad():
        state = model.decoder_state(source, plan)
        model.step(torch.tensor([0, 0]), state)
        copies = state.copies(3)
        tried = torch.tensor([1, 2, 3, 3, 2, 1])
        found = model.step(tried, copies)
        for column, expected in enumerate(found.unflatten(0, (2, 3)).unbind(1)):
            alone = state.copies(1)
            assert torch.allclose(model.step(tried.unflatten(0, (2, 3))[:, column], alone), expected, atol=1e-12)
        assert state.copies(1) is not state
