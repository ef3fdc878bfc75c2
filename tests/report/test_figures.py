"""What is in the figures, read from their artists, and that their files appear whole."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.report import figures
from abc_toolkit.tasks import Addition, MultiOperandAddition
from abc_toolkit.tasks.objective import PERPLEXITY, Metric
from abc_toolkit.windows.lowering import matrices
from abc_toolkit.windows.rules import Condition, Rule, Window

TASK = Addition(max_length=3)
SMALL, LARGE = TASK.layout((3, 3)), TASK.layout((30, 30))
NUM_HEADS = 2


def own(offset: int = 0) -> tuple[Condition, ...]:
    return (Condition("place", offset, "place"),)


WINDOW = Window(
    task="Addition",
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_heads=NUM_HEADS,
    rules=(
        Rule("cross", 0, 0, "operand 1", own()),
        Rule("cross", 0, 0, "operand 2", own()),
        Rule("cross", 0, 0, "operator"),
        Rule("cross", 0, 1, "operand 1", own(1)),
        Rule("decoder", 0, 0, "answer", own(1)),
        Rule("decoder", 0, 1, None, (Condition("raw", 1),)),
    ),
    calibration={},
)


def uniform_maps(layout: Layout) -> dict[str, Tensor]:
    lengths = {"encoder.0": (layout.source, layout.source), "decoder.0": (layout.target, layout.prefix)}
    lengths["cross.0"] = (layout.target, layout.source)
    return {name: torch.rand(NUM_HEADS, len(q), len(k)) for name, (q, k) in lengths.items()}


def results(lengths: tuple[int, ...], sets: tuple[str, ...] = ("uniform", "carry")) -> list[dict[str, Any]]:
    return [
        {
            "task": "Addition", "suite": set_name, "metric": "exact_match", "length": length,
            "tokens": 3 * length + 3, "samples": 100,
            "value": share, "low": max(share - 0.1, 0), "high": min(share + 0.05, 1),
            "decode": "steps", "seed": 0, "weights": weights,
        }
        for weights in ("retrain", "fit")
        for set_name in sets
        for length in lengths
        for share in [1.0 if weights == "retrain" or length <= 3 else 1 / length]
    ]  # fmt: skip


def curves_at(path: Path, name: str) -> Path:
    return figures.output_curves(path, CURVES[name], 6, name, ERROR)


def places(lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {"weights": weights, "suite": "uniform", "length": length, "place": place, "accuracy": 1 / (1 + place)}
        for weights in ("fit", "retrain")
        for length in lengths
        for place in range(length + 1)
    ]


RECORD: Mapping[str, Any] = {
    "train": [{"step": step, "loss": math.exp(-step / 100)} for step in range(10, 500, 10)],
    "validation": [
        {"step": step, "loss": math.exp(-step / 90), "exact_match": min(step / 300, 1.0)}
        for step in range(100, 500, 100)
    ],
    "threshold": 0.99,
    "phase": "fit",
}
ERROR = Metric("squared_error", higher_is_better=False)


def curve(suite: str, weights: str = "fit", points: int = 12, counted: int | None = None) -> dict[str, Any]:
    """Errors that fall point by point; the last ones count, or all."""
    values = [1 / (1 + point) for point in range(points)]
    return {
        "suite": suite, "weights": weights, "metric": "squared_error", "samples": 9, "values": values,
        "low": [0.9 * value for value in values], "high": [1.2 * value for value in values],
        "counted": [counted is None or point >= points - counted for point in range(points)],
    }  # fmt: skip


CURVES = {
    "ood": [curve("ood"), curve("ood", "least squares")],
    "duplicates": [
        curve("duplicates/all"),
        *(curve(f"duplicates/tail_{count}", counted=2) for count in range(1, 7)),
        *(curve(f"duplicates/gap_{where}", counted=2) for where in ("near", "far")),
        curve("duplicates/inst_begin"),
    ],
    "lost_in_the_middle": [curve(f"lost_in_the_middle/{where}", counted=3) for where in ("begin", "middle", "end")],
    "of one point": [curve("ood", points=1)],
    "right": [curve("ood") | {key: [0.0] * 12 for key in ("values", "low", "high")}],
}
ATTENDED = [
    {"weights": "fit", "samples": 8, "layers": [[0.1, 0.2, 0.05], [0.01, 0.0, 0.3]]},
    {"weights": "retrain", "samples": 8, "layers": [[1e-9], [0.5]]},
]
DRAWN: dict[str, Callable[[Path], Path]] = {
    "attention_maps": lambda path: figures.attention_maps(path, uniform_maps(SMALL), SMALL, WINDOW),
    "windows": lambda path: figures.windows(path, WINDOW, [("3 digits", SMALL), ("30 digits", LARGE)]),
    "training": lambda path: figures.training(path, RECORD),
    "accuracy": lambda path: figures.metric_curve(path, results((1, 3, 30)), 3, "Addition"),
    "digit_accuracy": lambda path: figures.digit_accuracy(path, places((1, 3, 10)), 3, "Addition"),
    **{f"curves {name}": lambda path, name=name: curves_at(path, name) for name in CURVES},
    "attention": lambda path: figures.attention_curves(path, ATTENDED, "attention"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_files_appear_whole_from_any_thread(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.png"
    path.write_text("an older figure")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(DRAWN[name], path).result() == path
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = pyplot.imread(path)
    assert min(image.shape[:2]) > 200
    assert image[..., :3].std() > 0.02
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", DRAWN)
def test_no_figure_asks_for_a_backend(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = DRAWN[name](tmp_path / "expected.png").read_bytes()

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("a figure asks pyplot")

    for function in ("switch_backend", "figure", "subplots", "gcf", "gca", "show", "new_figure_manager"):
        monkeypatch.setattr(pyplot, function, asked)
    monkeypatch.setattr(pyplot, "_backend_mod", None)
    torch.manual_seed(0)
    assert DRAWN[name](tmp_path / "found.png").read_bytes() == expected


def test_a_failure_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(figure: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"half a fig")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", break_off)
    path = tmp_path / "training.png"
    path.write_text("an older figure")
    with pytest.raises(UserError, match=r"training.png cannot be written \(the disk is full\)"):
        figures.training(path, RECORD)
    assert path.read_text() == "an older figure"
    assert list(tmp_path.iterdir()) == [path]


def visible_cells(window: Window, name: str, layout: Layout) -> np.ndarray:
    """The open cells `[head, query, key]`, by the paper's matrix, that the decoder has already written."""
    opened = matrices(window, layout)[name].numpy() > -np.inf
    if name.startswith("decoder"):
        queries, keys = np.indices(opened.shape[1:])
        opened = opened & (keys <= queries)
    return opened


def outlined_cells(axes: Axes, shape: tuple[int, ...]) -> np.ndarray:
    """The cells inside the outlines: those with an odd number of upright edges to their left."""
    inside = np.zeros(shape, dtype=bool)
    (outlines,) = (artist for artist in axes.collections if isinstance(artist, LineCollection))
    for (x, y), (next_x, next_y) in outlines.get_segments():
        if x == next_x:
            inside[int(min(y, next_y)), int(x) :] ^= True
    return inside


def filled_cells(axes: Axes, shape: tuple[int, ...]) -> np.ndarray:
    """The colour of each filled cell, `[query, key, 3]`, not a number where none is."""
    colours = np.full((*shape, 3), np.nan)
    for artist in axes.collections:
        assert isinstance(artist, PolyCollection)
        for path, colour in zip(artist.get_paths(), artist.get_facecolor(), strict=True):
            (left, top), (right, bottom) = path.vertices.min(axis=0), path.vertices.max(axis=0)
            colours[int(top) : int(bottom), int(left) : int(right)] = colour[:3]
    return colours


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def tick_labels(axes: Axes, which: str, minor: bool = False) -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")(minor=minor)]


def test_attention_maps_show_the_weights_and_outline_the_open_cells() -> None:
    maps = uniform_maps(SMALL)
    # Rows come in the model's order whatever the order of the maps.
    figure = figures._draw_attention_maps(dict(reversed(maps.items())), SMALL, WINDOW, None, "a title")
    assert len(figure.axes) == 3 * NUM_HEADS + 1  # and the colour bar
    panels = iter(figure.axes)
    for name, weights in maps.items():
        opened = visible_cells(WINDOW, name, SMALL)
        for head in range(NUM_HEADS):
            axes = next(panels)
            (mesh,) = (artist for artist in axes.collections if isinstance(artist, QuadMesh))
            np.testing.assert_array_equal(mesh.get_array(), weights[head].numpy())
            assert mesh.get_clim() == (0, 1)
            np.testing.assert_array_equal(outlined_cells(axes, opened[head].shape), opened[head])
    assert "a title" in words(figure)
    assert "kept by the window" in words(figure)


def test_attention_maps_name_queries_and_segments() -> None:
    figure = figures._draw_attention_maps(uniform_maps(SMALL), SMALL, None, None, "")
    encoder, decoder, cross = figure.axes[0], figure.axes[NUM_HEADS], figure.axes[2 * NUM_HEADS]
    segments = ["operand 1", "operator", "operand 2"]
    assert tick_labels(encoder, "y", minor=True) == segments
    assert tick_labels(cross, "x", minor=True) == segments
    assert cross.xaxis.get_minorticklocs().tolist() == [1.5, 3.5, 5.5]
    assert tick_labels(decoder, "x", minor=True) == ["start", "answer"]
    assert tick_labels(cross, "y") == ["place 0", "place 1", "place 2", "place 3", "end"]
    assert "kept by the window" not in words(figure)


def test_attention_maps_name_the_rows_of_a_table() -> None:
    layout = MultiOperandAddition().layout((5, 30))
    maps = {"decoder.0": torch.zeros(1, len(layout.target), len(layout.prefix))}
    (axes, _) = figures._draw_attention_maps(maps, layout, None, None, "").axes
    assert tick_labels(axes, "x", minor=True) == ["start", "rows"]
    labels = tick_labels(axes, "y")
    numbers = [int(label.removeprefix("row ")) for label in labels[:-1]]
    assert labels[-1] == "end"
    assert numbers[0] == 0
    assert len({b - a for a, b in pairwise(numbers)}) == 1
    for tick, number in zip(axes.yaxis.get_majorticklocs(), numbers, strict=False):
        assert layout.target.coordinates["row"][int(tick)] == number
        assert layout.target.coordinates["column"][int(tick)] == 0


def test_attention_maps_of_one_problem_name_its_tokens() -> None:
    tokens = (list("123+989"), [*"2111", "."])
    figure = figures._draw_attention_maps(uniform_maps(SMALL), SMALL, None, tokens, "")
    encoder, decoder, cross = figure.axes[0], figure.axes[NUM_HEADS], figure.axes[2 * NUM_HEADS]
    assert tick_labels(encoder, "y") == tick_labels(encoder, "x") == tick_labels(cross, "x") == tokens[0]
    assert tick_labels(decoder, "x") == ["", *"2111"]
    assert tick_labels(cross, "y") == ["place 0: 2", "place 1: 1", "place 2: 1", "place 3: 1", "end"]
    # Too many tokens to read are left out.
    huge = TASK.layout((60, 60))
    many = figures._draw_attention_maps(uniform_maps(huge), huge, None, (["7"] * 121, ["7"] * 62), "")
    assert "7" not in tick_labels(many.axes[0], "x")
    assert tick_labels(many.axes[2 * NUM_HEADS], "y")[0] == "place 0"


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(ValueError, match="sideways"):
        figures._draw_attention_maps({"sideways.0": torch.zeros(1, 2, 2)}, SMALL, None, None, "")


def test_windows_fill_the_open_cells_at_every_size() -> None:
    figure = figures._draw_windows(WINDOW, [("3 digits", SMALL), ("30 digits", LARGE)])
    panels = iter(figure.axes)
    colours: dict[str, set[tuple[float, ...]]] = {}
    for name in ("decoder.0", "cross.0"):
        for layout in (SMALL, LARGE):
            keys = layout.prefix if name == "decoder.0" else layout.source
            for opened in visible_cells(WINDOW, name, layout):
                cells = filled_cells(next(panels), opened.shape)
                np.testing.assert_array_equal(np.isfinite(cells[..., 0]), opened)
                for _, key in np.argwhere(opened):
                    segment = keys.names[int(keys.segment[key])]
                    colours.setdefault(segment, set()).update(map(tuple, cells[opened[:, key], key].round(6).tolist()))
    assert next(panels, None) is None
    # One colour for each segment, the same everywhere, that the legend explains.
    assert {len(shades) for shades in colours.values()} == {1}
    (legend,) = figure.legends
    handles = {
        text.get_text(): tuple(np.round(to_rgb(patch.get_facecolor()), 6).tolist())
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert handles == {segment: next(iter(shades)) for segment, shades in colours.items()}
    assert len(set(handles.values())) == len(handles) == 4
    assert "closed altogether: encoder layer 0" in words(figure)
    assert {"3 digits", "30 digits", "head 1"} <= set(words(figure).split("\n"))


def test_a_line_of_single_cells_stays_visible() -> None:
    huge = TASK.layout((200, 200))
    figure = figures._draw_windows(WINDOW, [("200 digits", huge)])
    axes = figure.axes[NUM_HEADS]
    (cells,) = axes.collections
    left, right = axes.get_window_extent().intervalx / figure.dpi * 72
    assert (right - left) / len(huge.source) + cells.get_linewidth()[0] >= 1.5


def test_a_lower_bias_is_paler() -> None:
    rules = [Rule("cross", 0, head, "operator", bias=bias) for head, bias in enumerate((-2.0, 0.5))]
    figure = figures._draw_windows(WINDOW.with_rules(rules), [("3 digits", SMALL)])
    low, high = (filled_cells(axes, (5, 7))[0, 3] for axes in figure.axes)
    assert (low > high).any()
    assert (low >= high).all()
    assert "lowest bias, -2" in words(figure)
    assert "highest bias, 0.5" in words(figure)
    assert "lowest bias" not in words(figures._draw_windows(WINDOW, [("3 digits", SMALL)]))


def test_a_closed_head_says_so() -> None:
    figure = figures._draw_windows(WINDOW.with_rules([Rule("cross", 0, 1, "operator")]), [("3 digits", SMALL)])
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["closed"], []]
    assert len(figures._draw_windows(WINDOW.with_rules([]), [("3 digits", SMALL)]).axes) == 3 * NUM_HEADS


def test_training_marks_the_threshold_and_where_it_is_reached() -> None:
    figure = figures._draw_training(RECORD)
    loss, exact_match = figure.axes
    assert loss.get_yscale() == "log"
    assert exact_match.get_ylim()[0] <= 0
    assert exact_match.get_ylim()[1] >= 1
    curves = {line.get_label(): line for line in loss.lines}
    for label, points in (("training", RECORD["train"]), ("held-out", RECORD["validation"])):
        np.testing.assert_array_equal(curves[label].get_xydata(), [[point["step"], point["loss"]] for point in points])
    curves = {line.get_label(): line for line in exact_match.lines}
    expected = [[point["step"], point["exact_match"]] for point in RECORD["validation"]]
    np.testing.assert_array_equal(curves["held-out"].get_xydata(), expected)
    assert list(curves["threshold, 99 %"].get_ydata()) == [0.99, 0.99]
    assert "first reached at step 300" in curves
    assert "vanilla" in words(figure)


def test_training_shows_in_how_many_assignments_the_model_is_weak(tmp_path: Path) -> None:
    validation = [dict(point) for point in RECORD["validation"]]
    validation[2] |= {"weak": 1200, "smallest_margin": -3.0}
    validation[3] |= {"weak": 0, "smallest_margin": 2.0}
    record = {**RECORD, "phase": "retrain", "validation": validation}
    figures.training(tmp_path / "training.png", record)
    *_, assignments = figures._draw_training(record).axes
    curves = {line.get_label(): line for line in assignments.lines}
    assert curves["wrong, or right by little"].get_xydata().tolist() == [[300, 1200], [400, 0]]
    assert assignments.get_ylim()[0] < 0
    assert assignments.get_xlabel() == "training step"
    assert assignments.get_ylabel() == "assignments"
    assert len(figures._draw_training(RECORD).axes) == 2


@pytest.mark.parametrize("validation", [[], RECORD["validation"][:1]])
def test_training_that_has_barely_begun(validation: list[dict[str, float]], tmp_path: Path) -> None:
    record = {**RECORD, "phase": "retrain", "train": RECORD["train"][: len(validation)], "validation": validation}
    figures.training(tmp_path / "training.png", record)
    figure = figures._draw_training(record)
    assert "first reached" not in words(figure)
    assert "retrained" in words(figure)


def test_a_loss_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    broken = [{"step": step, "loss": loss} for step, loss in enumerate((2.0, 0.0, math.inf, math.nan, 0.5))]
    figures.training(tmp_path / "training.png", {**RECORD, "train": broken})


@pytest.mark.parametrize(("lengths", "scale"), [((1, 3, 30), "log"), ((30,), "linear"), ((2, 3, 16), "linear")])
def test_accuracy_shows_every_result(lengths: tuple[int, ...], scale: str) -> None:
    rows = results(lengths)
    figure = figures._draw_metric(rows, 3, "Addition")
    (axes,) = figure.axes
    assert axes.get_xscale() == scale
    left, right = axes.get_xlim()
    assert left < 1
    assert right > lengths[-1]
    assert axes.get_ylim() == pytest.approx((0, 1), abs=0.05)
    drawn = []
    for bars in axes.containers:
        line, _, (intervals,) = bars.lines
        ends = np.array(intervals.get_segments())[:, :, 1]
        drawn += [
            (*point, *interval) for point, interval in zip(line.get_xydata().tolist(), ends.tolist(), strict=True)
        ]
    expected = [(row["length"], row["value"], row["low"], row["high"]) for row in rows]
    np.testing.assert_allclose(sorted(drawn), sorted(expected))
    ticks = set(axes.get_xticks())
    assert {1, 3, lengths[-1]} <= ticks <= {1, 3, *lengths}


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((5.0, 5.2, 4.9), "linear"),
        ((5.0, 42.0, 2e4), "log"),
        ((5.0, 42.0, math.inf), "log"),
        ((math.inf,), "linear"),
        ((5.0,), "linear"),
    ],
)
def test_perplexity_that_explodes_has_a_logarithmic_axis(values: tuple[float, ...], scale: str) -> None:
    shared = {"weights": "fit", "suite": "held_out", "decode": "parallel", "seed": 0}
    rows = [
        shared | {"length": 128 * 2**i, "value": value, "low": 0.9 * value, "high": 1.1 * value}
        for i, value in enumerate(values)
    ]
    figure = figures._draw_metric(rows, 128, "languagemodel", PERPLEXITY)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    finite = [value for value in values if math.isfinite(value)]
    assert all(low < 0.9 * value < 1.1 * value < high for value in finite)
    drawn = [value for bars in axes.containers for value in bars.lines[0].get_ydata() if math.isfinite(value)]
    assert sorted(drawn) == sorted(finite)
    assert not finite or any(low <= tick <= high for tick in axes.get_yticks())


def test_accuracy_shades_the_trained_lengths() -> None:
    figure = figures._draw_metric(results((1, 3, 30)), 3, "Addition")
    (axes,) = figure.axes
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (1, 3)
    assert {"trained lengths, 1 to 3", "10x"} <= {text.get_text() for text in axes.texts}
    assert "10x" not in words(figures._draw_metric(results((1, 3, 29)), 3, "Addition"))


def stand_apart(texts: Sequence[Text]) -> bool:
    """Whether texts that stand side by side do not touch, once they are drawn."""
    spans = sorted(text.get_window_extent().intervalx.tolist() for text in texts)
    return all(before[1] < after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize(
    "lengths", [(6, 60, 600, 6000, 60_000), (60_000,), (6, 250_000, 600_000), (1, 6, 12, 6_000_000)]
)
def test_accuracy_over_many_powers_of_ten_stays_readable(lengths: tuple[int, ...]) -> None:
    figure = figures._draw_metric(results(lengths, sets=("uniform", "unequal", "carry", "zeros")), 6, "Addition")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    longest = max(lengths)
    assert {"6", f"{longest:,}"} <= {label.get_text() for label in labels}
    assert [label.get_text() for label in labels] == [f"{round(tick):,}" for tick in axes.get_xticks()]
    multiples = [text for text in axes.texts if text.get_text().endswith("x")]
    most = round(math.log10(longest / 6))
    assert [text.get_text() for text in multiples] == [f"{10**power:,}x" for power in range(1, most + 1)]
    assert [text.get_position()[0] for text in multiples] == [6 * 10**power for power in range(1, most + 1)]
    assert stand_apart(labels)
    assert stand_apart(axes.texts)
    # The marks of every set are inside the axes, though they are moved aside.
    left, right = axes.get_window_extent().intervalx
    for bars in axes.containers:
        line = bars.lines[0]
        marks = line.get_transform().transform(line.get_xydata())[:, 0]
        half = line.get_markersize() / 2 * figure.dpi / 72
        assert left < marks.min() - half
        assert marks.max() + half < right


def test_accuracy_leaves_out_a_multiple_that_has_no_room() -> None:
    figure = figures._draw_metric(results((2, 2_000_000)), 2, "Addition")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert stand_apart(axes.texts)
    shown = {text.get_text() for text in axes.texts}
    assert "10x" not in shown
    assert {"trained lengths, 1 to 2", "100x", "1,000,000x"} <= shown


def test_accuracy_has_a_colour_for_the_weights_and_a_mark_for_the_set() -> None:
    figure = figures._draw_metric(results((1, 3, 30)), 3, "Addition")
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.findobj(Text) if text.get_text() in ("vanilla", "retrained")] == [
        "vanilla",
        "retrained",
    ]
    lines = [bars.lines[0] for bars in axes.containers]
    assert len(lines) == 4
    assert [line.get_color() for line in lines[:2]] == [figures.LOOKS["retrain"]["color"]] * 2
    assert [line.get_color() for line in lines[2:]] == [figures.LOOKS["fit"]["color"]] * 2
    assert [line.get_marker() for line in lines] == ["o", "s", "o", "s"]
    assert len({line.get_linestyle() for line in lines}) == 2


def test_accuracy_draws_each_seed() -> None:
    rows = results((1, 3, 30), sets=("uniform",))
    figure = figures._draw_metric([*rows, *({**row, "seed": 1} for row in rows)], 3, "Addition")
    assert len(figure.axes[0].containers) == 4


def test_digit_accuracy_averages_and_leaves_blank_what_is_not_there() -> None:
    rows = places((1, 3, 10))
    doubled = [*rows, *({**row, "accuracy": 0.0} for row in rows if row["weights"] == "fit")]
    figure = figures._draw_digit_accuracy(doubled, 3, "Addition")
    assert len(figure.axes) == 2 + 1
    expected = np.full((3, 11), np.nan)
    for i, length in enumerate((1, 3, 10)):
        expected[i, : length + 1] = 1 / (1 + np.arange(length + 1))
    for axes, share in zip(figure.axes, (0.5, 1), strict=False):
        np.testing.assert_allclose(axes.collections[0].get_array().filled(np.nan), share * expected)
        (trained,) = axes.lines
        assert list(trained.get_ydata()) == [2, 2]
        assert tick_labels(axes, "y") == ["1", "3", "10"]
    assert {"vanilla", "retrained", "uniform", "longest trained length, 3"} <= set(words(figure).split("\n"))


def test_digit_accuracy_of_one_length() -> None:
    figure = figures._draw_digit_accuracy(places((10,)), 3, "Addition")
    assert not any(axes.lines for axes in figure.axes[:2])
    assert "longest trained length" not in words(figure)


@pytest.mark.parametrize(
    ("wanted", "gap", "kept"), [((9, 0, 1, 5, 8), 2, [0, 5, 9]), ((3, 3), 1, [3]), ((1, 2, 4), 0.5, [1, 2, 4])]
)
def test_ticks_stand_apart(wanted: tuple[int, ...], gap: float, kept: list[int]) -> None:
    assert figures._apart(wanted, gap) == kept


@pytest.mark.parametrize(("count", "gap", "step"), [(5, 0.3, 1), (62, 9.1, 10), (600, 110, 200)])
def test_ticks_count_in_round_steps(count: int, gap: float, step: int) -> None:
    assert figures._regular(count, gap) == range(0, count, step)


def test_curves_hold_every_value_and_mark_those_that_count() -> None:
    for name, kinds in (("ood", [""]), ("duplicates", ["all", "tail", "gap", "inst"]), ("lost_in_the_middle", [""])):
        own = CURVES[name]
        figure = figures._draw_output_curves(own, 6, name, ERROR)
        assert [axes.get_title() for axes in figure.axes] == kinds
        lines = [line for axes in figure.axes for line in axes.lines]
        values = [line.get_ydata().tolist() for line in lines if line.get_linestyle() != "None"]
        assert values == [one["values"] for one in own]
        marked = [line.get_ydata().tolist() for line in lines if line.get_linestyle() == "None"]
        assert marked == [
            [value for value, counts in zip(one["values"], one["counted"], strict=True) if counts]
            for one in own
            if not all(one["counted"])
        ]
        for axes in figure.axes:
            assert axes.get_yscale() == "log"
            assert "trained to 6" in [text.get_text() for text in axes.texts]
            legend = axes.get_legend()
            assert legend is not None
            labels = [text.get_text() for text in legend.get_texts()]
            assert len(set(labels)) == len(labels)


def test_accuracies_are_shown_in_per_cent() -> None:
    metric = Metric("accuracy", higher_is_better=True, in_percent=True)
    (axes,) = figures._draw_output_curves([curve("ood")], 6, "ood", metric).axes
    assert axes.get_yscale() == "linear"
    assert isinstance(axes.yaxis.get_major_formatter(), PercentFormatter)


def test_attention_has_a_curve_for_each_layer() -> None:
    figure = figures._draw_attention_curves(ATTENDED, "attention")
    for axes, own in zip(figure.axes, ATTENDED, strict=True):
        drawn = [line.get_ydata().tolist() for line in axes.lines[: len(own["layers"])]]
        assert drawn == own["layers"]
