"""Attention maps: attention weights, averaged over the solved problems of each shape."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from abc_toolkit.layout import Layout
from abc_toolkit.models.base import Maps, Model, predict
from abc_toolkit.positions import SITES, Site
from abc_toolkit.runs.files import save_tensors
from abc_toolkit.tasks import Batch, Calibratable, Problems, Shape
from abc_toolkit.tasks.lengths import shape_name
from abc_toolkit.windows.lowering import site_positions
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

    @property
    def num_heads(self) -> dict[tuple[Site, int], int]:
        """Number of heads of every site and layer that has maps."""
        names = self.maps[self.longest]
        return {
            (site, layer): len(names[f"{site}.{layer}"])
            for site in SITES
            for layer in range(sum(name.startswith(f"{site}.") for name in names))
        }

    def check_fits(self, task: Calibratable, path: Path) -> dict[tuple[Site, int], int]:
        """Checks maps from elsewhere: they must be averaged attention of a task's training problems.

        Args:
            task: The task.
            path: The file that they were read from, as messages name it.

        Returns:
            Number of heads of every site and layer.

        Raises:
            WindowError: If they are not.
        """
        names = set(self.maps[self.longest])
        layers = {site: sum(name.startswith(f"{site}.") for name in names) for site in SITES}
        wanted = {f"{site}.{layer}" for site in SITES for layer in range(layers[site])}
        if names != wanted or (layers["cross"] and layers["cross"] != layers["decoder"]):
            raise WindowError(
                f"{path} holds the maps {', '.join(sorted(names))}: name them by site and layer, decoder.0, decoder.1 "
                "and so on, and for an encoder-decoder encoder.0 and cross.0 too"
            )
        heads = {len(weights) for maps in self.maps.values() for weights in maps.values() if weights.dim() == 3}
        if len(heads) > 1:
            raise WindowError(f"{path} holds maps of {' and '.join(map(str, sorted(heads)))} heads: give one number")
        known = {tuple(shape) for shape in task.training_shapes()}
        for shape, maps in self.maps.items():
            if shape not in known:
                raise WindowError(
                    f"{path} holds maps of the shape {shape_name(shape)}, which is none of {task.name} up to "
                    f"max_length {task.max_length}: give another --task or --task.max_length"
                )
            layout = task.layout(shape)
            layout = layout if layers["cross"] else layout.string
            for name, weights in maps.items():
                site = cast(Site, name.partition(".")[0])
                size = tuple(len(part) for part in site_positions(site, layout))
                if set(maps) != names or tuple(weights.shape[1:]) != size or weights.dim() != 3:
                    found = "x".join(map(str, weights.shape))
                    raise WindowError(
                        f"{path}: the map {name} of the shape {shape_name(shape)} is {found}, and {task.name} has "
                        f"{size[0]} queries and {size[1]} keys there: give heads x queries x keys"
                    )
                sums = weights.double().sum(dim=-1)
                if not (weights >= 0).all() or not (sums <= 1 + 1e-3).all():
                    raise WindowError(
                        f"{path}: the map {name} of the shape {shape_name(shape)} holds no attention weights: give "
                        "numbers of at least 0, of which those of a query add up to 1"
                    )
        return self.num_heads

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
