"""The basis of a proof: a task on digit strings, its local rule, a window, and periodic position methods.

`basis_of` refuses a model of which anything else is a part, such as a position method whose vectors do not repeat: the
proof knows nothing about it at lengths that were not tried.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from abc_toolkit.models.base import Model
from abc_toolkit.models.transformer import DecoderOnly, EncoderDecoder
from abc_toolkit.positions import Compose, Cyclic, NoPE, PositionMethod
from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.tasks import Task
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.windows.attention import Windowed, WindowedAttention
from abc_toolkit.windows.rules import Window


@dataclass(frozen=True)
class Basis:
    """A task on digit strings, its local rule, a window, and the periodic position methods beside it.

    Attributes:
        task: The task.
        rule: Its local rule, as a table.
        window: The window.
        cyclic: The position methods beside it.
    """

    task: DigitTask
    rule: TabledRule
    window: Window
    cyclic: tuple[Cyclic, ...]

    @property
    def period(self) -> int:
        """The period of what the position methods add, in places."""
        return math.lcm(*(method.period for method in self.cyclic)) if self.cyclic else 1


def basis_of(task: Task, model: Model) -> Basis:
    """The basis of the proof of a model.

    Raises:
        CannotDecideError: If the task has no local rule, or the model has no window or a part that the proof does not
            cover.
    """
    rule = task.local_rule() if isinstance(task, DigitTask) else None
    if rule is None or not isinstance(task, DigitTask):
        raise CannotDecideError(f"{task.name} has no local rule: nothing says from place to place what comes next")
    if type(task).layout is not DigitTask.layout:
        raise CannotDecideError(
            f"{task.name} has a 'layout' of its own: only 'describe_layout' says it of every length"
        )
    if type(model) not in (EncoderDecoder, DecoderOnly):
        raise CannotDecideError(f"no window is of the model's kind, {type(model).__name__}")
    assert isinstance(model, EncoderDecoder | DecoderOnly)
    if type(model.position) is not Windowed:
        raise CannotDecideError("the model has no window: a prediction depends on every token before it")
    if model.architecture.block != "standard":
        raise CannotDecideError(f"rounding in {model.architecture.block} blocks is not bounded")
    cyclic = tuple(_cyclic(model.position.inner))
    if (type(model) is DecoderOnly) != model.position.window.reads_one_string:
        raise CannotDecideError("the model's window is of another backbone")
    blocks = [*model.encoder_blocks, *model.decoder]
    attentions = [(block.side, block.layer, block.self_attention) for block in blocks]
    attentions += [("cross", block.layer, block.cross_attention) for block in blocks if block.cross]
    for site, layer, attention in attentions:
        position = attention.position
        if type(position) is not WindowedAttention or not position.inner.does_nothing:
            raise CannotDecideError("a method beside the window does something inside attention: a proof needs none")
        if (position.window, position.site, position.layer) != (model.position.window, site, layer):
            raise CannotDecideError(f"attention of site {site} in layer {layer} is not inside the model's window")
    return Basis(task, TabledRule(task, rule), model.position.window, cyclic)


def _cyclic(method: PositionMethod) -> Iterator[Cyclic]:
    """The cyclic methods that a method is made of. A subclass does not count: it may do something else."""
    if type(method) is Compose:
        for part in method.methods:
            yield from _cyclic(part)
    elif type(method) is Cyclic:
        yield method
    elif type(method) is not NoPE:
        raise CannotDecideError(
            f"nothing is known for every length of what {type(method).__name__} positions tell: a proof needs none "
            "beside the window, or Cyclic ones"
        )
