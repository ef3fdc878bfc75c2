"""Exact match at any length: in one parallel pass, or step by step as `solve` decodes."""

import contextlib
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from abc_toolkit import report
from abc_toolkit.data import SMALL, draw, seeded
from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.metrics import DigitAccuracy, wilson_interval
from abc_toolkit.model import DecodingPlan, Model, prefix_of
from abc_toolkit.positions import ModelPosition
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.tasks.base import SETS, UNIFORM, shape_name
from abc_toolkit.vocabulary import BOS, EOS

try:
    import resource
except ImportError:  # on Windows, where a process has no such limits
    resource = None

Decode = Literal["parallel", "steps"]
Size = int | Shape  # a length, whose shapes are up to the task, or one shape
LONGEST = 10**9
MOST_LENGTHS = 10**4
_EVALUATION, _POSITIONS = 10, 11  # what is drawn for an evaluation
_TOKENS_DRAWN = 2**20  # of problems that are made at once; which ones they are depends on it
_TOKENS_HELD = 2**17  # of problems whose keys and values are held at once
_TOKENS_AHEAD = 2**12  # of problems that go through the model at once
_TOKENS_GUESSED = 2**8  # of problems that are decoded at once
_DRAWN_TOGETHER = 16  # problems that positions drawn at random are the same for
_REMEMBERED = 4  # calls by which it is judged how many guesses to make
_TOKENS_COUNTED = 50  # of each problem that are decoded before the bar moves
_CELLS = 2**25  # attention cells of all heads that a batch may take whose maps are asked for


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
    generator = seeded(seed, _EVALUATION, *_numbers(size), SETS.index(set_name))
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
    with report.counter("evaluating", len(work) * len(models) * samples, "problems") as count:
        for size, set_name in work:
            length, shape = (size, None) if isinstance(size, int) else (max(size), size)
            totals = {weights: Total() for weights in models}
            tokens = 0
            for number, problems in enumerate(evaluation_problems(task, size, set_name, samples, seed)):
                tokens = max(tokens, sum(task.num_tokens(problems.shape)))
                layout = task.layout(problems.shape).to(device)
                for weights, model in models.items():
                    with drawing(seed, _POSITIONS, *_numbers(size), SETS.index(set_name), number):
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


def chunks(task: Task, batches: Sequence[Problems], device: torch.device) -> Iterator[tuple[Problems, Layout]]:
    """The batches cut into pieces whose attention maps fit into memory, on a device, each with its layout."""
    for batch in batches:
        layout = task.layout(batch.shape).to(device)
        size = max(1, _CELLS // (4 * len(layout.target) * (len(layout.target) + len(layout.source))))
        for start in range(0, len(batch), size):
            yield batch[start : start + size].to(device), layout


def planned(
    model: Model, problems: Problems, layout: Layout, decode: Decode
) -> Iterator[tuple[Problems, DecodingPlan]]:
    """Problems of one shape in batches whose keys and values fit into memory, with how they are decoded.

    Where positions are drawn at random, batches are small and each has its own, as one draw is no measure of a model.
    """
    size = min(len(problems), max(1, _TOKENS_HELD // (len(layout.source) + len(layout.target))))
    draws = any(part.draws for part in model.modules() if isinstance(part, ModelPosition))
    size = min(size, _DRAWN_TOGETHER) if draws else size
    ahead = max(1, (_TOKENS_AHEAD if decode == "parallel" else _TOKENS_GUESSED) // size)
    plan = model.plan(layout, size, ahead)
    for start in range(0, len(problems), size):
        if draws and start:
            plan = model.plan(layout, size, ahead)
        yield problems[start : start + size], plan


@contextlib.contextmanager
def drawing(seed: int, *purpose: int) -> Iterator[None]:
    """Lets positions be drawn as a seed and a purpose say; what is drawn afterwards is as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeded(seed, *purpose).initial_seed())  # no device draws positions
        yield


@torch.no_grad()
def solves(model: Model, problems: Problems, plan: DecodingPlan) -> Tensor:
    """Which problems greedy decoding solves whole, boolean `[batch]`.

    It does if and only if every token is right under the true tokens before it, which are judged piece by piece, as
    far as a problem is left without an error.

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
def greedy(model: Model, source: Tensor, plan: DecodingPlan, count: Callable[[int], None] = lambda _: None) -> Tensor:
    """Greedy decoding with a key-value cache, each token under the model's own tokens before it.

    Where a window makes a token cheap beside a call of the model, several are decoded at once: the next tokens are
    guessed to be what the last call predicted for them, and kept up to the first that the model, under the guesses,
    predicts otherwise, with what it predicts there. That is what single steps give, in fewer calls (Jacobi decoding,
    Santilli et al. 2023, arXiv 2305.10427). The more guesses came true of late, the more are made.

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


def _greedy(model: Model, source: Tensor, plan: DecodingPlan, count: Callable[[int], None]) -> Tensor:
    state = model.decoder_state(source, plan)
    length = len(plan.layout.target)
    tokens = source.new_full((len(source), 1 + length), BOS)  # what is not known yet is a guess
    known, counted, most = 0, 0, plan.ahead if plan.gathers else 1
    lately = deque([1] * _REMEMBERED, _REMEMBERED)
    while known < length:
        ahead = min(most, length - known, 2 * sum(lately))
        state.go_back(known)
        found = model.advance(tokens[:, known : known + ahead], state).argmax(-1)
        ended = torch.cat([tokens[:, known : known + 1], found[:, :-1]], dim=1).eq(EOS).cummax(dim=1).values
        found = found.masked_fill(ended, EOS)
        guessed = tokens[:, known + 1 : known + 1 + ahead]
        right = (found == guessed).all(dim=0).tolist()
        guessed.copy_(found)
        lately.append(min(ahead, right.index(False) + 1 if False in right else ahead))
        known += lately[-1]
        if tokens[:, known].eq(EOS).all():
            tokens[:, known:] = EOS
            known = length
        if known == length or known - counted >= _TOKENS_COUNTED:
            count(len(source) * (known - counted))
            counted = known
    return tokens[:, 1:]


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
    model: Model, task: Task, problems: Sequence[tuple[Shape, str]], count: Callable[[int], None] = lambda done: None
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
        with drawing(0, _POSITIONS, *shape):  # an answer does not depend on the problems beside it
            plan = model.plan(task.layout(shape), len(numbers), ahead)
        decoded = greedy(model, source, plan, count)
        for number, tokens in zip(numbers, decoded, strict=True):
            answers[number] = task.answer(task.vocabulary.decode(tokens))
    return answers


def check_memory(task: Task, model: Model, shape: Shape, device: torch.device) -> None:
    """Refuses a shape of which a single problem does not fit into memory. Any number of problems does.

    Raises:
        UserError: With the estimate.
    """
    source, target = task.num_tokens(shape)
    sizes = model.architecture
    # Measured: what problem, layout and streams take a token; then keys and values; then index tables.
    needed = (source + target) * (300 + 8 * sizes.model_dim)
    needed += source * 8 * sizes.model_dim * sizes.num_decoder_layers
    needed += target * 40 * sum(_num_slots(task, model, max(shape)))
    available = memory_of(device)
    if needed > available:
        raise UserError(
            f"length {max(shape):,}: one problem takes about {math.ceil(needed / 2**30):,} GiB and there are "
            f"{available / 2**30:.1f} GiB; choose a shorter one"
        )


def _num_slots(task: Task, model: Model, length: int) -> Iterator[float]:
    """Slots a query, in all heads, of each attention that gathers at a length; reckoned from short problems."""
    short, longest = max(1, task.max_length // 2), task.max_length
    shapes = [task.evaluation_shapes(n, UNIFORM, torch.Generator())[0] for n in (short, longest)]
    for few, many in zip(*(model.num_slots(task.layout(shape)) for shape in shapes), strict=True):
        growth = max(0, many - few) / max(1, longest - short)
        if growth == 0 or model.path == "gathered":  # else there are too many slots for anything but the dense path
            yield many + growth * max(0, length - longest)


def memory_of(device: torch.device) -> int:
    """Bytes that this process may take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [psutil.virtual_memory().total]
    if resource is not None:
        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(limits)
