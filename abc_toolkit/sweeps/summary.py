"""`summarize`: what many runs measured, over their seeds."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student

from abc_toolkit.errors import UserError
from abc_toolkit.phases.evaluate import RESULTS
from abc_toolkit.phases.measure import read_rows
from abc_toolkit.report import console
from abc_toolkit.runs.files import save_text
from abc_toolkit.runs.folder import Run
from abc_toolkit.sweeps.engine import read_state
from abc_toolkit.sweeps.specification import label
from abc_toolkit.tasks.lengths import shape_name

Format = Literal["table", "csv", "latex", "markdown"]
CONFIDENCE = 0.95
SEED = "seed"
_DEPTH = 4  # folders below the one that is named in which runs are looked for
_OF_A_ROW = ("weights", "length", "suite", "metric")
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Summary:
    """A table of what runs measured.

    Attributes:
        columns: The names of its columns.
        rows: Its rows, of as many texts.
        runs: How many runs there are.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    runs: int


def summarize(
    folder: Path | str,
    *,
    only: str | None = None,
    compare: str | None = None,
    format: Format = "table",  # noqa: A002
    output: Path | None = None,
) -> Summary:
    """Summarizes the evaluations of many runs over their seeds.

    A row is what all runs measured that differ in nothing but the seed: their number, the median, the least and the
    most, and the mean with its 95 % interval by Student's t, which takes seeds for a sample of a normal distribution.

    Args:
        folder: The folder of a sweep, or any folder of run folders.
        only: Rows with these values alone, such as weights=retrain,length=60.
        compare: A column and two of its values, such as fit.model.position=RoPE,ALiBi: the difference of runs that
            differ in nothing else, first less second, pair by pair.
        format: table for the terminal, csv, latex or markdown.
        output: File for the table; standard output if not given.

    Returns:
        The table.

    Raises:
        UserError: If there is no evaluated run, or no row that was asked for.
    """
    folder = Path(folder)
    values, runs = _measured(folder)
    names = list(dict.fromkeys(name for key in values for name, _ in key))
    values = _only(values, only, names)
    columns = [name for name in names if name != SEED]
    made = _over_seeds(values, columns, runs) if compare is None else _compared(values, columns, compare, names, runs)
    text = _FORMATS[format](made) if format != "table" else None
    if output is not None:
        save_text(output, text if text is not None else markdown(made))
    elif text is not None:
        print(text, end="")
    else:
        _print(made, f"{runs} runs in {folder}")
    return made


def _measured(folder: Path) -> tuple[dict[Key, float], int]:
    """What each run measured: values by the run's settings, with the seed among them, and the columns of a row."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name one that holds run folders")
    settings = {folder / name: outcome.settings for name, outcome in read_state(folder).items()}
    if not settings:
        paths = [
            folder,
            *(path for depth in range(1, _DEPTH + 1) for path in sorted(folder.glob("/".join("*" * depth)))),
        ]
        settings = {path: _own_settings(Run(path)) for path in paths if path.is_dir() and Run(path).has("evaluate")}
    found: dict[Key, float] = {}
    runs = 0
    for path, own in settings.items():
        run = Run(path)
        if not run.has("evaluate"):
            console.remark(f"{path} holds no finished 'evaluate': it is left out.")
            continue
        runs += 1
        own.setdefault(SEED, str(_trained(run)["seed"]))
        for row in read_rows(run.folder("evaluate") / RESULTS):
            size = shape_name(row.shape or (row.length,))
            parts = own | {"weights": row.weights, "length": size, "suite": row.suite, "metric": row.metric}
            key = tuple(parts.items())
            if key in found:
                raise UserError(f"{folder} has two runs with the same settings, {path.name} one of them: move it away")
            found[key] = row.value
    if not found:
        raise UserError(f"{folder} holds no evaluated run: do 'abc evaluate' first, or name another folder")
    return found, runs


def _own_settings(run: Run) -> dict[str, str]:
    """What distinguishes a run that is of no sweep: its task, its position method, its seed."""
    record = _trained(run)
    described = {"task": record["task"], "position": record["model"].get("position"), "seed": record["seed"]}
    return {name: label(value) for name, value in described.items()}


def _trained(run: Run) -> Mapping[str, Any]:
    """The record of a run's first training: a run that began with maps has no fit."""
    return run.record("fit" if run.has("fit") else "retrain")


def _values_of(values: Mapping[Key, float], name: str) -> str:
    """Some values of a column, for messages."""
    return ", ".join(list(dict.fromkeys(dict(key).get(name, "") for key in values))[:12])


def _conditions(only: str, names: Sequence[str]) -> list[str]:
    """The conditions of a list; a part that begins with no column belongs to the label before it, which has commas."""
    found: list[str] = []
    for part in only.split(","):
        if found and part.partition("=")[0] not in names:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _pair(both: str, values: Mapping[Key, float], name: str) -> tuple[str, str]:
    """Two labels of a column, which may have commas."""
    there = {dict(key).get(name, "") for key in values}
    parts = both.split(",")
    pairs = [(",".join(parts[:count]), ",".join(parts[count:])) for count in range(1, len(parts) + 1)]
    return next((pair for pair in pairs if there.issuperset(pair)), pairs[0])


def _only(values: Mapping[Key, float], only: str | None, names: Sequence[str]) -> Mapping[Key, float]:
    for condition in _conditions(only, names) if only else ():
        name, equals, wanted = condition.partition("=")
        if name not in names or not equals:
            raise UserError(f"--only {condition}: write COLUMN=VALUE with a column of {', '.join(names)}")
        kept = {key: value for key, value in values.items() if dict(key).get(name) == wanted}
        if not kept:
            raise UserError(f"--only {condition}: no row is left; {name} is one of {_values_of(values, name)}")
        values = kept
    return values


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t, of at least two values."""
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float]) -> str:
    """The mean with half the width of its 95 % interval; of one value, the value."""
    return _shown(mean(values)) + (f" ± {half_width(values):.2g}" if len(values) > 1 else "")


def _shown(value: float) -> str:
    return f"{value:.4g}"


def _grouped(values: Mapping[Key, float], leave_out: str) -> dict[Key, dict[str, float]]:
    """Values by all columns but one, and in each group by that one."""
    found: dict[Key, dict[str, float]] = {}
    for key, value in values.items():
        rest = tuple(part for part in key if part[0] != leave_out)
        found.setdefault(rest, {})[dict(key).get(leave_out, "")] = value
    return found


def _over_seeds(values: Mapping[Key, float], columns: Sequence[str], runs: int) -> Summary:
    rows = [
        (
            *(dict(key).get(name, "") for name in columns),
            *(str(len(own)), _shown(median(own)), _shown(min(own)), _shown(max(own)), interval(own)),
        )
        for key, by_seed in _grouped(values, SEED).items()
        for own in [list(by_seed.values())]
    ]
    return Summary((*columns, "runs", "median", "least", "most", "mean"), tuple(rows), runs)


def _compared(
    values: Mapping[Key, float], columns: Sequence[str], compare: str, names: Sequence[str], runs: int
) -> Summary:
    """The differences of two settings, over the pairs that differ in nothing else."""
    name, _, both = compare.partition("=")
    first, second = _pair(both, values, name)
    if name not in names or not first or not second:
        raise UserError(f"--compare {compare}: write COLUMN=A,B with a column of {', '.join(names)}")
    pairs = {key: own for key, own in _grouped(values, name).items() if {first, second} <= own.keys()}
    if not pairs:
        raise UserError(
            f"--compare {compare}: no two runs differ in this alone; {name} is one of {_values_of(values, name)}"
        )
    differences = {key: own[first] - own[second] for key, own in pairs.items()}
    others = [column for column in columns if column != name]
    rows = [
        (
            *(dict(key).get(column, "") for column in others),
            *(str(len(own)), _shown(median(own)), interval(own)),
            *(str(sum(sign * difference > 0 for difference in own)) for sign in (1, -1)),
        )
        for key, by_seed in _grouped(differences, SEED).items()
        for own in [list(by_seed.values())]
    ]
    heading = (f"median of {first} less {second}", "mean", f"{first} larger", f"{second} larger")
    return Summary((*others, "pairs", *heading), tuple(rows), runs)


def markdown(table: Summary) -> str:
    """A table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def latex(table: Summary) -> str:
    """A table in LaTeX, with the rules of the package booktabs."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}

    def line(cells: Sequence[str]) -> str:
        escaped = ("".join(special.get(character, character) for character in cell) for cell in cells)
        return f"{' & '.join(escaped)} \\\\\n"

    body = "".join(map(line, table.rows))
    columns = "l" * len(table.columns)
    head = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(table.columns)}\\midrule\n"
    return f"{head}{body}\\bottomrule\n\\end{{tabular}}\n"


def comma_separated(table: Summary) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()


_FORMATS: Mapping[str, Any] = {"csv": comma_separated, "latex": latex, "markdown": markdown}


def _print(made: Summary, title: str) -> None:
    """Prints a table for a narrow terminal: columns of one value stand in the title, options go by their last name."""
    columns = list(zip(made.columns, zip(*made.rows, strict=True), strict=True))
    alike = [(name, cells[0]) for name, cells in columns if name in _OF_A_ROW and len(set(cells)) == 1]
    columns = [(name, cells) for name, cells in columns if (name, cells[0]) not in alike]
    short = [name.rpartition(".")[2] for name, _ in columns]
    told = "".join(f", {name} {value}" for name, value in alike)
    table = Table(title=Text(console.escaped(title + told), "table.title"), title_justify="left", box=SIMPLE_HEAD)
    for (name, _), last in zip(columns, short, strict=True):
        table.add_column(last if short.count(last) == 1 else name, overflow="fold")
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(Text(console.escaped(cell)) for cell in cells))
    Console().print(table)
