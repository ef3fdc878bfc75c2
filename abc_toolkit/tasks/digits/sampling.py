"""Drawing digits, and arithmetic on tensors of them."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.lengths import Shape


def pad(digits: Tensor, width: int) -> Tensor:
    """Digits `[batch, length]` with zeros at the places up to a width; the very same ones if there is none."""
    missing = width - digits.shape[1]
    return torch.nn.functional.pad(digits, (0, missing)) if missing else digits


def carried(columns: Tensor, base: int = 10) -> Tensor:
    """Digits `[batch, width + 1]` of numbers given by what falls on each place, `[batch, width]`.

    All places at once, by carry lookahead.

    Args:
        columns: Integers of any size from 0. What is left to carry beyond the last place stays one element: a digit
            if the number has no more than `width + 1`, as sums of two numbers and multiples by one digit have.
        base: Number of digits.
    """
    digits = torch.nn.functional.pad(columns, (0, 1))
    places, above = digits[:, :-1], digits[:, 1:]
    # A place that holds at most twice the highest digit carries at most 1, and passes a carry on only if it holds that.
    while (places > 2 * (base - 1)).any():
        more = places // base
        places -= base * more
        above += more
    # Whether a place carries is up to the highest place, itself or below it, that does not hold the highest digit.
    decides = 2 * torch.arange(places.shape[1], device=digits.device) + (places > base - 1)
    above += decides.masked_fill_(places == base - 1, 0).cummax(1).values & 1
    places -= base * (places > base - 1)
    return digits


def uniform_digits(generator: Generator, batch: int, length: int, base: int = 10) -> Tensor:
    """Numbers of exactly `length` digits, `[batch, length]`; the leading digit is zero only in numbers of one digit."""
    digits = torch.randint(0, base, (batch, length), generator=generator)
    if length > 1:
        digits[:, -1] = torch.randint(1, base, (batch,), generator=generator)
    return digits


def digits_below(generator: Generator, batch: int, limit: int, length: int) -> Tensor:
    """Digits `[batch, length]` of numbers that are uniform over all below a limit."""
    numbers = torch.randint(0, limit, (batch, 1), generator=generator)
    return numbers // 10 ** torch.arange(length).clamp(max=18) % 10  # 10^19 is beyond 64 bits


def pairs_of_lengths(max_length: int) -> tuple[Shape, ...]:
    """All shapes of two operands of up to a length each, shortest first."""
    lengths = range(1, max_length + 1)
    return tuple(sorted(((n, m) for n in lengths for m in lengths), key=max))


def unequal_lengths(generator: Generator, length: int) -> tuple[Shape, ...]:
    """Shapes of one operand of a length above 1 and a shorter one, drawn; either way round."""
    shorter = torch.randint(1, length, (4,), generator=generator).tolist()
    return tuple(shape for n in shorter for shape in ((length, n), (n, length)))


def one_shorter(generator: Generator, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two operands `[batch, length]`, the one or the other with zeros from a place on that is drawn."""
    batch, length = first.shape
    kept = torch.randint(1, max(length, 2), (batch,), generator=generator)
    full = torch.full_like(kept, length)
    swap = torch.rand(batch, generator=generator) < 0.5
    return keep_places(first, torch.where(swap, kept, full)), keep_places(second, torch.where(swap, full, kept))


def keep_places(digits: Tensor, lengths: Tensor) -> Tensor:
    """Digits `[batch, length]` with zeros from place `lengths` `[batch]` upwards."""
    return digits * (torch.arange(digits.shape[1]) < lengths[:, None])


def random_run(generator: Generator, batch: int, length: int) -> Tensor:
    """A random run of places for each row, boolean `[batch, length]`."""
    ends = torch.randint(0, length + 1, (batch, 2), generator=generator).sort(dim=1).values
    places = torch.arange(length)
    return (places >= ends[:, :1]) & (places < ends[:, 1:])


def choose_rows(generator: Generator, *versions: Tensor) -> Tensor:
    """For each row one of several versions `[batch, length]`, at random."""
    return pick_rows(torch.randint(0, len(versions), (len(versions[0]),), generator=generator), versions)


def pick_rows(choice: Tensor, versions: Sequence[Tensor]) -> Tensor:
    """For each row the one of several versions `[batch, length]` whose number `choice` `[batch]` holds."""
    rows = versions[0]
    for number, version in enumerate(versions[1:], 1):
        rows = torch.where((choice == number)[:, None], version, rows)
    return rows


def with_zeros(generator: Generator, digits: Tensor) -> Tensor:
    """Digits `[batch, length]` with leading, trailing, scattered or only zeros."""
    batch, length = digits.shape
    cut = torch.randint(0, length + 1, (batch,), generator=generator)
    leading = keep_places(digits, cut)
    trailing = digits - leading
    scattered = digits * (torch.rand(batch, length, generator=generator) < 0.2)
    return choose_rows(generator, leading, trailing, scattered, torch.zeros_like(digits), digits)
