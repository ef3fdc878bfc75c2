"""A curriculum: training problems that grow in dimensions and points."""

from dataclasses import dataclass

from abc_toolkit.errors import UserError, check_numbers


@dataclass(frozen=True)
class Curriculum:
    """Stages of a training in context: every so many steps, points have more channels and prompts more points.

    Each number begins at its start and grows by its step until its end. Source: Garg et al. 2022 (arXiv 2208.01066),
    appendix A.2.

    Attributes:
        every: Steps of a stage.
        dim_start: Channels at the beginning.
        dim_step: Channels that a stage adds.
        dim_end: Channels at the end.
        points_start: Points at the beginning.
        points_step: Points that a stage adds.
        points_end: Points at the end.
    """

    dim_start: int
    dim_step: int
    dim_end: int
    points_start: int
    points_step: int
    points_end: int
    every: int = 2000

    def __post_init__(self) -> None:
        check_numbers(self, "curriculum", ("every", "dim_start", "points_start"), at_least=1)
        check_numbers(self, "curriculum", ("dim_step", "points_step"))
        for name in ("dim", "points"):
            start, end = getattr(self, f"{name}_start"), getattr(self, f"{name}_end")
            if end < start:
                raise UserError(f"--curriculum.{name}_end {end}: give at least the start, {start}")

    def stage(self, step: int) -> tuple[int, int]:
        """Channels and points of the training batch of a step."""
        number = step // self.every
        dim = min(self.dim_start + number * self.dim_step, self.dim_end)
        return dim, min(self.points_start + number * self.points_step, self.points_end)
