"""The lengths, the problems and the rows of an evaluation."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import Model
from abc_toolkit.models.decoding import Decode, greedy, planned, solves
from abc_toolkit.report import terminal
from abc_toolkit.seeds import Stream, drawing, seeded
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.tasks.base import SETS, UNIFORM, shape_name
from abc_toolkit.tasks.metrics import DigitAccuracy, wilson_interval
from abc_toolkit.training.data import SMALL, draw

Size = int | Shape  # a length, whose shapes are up to the task, or one shape
LONGEST = 10**9
MOST_LENGTHS = 10**4


_TOKENS_DRAWN = 2**20  # of problems that are made at once; which ones they are depends on it


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
        shape: The one shape that was asked for, the larger of whose lengths is `length`.
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
    shape: Shape | None = None

    def plain(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)


def parse_sizes(spec: str, task: Task) -> list[Size]:
    """Lengths and shapes that a specification names, in this order.

    Args:
        spec: A list of what `parse_lengths` takes and of shapes such as `3x200`.
        task: The task.

    Raises:
        UserError: As `parse_lengths`; also if the task has no problems of a shape.
    """
    parts = [part.strip() for part in spec.split(",")]
    shapes = [part for part in parts if re.fullmatch("[0-9]+(x[0-9]+)+", part)]
    lengths = [part for part in parts if part not in shapes]
    sizes: list[Size] = [*parse_lengths(",".join(lengths), task.max_length)] if lengths else []
    for text in dict.fromkeys(shapes):
        shape = tuple(_length(number, spec, 1) for number in text.split("x"))
        # The shape of small lengths that stand to each other as these do.
        alike = tuple(1 + sorted(set(shape)).index(length) for length in shape)
        if alike not in task.training_shapes():
            known = ", ".join(map(shape_name, task.training_shapes()[:3]))
            raise UserError(f"--length {spec}: {task.name} has no problems of shape {text}, but such as {known}")
        sizes.append(shape)
    return sizes


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
            if (end - start) // step >= MOST_LENGTHS:
                raise UserError(f"--length {spec}: {part} names {(end - start) // step + 1} lengths; write fewer")
            lengths += range(start, end + 1, step)
        else:
            lengths.append(_length(part, spec, longest))
    return sorted(set(lengths))


def _length(text: str, spec: str, longest: int) -> int:
    match = re.fullmatch(r"([0-9]{1,10})(x?)", text)
    length = int(match[1]) * (longest if match[2] else 1) if match else 0
    if not 1 <= length <= LONGEST:
        what = repr(text) if spec != text else "it"
        raise UserError(
            f"--length {spec!r}: {what} is not a length of at least 1 and at most {LONGEST}; "
            "write 60, 10x, 1x,2x,10x or 1x:10x, or a shape such as 3x200"
        )
    return length


def check_sets(sets: Sequence[str] | str) -> tuple[str, ...]:
    """The evaluation sets' names, which may be given as a text with commas.

    Raises:
        UserError: If there is none, or one that does not exist.
    """
    sets = [name.strip() for name in sets.split(",")] if isinstance(sets, str) else sets
    unknown = [name for name in sets if name not in SETS]
    if unknown or not sets:
        named = repr(unknown[0]) if unknown else "an empty list"
        raise UserError(f"--sets: {named} names no evaluation set; they are {', '.join(SETS)}")
    return tuple(dict.fromkeys(sets))


def evaluation_problems(task: Task, size: Size, set_name: str, samples: int, seed: int) -> Iterator[Problems]:
    """The problems of one length, or shape, and set, made piece by piece.

    Within the training lengths, `uniform` problems are those held out of training, where there are any.

    Args:
        task: The task.
        size: Digits per operand, or one shape.
        set_name: One of `SETS`.
        samples: How many, over all shapes of the set.
        seed: What they follow from.
    """
    generator = seeded(seed, Stream.EVALUATION, *_numbers(size), SETS.index(set_name))
    shapes = _shapes(task, size, set_name, generator)[:samples]
    for number, shape in enumerate(shapes):
        left = samples // len(shapes) + (number < samples % len(shapes))
        most = max(1, _TOKENS_DRAWN // sum(task.num_tokens(shape)))
        while left:
            batch = min(left, most)
            left -= batch
            if set_name == UNIFORM and max(_numbers(size)) <= task.max_length and task.num_problems(shape) >= SMALL:
                yield draw(task, generator, batch, shape, for_validation=True, set_name=set_name)
            else:
                yield task.sample(generator, batch, shape, set_name)


def _shapes(task: Task, size: Size, set_name: str, generator: torch.Generator) -> tuple[Shape, ...]:
    return task.evaluation_shapes(size, set_name, generator) if isinstance(size, int) else (size,)


def _numbers(size: Size) -> Shape:
    return (size,) if isinstance(size, int) else size


def evaluate_models(
    task: Task,
    models: Mapping[str, Model],
    sizes: Sequence[Size],
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
        sizes: Lengths and shapes.
        sets: Evaluation sets.
        samples: Problems of each length and set.
        decode: `parallel` judges every token under the true tokens before it, which finds the same problems solved
            as greedy decoding does; `steps` decodes, which accuracy by digit needs.
        seed: What the problems follow from.
        device: Where to run.

    Returns:
        A row for each length or shape, set and model; and, with `steps`, accuracy by place as rows of plain data.
    """
    rows, digit_rows = [], []
    work = [(size, set_name) for size in sizes for set_name in sets]
    with terminal.counter("evaluating", len(work) * len(models) * samples, "problems") as count:
        for size, set_name in work:
            length, shape = (size, None) if isinstance(size, int) else (max(size), size)
            totals = {weights: Total() for weights in models}
            tokens = 0
            for number, problems in enumerate(evaluation_problems(task, size, set_name, samples, seed)):
                tokens = max(tokens, sum(task.num_tokens(problems.shape)))
                layout = task.layout(problems.shape).to(device)
                for weights, model in models.items():
                    with drawing(seed, Stream.POSITIONS, *_numbers(size), SETS.index(set_name), number):
                        totals[weights].add(model.to(device), problems.to(device), layout, decode, count)
            for weights, total in totals.items():
                low, high = wilson_interval(total.right, total.samples)
                share = total.right / total.samples
                result = (total.samples, share, low, high, decode, seed, weights, shape)
                rows.append(Row(task.name, set_name, length, tokens, *result))
                digit_rows += [
                    {"weights": weights, "set": set_name, "length": length, "place": place, "accuracy": accuracy}
                    for place, accuracy in enumerate(total.accuracies() if shape is None else ())
                ]
    return rows, digit_rows


class Total:
    """What a model got right of some problems."""

    def __init__(self) -> None:
        self.right = self.samples = 0
        self._digits: DigitAccuracy | None = None
        self._shapes: set[Shape] = set()

    def add(
        self,
        model: Model,
        problems: Problems,
        layout: Layout,
        decode: Decode,
        count: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Lets a model do problems of one shape, on its device; `count` is told how many more are done."""
        self._shapes.add(problems.shape)
        if self._digits is None:
            self._digits = DigitAccuracy(problems.target.shape[1] - 1).to(problems.target.device)
        for batch, plan in planned(model, problems, layout, decode):
            if decode == "parallel":
                right = solves(model, batch, plan)
            else:
                decoded = greedy(model, batch.source, plan)
                right = (decoded == batch.target).all(dim=1)
                if len(self._shapes) == 1:
                    self._digits.update(decoded, batch.target)
            self.right += int(right.sum())
            self.samples += len(batch)
            count(len(batch))

    def accuracies(self) -> list[float]:
        """Accuracy by place, if problems of one shape were decoded step by step: places of several do not match."""
        if self._digits is None or len(self._shapes) > 1 or not self._digits.total:
            return []
        return self._digits.compute().reshape(-1).tolist()  # a metric makes one place into no list
