"""A conflict: the evidence that a window is not sufficient."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conflict:
    """Two predictions that a window cannot tell apart and that need different tokens.

    Attributes:
        sources: The two problems.
        places: The number of the predicted token in each target; the first is 0.
        tokens: The tokens that are needed; the end of the target is in words.
    """

    sources: tuple[str, str]
    places: tuple[int, int]
    tokens: tuple[str, str]

    def describe(self) -> str:
        """The conflict in words."""
        (first, second), (i, j), (a, b) = self.sources, self.places, self.tokens
        needs = f"{first} needs {a} at place {i} and {second} needs {b} at place {j}"
        return f"{needs}, but all that the window shows is the same"
