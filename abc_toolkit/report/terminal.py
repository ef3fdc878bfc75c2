"""What a person sees in the terminal: tables on standard output, progress and remarks on standard error."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from abc_toolkit.positions import SITES
from abc_toolkit.report.console import escaped, is_silent, remark
from abc_toolkit.tasks.lengths import shape_name
from abc_toolkit.tasks.objective import EXACT_MATCH, Metric
from abc_toolkit.windows.rules import Rule, Window

if TYPE_CHECKING:
    from abc_toolkit.proof import Certificate

T = TypeVar("T")
_BESIDE = 2  # models that a table of results shows in columns of their own
WEIGHTS_NAMES = {"fit": "vanilla", "retrain": "retrained"}
SITE_NAMES = {"encoder": "encoder self-attention", "decoder": "self-attention", "cross": "cross-attention"}


def weights_name(weights: str) -> str:
    """What a model is called in tables and figures, by the phase that it comes from; a baseline by its own name."""
    return WEIGHTS_NAMES.get(weights, weights)


def _plain(text: str, style: str = "") -> Text:
    """A text of a table, in which no character has a meaning of its own."""
    return Text(escaped(text), style)


def _title(text: str) -> Text:
    return _plain(text, "table.title")


class TrainingBar:
    """Progress of a training: steps, loss, the first metric on held-out problems."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._loss = self._judged = self._weak = ""

    def update(self, step: int, loss: float | None = None, judged: str | None = None, weak: int | None = None) -> None:
        """Moves to a step, and shows what is given."""
        if loss is not None:
            self._loss = f"loss {loss:.4f}"
        if judged is not None:
            self._judged = judged
        if weak is not None:
            self._weak = f"{weak:,} weak assignments"
        self._progress.update(self._task, completed=step, loss=self._loss, judged=self._judged, weak=self._weak)


@contextmanager
def training_bar(title: str, max_steps: int, shown: bool) -> Generator[TrainingBar, None, None]:
    """A bar that counts to the most steps there can be; training usually ends before."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}  {task.fields[judged]}  {task.fields[weak]}"),
    )
    with _progress(*columns, shown=shown) as progress:
        yield TrainingBar(progress, progress.add_task(title, total=max_steps, loss="", judged="", weak=""))


def track(items: Sequence[T], title: str) -> Iterable[T]:
    """The items, with a bar that counts them."""
    with counter(title, len(items)) as count:
        for item in items:
            yield item
            count(1)


@contextmanager
def counter(title: str, total: int, unit: str = "") -> Generator[Callable[[int], None], None, None]:
    """A bar that counts to a total, in a unit; gives what to call with how many more are done."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn(unit))
    with _progress(*columns, TimeElapsedColumn(), transient=True) as progress:
        yield partial(progress.advance, progress.add_task(title, total=total))


@contextmanager
def _progress(*columns: ProgressColumn, shown: bool = True, transient: bool = False) -> Generator[Progress, None, None]:
    """Bars on a terminal alone, and gone when what they count fails, so that its message stands by itself."""
    console = Console(stderr=True)
    disabled = is_silent() or not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=transient, disable=disabled) as progress:
        try:
            yield progress
        except BaseException:
            progress.live.transient = True
            raise


def print_window(window: Window, attention: Mapping[Rule, float], added: Sequence[Rule], moved: Sequence[Rule]) -> None:
    """A table of a window's lines.

    Args:
        window: The window.
        attention: Mean attention along each line, by its rule with bias 0, where it is known.
        added: The lines that were added because the window was not sufficient without them.
        moved: Those that came to a head of their own.
    """
    title = _title(f"Window for {window.task}: {len(window.rules)} lines")
    table = Table(title=title, title_justify="left")
    for heading in ("site", "layer", "head", "open keys", "mean attention"):
        table.add_column(heading, justify="right" if heading in ("layer", "head", "mean attention") else "left")
    for site in SITES:
        for layer in range(window.layers(site)):
            for head in range(window.num_heads):
                rules = [rule for rule in window.rules_at(site, layer) if rule.head == head]
                lines = [
                    rule.describe()
                    + (f", bias {rule.bias:.2f}" if rule.bias else "")
                    + (" (added: needed)" if rule in added else " (moved: to be alone)" if rule in moved else "")
                    for rule in rules
                ]
                measured = [attention.get(replace(rule, bias=0.0, fallback=False)) for rule in rules]
                means = ["" if mean is None else f"{mean:.2f}" for mean in measured]
                first = head == 0
                table.add_row(
                    SITE_NAMES[site] if first else "",
                    str(layer) if first else "",
                    str(head),
                    _plain("\n".join(lines) or "none"),
                    "\n".join(means),
                )
            table.add_section()
    Console().print(table)


def print_results(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> None:
    """A table of each metric of an evaluation: a row for each length or shape and suite, a column for each model."""
    for metric in metrics:
        own = [row for row in rows if row["metric"] == metric.name]
        if own:
            _print_metric(own, metric)


def _print_metric(rows: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    models = list(dict.fromkeys(row["weights"] for row in rows))
    first = rows[0]
    what = metric.title[0].upper() + metric.title[1:] + f" on {first['task']}"
    what += ", % [95 % interval]" if metric.in_percent else " [95 % interval]"
    what += ": greedy decoding" if metric.name == EXACT_MATCH.name else ""
    table = Table(
        title=_title(f"{what}, {first['samples']:,} problems each, seed {first['seed']}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,  # with lines between the columns it would not fit into 80 characters
    )
    beside = len(models) <= _BESIDE  # more columns would not fit into 80 characters
    for heading in ("length", "tokens", "suite") if beside else ("length", "suite", "predictor"):
        left = heading in ("suite", "predictor")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for model in models if beside else ("",):
        table.add_column(weights_name(model) if beside else metric.title, justify="right", no_wrap=True)
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        size = shape_name(row.get("shape") or (row["length"],))
        cells.setdefault((size, row["suite"]), []).append(row)
    before = None
    for (size, name), shown in cells.items():
        if before not in (None, size):
            table.add_section()
        new, before = before != size, size
        if not beside:
            for number, row in enumerate(shown):
                first = (size if new else "", name) if number == 0 else ("", "")
                table.add_row(*first, weights_name(row["weights"]), _with_interval(row, metric))
            continue
        heading = (size, str(shown[0]["tokens"])) if new else ("", "")
        by_model = {row["weights"]: row for row in shown}
        table.add_row(*heading, name, *(_with_interval(by_model[model], metric) for model in models))
    Console().print(table)


def print_attention(weights: str, layers: Sequence[Sequence[float]], samples: int) -> None:
    """How much attention the keys of interest get in each layer, and how much of it the last fifth of them gets."""
    title = _title(f"Attention of the last point to labels, {weights_name(weights)} model, {samples:,} prompts")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("layer", "to all labels, %", "to the last fifth, %"):
        table.add_column(heading, justify="right")
    for layer, attention in enumerate(layers):
        last = attention[-max(1, len(attention) // 5) :]
        table.add_row(str(layer), f"{100 * sum(attention):.1f}", f"{100 * sum(last):.1f}")
    Console().print(table)


def print_certificate(certificate: "Certificate", task: str) -> None:
    """The verdict of a certificate and what it rests on."""
    titles = {"correct": "correct at every length", "wrong": "wrong", "undecided": "cannot decide"}
    table = Table(title=_title(f"{task}: {titles[certificate.verdict]}"), title_justify="left", show_header=False)
    if certificate.reason:
        table.add_row("reason", _plain(certificate.reason))
    if certificate.meaning is not None:
        sizes = " and ".join(map(str, certificate.bound.values()))
        table.add_row(
            "layouts gone through",
            f"{certificate.layouts:,} (sizes up to {sizes}); longer ones bring nothing new: derived",
        )
        beyond = f"{certificate.beyond_training:,}" if certificate.beyond_training else "all"
        where = "do not occur" if certificate.beyond_training else "occur"
        table.add_row(
            "assignments, each one run",
            f"{certificate.assignments:,} of {certificate.kinds} kinds; {beyond} {where} in training shapes",
        )
        table.add_row("smallest margin", _plain(f"{certificate.smallest_margin:.3g}, {certificate.narrowest}"))
        table.add_row(
            "rounding, at most",
            f"{certificate.largest_rounding:.2g}, in float32 and any order of summation; it leaves a margin of "
            f"{certificate.smallest_slack:.2g}",
        )
        table.add_row("deviation, measured", f"{certificate.largest_deviation:.1g} over paths, pieces and batches")
        table.add_row("change by tokens outside", f"{certificate.outside:.1g}")
        meaning = certificate.meaning
        proved = "; ".join(meaning.proved) or "nothing: the task gives no identity"
        table.add_row("meaning, proved by induction", _plain(proved))
        table.add_row("held to", f"{meaning.held_to:,} problems of up to {meaning.longest} digits")
    Console().print(table)


def _with_interval(row: Mapping[str, Any], metric: Metric) -> str:
    return f"{metric.shown(row['value'])} [{metric.shown(row['low'])}, {metric.shown(row['high'])}]"


def done(what: str, folder: Path, following: str | None) -> None:
    """The end of a command: what came of it, where its files are, what to type next."""
    lines = [what, f"Files: {folder}"]
    if following is not None:
        lines.append(f"Next:  {following}")
    remark("\n".join(lines))
