"""Sample problems: what the models of a run answer, and where one of them looked for each token of its answer."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import DecodingModel, Maps, Model, prefix_of
from abc_toolkit.models.decoding import greedy
from abc_toolkit.models.transformer import AttentionModel
from abc_toolkit.phases.measure import evaluation_problems
from abc_toolkit.seeds import Stream, drawing
from abc_toolkit.tasks import Problems, Solvable
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

_EACH = 2  # problems within the training lengths, and as many beyond
_BEYOND = 2  # times the longest training length
_SEED = 20  # of the problems, which are others than those of an evaluation with a seed that people choose
_LONGEST_ANSWER = 60  # tokens that fit into the width of a page
_SIGNS = {BOS: "▸", EOS: "end"}


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
        text: The answer as a person writes it.
        tokens: Texts of the tokens in the order in which they were written.
    """

    text: str
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A problem with answers.

    Attributes:
        source: The problem.
        beyond: Whether it is longer than the training problems.
        right: The right answer.
        answers: Each model's own, by its phase.
        attention: Attention of the last of the models, `[query, key]`, for each layer and head: to the source's tokens,
            then to those written. Empty if the model has no attention.
    """

    source: str
    beyond: bool
    right: Answer
    answers: Mapping[str, Answer]
    attention: Mapping[tuple[int, int], Tensor]


def sample_problems(task: Solvable, models: Mapping[str, Model], cells: int) -> list[Sample]:
    """Some problems within the training lengths, and some beyond, with the answers of several models.

    Args:
        task: The task.
        models: The models, in evaluation mode; the attention is that of the last.
        cells: Attention weights that there is room for, which limits the lengths.
    """
    found: list[Sample] = []
    model = list(models.values())[-1]
    for beyond in (False, True):
        for problems in _drawn(task, model, beyond, cells // (2 * _EACH)):
            found += [_sample(task, models, problems, beyond)]
    return found


def _drawn(task: Solvable, model: Model, beyond: bool, cells: int) -> Iterator[Problems]:
    """The longest problems of which there is room, one by one."""
    most, least = (_BEYOND * task.max_length, task.max_length + 1) if beyond else (task.max_length, task.shortest)
    for length in range(most, least - 1, -1):
        with suppress(UserError):  # there is no problem of the length
            batches = list(evaluation_problems(task, length, task.suites[0], _EACH, _SEED))
            if all(_cells(task, model, batch) <= cells for batch in batches):
                for batch in batches:
                    assert isinstance(batch, Problems)  # as those of all tasks of token streams are
                    yield from batch.split(1)
                return


def _cells(task: Solvable, model: Model, problems: Problems | object) -> float:
    """Attention weights of a problem; infinitely many if its answer is too long to be shown."""
    assert isinstance(problems, Problems)
    source, target = task.num_tokens(problems.shape)
    if max(source, target) > _LONGEST_ANSWER:
        return float("inf")
    sizes = model.architecture
    return target * (source + target) * sizes.num_decoder_layers * sizes.num_heads


@torch.no_grad()
def _sample(task: Solvable, models: Mapping[str, Model], problems: Problems, beyond: bool) -> Sample:
    layout = task.layout(problems.shape)
    answers: dict[str, Answer] = {}
    attention: dict[tuple[int, int], Tensor] = {}
    for phase, model in models.items():
        assert isinstance(model, DecodingModel)  # as that of a task with a target is
        if isinstance(model, AttentionModel):
            model.attend("dense")
        with drawing(0, Stream.POSITIONS, *problems.shape):  # as `abc solve` draws them
            decoded = greedy(model, problems.source, model.plan(layout, 1, 1))
        answers[phase] = _answer(task, decoded[0])
        if isinstance(model, AttentionModel):
            maps: Maps = {}
            with drawing(0, Stream.POSITIONS, *problems.shape):
                model(problems.source, prefix_of(decoded), layout, maps)
            attention = _by_head(maps, problems.source.shape[1])
    right = _answer(task, problems.target[0])
    source = task.vocabulary.decode(problems.source[0])
    return Sample(source, beyond, right, answers, attention)


def _answer(task: Solvable, tokens: Tensor) -> Answer:
    numbers = tokens.tolist()
    texts = tuple(_SIGNS.get(token) or task.vocabulary.symbols[token - NUM_SPECIAL] for token in numbers)
    return Answer(task.answer(task.vocabulary.decode(tokens)), texts)


def _by_head(maps: Maps, source: int) -> dict[tuple[int, int], Tensor]:
    """Attention of the target's queries to source and prefix, by layer and head."""
    found: dict[tuple[int, int], Tensor] = {}
    for (site, layer), weights in maps.items():
        if site != "decoder":
            continue
        rows = weights[0]
        is_one_string = ("cross", layer) not in maps
        rows = rows[:, source:] if is_one_string else torch.cat([maps["cross", layer][0], rows], dim=-1)
        found |= {(layer, head): own for head, own in enumerate(rows)}
    return found
