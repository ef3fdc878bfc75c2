"""Pictures of attention maps, windows, training and accuracy, in one style, as PNG files.

Figures are made without pyplot, whose figures and backend are global, so that they can be drawn in any thread and on
machines without a screen; for the same reason the style is given to each artist instead of to `rcParams`. This module
is slow to import: import it where a figure is due.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from abc_toolkit.runs.trust import in_the_packages_folder

with in_the_packages_folder():  # before seaborn imports it
    import matplotlib  # noqa: F401

import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Patch
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray
from torch import Tensor

from abc_toolkit.layout import END, Layout, Positions
from abc_toolkit.positions import SITES, Site
from abc_toolkit.report.terminal import WEIGHTS_NAMES, weights_name
from abc_toolkit.runs.files import replacing
from abc_toolkit.tasks.objective import EXACT_MATCH, Metric
from abc_toolkit.windows.lowering import dense_bias, site_positions
from abc_toolkit.windows.rules import Window

if TYPE_CHECKING:
    from abc_toolkit.proof.explanation import Explained, Explanation
    from abc_toolkit.report.transducers import Edge

Tokens = tuple[Sequence[str], Sequence[str]]
Colour = tuple[float, float, float]

DPI = 120
TITLE, TEXT, SMALL = 11.0, 8.5, 7.0  # font sizes in points
_MOST_EDGES = 12  # of a transducer that is drawn with circles and arrows
_MOST_PANELS = 3  # transducers that are drawn so side by side
_MOST_COLUMNS, _MOST_TEXTS = 100, 30  # of a table of steps, and those in which what is written is told
_LEAST_ERROR = 1e-4  # that an axis of errors is made to show: what is exact but for rounding would stretch it
LINE = 1.35 * SMALL / 72  # a line of small text in inches
INK: Colour = (0.2, 0.2, 0.2)
FAINT: Colour = (0.75, 0.75, 0.75)
ABSENT: Colour = (0.87, 0.87, 0.87)
PAPER: Colour = (0.95, 0.95, 0.95)
PALETTE = cast(list[Colour], list(sns.color_palette("colorblind")))
HEAT = cast(Colormap, sns.color_palette("mako_r", as_cmap=True))  # light is 0, dark is 1
KEPT = PALETTE[1]  # stands out against both ends of the heat map
MARKERS, DASHES = "osD^vPX*", ("-", "--", ":", "-.")
# The vanilla model's marks are hollow and larger, so that the retrained model's are seen inside them.
LOOKS: dict[str, dict[str, Any]] = {
    "fit": {"color": PALETTE[1], "markerfacecolor": "white", "markersize": 6, "zorder": 2},
    "retrain": {"color": PALETTE[0], "markersize": 3.5, "zorder": 3},
}
SITE_TITLES: dict[Site, str] = {
    "encoder": "encoder\nself-attention",
    "decoder": "decoder\nself-attention",
    "cross": "cross-\nattention",
}
# Margins of a grid of panels, in inches: room for row titles and tick labels, a colour bar, titles, a legend.
LEFT, RIGHT, TOP, BOTTOM, GAP = 1.5, 0.85, 0.65, 0.5, 0.13


def attention_maps(
    path: Path,
    maps: Mapping[str, Tensor],
    layout: Layout,
    window: Window | None = None,
    tokens: Tokens | None = None,
    title: str = "Attention maps",
) -> Path:
    """Draws attention maps as heat maps, one row per site and layer, one column per head.

    Args:
        path: The PNG file to write.
        maps: `site.layer` (as in `cross.0`) to attention weights `[head, query, key]`, all of one shape.
        layout: Layout of that shape, as the model reads it.
        window: Its open cells are outlined; `None` for none.
        tokens: Texts of the source's tokens `[source_length]` and of the target's `[target_length]`, if the maps
            are of one problem; left out where the panels are too small for them.
        title: What stands above.

    Returns:
        The file.
    """
    return _save(_draw_attention_maps(maps, layout, window, tokens, title), path)


def windows(path: Path, window: Window, layouts: Sequence[tuple[str, Layout]]) -> Path:
    """Draws the open cells of a window at several sizes, one row per site, layer and size, one column per head.

    Colour tells the segment of the key; where biases differ, a paler cell has a lower one. Sites and layers that are
    closed altogether are named and not drawn.

    Args:
        path: The PNG file to write.
        window: The window.
        layouts: Name and layout of each size, as in `("6 digits", layout)`.

    Returns:
        The file.
    """
    return _save(_draw_windows(window, layouts), path)


def training(path: Path, record: Mapping[str, Any]) -> Path:
    """Draws the loss and a metric on held-out problems over the steps of a training.

    Args:
        path: The PNG file to write.
        record: `train` (a list of `step`, `loss`), `validation` (a list of `step`, `loss`, the metric by its name and,
            where the model was tried on assignments, `weak`, in how many it is weak), `metric` (its name;
            `exact_match` if not given), `threshold` (the exact match that counts as interpolation) and `phase` (`fit`
            or `retrain`).

    Returns:
        The file.
    """
    return _save(_draw_training(record), path)


def metric_curve(
    path: Path, rows: Sequence[Mapping[str, Any]], max_length: int, task: str, metric: Metric = EXACT_MATCH
) -> Path:
    """Draws a metric against length with its interval: a colour for the weights, a marker for the suite.

    Each seed and each way of decoding is a line of its own.

    Args:
        path: The PNG file to write.
        rows: Results of the metric, one or more, each with `weights` (`fit`, `retrain` or a baseline), `suite`,
            `length`, `decode`, `seed`, `value` and its 95 % interval, `low` to `high`.
        max_length: Longest training length.
        task: Name of the task.
        metric: The metric.

    Returns:
        The file.
    """
    return _save(_draw_metric(rows, max_length, task, metric), path)


def output_curves(path: Path, curves: Sequence[Mapping[str, Any]], max_length: int, title: str, metric: Metric) -> Path:
    """Draws a metric point by point, with its interval: a panel for each kind of prompt.

    Args:
        path: The PNG file to write.
        curves: One or more, each with `suite`, `weights`, `values` and the interval, `low` to `high`, of each point,
            and `counted`, which points a prompt is judged by.
        max_length: Points of a training prompt.
        title: The title.
        metric: The metric.

    Returns:
        The file.
    """
    return _save(_draw_output_curves(curves, max_length, title, metric), path)


def attention_curves(path: Path, attended: Sequence[Mapping[str, Any]], title: str) -> Path:
    """Draws the attention of a query to the keys of interest, a curve for each layer and a panel for each model.

    Args:
        path: The PNG file to write.
        attended: One or more, each with `weights`, `samples` and `layers`: of each layer, the attention to each key.
        title: The title.

    Returns:
        The file.
    """
    return _save(_draw_attention_curves(attended, title), path)


def digit_accuracy(path: Path, rows: Sequence[Mapping[str, Any]], max_length: int, task: str) -> Path:
    """Draws the accuracy of each place as heat maps of length and place, one row per weights, one column per suite.

    Rows of the same weights, suite, length and place (of several seeds, say) are averaged.

    Args:
        path: The PNG file to write.
        rows: Results, one or more, each with `weights` (`fit` or `retrain`), `suite`, `length`, `place` and, in 0 to 1,
            `accuracy`.
        max_length: Longest training length.
        task: Name of the task.

    Returns:
        The file.
    """
    return _save(_draw_digit_accuracy(rows, max_length, task), path)


def transducer(path: Path, explanation: "Explanation") -> Path:
    """Draws what a model computes: states and steps as circles and arrows, or as a table where there are many.

    Args:
        path: The PNG file to write.
        explanation: The machines.

    Returns:
        The file.
    """
    return _save(draw_transducer(explanation), path)


def _save(figure: Figure, path: Path) -> Path:
    """Writes a figure so that the file appears whole or not at all."""
    look: dict[str, Any] = {"dpi": DPI, "facecolor": "white", "bbox_inches": "tight", "pil_kwargs": {"optimize": True}}
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", **look)
    return path


def _draw_attention_maps(
    maps: Mapping[str, Tensor], layout: Layout, window: Window | None, tokens: Tokens | None, title: str
) -> Figure:
    by_layer = {_site_layer(name): weights for name, weights in maps.items()}
    layers = sorted(by_layer, key=lambda place: (SITES.index(place[0]), place[1]))
    sizes = [site_positions(site, layout) for site, _ in layers]
    num_heads = len(next(iter(maps.values())))
    width = _panel_width(max(len(keys) for _, keys in sizes), num_heads)
    heights = [min(max(1.05 * LINE * len(queries), 0.9), width) for queries, _ in sizes]
    # Rows of one site have the same keys, so that only the last of them names them.
    last = [(site, layer + 1) not in layers for site, layer in layers]
    room = [0.3 + 0.25 * _slanted(keys, 72 * width / len(keys)) + 0.15 * (tokens is not None) for _, keys in sizes]
    below = [room if names else GAP for names, room in zip(last, room, strict=True)]
    figure, grid = _grid(title, [f"head {head}" for head in range(num_heads)], width, heights, below)
    for (site, layer), (queries, keys), names, row in zip(layers, sizes, last, grid, strict=True):
        heats = by_layer[site, layer].detach().cpu().float().numpy()
        texts = _texts(site, tokens, len(queries))
        kept = None if window is None else np.isfinite(_open_bias(window, site, layer, layout))
        for head, (axes, heat) in enumerate(zip(row, heats, strict=True)):
            _heat_map(axes, heat)
            _mark_segments(axes, queries, keys)
            if kept is not None:
                line_width = min(max(0.2 * min(_cell(axes)), 0.25), 1.3)
                edges = LineCollection(_edges(kept[head]), colors=[KEPT], linewidths=line_width)
                edges.set(clip_on=False, zorder=3, capstyle="projecting")
                axes.add_collection(edges, autolim=False)
            if names:
                _name_segments(axes, axes.xaxis, keys, texts[1])
        _name_queries(row[0], site, queries, texts[0])
        _name_row(row[0], row[0], f"{SITE_TITLES[site]}\nlayer {layer}")
    _name_axes(figure, "key: the token looked at", "query: in the target, the token that is predicted")
    _colour_bar(figure, "attention weight")
    if window is not None:
        _legend_below(figure, [Line2D([], [], color=KEPT, linewidth=1.3, label="kept by the window")])
    return figure


def _draw_windows(window: Window, layouts: Sequence[tuple[str, Layout]]) -> Figure:
    layers: list[tuple[Site, int]] = [(site, layer) for site in SITES for layer in range(window.layers(site))]
    shown = [place for place in layers if window.rules_at(*place)] or layers
    closed = [f"{site} layer {layer}" for site, layer in layers if (site, layer) not in shown]
    title = f"Window of {window.task}: the keys that stay open"
    if closed:
        title += f"\nclosed altogether: {', '.join(closed)}"

    segments = list(dict.fromkeys(name for _, layout in layouts for name in layout.source.names))
    colours = dict(zip(segments, cast(list[Colour], sns.color_palette("colorblind", len(segments))), strict=True))
    biases = sorted({float(rule.bias) for rule in window.rules})
    seen: set[str] = set()

    num_heads = window.num_heads
    width = _panel_width(0, num_heads)
    below = [GAP] * (len(layouts) - 1) + [2.2 * GAP]
    heads = [f"head {head}" for head in range(num_heads)]
    heights = [0.85] * len(layouts) * len(shown)
    figure, grid = _grid(title, heads, width, heights, below * len(shown), right=0.3)
    for i, (site, layer) in enumerate(shown):
        rows = grid[i * len(layouts) : (i + 1) * len(layouts)]
        for row, (size, layout) in zip(rows, layouts, strict=True):
            read = window.read(layout)
            queries, keys = site_positions(site, read)
            for axes, head_bias in zip(row, _open_bias(window, site, layer, read), strict=True):
                seen |= _draw_open_cells(axes, head_bias, keys, colours, biases)
                _mark_segments(axes, queries, keys)
            _name_queries(row[0], site, queries, None)
            row[-1].yaxis.set_label_position("right")
            row[-1].set_ylabel(size, rotation=270, va="bottom", fontsize=TEXT, color=INK)
        _name_row(rows[0][0], rows[-1][0], f"{SITE_TITLES[site]}\nlayer {layer}")
    _name_axes(figure, "key: the token looked at", "query: in the target, the token that is predicted")
    handles = [Patch(color=colours[name], label=name) for name in segments if name in seen]
    if len(biases) > 1:
        extremes = {"lowest": biases[0], "highest": biases[-1]}
        handles += [
            Patch(color=_shade(INK, bias, biases), label=f"{what} bias, {bias:.3g}") for what, bias in extremes.items()
        ]
    _legend_below(figure, handles)
    return figure


def _draw_open_cells(
    axes: Axes, bias: NDArray[np.floating], keys: Positions, colours: Mapping[str, Colour], biases: Sequence[float]
) -> set[str]:
    """Fills the open cells of one head's bias `[query, key]`; returns the names of the segments they are in."""
    num_queries, num_keys = bias.shape
    axes.set(xlim=(0, num_keys), ylim=(num_queries, 0), xticks=[], yticks=[])
    _frame(axes)
    if not np.isfinite(bias).any():
        axes.set_facecolor(PAPER)
        axes.text(0.5, 0.5, "closed", ha="center", va="center", transform=axes.transAxes, fontsize=SMALL, color=INK)
        return set()
    # A whole run of like cells is one rectangle: a long layout has tens of thousands of cells.
    segment = keys.segment.cpu().numpy()
    change = np.ones((num_queries, num_keys + 1), dtype=bool)
    change[:, 1:-1] = (bias[:, 1:] != bias[:, :-1]) | (segment[1:] != segment[:-1])
    rows, edges = np.nonzero(change)
    runs = [
        (row, start, stop)
        for row, start, next_row, stop in zip(rows[:-1], edges[:-1], rows[1:], edges[1:], strict=True)
        if row == next_row and np.isfinite(bias[row, start])
    ]
    names = [keys.names[segment[start]] for _, start, _ in runs]
    fills = [
        _shade(colours[name], float(bias[row, start]), biases)
        for name, (row, start, _) in zip(names, runs, strict=True)
    ]
    boxes = [[(start, row), (stop, row), (stop, row + 1), (start, row + 1)] for row, start, stop in runs]
    # The border keeps a line visible whose cells are finer than the paper's grain.
    look: dict[str, Any] = {"linewidths": max(1.5 - min(_cell(axes)), 0.3), "antialiaseds": False, "zorder": 3}
    axes.add_collection(PolyCollection(boxes, facecolors=fills, edgecolors=fills, **look), autolim=False)
    return set(names)


def _draw_training(record: Mapping[str, Any]) -> Figure:
    train, validation, threshold = record["train"], record["validation"], record["threshold"]
    covered = [point for point in validation if "weak" in point]
    figure = Figure(figsize=(7, 6.5 if covered else 5), layout="constrained")
    panels = figure.subplots(3 if covered else 2, 1, sharex=True)
    top, bottom = panels[:2]
    figure.suptitle(f"Training of the {WEIGHTS_NAMES[record['phase']]} model", fontsize=TITLE, color=INK)
    for label, points, colour in (("training", train, PALETTE[0]), ("held-out", validation, PALETTE[1])):
        _curve(top, points, "loss", colour, label)
    metric = record.get("metric", EXACT_MATCH.name)
    _curve(bottom, validation, metric, PALETTE[1], "held-out")
    reached = None
    if metric == EXACT_MATCH.name:
        bottom.axhline(threshold, color=INK, linestyle="--", linewidth=1, label=f"threshold, {100 * threshold:g} %")
        reached = next((point["step"] for point in validation if point[metric] >= threshold), None)
    if reached is not None:
        for axes in panels:
            axes.axvline(reached, color=INK, linestyle=":", linewidth=1)
        bottom.plot([], [], color=INK, linestyle=":", linewidth=1, label=f"first reached at step {reached}")
    _decades(top, [point["loss"] for point in (*train, *validation)])
    top.set_ylabel("loss", fontsize=TEXT, color=INK)
    if metric == EXACT_MATCH.name:
        _percent(bottom, "exact match")
    else:
        _decades(bottom, [point[metric] for point in validation])
        bottom.set_ylabel(metric.replace("_", " "), fontsize=TEXT, color=INK)
    if covered:
        _curve(panels[2], covered, "weak", PALETTE[2], "wrong, or right by little")
        panels[2].set_yscale("symlog", linthresh=1)
        panels[2].set_ylim(bottom=-0.2)
        panels[2].yaxis.set_major_formatter("{x:,.0f}")
        panels[2].set_ylabel("assignments", fontsize=TEXT, color=INK)
    panels[-1].set_xlabel("training step", fontsize=TEXT, color=INK)
    for axes in panels:
        _chart(axes)
        axes.legend(*axes.get_legend_handles_labels(), fontsize=TEXT, frameon=False)
    return figure


def _decades(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of whole decades, so that at least two ticks have a label."""
    axes.set(yscale="log")
    shown = [value for value in values if 0 < value < math.inf]
    if shown:
        axes.set_ylim(10 ** math.floor(math.log10(min(shown))), 10 ** math.ceil(math.log10(1.01 * max(shown))))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(axes: Axes, points: Sequence[Mapping[str, Any]], name: str, colour: Colour, label: str) -> None:
    steps, values = [point["step"] for point in points], [point[name] for point in points]
    # A mark shows a single measurement; a dense curve would be nothing but marks.
    marker = "o" if len(points) <= 60 else ""
    sns.lineplot(
        x=steps,
        y=values,
        ax=axes,
        color=colour,
        label=label,
        marker=marker,
        markersize=4,
        linewidth=1.3,
        estimator=None,
        legend=False,
    )


def _draw_metric(rows: Sequence[Mapping[str, Any]], max_length: int, task: str, metric: Metric = EXACT_MATCH) -> Figure:
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    weights = _weights(rows)
    looks = _looks(weights)
    lengths = sorted({row["length"] for row in rows})
    styles: dict[str, dict[str, Any]] = {
        name: {"marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
        for i, name in enumerate(suites)
    }

    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["length"]):
        lines.setdefault((row["weights"], row["suite"], row["decode"], row["seed"]), []).append(row)
    for (name, suite, _, _), points in lines.items():
        x, y, low, high = np.array([[p["length"], p["value"], p["low"], p["high"]] for p in points], float).T
        y, low, high = (np.where(np.isfinite(values), values, np.nan) for values in (y, low, high))  # beyond floats
        # Suites that are all right, or all wrong, would hide one another: each is moved aside by a few points.
        aside = 4 * (suites.index(suite) - (len(suites) - 1) / 2) / 72
        axes.errorbar(
            x,
            y,
            yerr=np.clip([y - low, high - y], 0, None),
            linewidth=1.2,
            elinewidth=1,
            transform=axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans),
            **styles[suite],
            **looks[name],
        )

    longest = max(max_length, lengths[-1])
    if lengths[-1] > 8 * lengths[0] or longest > 10 * max_length:
        axes.set(xscale="log", xlim=(longest**-0.03, longest**1.03))
        even = math.log
    else:
        axes.set(xlim=(0.8 - 0.03 * longest, 0.2 + 1.03 * longest))
        even = float
    left, right = (even(limit) for limit in axes.get_xlim())
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom", "fontsize": SMALL, "color": INK}
    axes.axvspan(1, max_length, color=FAINT, alpha=0.35, linewidth=0, zorder=0)
    axes.text(1, 1.01, f"trained lengths, 1 to {max_length}", **above)
    multiples = [10**power * max_length for power in range(1, len(str(longest))) if 10**power * max_length <= longest]
    free = left + 0.25 * (right - left)  # beyond the text at the left
    for multiple in _apart([at for at in multiples if even(at) > free], (right - left) / 10, even):
        axes.axvline(multiple, color=FAINT, linewidth=1, zorder=0)
        axes.text(multiple, 1.01, f"{multiple // max_length:,}x", ha="center", **above)
    wanted = [max_length, longest, 1, *(length for length in lengths if length in multiples), *lengths]
    gap = (right - left) * max(1 / 20, len(f"{longest:,}") / 80)
    axes.xaxis.set_major_locator(FixedLocator(_apart(wanted, gap, even)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("length", fontsize=TEXT, color=INK)
    label = f"{metric.title}, with 95 % interval"
    if metric.is_share:
        _percent(axes, label)
    else:
        _numbers(axes, [number for row in rows for number in (row["low"], row["high"])], metric.of_logarithms)
        axes.set_ylabel(label, fontsize=TEXT, color=INK)
    what = "accuracy" if metric is EXACT_MATCH else metric.title
    axes.set_title(f"{task}: {what} at each length", fontsize=TITLE, color=INK, pad=18)
    _chart(axes)
    models = [Line2D([], [], marker="o", linewidth=1.2, label=weights_name(name), **looks[name]) for name in weights]
    marks = [Line2D([], [], color=INK, label=name, linewidth=1, markersize=4, **styles[name]) for name in suites]
    look: dict[str, Any] = {"alignment": "left", "frameon": False, "fontsize": TEXT, "title_fontsize": TEXT}
    named = axes.legend(handles=models, title="model", loc="upper left", bbox_to_anchor=(1.01, 1), **look)
    axes.add_artist(named).set_clip_on(False)  # what is clipped to the axes has no room made for it
    axes.legend(handles=marks, title="suite", loc="upper left", bbox_to_anchor=(1.01, 0.75), **look)
    return figure


def _numbers(axes: Axes, ends: Sequence[float], of_logarithms: bool) -> None:
    """Scales the vertical axis to intervals: from 0, or for the exponential of a mean from the least.

    Such numbers explode where a model fails; if the greatest is ten times the least, the axis is logarithmic.
    """
    ends = [end for end in ends if math.isfinite(end)] or [1.0]
    least, most = min(ends), max(ends)
    if not of_logarithms:
        axes.set_ylim(0, 1.05 * most or 1)  # lines that are moved aside do not count
    elif most < 10 * least:
        margin = 0.05 * (most - least) or 0.05 * most
        axes.set_ylim(least - margin, most + margin)
    else:
        axes.set(yscale="log", ylim=(least / 1.15, most * 1.15))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if most < 1000 * least else (1.0,)))
        axes.yaxis.set_major_formatter("{x:,g}" if most < 1e6 else "{x:.0e}")
        axes.yaxis.set_minor_locator(NullLocator())


def _draw_output_curves(curves: Sequence[Mapping[str, Any]], max_length: int, title: str, metric: Metric) -> Figure:
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for curve in curves:
        _, _, form = curve["suite"].partition("/")
        kind, _, _ = form.rpartition("_")
        panels.setdefault(kind or ("" if len(curve["suite"].split("_")) > 2 else form), []).append(curve)
    figure = Figure(figsize=(7.5 if len(panels) == 1 else 12, 4 * math.ceil(len(panels) / 2)), layout="constrained")
    all_axes = figure.subplots(math.ceil(len(panels) / 2), min(2, len(panels)), squeeze=False).flatten()
    for axes, (kind, own) in zip(all_axes, panels.items(), strict=False):
        _draw_points(axes, own, max_length, metric)
        if kind:
            axes.set_title(kind, fontsize=TEXT, color=INK, pad=14)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    figure.suptitle(title, fontsize=TITLE, color=INK)
    return figure


def _draw_points(axes: Axes, curves: Sequence[Mapping[str, Any]], max_length: int, metric: Metric) -> None:
    """One panel: a line for each model and baseline, or for each form of a prompt."""
    forms = list(dict.fromkeys(curve["suite"].rpartition("/")[2] for curve in curves))
    weights = _weights(curves)
    several = len(forms) > 1
    colours = sns.color_palette("viridis", len(forms)) if len(forms) > 4 else PALETTE
    for curve in curves:
        form, name = curve["suite"].rpartition("/")[2], curve["weights"]
        colour = colours[forms.index(form)] if several else PALETTE[weights.index(name)]
        is_model = name in WEIGHTS_NAMES
        values, low, high = (np.array(curve[key], float) for key in ("values", "low", "high"))
        x = np.arange(1, len(values) + 1)
        # Forms are told apart by colour; models among them by dashes.
        dash = DASHES[weights.index(name) % len(DASHES)] if several else "-" if is_model else "--"
        told = [form.rpartition("_")[2] if several else "", weights_name(name) if len(weights) > 1 else ""]
        label = " ".join(filter(None, told)) or weights_name(name)
        axes.plot(x, values, color=colour, linestyle=dash, linewidth=1.6 if is_model else 1.1, label=label)
        if is_model:
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        counted = np.array(curve["counted"])
        if not counted.all():
            axes.plot(x[counted], values[counted], "o", color=colour, markersize=4)
    longest = max(len(curve["values"]) for curve in curves)
    axes.axvspan(0.5, max_length + 0.5, color=FAINT, alpha=0.35, linewidth=0, zorder=0)
    axes.set_xlim(0.5, longest + 0.5)
    axes.text(
        0.5, 1.01, f"trained to {max_length}", transform=axes.get_xaxis_transform(), va="bottom",
        fontsize=SMALL, color=INK,
    )  # fmt: skip
    if metric.in_percent:
        _percent(axes, metric.title)
        # Before any example, 0 is predicted by some, which is neither right nor wrong by chance.
        lowest = min(min(curve["values"][1:], default=0.5) for curve in curves)
        axes.set_ylim(math.floor(20 * min(0.5, lowest)) / 20 - 0.02, 1.02)
    else:
        positive = [value for curve in curves for value in curve["values"] if value > _LEAST_ERROR]
        if positive:  # a logarithmic axis cannot show others
            _decades(axes, positive)
        axes.set_ylabel(metric.title, fontsize=TEXT, color=INK)
    marked = any(not all(curve["counted"]) for curve in curves)
    label = "point of the prompt" + (", dots: judged" if marked else "")
    axes.set_xlabel(label, fontsize=TEXT, color=INK)
    _chart(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=SMALL if len(forms) > 4 else TEXT)


def _draw_attention_curves(attended: Sequence[Mapping[str, Any]], title: str) -> Figure:
    figure = Figure(figsize=(7.5, 3.6 * len(attended)), layout="constrained")
    for axes, own in zip(figure.subplots(len(attended), 1, squeeze=False).flatten(), attended, strict=True):
        layers = own["layers"]
        for number, (attention, colour) in enumerate(
            zip(layers, sns.color_palette("viridis", len(layers)), strict=True)
        ):
            x = np.linspace(0, 1, len(attention)) if len(attention) > 1 else np.zeros(1)
            axes.plot(x, attention, color=colour, linewidth=1.3, label=f"layer {number}")
        even = 1 / max(1, len(layers[0]))
        axes.axhline(even / 2, color=INK, linestyle=":", linewidth=1, label="even over all tokens")
        axes.set_xlabel("label of the prompt, 0 = first, 1 = last", fontsize=TEXT, color=INK)
        axes.set_ylabel("attention of the last point", fontsize=TEXT, color=INK)
        _decades(axes, [value for attention in layers for value in attention if value > 1e-6])
        axes.set_title(f"{weights_name(own['weights'])} model, {own['samples']} prompts", fontsize=TEXT, color=INK)
        _chart(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=SMALL)
    figure.suptitle(title, fontsize=TITLE, color=INK)
    return figure


def _draw_digit_accuracy(rows: Sequence[Mapping[str, Any]], max_length: int, task: str) -> Figure:
    weights, sets = _weights(rows), list(dict.fromkeys(row["suite"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    num_places = 1 + max(row["place"] for row in rows)
    total, count = np.zeros((2, len(weights), len(sets), len(lengths), num_places))
    for row in rows:
        cell = weights.index(row["weights"]), sets.index(row["suite"]), lengths.index(row["length"]), row["place"]
        total[cell] += row["accuracy"]
        count[cell] += 1
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)

    width = _panel_width(num_places, len(sets))
    heights = [min(max(0.17 * len(lengths), 0.8), 2.5)] * len(weights)
    below = [GAP] * (len(weights) - 1) + [0.45]
    figure, grid = _grid(f"{task}: accuracy of each place", sets, width, heights, below, left=1)
    num_trained = sum(length <= max_length for length in lengths)
    beyond = 0 < num_trained < len(lengths)
    for name, maps, row in zip(weights, mean, grid, strict=True):
        for axes, heat in zip(row, maps, strict=True):
            _heat_map(axes, heat)
            if beyond:
                axes.axhline(num_trained, color=KEPT, linewidth=1.3)
        line = 72 * LINE / _cell(row[0])[1]
        named = _apart([len(lengths) - 1, *range(len(lengths))], line)
        row[0].set_yticks([i + 0.5 for i in named], [str(lengths[i]) for i in named], fontsize=SMALL, color=INK)
        _name_row(row[0], row[0], weights_name(name))
    for axes in grid[-1]:
        places = _regular(num_places, 20 / _cell(axes)[0])
        axes.set_xticks([place + 0.5 for place in places], [str(place) for place in places], fontsize=SMALL, color=INK)
    _name_axes(figure, "place of the answer, 0 = least significant", "length")
    _colour_bar(figure, "accuracy")
    if beyond:
        label = f"longest trained length, {max_length}"
        _legend_below(figure, [Line2D([], [], color=KEPT, linewidth=1.3, label=label)])
    return figure


def _grid(
    title: str,
    columns: Sequence[str],
    width: float,
    heights: Sequence[float],
    below: Sequence[float],
    left: float = LEFT,
    right: float = RIGHT,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels in rows and columns.

    Sizes are given instead of left to a layout engine, which takes many seconds over some eighty panels.

    Args:
        title: What stands above.
        columns: Title of each column.
        width: Width of a panel in inches.
        heights: Height of the panels of each row in inches.
        below: Room below each row in inches.
        left: Margin on the left in inches.
        right: Margin on the right in inches.
    """
    above = TOP + 0.2 * title.count("\n")
    size = np.array([left + len(columns) * (width + GAP) - GAP + right, above + sum(heights) + sum(below) + BOTTOM])
    figure = Figure(figsize=tuple(size))
    figure.text(0.5, 1 - 0.12 / size[1], title, ha="center", va="top", fontsize=TITLE, color=INK, linespacing=1.5)
    grid: list[list[Axes]] = []
    bottom = size[1] - above
    for height, room in zip(heights, below, strict=True):
        bottom -= height
        corners = [(left + column * (width + GAP), bottom) for column in range(len(columns))]
        places = [(*(np.array(corner) / size), *(np.array([width, height]) / size)) for corner in corners]
        grid.append([figure.add_axes(place) for place in places])
        bottom -= room
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=TEXT, color=INK, pad=4)
    return figure, grid


def _panel_width(num_keys: int, num_columns: int) -> float:
    return min(max(0.11 * num_keys, 1.35, 4 / num_columns), max(10 / num_columns, 1.35))


def _cell(axes: Axes) -> tuple[float, float]:
    """Width and height of a unit of a panel's data in points."""
    figure_width, figure_height = cast(Figure, axes.figure).get_size_inches()
    (left, right), (bottom, top), place = axes.get_xlim(), axes.get_ylim(), axes.get_position()
    return 72 * place.width * figure_width / abs(right - left), 72 * place.height * figure_height / abs(top - bottom)


def _heat_map(axes: Axes, values: NDArray[np.floating]) -> None:
    """Draws values 0 to 1 `[row, column]`; what is not a number is left grey."""
    sns.heatmap(values, ax=axes, cmap=HEAT, vmin=0, vmax=1, cbar=False, xticklabels=False, yticklabels=False)
    axes.set_facecolor(ABSENT)
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.tick_params(length=2, pad=1.5, color=FAINT)
    axes.spines[:].set(visible=True, color=FAINT, linewidth=0.8)


def _chart(axes: Axes) -> None:
    sns.despine(ax=axes)
    axes.tick_params(labelsize=TEXT, colors=INK)
    axes.spines[:].set_color(FAINT)
    axes.grid(color=PAPER)
    axes.set_axisbelow(True)


def _percent(axes: Axes, label: str) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_ylabel(label, fontsize=TEXT, color=INK)


def _site_layer(name: str) -> tuple[Site, int]:
    site, _, layer = name.partition(".")
    if site not in SITES or not layer.isdecimal():
        raise ValueError(f"{name!r} names no attention: write site and layer, as in 'cross.0'")
    return cast(Site, site), int(layer)


def _open_bias(window: Window, site: Site, layer: int, layout: Layout) -> NDArray[np.floating]:
    """A window's bias `[head, query, key]`, minus infinity where closed by it or not yet written by the decoder."""
    bias = dense_bias(window, site, layer, *site_positions(site, layout)).cpu().numpy()
    return np.where(np.tri(*bias.shape[1:], dtype=bool), bias, -np.inf) if site == "decoder" else bias


def _texts(site: Site, tokens: Tokens | None, num_queries: int) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """Texts of a site's queries and of its keys."""
    if tokens is None:
        return None, None
    source, target = tokens
    if site == "encoder":
        return source, source
    if num_queries > len(target):  # source and target are one string
        return [*source, *target], [*source, "", *target[:-1]]
    # The start token has no text: its segment's name says what it is.
    return target, ("", *target[:-1]) if site == "decoder" else source


def _segments(positions: Positions) -> list[tuple[str, int, int]]:
    """Name, first token and end of each segment, in order; those that are written in turn have one name together."""
    segment = positions.segment.cpu().numpy()
    edges = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
    runs = [(positions.names[segment[start]], start, stop) for start, stop in pairwise(edges)]
    in_turn = [i for i, (name, *_) in enumerate(runs) if [other for other, *_ in runs].count(name) > 1]
    if in_turn:
        first, last = in_turn[0], in_turn[-1]
        together = " / ".join(dict.fromkeys(name for name, *_ in runs[first : last + 1]))
        if _rows(positions):
            together = "rows"
        runs[first : last + 1] = [(together, runs[first][1], runs[last][2])]
    return runs


def _rows(positions: Positions) -> list[int]:
    """The first token of each row of a table; none where there is no table."""
    rows = positions.coordinates["row"].tolist()
    return [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]] if any(rows) else []


def _mark_segments(axes: Axes, queries: Positions, keys: Positions) -> None:
    for _, start, _ in _segments(keys)[1:]:
        axes.axvline(start, color=FAINT, linewidth=0.8, linestyle=":")
    for _, start, _ in _segments(queries)[1:]:
        axes.axhline(start, color=FAINT, linewidth=0.8, linestyle=":")


def _name_segments(axes: Axes, axis: Axis, positions: Positions, texts: Sequence[str] | None) -> None:
    """Names the segments along an axis in the middle of each, with the text of each token if there is room."""
    across = axis is axes.xaxis
    cell = _cell(axes)[0 if across else 1]
    pad = 1.5
    if texts is not None and cell >= 0.85 * SMALL:
        axis.set_ticks([i + 0.5 for i in range(len(positions))], labels=texts, fontsize=SMALL, color=INK)
        pad += 1.7 * SMALL
    segments = _segments(positions)
    middles = [(start + stop) / 2 for _, start, stop in segments]
    labels = {"labels": [name for name, _, _ in segments], "minor": True, "fontsize": SMALL, "color": INK}
    if across and _slanted(positions, cell):
        labels |= {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    # Names stay where a token's tick is in the same place.
    axis.remove_overlapping_locs = False
    axis.set_ticks(middles, **labels)
    axis.set_tick_params(which="minor", length=0, pad=pad)


def _slanted(positions: Positions, cell: float) -> bool:
    """Whether the names of segments stand too close to be written level, their tokens being `cell` points wide."""
    segments = _segments(positions)
    apart = min((right[2] - left[1] for left, right in pairwise(segments)), default=math.inf) / 2
    return apart * cell < 0.6 * SMALL * max(len(name) for name, _, _ in segments)


def _name_queries(axes: Axes, site: Site, queries: Positions, texts: Sequence[str] | None) -> None:
    """Names the queries down an axis: a source's by segment, a target's alone by place or row of what they predict."""
    if site == "encoder" or "string" in queries.coordinates:
        _name_segments(axes, axes.yaxis, queries, texts)
        return
    line = 72 * LINE / _cell(axes)[1]
    rows = _rows(queries)
    counted = "row" if rows else "place"
    labels = [
        END if queries.names[segment] == END else f"{counted} {number}"
        for segment, number in zip(queries.segment.tolist(), queries.coordinates[counted].tolist(), strict=True)
    ]
    if texts is not None and line <= 1:
        labels = [label if label == END else f"{label}: {text}" for label, text in zip(labels, texts, strict=True)]
    regular: Sequence[int] = _regular(len(queries), line)
    if rows and line > 1:
        regular = [rows[i] for i in _regular(len(rows), line * len(rows) / len(queries))]
    named = _apart([len(queries) - 1, *regular], line)
    axes.set_yticks([i + 0.5 for i in named], [labels[i] for i in named], fontsize=SMALL, color=INK)


def _regular(count: int, gap: float) -> range:
    """Numbers from 0 below `count`, at least `gap` apart, by a step that a reader counts in."""
    step = next(digit * 10**power for power in range(9) for digit in (1, 2, 5) if digit * 10**power >= gap)
    return range(0, count, step)


def _apart(wanted: Iterable[int], gap: float, at: Callable[[float], float] = float) -> list[int]:
    """Those of some ticks, the most wanted first, that are at least `gap` from each more wanted one, in order."""
    kept: list[int] = []
    for tick in wanted:
        if all(abs(at(tick) - at(other)) >= gap for other in kept):
            kept.append(tick)
    return sorted(kept)


def _edges(cells: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """The outline of the true cells `[row, column]`: unit lines between a true cell and one that is not."""
    padded = np.pad(cells, 1)
    below = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]).tolist()
    beside = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]).tolist()
    return [[(x, y), (x + 1, y)] for y, x in below] + [[(x, y), (x, y + 1)] for y, x in beside]


def _shade(colour: Colour, bias: float, biases: Sequence[float]) -> Colour:
    """A colour, the paler the lower a bias is among the sorted `biases`."""
    lowest, highest = biases[0], biases[-1]
    strength = 1.0 if lowest == highest else 0.45 + 0.55 * (bias - lowest) / (highest - lowest)
    red, green, blue = (1 - strength * (1 - part) for part in colour)
    return red, green, blue


def _weights(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The weights that occur, the vanilla model's first, baselines last."""
    found = list(dict.fromkeys(row["weights"] for row in rows))
    return [name for name in WEIGHTS_NAMES if name in found] + [name for name in found if name not in WEIGHTS_NAMES]


def _looks(weights: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How the lines of models and of baselines look."""
    others = [name for name in weights if name not in LOOKS]
    plain: dict[str, Any] = {"fillstyle": "none", "markersize": 5}
    return dict(LOOKS) | {name: plain | {"color": PALETTE[(2 + i) % len(PALETTE)]} for i, name in enumerate(others)}


def _name_row(first: Axes, last: Axes, text: str) -> None:
    """Writes a title at the left of the rows of panels that begin with `first` to `last`."""
    figure = cast(Figure, first.figure)
    x, y = 0.55 / figure.get_size_inches()[0], (first.get_position().y1 + last.get_position().y0) / 2
    figure.text(x, y, text, rotation=90, ha="center", va="center", fontsize=TEXT, color=INK, fontweight="bold")


def _name_axes(figure: Figure, keys: str, queries: str) -> None:
    """Says what runs along the panels and down them."""
    width, height = figure.get_size_inches()
    figure.text(0.5, BOTTOM / height, keys, ha="center", va="center", fontsize=TEXT, color=INK)
    figure.text(0.15 / width, 0.5, queries, rotation=90, ha="center", va="center", fontsize=TEXT, color=INK)


def _colour_bar(figure: Figure, label: str) -> None:
    width, height = figure.get_size_inches()
    panels = [axes.get_position() for axes in figure.axes]
    right, top, bottom = (max(p.x1 for p in panels), max(p.y1 for p in panels), min(p.y0 for p in panels))
    tall = min(top - bottom, 3 / height)
    axes = figure.add_axes((right + 0.15 / width, (top + bottom - tall) / 2, 0.12 / width, tall))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), cax=axes)
    bar.set_label(label, fontsize=TEXT, color=INK)
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=SMALL, colors=INK, length=2)


def _legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), fontsize=TEXT, frameon=False, borderaxespad=0.3
    )


def draw_transducer(explanation: "Explanation") -> Figure:
    """The figure of `transducer`."""
    from abc_toolkit.report.transducers import folded

    edges = [folded(explanation, own) for own in explanation.machines]
    if len(edges) <= _MOST_PANELS and max(map(len, edges)) <= _MOST_EDGES:
        return _draw_graphs(explanation, edges)
    return _draw_steps(explanation)


def _draw_graphs(explanation: "Explanation", edges: Sequence[Sequence["Edge"]]) -> Figure:
    """A panel for each machine, with states as circles and steps as arrows between them."""
    from abc_toolkit.report.transducers import parameters_in_words

    places = [_places_of_states(len(own.names)) for own in explanation.machines]
    lines = [0.14 * max(len(texts) for texts in _arrows(own).values()) for own in edges]
    reach = [max(y for _, y in own) for own in places]
    heights = [2 * (y + 1.1 + more) + 0.25 for y, more in zip(reach, lines, strict=True)]
    width, title = 2 * (max(x for own in places for x, _ in own) + 2.4), 0.4
    figure = Figure(figsize=(width, sum(heights) + title))
    figure.text(
        0.5,
        1 - 0.15 / (sum(heights) + title),
        f"{explanation.task.name}: what the model computes (read / written)",
        ha="center",
        va="top",
        fontsize=TITLE,
        color=INK,
    )
    top = sum(heights)
    for machine, own, centres, height in zip(explanation.machines, edges, places, heights, strict=True):
        top -= height
        # One unit of the axes is an inch.
        axes = figure.add_axes((0, top / (sum(heights) + title), 1, height / (sum(heights) + title)))
        axes.set(xlim=(-width / 2, width / 2), ylim=(-height / 2, height / 2))
        axes.set_axis_off()
        words = parameters_in_words(explanation, machine)
        axes.text(0.25 - width / 2, height / 2 - 0.3, words, fontsize=TEXT, color=INK, weight="bold")
        _draw_graph(axes, machine, _arrows(own), centres)
    return figure


def _places_of_states(count: int) -> list[tuple[float, float]]:
    """Where the states' circles are, in inches from the middle: on a line up to two, else on an ellipse."""
    if count <= 2:
        return [(0.0, 0.0)] if count == 1 else [(-1.4, 0.0), (1.4, 0.0)]
    across, down = 0.8 * count, 0.5 * count
    angles = [math.pi - 2 * math.pi * state / count for state in range(count)]
    return [(across * math.cos(angle), down * math.sin(angle)) for angle in angles]


def _arrows(edges: Sequence["Edge"]) -> dict[tuple[int, int], list[str]]:
    """The labels of the arrows from one state to another; steps after which nothing follows stay at their state."""
    found: dict[tuple[int, int], list[str]] = {}
    for edge in edges:
        is_last = edge.following < 0
        text = f"{edge.reads} / {edge.writes}" + ", end" * is_last
        found.setdefault((edge.state, edge.state if is_last else edge.following), []).append(text)
    return found


def _draw_graph(
    axes: Axes,
    machine: "Explained",
    arrows: Mapping[tuple[int, int], Sequence[str]],
    centres: Sequence[tuple[float, float]],
) -> None:
    """Circles and arrows of one machine, in inches."""
    radius, bend = 0.42, 0.22
    for name, (x, y) in zip(machine.names, centres, strict=True):
        axes.add_patch(Circle((x, y), radius, facecolor=PAPER, edgecolor=INK, linewidth=1.2, zorder=3))
        text = name.replace(" ", "\n", 1)
        axes.text(x, y, text, ha="center", va="center", fontsize=TEXT, color=INK, zorder=4)
    x, y = centres[machine.transducer.start]
    _arrow(axes, (x - 0.85, y), (x - radius, y), 0)
    look: dict[str, Any] = {"fontsize": SMALL, "color": INK, "zorder": 5}
    for (state, following), texts in arrows.items():
        (x, y), (to_x, to_y) = centres[state], centres[following]
        text = "\n".join(texts)
        if state == following:
            side = -1 if y < -0.01 else 1  # away from the middle
            ends = [(x - side * 0.2, y + side * 0.37), (x + side * 0.2, y + side * 0.37)]
            _arrow(axes, ends[0], ends[1], -1.8)
            axes.text(x, y + side * 0.9, text, va="bottom" if side > 0 else "top", ha="center", **look)
            continue
        across, up = to_x - x, to_y - y
        length = math.hypot(across, up)
        turn = math.atan2(up, across)
        left = (-up / length, across / length)
        # Arrows bend to their left, so that those of two directions part; one alone bends away from the middle.
        side = 1
        if (following, state) not in arrows and left[0] * (x + to_x) + left[1] * (y + to_y) < -0.01:
            side, left = -1, (-left[0], -left[1])
        lean = 0.4 * side
        start = (x + radius * math.cos(turn + lean), y + radius * math.sin(turn + lean))
        end = (to_x - radius * math.cos(turn - lean), to_y - radius * math.sin(turn - lean))
        _arrow(axes, start, end, -side * bend)
        off = 0.08 + radius * math.sin(0.4) + 0.5 * bend * (length - 2 * radius * math.cos(0.4))
        at = ((x + to_x) / 2 + off * left[0], (y + to_y) / 2 + off * left[1])
        aside = "center" if abs(left[0]) < 0.3 else "left" if left[0] > 0 else "right"
        above = "center" if abs(left[1]) < 0.3 else "bottom" if left[1] > 0 else "top"
        axes.text(*at, text, va=above, ha=aside, **look)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float) -> None:
    """An arrow that bends to its left by a share of its length, if the share is negative."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=style,
            arrowstyle="-|>",
            mutation_scale=11,
            color=INK,
            linewidth=1,
            shrinkA=0,
            shrinkB=0,
            zorder=2,
        )
    )


def _draw_steps(explanation: "Explanation") -> Figure:
    """A table with a row for each state and a column for what is read: colour is the next state, text what is written.

    Only steps that read a digit of all operands are shown, and of inputs beyond the most, a part.
    """
    from abc_toolkit.report.transducers import parameters_in_words

    reads = dict.fromkeys(
        read
        for own in explanation.machines
        for steps in own.transducer.steps
        for read in steps
        if None not in read.digits
    )
    columns = sorted({read.digits for read in reads}, key=lambda digits: [value or 0 for value in digits])
    shown = columns[:: math.ceil(len(columns) / _MOST_COLUMNS) or 1]
    rows = [(own, state) for own in explanation.machines for state in range(len(own.names))]
    following = np.full((len(rows), len(shown)), np.nan)
    texts: dict[tuple[int, int], str] = {}
    for row, (own, state) in enumerate(rows):
        for read, (written, after) in own.transducer.steps[state].items():
            if read.digits in shown and after >= 0:
                column = shown.index(read.digits)
                following[row, column] = after
                texts[row, column] = "".join(explanation.text(token) for token in written)
    side = 0.3 if len(shown) <= _MOST_TEXTS else 0.13
    figure = Figure(figsize=(2.6 + side * len(shown), 1.2 + 0.2 * len(rows)))
    axes = figure.subplots()
    most = max(len(own.names) for own in explanation.machines)
    axes.imshow(following, cmap=HEAT, vmin=0, vmax=max(most - 1, 1), aspect="auto", interpolation="nearest")
    if len(shown) <= _MOST_TEXTS:
        for (row, column), text in texts.items():
            dark = following[row, column] > 0.55 * max(most - 1, 1)
            colour = "white" if dark else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=colour)
        names = [" ".join(explanation.text(value) for value in digits) for digits in shown]
        axes.set_xticks(range(len(shown)), names, fontsize=SMALL)
    else:
        axes.set_xticks([])
    labels = [
        own.names[state] if state else ", ".join(filter(None, (parameters_in_words(explanation, own), own.names[0])))
        for own, state in rows
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=SMALL)
    for row, (_, state) in enumerate(rows):
        if state == 0 and row:
            axes.axhline(row - 0.5, color=INK, linewidth=0.8)
    what = f"read: {', '.join(explanation.operands)}"
    what += f" ({len(shown)} of {len(columns):,} inputs are shown)" if len(shown) < len(columns) else ""
    axes.set_xlabel(what, fontsize=TEXT, color=INK)
    told = "colour: number of the next state" + "; text: what is written" * (len(shown) <= _MOST_TEXTS)
    axes.set_title(
        f"{explanation.task.name}: what the model computes\n{told}",
        fontsize=TEXT,
        color=INK,
    )
    return figure
