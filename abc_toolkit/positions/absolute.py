"""Methods that add a vector to the token embeddings, or nothing."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.errors import UserError, check_literals, check_numbers
from abc_toolkit.layout import ANSWER, END, Layout, Positions
from abc_toolkit.positions.base import ModelPosition, ModelSizes, PositionMethod, check_coordinates

Channels = Literal["interleaved", "concatenated"]


@dataclass(frozen=True)
class NoPE(PositionMethod):
    """No position information but the causal mask and a window, if there is one.

    Source: Kazemnejad et al. 2023 (arXiv 2305.19466). Any length; every site; pointwise; no parameters.
    """


@dataclass(frozen=True)
class Sinusoidal(PositionMethod):
    """Sinusoids of the layout's coordinates, added to the embeddings of both streams.

    For a coordinate `p` and model dimension `d`, channels `2m` and `2m + 1` receive `sin(p w_m)` and `cos(p w_m)`
    with `w_m = base^(-2m/d)`. Source: Vaswani et al. 2017, section 3.5, whose only coordinate is the raw index.
    Of several coordinates, each has its own table, the k-th of K turned by `d k/K` channels, and the tables are
    added. Defined at any length, though a model sees values beyond training that it never met. Every site; no
    parameters.

    Attributes:
        coordinates: Which coordinates of the layout; the decoder's tokens use those of the token they predict.
        base: Slowest wavelength over 2 pi.
        channels: Order of the channels: sine and cosine in turn, or every sine before every cosine, as GPT-NeoX has
            them. A trained model needs the order that it was trained with; otherwise they are the same.
    """

    coordinates: tuple[str, ...] = ("raw",)
    base: float = 10000.0
    channels: Channels = "interleaved"

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("base",), at_least=1)
        check_literals(self)
        check_coordinates(self, "coordinates", several=True)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        return x + self.table(positions, x.shape[-1]).to(x.dtype)

    def values(self, positions: Positions, coordinate: str) -> Tensor:
        """The numbers that the sinusoids of one coordinate are taken of, `[length]`."""
        return positions.coordinate(coordinate)

    def table(self, positions: Positions, dim: int) -> Tensor:
        """The vectors that are added, `[length, dim]`."""
        device = positions.segment.device
        channels = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        frequencies = torch.exp(-math.log(self.base) * channels / dim)
        table = torch.zeros(len(positions), dim, device=device)
        for k, coordinate in enumerate(self.coordinates):
            angles = self.values(positions, coordinate).to(torch.float32)[:, None] * frequencies
            waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]
            table = table + waves.roll(dim * k // len(self.coordinates), dims=1)
        if self.channels == "concatenated":
            return torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)
        return table


@dataclass(frozen=True)
class Cyclic(Sinusoidal):
    """Sinusoids of coordinates modulo a period: `p mod T` in place of `p`.

    Source: cyclic position indexing, arXiv 2310.11984, appendix A.4, whose coordinate is the raw index and whose
    T is 3. No value beyond training ever occurs. Every site; no parameters.

    Attributes:
        period: T.
    """

    period: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "model.position", ("period",), at_least=1)

    def values(self, positions: Positions, coordinate: str) -> Tensor:
        return super().values(positions, coordinate) % self.period


@dataclass(frozen=True)
class Learned(PositionMethod):
    """A learned vector for each position, added to the embeddings of both streams.

    A token at position `p` receives row `p` of a table. Source: Gehring et al. 2017 (arXiv 1705.03122), section 3.1;
    Vaswani et al. 2017, section 3.5. They have a table for each of encoder and decoder: here source and target share
    one, as they share the token embeddings. A position beyond the capacity is refused, and rows beyond the training
    length are as they were drawn. Every site; pointwise. Parameters: the table `[capacity, model_dim]`, from a normal
    distribution of variance 1, which is what the token embeddings have.

    Attributes:
        coordinate: Which coordinate of the layout; the decoder's tokens use that of the token they predict. It must
            not be negative, as the `index` of `EOS` is.
        capacity: Number of positions that there are vectors for.
    """

    coordinate: str = "raw"
    capacity: int = 1024

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("capacity",), at_least=1)
        check_coordinates(self, "coordinate")

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _LearnedModel(self, sizes, self.capacity, self.coordinate)


@dataclass(frozen=True)
class Abacus(PositionMethod):
    """A learned vector for the place of a digit in its number, moved by a random offset in training.

    A digit at place `p` (0 = least significant) receives row `p + b - 1` of a table, a token that is no digit nothing.
    In training `b` is drawn evenly from 1 .. `max_offset`, once a batch, the same for source and target; in evaluation
    it is 1. Digits are those of the operands and of the answer. Source: McLeish et al. 2024 (arXiv 2405.17399),
    section 3, whose numbers are all written least significant digit first, so that the place is what is counted there;
    here it is so either way. In its released code other tokens share a learned vector. The decoder's tokens use the
    place of the token they predict, by the convention of the layout.

    The offset lets rows be trained that training lengths do not reach, up to their longest place plus `max_offset`. A
    row beyond the capacity is refused. Every site; pointwise. Parameters: the table `[capacity, model_dim]`, from a
    normal distribution of variance 1.

    Attributes:
        capacity: Number of places that there are vectors for, offset and all.
        max_offset: Largest start in training; 1 to have no random offset.
    """

    capacity: int = 1024
    max_offset: int = 100

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("capacity",), at_least=1)
        check_numbers(self, "model.position", ("max_offset",), at_least=1, at_most=self.capacity)

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _AbacusModel(self, sizes, self.capacity, "abacus")


@dataclass(frozen=True)
class PositionCoupling(PositionMethod):
    """A learned vector for each position id, which digits of the same place share across operands and answer.

    From a start `s`, a digit of any number at place `p` (0 = least significant) has the id `s + 1 + p`, the tokens
    between the operands have `s`, and `EOS` has 0. In training `s` is drawn evenly from all starts that leave room for
    the problem, once a batch, the same for source and target; in evaluation it is 1. Source: Cho et al. 2024 (arXiv
    2405.20671), section 3, and its released code for the ids of a sum, which draws a start for each problem. Every task
    is coupled as addition is here; the paper couples products in ways of their own. The decoder's tokens use the id
    of the token they predict, by the convention of the layout; in the paper they use that of the token they hold.

    A random start trains all ids, so that longer problems meet none that is new. A problem whose ids are beyond the
    capacity is refused. Every site; pointwise. Parameters: the table `[capacity, model_dim]`, from a normal
    distribution of variance 1.

    Attributes:
        capacity: Number of ids: two more than the digits of the longest answer at least. The paper's `max_pos` plus 1.
    """

    capacity: int = 256

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("capacity",), at_least=3)

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _CoupledModel(self, sizes, self.capacity, "coupled")


class _TableModel(ModelPosition):
    """A learned table of which each token receives one row.

    Args:
        method: The method.
        sizes: The model's sizes.
        capacity: Rows of the table.
        coordinate: The coordinate that tells the row; negative for none.
    """

    def __init__(self, method: PositionMethod, sizes: ModelSizes, capacity: int, coordinate: str) -> None:
        super().__init__(method, sizes)
        self.capacity = capacity
        self.coordinate = coordinate
        self.table = nn.Parameter(torch.randn(capacity, sizes.model_dim))

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        rows = positions.coordinate(self.coordinate)
        added = functional.embedding(rows.clamp(min=0), self.table).masked_fill((rows < 0)[:, None], 0.0)
        return x + added.to(x.dtype)

    def refuse_beyond(self, position: int, remedy: str = "raise capacity") -> None:
        """Raises:
        UserError: If there is no row for a position.
        """
        if position >= self.capacity:
            name = type(self.method).__name__
            raise UserError(f"{name}: position {position} is beyond the capacity of {self.capacity}: {remedy}")

    def with_rows(self, layout: Layout, source: Tensor, target: Tensor) -> Layout:
        """The layout with the coordinate that tells the row, of the tokens that are embedded."""
        source_rows, target_rows = {self.coordinate: source}, {self.coordinate: target}
        return Layout(
            Positions(layout.source.names, dict(layout.source.coordinates) | source_rows),
            Positions(layout.target.names, dict(layout.target.coordinates) | target_rows),
            layout.prefix,
        )


class _LearnedModel(_TableModel):
    """`Learned` in one model."""

    def prepare(self, layout: Layout) -> Layout:
        for positions in (layout.source, layout.target):
            values = positions.coordinate(self.coordinate)
            self.refuse_beyond(int(values.max()))
            if (lowest := int(values.min())) < 0:
                raise UserError(f"Learned: the coordinate {self.coordinate} has the value {lowest}: choose another one")
        return layout


class _AbacusModel(_TableModel):
    """`Abacus` in one model."""

    method: Abacus
    makes = ("abacus",)

    def prepare(self, layout: Layout) -> Layout:
        offset, most = 0, self.method.max_offset - 1
        longest = _longest_number(layout)
        if self.training:
            # For every draw or for none, so that training does not stop at one of them.
            self.refuse_beyond(longest - 1 + most, "raise capacity or lower max_offset")
            offset = int(torch.randint(most + 1, ()))
        self.refuse_beyond(longest - 1)
        rows = (
            (positions.coordinates["place"] + offset).masked_fill(~_digits(positions), -1)
            for positions in (layout.source, layout.target)
        )
        return self.with_rows(layout, *rows)


class _CoupledModel(_TableModel):
    """`PositionCoupling` in one model."""

    makes = ("coupled",)

    def prepare(self, layout: Layout) -> Layout:
        longest = _longest_number(layout)
        self.refuse_beyond(1 + longest)
        start = int(torch.randint(1, self.capacity - longest, ())) if self.training else 1
        rows = (
            (positions.coordinates["place"] + start + 1)
            .masked_fill(~_digits(positions), start)  # tokens between the operands
            .masked_fill(positions.within(END), 0)
            for positions in (layout.source, layout.target)
        )
        return self.with_rows(layout, *rows)


def _digits(positions: Positions) -> Tensor:
    """Which tokens are digits of an operand or of the answer, boolean `[length]`."""
    numbers = [i for i, name in enumerate(positions.names) if name.startswith("operand") or name == ANSWER]
    return torch.isin(positions.segment, torch.tensor(numbers, device=positions.segment.device))


def _longest_number(layout: Layout) -> int:
    """Digits of the longest number of a problem."""
    places = (
        torch.where(_digits(positions), positions.coordinates["place"], -1)
        for positions in (layout.source, layout.target)
    )
    return 1 + max(int(place.max()) for place in places)
