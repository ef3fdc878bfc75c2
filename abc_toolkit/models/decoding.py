"""Decoding with a key-value cache, greedy or by beam search, and whether it solves a problem."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from abc_toolkit.layout import Layout
from abc_toolkit.models.base import DecoderState, DecodingModel, DecodingPlan, Model, prefix_of
from abc_toolkit.positions import ModelPosition
from abc_toolkit.seeds import Stream, drawing
from abc_toolkit.tasks.base import Batch, Decodable, Problems, Solvable
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

Decode = Literal["parallel", "steps"]
Search = Callable[[DecodingModel, Tensor, DecodingPlan], Tensor]  # as `greedy` and `beam_search` do
_TOKENS_HELD = 2**17  # of problems whose keys and values are held at once
_TOKENS_WHOLE = 2**12  # of problems that are not decoded and go through the model at once; more leave its cache
_TOKENS_AHEAD = 2**12  # of problems that go through the model at once
_TOKENS_GUESSED = 2**8  # of problems that are decoded at once
_CELLS = 2**25  # attention cells of all heads of problems that go through the model at once
_DRAWN_TOGETHER = 16  # problems that positions drawn at random are the same for
_REMEMBERED = 4  # calls by which it is judged how many guesses to make
_TOKENS_TRIED = 2**13  # of all candidates of all problems, that are tried at once
_FEW = 40  # tokens a call, over the number of candidates; where fewer guesses come true, candidates are tried
_PIECES = 4  # of candidates that are tried before it is guessed again
_TOKENS_COUNTED = 50  # of each problem that are decoded before the bar moves


def planned(
    model: DecodingModel, problems: Problems, layout: Layout, decode: Decode
) -> Iterator[tuple[Problems, DecodingPlan]]:
    """Problems of one shape in batches whose keys and values fit into memory, each with its decoding plan.

    Where positions are drawn at random, batches are small and each has a draw of its own: one draw does not measure a
    model.
    """
    size = min(len(problems), max(1, _TOKENS_HELD // (len(layout.source) + len(layout.target))))
    draws = _draws(model)
    size = min(size, _DRAWN_TOGETHER) if draws else size
    ahead = max(1, (_TOKENS_AHEAD if decode == "parallel" else _TOKENS_GUESSED) // size)
    plan = model.plan(layout, size, ahead)
    for start in range(0, len(problems), size):
        if draws and start:
            plan = model.plan(layout, size, ahead)
        yield problems[start : start + size], plan


def pieces(model: Model, batch: Batch) -> Iterator[Batch]:
    """Problems that are not decoded step by step, in batches whose attention fits into memory."""
    length = batch.inputs.shape[1] + (batch.targets.shape[1] if model.interface.decoded else 0)
    size = max(1, min(_TOKENS_WHOLE // length, _CELLS // (model.numbers_a_pair * length**2)))
    yield from batch.split(min(size, _DRAWN_TOGETHER) if _draws(model) else size)


def _draws(model: Model) -> bool:
    """Whether the model's positions are drawn at random."""
    return any(part.draws for part in model.modules() if isinstance(part, ModelPosition))


@torch.no_grad()
def solves(model: DecodingModel, problems: Problems, plan: DecodingPlan) -> Tensor:
    """Which problems greedy decoding solves whole, boolean `[batch]`.

    A problem is solved if and only if every token is right under the true tokens before it. Tokens are judged piece by
    piece, until every problem has an error.

    Args:
        model: The model, in evaluation mode.
        problems: The problems.
        plan: How they are decoded.
    """
    state = model.decoder_state(problems.source, plan)
    target = problems.target
    prefix = prefix_of(target)
    right = torch.ones(len(target), dtype=torch.bool, device=target.device)
    for start in range(0, target.shape[1], plan.ahead):
        piece = slice(start, start + plan.ahead)
        right &= (model.advance(prefix[:, piece], state).argmax(-1) == target[:, piece]).all(dim=1)
        if not right.any():
            break
    return right


@torch.no_grad()
def greedy(
    model: DecodingModel, source: Tensor, plan: DecodingPlan, count: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Greedy decoding with a key-value cache, each token under the model's own tokens before it.

    Where a window makes a token cheap beside a call of the model, several are decoded at once: the next tokens are
    guessed to be what the last call predicted for them, and kept up to the first that the model, under the guesses,
    predicts otherwise, with what it predicts there. That is what single steps give, in fewer calls (Jacobi decoding,
    Santilli et al. 2023, arXiv 2305.10427). The more guesses came true of late, the more are made.

    Where few come true, as in a long carry or in parity, the guesses are made by *candidates*: one call predicts the
    next token after each symbol at each place, and the guesses follow by looking them up from one place to the next.
    They come true where a token depends, within the piece, on the token before it alone.

    It goes on for as many tokens as the layout gives the target; a row that has ended stays at `EOS`.

    Args:
        model: The model, in evaluation mode.
        source: Token ids `[batch, source_length]`.
        plan: How they are decoded.
        count: Is told, every now and then, how many more tokens are decoded.

    Returns:
        Token ids `[batch, target_length]`.
    """
    # The few operations on gathered keys are too small to be shared: two threads take three times as long as one.
    with _threads(1 if plan.gathers else torch.get_num_threads()):
        return _greedy(model, source, plan, count)


def _greedy(model: DecodingModel, source: Tensor, plan: DecodingPlan, count: Callable[[int], None]) -> Tensor:
    state = model.decoder_state(source, plan)
    length = len(plan.layout.target)
    tokens = source.new_full((len(source), 1 + length), BOS)  # what is not known yet is a guess
    known, counted, most = 0, 0, plan.ahead if plan.gathers else 1
    lately = deque([1] * _REMEMBERED, _REMEMBERED)
    num_candidates = model.interface.num_tokens - NUM_SPECIAL
    widest = min(most, _TOKENS_TRIED // (len(source) * num_candidates))  # with candidates
    calls, tried = 0, 0  # without candidates since these were tried; pieces with candidates that are still to come
    while known < length:
        state.go_back(known)
        if tried:
            ahead = min(widest, length - known)
            tokens[:, known + 1 : known + 1 + ahead] = _by_candidates(model, state, tokens[:, known], ahead)
        else:
            ahead = min(most, length - known, 2 * sum(lately))
        found = model.advance(tokens[:, known : known + ahead], state).argmax(-1)
        ended = torch.cat([tokens[:, known : known + 1], found[:, :-1]], dim=1).eq(EOS).cummax(dim=1).values
        found = found.masked_fill(ended, EOS)
        guessed = tokens[:, known + 1 : known + 1 + ahead]
        right = (found == guessed).all(dim=0).tolist()
        guessed.copy_(found)
        confirmed = min(ahead, right.index(False) + 1 if False in right else ahead)
        known += confirmed
        if tried:
            worth_it = confirmed >= min(ahead, num_candidates)
            tried, widest = tried - 1, widest if worth_it else 0
            tried = tried if worth_it else 0
        else:
            lately.append(confirmed)
            calls += 1
            few = sum(lately) * num_candidates < _FEW * _REMEMBERED
            if few and calls >= 2 * _REMEMBERED and widest > 2 * num_candidates:
                tried, calls = _PIECES, 0
        if tokens[:, known].eq(EOS).all():
            tokens[:, known:] = EOS
            known = length
        if known == length or known - counted >= _TOKENS_COUNTED:
            count(len(source) * (known - counted))
            counted = known
    return tokens[:, 1:]


def _by_candidates(model: DecodingModel, state: DecoderState, last: Tensor, ahead: int) -> Tensor:
    """Guesses of the next tokens, `[batch, ahead]`, by trying every symbol at each place.

    Args:
        model: The model.
        state: Where decoding stands; it stays as it is.
        last: The last token of each row, `[batch]`.
        ahead: Tokens to guess.
    """
    symbols = torch.arange(NUM_SPECIAL, model.interface.num_tokens, device=last.device)
    tried = symbols.repeat(len(last))[:, None].repeat(1, ahead)
    tried[:, 0] = last.repeat_interleave(len(symbols))
    found = model.advance(tried, state.copies(len(symbols))).argmax(-1)
    guesses: list[list[int]] = []
    for after in found.unflatten(0, (len(last), len(symbols))).transpose(1, 2).tolist():
        token = after[0][0]
        guesses.append([token])
        for predicted in after[1:]:
            token = predicted[max(token - NUM_SPECIAL, 0)]
            guesses[-1].append(token)
    return torch.tensor(guesses, device=last.device)


@torch.no_grad()
def beam_search(
    model: DecodingModel, source: Tensor, plan: DecodingPlan, beams: int = 4, length_penalty: float = 0.6
) -> Tensor:
    """The likeliest target that a search with several beams finds.

    The score of a target of `n` tokens, `EOS` among them, is its log-probability divided by `((5 + n) / 6) **
    length_penalty` (Wu et al. 2016, arXiv 1609.08144). Each step goes on with the likeliest beginnings that have not
    ended; those among as many likeliest ones that end are kept. The search of a problem ends when no beginning can get
    a better score than what is kept. A target that fills the layout need not end with `EOS`.

    Args:
        model: The model, in evaluation mode.
        source: Token ids `[batch, source_length]`.
        plan: How they are decoded.
        beams: Beginnings of each problem that each step goes on with. One, without a penalty, is greedy decoding.
        length_penalty: The exponent, at least 0.

    Returns:
        Token ids `[batch, target_length]`, `EOS` from the end of each target on.
    """
    batch, length, device = len(source), len(plan.layout.target), source.device
    state = model.decoder_state(source.repeat_interleave(beams, dim=0), plan)
    tokens = source.new_full((batch, beams, length), EOS)
    scores = torch.full((batch, beams), -torch.inf, device=device)
    scores[:, 0] = 0  # all beams of a problem begin alike
    best, best_scores = tokens[:, 0].clone(), scores[:, 1:].new_full((batch,), -torch.inf)
    last = source.new_full((batch * beams,), BOS)
    first_row = beams * torch.arange(batch, device=device)[:, None]
    for step in range(length):
        logarithms = model.step(last, state).log_softmax(-1).unflatten(0, (batch, beams))
        found = (scores[..., None] + logarithms).flatten(1)
        found_scores, at = found.topk(min(2 * beams, found.shape[1]), dim=1)
        beam, token = at // logarithms.shape[-1], at % logarithms.shape[-1]
        ends = token == EOS

        # Of those that end, or of all in the last step, the best.
        complete = found_scores[:, :beams] / _penalty(step + 1, length_penalty)
        if step < length - 1:
            complete = complete.masked_fill(~ends[:, :beams], -torch.inf)
        score, which = complete.max(dim=1)
        better = score > best_scores
        candidate = tokens.gather(1, beam.gather(1, which[:, None])[..., None].expand(-1, -1, length))[:, 0]
        candidate[:, step] = token.gather(1, which[:, None])[:, 0]
        best = torch.where(better[:, None], candidate, best)
        best_scores = torch.where(better, score, best_scores)

        # Those that do not end go on, the likeliest first.
        scores, going = found_scores.masked_fill(ends, -torch.inf).topk(beams, dim=1)
        beam, token = beam.gather(1, going), token.gather(1, going)
        if not (scores[:, 0] / _penalty(length, length_penalty) > best_scores).any():
            break
        tokens = tokens.gather(1, beam[..., None].expand(-1, -1, length))
        tokens[..., step] = token
        state.choose((first_row + beam).flatten())
        last = token.flatten()
    return best


def _penalty(length: int, exponent: float) -> float:
    """What the log-probability of a target is divided by."""
    return ((5 + length) / 6) ** exponent


def decode_problems(
    model: DecodingModel,
    task: Decodable,
    problems: Problems,
    search: Search,
    count: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Targets as a model decodes them, knowing nothing of how long they are.

    Problems of one source length are decoded together.

    Args:
        model: The model, in evaluation mode.
        task: The task.
        problems: The problems, on the model's device, padded or not.
        search: How to decode.
        count: Is told how many more problems are done.

    Returns:
        Token ids `[batch, length]`, `EOS` from the end of each target on.
    """
    present = None if problems.layout is None else problems.layout.source.present
    whole = torch.full((len(problems),), problems.source.shape[1])
    lengths = whole if present is None else present.sum(dim=1).cpu()
    rows: list[Tensor] = []
    decoded: list[Tensor] = []
    for length in lengths.unique().tolist():
        layout = task.decoding_layout(length).to(problems.source.device)
        size = max(1, _TOKENS_HELD // (len(layout.source) + len(layout.target)))
        for some in (lengths == length).nonzero()[:, 0].split(min(size, _DRAWN_TOGETHER) if _draws(model) else size):
            plan = model.plan(layout, len(some), max(1, _TOKENS_GUESSED // len(some)))
            decoded.append(search(model, problems.source[some, :length], plan))
            rows.append(some)
            count(len(some))
    longest = max(tokens.shape[1] for tokens in decoded)
    padded = [functional.pad(tokens, (0, longest - tokens.shape[1]), value=EOS) for tokens in decoded]
    return torch.cat(padded)[torch.cat(rows).argsort()]


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Computes with a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def solve_problems(
    model: DecodingModel,
    task: Solvable,
    problems: Sequence[tuple[Shape, str]],
    count: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The model's own answers, decoded step by step; nothing here knows the right ones.

    Args:
        model: The model, in evaluation mode, on the CPU.
        task: Its task.
        problems: Shape and source of each, as the task parsed them.
        count: Is told how many more tokens are decoded.

    Returns:
        Answers in natural order, in the problems' order.
    """
    by_shape: dict[Shape, list[int]] = {}
    for number, (shape, _) in enumerate(problems):
        by_shape.setdefault(shape, []).append(number)
    sizes = {shape: max(1, _TOKENS_HELD // sum(task.num_tokens(shape))) for shape in by_shape}
    pieces = [
        numbers[i : i + sizes[shape]]
        for shape, numbers in by_shape.items()
        for i in range(0, len(numbers), sizes[shape])
    ]
    answers = [""] * len(problems)
    for numbers in pieces:
        source = torch.stack([task.vocabulary.encode(problems[number][1]) for number in numbers])
        ahead = max(1, _TOKENS_GUESSED // len(numbers))
        shape = problems[numbers[0]][0]
        with drawing(0, Stream.POSITIONS, *shape):  # an answer does not depend on the problems beside it
            plan = model.plan(task.layout(shape), len(numbers), ahead)
        decoded = greedy(model, source, plan, count)
        for number, tokens in zip(numbers, decoded, strict=True):
            answers[number] = task.answer(task.vocabulary.decode(tokens))
    return answers
