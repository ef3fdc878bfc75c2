"""Exact match at any length: in one parallel pass, or step by step as `solve` decodes."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from abc_toolkit import report
from abc_toolkit.data import SMALL, draw, seeded
from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.metrics import DigitAccuracy, ExactMatch, wilson_interval
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.tasks.base import SETS, UNIFORM
from abc_toolkit.transformer import Transformer, teacher_forced
from abc_toolkit.vocabulary import BOS, EOS

Decode = Literal["parallel", "steps"]
LONGEST = 10**6  # digits; a list of every length up to it still fits into memory
_EVALUATION = 10
_CELLS = 2**25  # attention cells of all heads that one batch may take


@dataclass(frozen=True)
class Row:
    """One line of `results.json`.

    Attributes:
        task: The task's name.
        set: Evaluation set.
        length: Digits per operand.
        tokens: Tokens of source and target together, in the set's largest shape.
        samples: Number of problems.
        exact_match: Share of problems solved whole.
        low: Lower end of the 95 % Wilson interval.
        high: Upper end.
        decode: How it was computed.
        seed: What the problems were drawn from.
        weights: The phase whose model it is.
    """

    task: str
    set: str
    length: int
    tokens: int
    samples: int
    exact_match: float
    low: float
    high: float
    decode: Decode
    seed: int
    weights: str

    def plain(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)


def parse_lengths(spec: str, longest: int) -> list[int]:
    """Lengths that a specification names.

    Args:
        spec: `60`; `10x`, times the longest training length; a list `1x,2x,60`; a range `1x:10x`, every multiple,
            or `6:60`, every length.
        longest: The longest training length.

    Raises:
        UserError: If it names no length, or one below 1 or above `LONGEST`.
    """
    lengths: list[int] = []
    for part in map(str.strip, spec.split(",")):
        if ":" in part:
            first, _, last = (text.strip() for text in part.partition(":"))
            start, end = _length(first, spec, longest), _length(last, spec, longest)
            if start > end:
                raise UserError(f"--length {spec}: the range {part} runs backwards; write {last}:{first}")
            step = longest if first.endswith("x") and last.endswith("x") else 1
            lengths += range(start, end + 1, step)
        else:
            lengths.append(_length(part, spec, longest))
    return sorted(set(lengths))


def _length(text: str, spec: str, longest: int) -> int:
    match = re.fullmatch(r"([0-9]{1,9})(x?)", text)
    length = int(match[1]) * (longest if match[2] else 1) if match else 0
    if not 1 <= length <= LONGEST:
        what = repr(text) if spec != text else "it"
        raise UserError(
            f"--length {spec!r}: {what} is not a length of at least 1 and at most {LONGEST}; "
            "write 60, 10x, 1x,2x,10x or 1x:10x"
        )
    return length


def check_sets(sets: Sequence[str] | str) -> tuple[str, ...]:
    """The evaluation sets' names, which may be given as a text with commas.

    Raises:
        UserError: If there is none, or one that does not exist.
    """
    sets = sets.split(",") if isinstance(sets, str) else sets
    unknown = [name for name in sets if name not in SETS]
    if unknown or not sets:
        named = repr(unknown[0]) if unknown else "an empty list"
        raise UserError(f"--sets: {named} names no evaluation set; they are {', '.join(SETS)}")
    return tuple(dict.fromkeys(sets))


def evaluation_problems(task: Task, length: int, set_name: str, samples: int, seed: int) -> list[Problems]:
    """The problems of one length and set.

    Within the training lengths, `uniform` problems are those held out of training, where there are any.

    Args:
        task: The task.
        length: Digits per operand.
        set_name: One of `SETS`.
        samples: How many, over all shapes of the set.
        seed: What they follow from.
    """
    generator = seeded(seed, _EVALUATION, length, SETS.index(set_name))
    shapes = task.evaluation_shapes(length, set_name, generator)[:samples]
    parts = [samples // len(shapes) + (i < samples % len(shapes)) for i in range(len(shapes))]
    batches = []
    for shape, part in zip(shapes, parts, strict=True):
        if set_name == UNIFORM and length <= task.max_length and task.num_problems(shape) >= SMALL:
            batches.append(draw(task, generator, part, shape, for_validation=True, set_name=set_name))
        else:
            batches.append(task.sample(generator, part, shape, set_name))
    return batches


def evaluate_models(
    task: Task,
    models: Mapping[str, Transformer],
    lengths: Sequence[int],
    sets: Sequence[str],
    samples: int,
    decode: Decode,
    seed: int,
    device: torch.device,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Exact match of several models on the same problems.

    Args:
        task: The task.
        models: Models in evaluation mode, by the phase they come from.
        lengths: Lengths.
        sets: Evaluation sets.
        samples: Problems of each length and set.
        decode: `parallel` judges every token under the true tokens before it, which finds the same problems solved
            as greedy decoding does; `steps` decodes, which accuracy by digit needs.
        seed: What the problems follow from.
        device: Where to run.

    Returns:
        A row for each length, set and model; and, with `steps`, accuracy by place as rows of plain data.
    """
    rows, digit_rows = [], []
    work = [(length, set_name) for length in lengths for set_name in sets]
    for length, set_name in report.track(work, "evaluating"):
        batches = evaluation_problems(task, length, set_name, samples, seed)
        tokens = max(batch.source.shape[1] + batch.target.shape[1] for batch in batches)
        for weights, model in models.items():
            model.to(device)
            metric = ExactMatch().to(device)
            by_digit = decode == "steps" and len(batches) == 1  # places of several shapes do not match
            digits = DigitAccuracy(batches[0].target.shape[1] - 1).to(device)
            for problems, layout in chunks(task, batches, device):
                predicted = predict(model, problems, layout, decode)
                metric.update(predicted, problems.target)
                if by_digit:
                    digits.update(predicted, problems.target)
            right, total = int(metric.right), int(metric.total)
            low, high = wilson_interval(right, total)
            rows.append(
                Row(task.name, set_name, length, tokens, total, right / total, low, high, decode, seed, weights)
            )
            if by_digit:
                accuracies = digits.compute().reshape(-1).tolist()  # a metric makes one place into no list
                digit_rows += [
                    {"weights": weights, "set": set_name, "length": length, "place": place, "accuracy": accuracy}
                    for place, accuracy in enumerate(accuracies)
                ]
    return rows, digit_rows


def chunks(task: Task, batches: Sequence[Problems], device: torch.device) -> Iterator[tuple[Problems, Layout]]:
    """The batches cut into pieces that fit into memory, on a device, each with its layout."""
    for batch in batches:
        layout = task.layout(batch.shape).to(device)
        size = max(1, _CELLS // (4 * len(layout.target) * (len(layout.target) + len(layout.source))))
        for start in range(0, len(batch), size):
            yield batch[start : start + size].to(device), layout


@torch.no_grad()
def predict(model: Transformer, problems: Problems, layout: Layout, decode: Decode) -> Tensor:
    """Predicted tokens `[batch, target_length]`: under the true tokens before them, or decoded step by step."""
    if decode == "parallel":
        return teacher_forced(model, problems, layout).argmax(-1)
    return greedy(model, problems.source, layout)


@torch.no_grad()
def greedy(model: Transformer, source: Tensor, layout: Layout) -> Tensor:
    """Greedy decoding with a key-value cache, each step fed with the model's own tokens.

    It goes on for as many tokens as the layout gives the target; a row that has ended stays at `EOS`.

    Args:
        model: The model, in evaluation mode.
        source: Token ids `[batch, source_length]`.
        layout: Their layout.

    Returns:
        Token ids `[batch, target_length]`.
    """
    state = model.decoder_state(source, layout)
    tokens = torch.full_like(source[:, 0], BOS)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    decoded = []
    for _ in range(len(layout.target)):
        tokens = model.step(tokens, state).argmax(-1).masked_fill(ended, EOS)
        ended = tokens == EOS
        decoded.append(tokens)
    return torch.stack(decoded, dim=1)


def solve_problems(model: Transformer, task: Task, problems: Sequence[tuple[Shape, str]]) -> list[str]:
    """The model's own answers, decoded step by step; nothing here knows the right ones.

    Args:
        model: The model, in evaluation mode, on the CPU.
        task: Its task.
        problems: Shape and source of each, as the task parsed them.

    Returns:
        Answers in natural order, in the problems' order.
    """
    by_shape: dict[Shape, list[int]] = {}
    for number, (shape, _) in enumerate(problems):
        by_shape.setdefault(shape, []).append(number)
    pieces = [numbers[i : i + 256] for numbers in by_shape.values() for i in range(0, len(numbers), 256)]
    answers = [""] * len(problems)
    for numbers in report.track(pieces, "solving"):
        source = torch.stack([task.vocabulary.encode(problems[number][1]) for number in numbers])
        decoded = greedy(model, source, task.layout(problems[numbers[0]][0]))
        for number, tokens in zip(numbers, decoded, strict=True):
            answers[number] = task.answer(task.vocabulary.decode(tokens))
    return answers


def check_memory(task: Task, length: int) -> None:
    """Refuses a length of which a single problem's dense attention does not fit into memory.

    Raises:
        UserError: With the estimate.
    """
    # Shapes of other sets are no larger than the uniform one's.
    layout = task.layout(task.evaluation_shapes(length, UNIFORM, torch.Generator())[0])
    cells = len(layout.target) * (len(layout.target) + len(layout.source))
    needed = 4 * cells * 16
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise UserError(
            f"length {length}: one problem's attention takes about {math.ceil(needed / 2**30)} GiB and this machine "
            f"has {available // 2**30} GiB; choose a shorter --length"
        )
