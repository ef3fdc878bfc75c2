"""A position method for tokens that are nodes of a tree."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions.base import ModelPosition, ModelSizes, PositionMethod


@dataclass(frozen=True)
class TreePE(PositionMethod):
    """The path from a node up to the root, step by step, added to the embeddings of both streams.

    A node's path is the coordinate `path` of the layout, `[length, steps]`: the number of the branch at each step from
    the root down, with -1 after the last step. The `s`-th step from the node upwards (from 0), through branch `b`, adds
    to the channels `(s branching + b) n + i`, `i` = 0 .. `n - 1`, the numbers `t_i^s sqrt((1 - t_i^2) d / 2)`. Here
    `t_i = tanh(w_i)`, `d` is the model's width, and `w` are `n = d // (depth branching)` learned weights. Other
    channels receive nothing, so the root receives zeros.

    Source: Shiv and Quirk 2019, "Novel positional encodings to enable tree-based transformers", section 3, and its
    code for the tanh. Of a path longer than `depth`, the steps nearest the root are left out, so nodes below the same
    last steps are encoded alike. Every site; pointwise. Parameters: `w` `[n]`, drawn evenly from 0.7 .. 0.999 as in the
    released code below, shared by source and target.

    Attributes:
        depth: The most steps that are encoded.
        branching: The most branches of a node.
        released: Whether to take the powers and the scale as in the code released with algebraic position encodings
            (arXiv 2312.16045), for two branches: the power `(2s + b) mod depth` in place of `s`, by which the two
            branches of a step differ in size and far steps are as large as near ones, and `n` in place of `d`.
    """

    depth: int = 8
    branching: int = 2
    released: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("depth", "branching"), at_least=1)
        if self.released and self.branching != 2:
            raise UserError(f"--model.position.branching {self.branching}: the released code has 2, set released false")

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _TreeModel(self, sizes)


class _TreeModel(ModelPosition):
    """`TreePE` in one model."""

    takes_batches = True
    method: TreePE

    def __init__(self, method: TreePE, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        least = method.depth * method.branching
        if sizes.model_dim < least:
            raise UserError(
                f"TreePE needs a model_dim of depth times branching, {least}, at least and has {sizes.model_dim}: "
                "raise model_dim or lower depth"
            )
        self.weight = nn.Parameter(torch.empty(sizes.model_dim // least).uniform_(0.7, 0.999))

    def prepare(self, layout: Layout) -> Layout:
        for positions in (layout.source, layout.target):
            if "path" not in positions.coordinates:
                raise UserError(
                    "TreePE needs the coordinate 'path', which the layout of this task does not have: choose another "
                    "position method"
                )
            path = positions.coordinates["path"]
            if path.numel() and (branch := int(path.max())) >= self.method.branching:
                raise UserError(f"TreePE: branch {branch} is beyond branching {self.method.branching}: raise branching")
        return layout

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        steps = self._steps(positions.coordinates["path"])
        added = (steps[..., None] * self._sizes_of_steps()).flatten(-3)
        return x + functional.pad(added, (0, x.shape[-1] - added.shape[-1])).to(x.dtype)

    def _steps(self, path: Tensor) -> Tensor:
        """The branch of each step from the node upwards, one-hot `[..., depth, branching]`; zeros past the root."""
        length = (path >= 0).sum(dim=-1, keepdim=True)
        upwards = length - 1 - torch.arange(self.method.depth, device=path.device)
        # With one more column there is one to read in a tree that is only its root.
        branch = functional.pad(path, (0, 1), value=-1).gather(-1, upwards.clamp(min=0))
        branch = branch.masked_fill(upwards < 0, -1)
        return branch[..., None] == torch.arange(self.method.branching, device=path.device)

    def _sizes_of_steps(self) -> Tensor:
        """The numbers of each step, `[depth, branching, n]`."""
        depth, branching = self.method.depth, self.method.branching
        # Powers of numbers near 1 need single precision at least.
        t = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)).tanh()
        powers = torch.arange(depth, device=t.device)[:, None].expand(-1, branching)
        width = self.sizes.model_dim
        if self.method.released:
            powers = torch.arange(depth * branching, device=t.device).view(depth, branching) % depth
            width = len(t)
        return t ** powers[..., None] * ((1 - t**2) * width / 2).sqrt()
