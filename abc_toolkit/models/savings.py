"""Parts of a model that do with fewer parameters: an embedding on an arc, and matrices that are another part's.

Source of the names: the rules of AdderBoard (github.com/anadim/AdderBoard), which count parameters after tying.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Saving = Literal["biases", "thresholds", "output", "arc", "scores", "values", "feedforward"]
SAVINGS: tuple[Saving, ...] = get_args(Saving)


class ArcEmbedding(nn.Module):
    """Embeds token `t` at the angle `first + t step` of a circle in the first two dimensions.

    Args:
        num_tokens: Size of the vocabulary.
        dim: Width of the stream, at least 2.

    Attributes:
        arc: The radius, the first angle and the step, in radians.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.dim = dim
        # The tokens lie on at least an eighth of the circle and at most on a half, so that neighbours differ.
        radius, first = torch.empty(()).uniform_(0.5, 1.5), torch.empty(()).uniform_(-math.pi, math.pi)
        step = torch.empty(()).uniform_(math.pi / 4, math.pi) / num_tokens
        self.arc = nn.Parameter(torch.stack([radius, first, step]))

    @property
    def weight(self) -> Tensor:
        """The table of all tokens, `[num_tokens, dim]`.

        It is computed in double precision, so that single precision rounds each of its numbers once.
        """
        radius, first, step = self.arc.double().unbind()
        angles = first + step * torch.arange(self.num_tokens, device=self.arc.device)
        circle = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
        return functional.pad(circle, (0, self.dim - 2)).to(self.arc.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self.weight)


class TiedOutput(nn.Module):
    """Logits as products with the token embeddings; it has no parameters of its own but a bias.

    Args:
        embedding: The embedding.
        bias: Whether it has biases.
    """

    def __init__(self, embedding: "nn.Embedding | ArcEmbedding", bias: bool) -> None:
        super().__init__()
        self._embedding = (embedding,)  # a tuple: as a module of its own it would be saved twice
        tokens = embedding.num_tokens if isinstance(embedding, ArcEmbedding) else embedding.num_embeddings
        self.bias = nn.Parameter(torch.zeros(tokens)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The table of the embedding, `[num_tokens, dim]`."""
        return self._embedding[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class TiedLinear(nn.Module):
    """A linear layer whose matrix is the transpose of another's, with a learned scale for each of its inputs.

    Args:
        other: The other linear layer.
        bias: Whether it has biases.
    """

    def __init__(self, other: nn.Linear, bias: bool) -> None:
        super().__init__()
        self._other = (other,)
        # Drawn around 0: without both signs, a unit could but push the stream on in the direction that opened it.
        self.scales = nn.Parameter(torch.randn(other.out_features))
        self.bias = nn.Parameter(torch.zeros(other.in_features)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The matrix, `[out, in]`."""
        return self._other[0].weight.T * self.scales

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)
