"""Windows that suffice for small tasks, models in them, and every problem there is: what tests of proofs share."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from abc_toolkit.models.base import Architecture, predict, prefix_of
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import NoPE, PositionMethod
from abc_toolkit.proof.enumeration import Kind, Prediction, Reading, kinds_of
from abc_toolkit.proof.receptive_field import ReceptiveField, ReceptiveFields
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.tasks import (
    Addition,
    Division,
    Multiplication,
    Parity,
    Problems,
    Shape,
    Subtraction,
    Successor,
    Task,
)
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.vocabulary import EOS
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window

OWN, BELOW, TWO_BELOW = ((Condition("place", offset, "place"),) for offset in (0, 1, 2))
FIRST, HIGHEST = ((Condition(anchor, 0),) for anchor in ("place", "index"))
ABOVE = (Condition("index", 1, "index"),)
SIZES = Architecture(num_decoder_layers=2, model_dim=32, feedforward_dim=64, num_heads=2)


def cross(head: int, conditions: tuple[Condition, ...] = OWN, segment: str = "operand 1", layer: int = 0) -> Rule:
    return Rule("cross", layer, head, segment, conditions)


def decoder(head: int, conditions: tuple[Condition, ...], segment: str = "answer", layer: int = 1) -> Rule:
    return Rule("decoder", layer, head, segment, conditions)


RULES: dict[str, tuple[DigitTask, tuple[Rule, ...]]] = {
    "parity": (Parity(max_length=5), (cross(0),)),
    "successor": (Successor(max_length=4), (cross(0), cross(1, layer=1), decoder(0, TWO_BELOW))),
    "addition": (Addition(max_length=2), (cross(0), cross(1, segment="operand 2"), decoder(0, TWO_BELOW))),
    "multiplication": (
        Multiplication(max_length=3),
        (cross(0), cross(1, FIRST, "operand 2"), decoder(0, TWO_BELOW), decoder(1, FIRST, "start")),
    ),
    "subtraction": (
        Subtraction(max_length=3, base=4),
        (cross(0), cross(1, segment="operand 2"), decoder(0, BELOW, "order"), decoder(1, HIGHEST, "order", 0)),
    ),
    "division": (
        Division(max_length=3, base=6),
        (cross(0), cross(1, FIRST, "operand 2"), decoder(0, OWN, "quotient"), decoder(1, ABOVE, "remainder")),
    ),
    "unpadded addition": (
        Addition(max_length=2, padding="none"),
        (cross(0), cross(1, segment="operand 2"), decoder(0, TWO_BELOW), cross(1, (), "operator", 1)),
    ),
    "addition without a decoder": (
        Addition(max_length=2),
        tuple(cross(i - 1, c, f"operand {i}", layer) for layer, c in enumerate((BELOW, OWN)) for i in (1, 2)),
    ),
}
LEARNT = {"parity": 300, "successor": 800, "addition without a decoder": 600}  # steps
# What an encoder's layer reads, below the others.
ENCODER = (
    Rule("encoder", 0, 0, "operand 1", (Condition("place", 1, "place"),)),
    Rule("encoder", 0, 1, "operand 1", (Condition("index", 0),), 0.5, fallback=True),
)


def rule_of(task: DigitTask) -> TabledRule:
    rule = task.local_rule()
    assert rule is not None
    return TabledRule(task, rule)


def window(task: Task, rules: Sequence[Rule], encoder: int = 0) -> Window:
    return Window(type(task).__name__, encoder, 2, 2, tuple(rules), {})


def make(task: Task, rules: Sequence[Rule], inner: PositionMethod | None = None, encoder: int = 0) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = replace(SIZES, num_encoder_layers=encoder)
    position = Windowed(window(task, rules, encoder), inner or NoPE())
    return EncoderDecoder(len(task.vocabulary), sizes, position).eval()


def predictions(task: DigitTask, model: EncoderDecoder, rule: TabledRule | None = None) -> Iterator[Prediction]:
    """Every prediction of the training shapes."""
    rule = rule_of(task) if rule is None else rule
    for shape in task.training_shapes():
        reading = Reading(rule, task.layout(shape))
        fields = ReceptiveFields(model.position.window, reading.layout, model.positioning)  # type: ignore[attr-defined]
        for query in range(len(reading.layout.target)):
            yield reading, task.sizes(shape), shape, fields.at(query)


def kinds(task: DigitTask, model: EncoderDecoder) -> list[Kind]:
    """The kinds of a model's predictions in the training shapes."""
    return kinds_of(task, predictions(task, model))


def leaves_of(field: ReceptiveField, problems: Problems) -> Tensor:
    """What stands at the leaves of a receptive field in some problems, `[problem, leaf]`."""
    strings = {"source": problems.source, "prefix": prefix_of(problems.target)}
    return torch.stack([strings[string][:, number] for string, number in field.leaves], dim=1)


@lru_cache
def every_problem(task: DigitTask, shape: Shape) -> Problems:
    """All problems of a shape, by the task's oracle."""
    texts = []
    for digits in itertools.product(task.symbols[: task.base], repeat=sum(task.operand_lengths(shape))):
        first = "".join(digits[: task.operand_lengths(shape)[0]])
        second = "".join(digits[task.operand_lengths(shape)[0] :])
        if isinstance(task, Division) and second == "0":
            continue
        texts.append(task.parse(first + task.operator + second)[1])
    source = torch.stack([task.vocabulary.encode(text) for text in texts])
    target = torch.stack([task.vocabulary.encode(task.solve(text)) for text in texts])
    return Problems(shape, source, functional.pad(target, (0, 1), value=EOS))


@torch.no_grad()
def fails(task: DigitTask, model: EncoderDecoder, longest: int) -> bool:
    """Whether the model fails on any problem up to a length: every one is tried."""
    for shape in replace(task, max_length=longest).training_shapes():
        problems = every_problem(task, shape)
        if (predict(model, problems, task.layout(shape)).argmax(-1) != problems.target).any():
            return True
    return False


@lru_cache
def _learnt(name: str, inner: PositionMethod | None) -> EncoderDecoder:
    task, rules = RULES[name]
    model = make(task, rules, inner).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    shapes = [shape for shape in task.training_shapes() if len(shape) == 1 or min(shape) > 1]
    for step in range(LEARNT[name]):
        problems = task.sample(generator, 64 * len(shapes[0]) ** 2, shapes[step % len(shapes)])
        logits = predict(model, problems, task.layout(problems.shape))
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten()).backward()
        optimizer.step()
    return model.eval()


def learnt(name: str, inner: PositionMethod | None = None) -> tuple[DigitTask, EncoderDecoder]:
    """A small model that has learnt all of its assignments; trained once a session."""
    return RULES[name][0], copy.deepcopy(_learnt(name, inner))
