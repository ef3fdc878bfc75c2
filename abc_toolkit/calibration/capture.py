"""Attention maps: attention weights, averaged over the solved problems of each shape."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from abc_toolkit.layout import Layout
from abc_toolkit.models.base import Maps, Model, predict
from abc_toolkit.runs.files import save_tensors
from abc_toolkit.tasks import Batch, Calibratable, Problems, Shape
from abc_toolkit.tasks.lengths import shape_name
from abc_toolkit.windows.rules import WindowError

_CELLS = 2**25  # attention weights that one batch may hold


@dataclass(frozen=True)
class AttentionMaps:
    """Averaged attention of one model.

    Attributes:
        maps: For each shape, the weights `[head, query, key]` of each `site.layer`.
        solved: For each shape, the number of problems in the average.
    """

    maps: Mapping[Shape, Mapping[str, Tensor]]
    solved: Mapping[Shape, int]

    @property
    def longest(self) -> Shape:
        """The shape with the largest maps; of shapes that are padded to the same size, the largest shape."""
        return max(self.maps, key=lambda shape: (max(w[0].numel() for w in self.maps[shape].values()), shape))

    def raw(self, name: str) -> Tensor:
        """Maps `[head, query, key]` of one `site.layer`, averaged over all shapes with maps as large as the longest."""
        size = self.maps[self.longest][name].shape
        same = [shape for shape, maps in self.maps.items() if maps[name].shape == size]
        total = sum(self.solved[shape] for shape in same)
        return torch.stack([self.maps[shape][name] * (self.solved[shape] / total) for shape in same]).sum(dim=0)

    def save(self, path: Path) -> None:
        """Writes the maps as safetensors; a tensor is named `shape/site.layer`."""
        tensors = {
            f"{shape_name(shape)}/{name}": weights
            for shape, maps in self.maps.items()
            for name, weights in maps.items()
        }
        solved = {shape_name(shape): count for shape, count in self.solved.items()}
        save_tensors(path, tensors, {"solved": json.dumps(solved)})

    @classmethod
    def load(cls, path: Path) -> "AttentionMaps":
        """Reads the maps that `save` wrote.

        Raises:
            WindowError: If the file is not whole, or holds something else.
        """
        maps: dict[Shape, dict[str, Tensor]] = {}
        try:
            with safe_open(path, "pt") as file:
                solved = json.loads((file.metadata() or {})["solved"])
                solved = {_named_shape(name): int(count) for name, count in solved.items()}
                for key in file.keys():  # noqa: SIM118, it is no mapping
                    shape, name = key.split("/")
                    maps.setdefault(_named_shape(shape), {})[name] = file.get_tensor(key)
            if not maps or maps.keys() != solved.keys():
                raise ValueError("its shapes are not those that were solved")
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise WindowError(f"{path} is not a whole file of attention maps ({error})") from None
        return cls(maps, solved)


def _named_shape(name: str) -> Shape:
    """The shape that `shape_name` gave a name."""
    return tuple(map(int, name.split("x")))


@torch.no_grad()
def capture(model: Model, problems: Iterable[tuple[Problems, Layout]]) -> AttentionMaps:
    """Averages a model's attention over the problems that it solves.

    Args:
        model: The model, in evaluation mode.
        problems: Batches of problems with their layouts, on the model's device. Several batches may have one shape.

    Returns:
        Maps of every shape with a solved problem.
    """
    sums: dict[Shape, dict[str, Tensor]] = {}
    solved: dict[Shape, int] = {}
    for batch, layout in problems:
        maps: Maps = {}
        logits = predict(model, batch, layout, maps)
        right = (logits.argmax(-1) == batch.target).all(dim=1)
        if not right.any():
            continue
        solved[batch.shape] = solved.get(batch.shape, 0) + int(right.sum())
        totals = sums.setdefault(batch.shape, {})
        for (site, layer), weights in maps.items():
            total = weights[right].double().sum(dim=0)
            name = f"{site}.{layer}"
            totals[name] = totals[name] + total if name in totals else total
    averages = {
        shape: {name: (total / solved[shape]).float().cpu() for name, total in totals.items()}
        for shape, totals in sums.items()
    }
    return AttentionMaps(averages, solved)


def chunks(task: Calibratable, batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Problems, Layout]]:
    """Batches in pieces whose attention maps fit into memory, each with its layout, on a device."""
    for batch in batches:
        layout = task.layout(batch.shape).to(device)
        size = max(1, _CELLS // (4 * len(layout.target) * (len(layout.target) + len(layout.source))))
        for start in range(0, len(batch), size):
            piece = batch[start : start + size].to(device)
            assert isinstance(piece, Problems)
            yield piece, layout
