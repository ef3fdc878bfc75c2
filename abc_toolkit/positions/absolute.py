"""Position methods that add a vector to the token embeddings, or nothing."""

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
    """No position information except that of the causal mask and of a window.

    Source: Kazemnejad et al. 2023 (arXiv 2305.19466). Any length; every site; pointwise; no parameters.
    """


@dataclass(frozen=True)
class Sinusoidal(PositionMethod):
    """Sinusoids of the layout's coordinates, added to the embeddings of both streams.

    For a coordinate `p` and model dimension `d`, channels `2m` and `2m + 1` receive `sin(p w_m)` and `cos(p w_m)`
    with `w_m = base^(-2m/d)`. Source: Vaswani et al. 2017, section 3.5, whose only coordinate is the raw index. Each
    of several coordinates has a table of its own; that of the k-th of K coordinates is rolled by `d k/K` channels, and
    the tables are added. Defined at any length, but beyond the training length a model meets new values. Every site;
    no parameters.

    Attributes:
        coordinates: Coordinates of the layout. A token of the decoder has those of the token that it predicts.
        base: Slowest wavelength over 2 pi.
        channels: Order of the channels: sine and cosine in turn, or all sines before all cosines, as in GPT-NeoX. A
            trained model needs the order of its training; otherwise the two are equivalent.
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
        """The numbers for the sinusoids of one coordinate, `[length]`."""
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
class Sinusoidal2D(PositionMethod):
    """Sinusoids of two coordinates, each in its own half of the channels, added to the embeddings of both streams.

    The first half of the channels receives the sinusoids of the first coordinate, as `Sinusoidal` has them for a model
    of half the dimension, the second half those of the second. Source: the baseline of the image experiment in
    Kogkalidis et al. 2024 (arXiv 2312.16045), which the paper calls sinusoidal 2D. Its released code counts an
    image's tokens in one row, which is `Sinusoidal`. Defined at any length, but beyond the training length a model
    meets new values. Every site; no parameters. The model dimension must be a multiple of 4.

    Attributes:
        coordinates: Two coordinates of the layout: row and column of a grid.
        base: Slowest wavelength over 2 pi.
    """

    coordinates: tuple[str, ...] = ("x", "y")
    base: float = 10000.0

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("base",), at_least=1)
        check_coordinates(self, "coordinates", several=True)
        if len(self.coordinates) != 2:
            raise UserError(f"Sinusoidal2D: coordinates cannot be {self.coordinates!r}: give two of them")

    def build(self, sizes: ModelSizes) -> ModelPosition:
        if sizes.model_dim % 4:
            raise UserError(
                f"Sinusoidal2D needs a multiple of 4 channels and has {sizes.model_dim}: change --model.model_dim"
            )
        return super().build(sizes)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        if missing := [name for name in self.coordinates if name not in positions.coordinates]:
            raise UserError(
                f"Sinusoidal2D needs the coordinate {missing[0]!r}, which the layout of this task does not have: "
                "choose another position method"
            )
        halves = (Sinusoidal((name,), self.base).table(positions, x.shape[-1] // 2) for name in self.coordinates)
        return x + torch.cat(list(halves), dim=-1).to(x.dtype)


@dataclass(frozen=True)
class Cyclic(Sinusoidal):
    """Sinusoids of coordinates modulo a period: `p mod T` in place of `p`.

    Source: cyclic position indexing, arXiv 2310.11984, appendix A.4, whose coordinate is the raw index and whose
    T is 3. No value is new beyond the training length. Every site; no parameters.

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
    """A learned vector for each value of a coordinate, added to the embeddings of both streams.

    A token with the coordinate `p` receives row `p` of a table. Source: Gehring et al. 2017 (arXiv 1705.03122), section
    3.1; Vaswani et al. 2017, section 3.5. These have one table for the encoder and one for the decoder; here source and
    target share a table, as they share the token embeddings. A coordinate beyond the capacity is refused. Rows beyond
    the training length keep their initial values. Every site; pointwise. Parameters: the table `[capacity, model_dim]`,
    from a normal distribution of variance 1, as the token embeddings are.

    Attributes:
        coordinate: Coordinate of the layout. A token of the decoder has that of the token that it predicts. It must not
            be negative, as the `index` of `EOS` is.
        capacity: Number of vectors.
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
    """A learned vector for the place of a digit in its number, shifted by a random offset in training.

    A digit at place `p` (0 = least significant) receives row `p + b - 1` of a table. In training, `b` is drawn evenly
    from 1 .. `max_offset`, once a batch for source and target together; in evaluation it is 1. Digits of the operands
    and of the answer have vectors; other tokens have none. A token of the decoder has the place of the token that it
    predicts. Source: McLeish et al. 2024 (arXiv 2405.17399), section 3, where all numbers are written least significant
    digit first, so that the place is the index. In its released code the other tokens share a learned vector.

    The offset trains rows that training lengths do not reach, up to the longest place plus `max_offset`. A row beyond
    the capacity is refused. Every site; pointwise. Parameters: the table `[capacity, model_dim]`, from a normal
    distribution of variance 1.

    Attributes:
        capacity: Number of vectors; the offset counts.
        max_offset: Largest offset in training; 1 for no random offset.
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
    """A learned vector for each position id; digits of the same place share an id across operands and answer.

    With a start `s`, a digit at place `p` of any number (0 = least significant) has the id `s + 1 + p`, the tokens
    between the operands have the id `s`, and `EOS` has 0. In training, `s` is drawn evenly from all starts that leave
    room for the problem, once a batch for source and target together; in evaluation it is 1. A token of the decoder has
    the id of the token that it predicts; in the paper it has the id of the token that it holds. Source: Cho et al. 2024
    (arXiv 2405.20671), section 3, and its released code for the ids of a sum, which draws a start for each problem.
    Every task is coupled here as addition is; the paper couples products in other ways.

    Random starts train all ids, so longer problems have no new ids. A problem whose ids are beyond the capacity is
    refused. Every site; pointwise. Parameters: the table `[capacity, model_dim]`, from a normal distribution of
    variance 1.

    Attributes:
        capacity: Number of ids, at least two more than the digits of the longest answer: the paper's `max_pos` plus 1.
    """

    capacity: int = 256

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("capacity",), at_least=3)

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _CoupledModel(self, sizes, self.capacity, "coupled")


class _TableModel(ModelPosition):
    """A learned table; each token receives one of its rows.

    Args:
        method: The position method.
        sizes: Sizes of the model.
        capacity: Number of rows.
        coordinate: The coordinate that is the number of the row; a token with a negative one receives nothing.
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
        """Checks the number of a row.

        Raises:
            UserError: If the table does not have this row.
        """
        if position >= self.capacity:
            name = type(self.method).__name__
            raise UserError(f"{name}: position {position} is beyond the capacity of {self.capacity}: {remedy}")

    def with_rows(self, layout: Layout, source: Tensor, target: Tensor) -> Layout:
        """The layout with the numbers of the rows, for the tokens that are embedded."""
        source_rows, target_rows = {self.coordinate: source}, {self.coordinate: target}
        return Layout(
            layout.source.beside(source_rows),
            layout.target.beside(target_rows),
            layout.prefix,
        )


class _LearnedModel(_TableModel):
    """`Learned` in one model."""

    def prepare(self, layout: Layout) -> Layout:
        for positions in filter(len, (layout.source, layout.target)):  # a task may have no target
            values = positions.values(self.coordinate)
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
        longest = _longest_number(layout, self.method)
        if self.training:
            # The largest offset is checked, so that training does not stop at a draw.
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
        longest = _longest_number(layout, self.method)
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


def _longest_number(layout: Layout, method: PositionMethod) -> int:
    """Digits of the longest number of a problem.

    Raises:
        UserError: If there are no digits at all, so that the method would do nothing.
    """
    strings = (positions for positions in (layout.source, layout.target) if len(positions))
    places = [torch.where(_digits(positions), positions.coordinates["place"], -1) for positions in strings]
    longest = 1 + max(int(place.max()) for place in places)
    if not longest:
        raise UserError(
            f"{type(method).__name__} needs digits of operands or of an answer, and the layout of this task has none: "
            "choose another position method"
        )
    return longest
