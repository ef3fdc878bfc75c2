"""`report`: what one run or several did, as a page of HTML that needs no network.

A report is no phase: it reads a run, and changes nothing in it but the file that it writes.
"""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.errors import UserError
from abc_toolkit.layout import END, Positions
from abc_toolkit.models.base import DecodingModel, Model
from abc_toolkit.phases.base import next_command
from abc_toolkit.phases.calibrate import MAPS
from abc_toolkit.phases.evaluate import CURVES, RESULTS
from abc_toolkit.phases.explain import FIGURE, TRANSDUCER
from abc_toolkit.phases.measure import read_rows
from abc_toolkit.phases.repeat import command_lines
from abc_toolkit.phases.samples import Answer, Sample, sample_problems
from abc_toolkit.positions import SITES, Site
from abc_toolkit.proof.certificate import read_certificate
from abc_toolkit.report import console, terminal, transducers
from abc_toolkit.report.page import (
    Block,
    Chapter,
    Chart,
    Code,
    Folded,
    Marked,
    Page,
    Picture,
    Section,
    Table,
    Text,
    charts,
    check_installed,
    render,
)
from abc_toolkit.runs.files import save_text
from abc_toolkit.runs.folder import CERTIFICATE, CONFIG, PHASES, Phase, Run, versions
from abc_toolkit.tasks import Calibratable, Certifiable, Decodable, Solvable, Task
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.lengths import Shape, shape_name
from abc_toolkit.tasks.objective import EXACT_MATCH, Metric
from abc_toolkit.windows.lowering import dense_bias, site_positions
from abc_toolkit.windows.rules import Rule, Window, WindowBackbone

NAME = "report.html"
_CELLS = 90_000  # attention weights that a page shows, of maps and of sample problems each
_LEAST_CELLS = 6_000  # of a run among many
_WHOLE = 36  # queries of a window that is shown whole
_PART = 24  # queries of a part of a larger one
_MOST_KEYS = 72  # of a part
_MULTIPLES = (1, 2, 10)  # of the longest training length, at which a window is shown
_MOST_STEPS = 60  # of a transducer in a table
_MOST_SHOWN = 24  # rows of a table of results that is not folded
_NO_WINDOWS = "There are no windows for this task, or for models of this kind."
_ABOUT_CHARTS = (
    "The dashed line is at the longest trained length. A click on a name in a legend lets it stand out, a second click "
    "ends that."
)
_NOT_TOLD = "The records do not name the machines of the trainings."
_VERDICTS = {
    "correct": "The retrained model is proved correct at every length.",
    "wrong": "The retrained model is proved wrong.",
    "undecided": "Whether the retrained model is correct at every length could not be decided.",
}


def report(runs: Sequence[Path | str] = (), *, output: Path | None = None, overwrite: bool = False) -> Path:
    """Writes a page of HTML about runs: results, attention, window, sample problems, certificate.

    Args:
        runs: Run folders; the newest in runs/ if not given. Several are compared.
        output: File of the page; report.html in the run's folder, or here for several runs, if not given.
        overwrite: Replace a file that is there.

    Returns:
        The file.

    Raises:
        UserError: If there is no such run, a file of one was changed, the file is there, or a library is missing.
    """
    check_installed()
    found = [Run.newest(path) for path in runs] if runs else [Run.newest(None)]
    target = output or (found[0].path / NAME if len(found) == 1 else Path(NAME))
    if os.path.lexists(target) and not overwrite:
        raise UserError(f"{target} is there already: add --overwrite to replace it, or name another file with --output")
    if not target.absolute().parent.is_dir():
        raise UserError(f"--output {target}: there is no folder {target.absolute().parent}: make it first")
    cells = max(_LEAST_CELLS, _CELLS // len(found))
    told = [_Told(run, label, cells) for run, label in zip(found, _labels(found), strict=True)]
    save_text(target, render(_page_of_one(told[0]) if len(told) == 1 else _page_of_several(told)))
    terminal.done(f"{target.stat().st_size // 1000:,} kB.", target, None)
    return target


def _labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run, as short as tells them apart."""
    paths = [run.path for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.parts[-parts:]) or str(path) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    raise UserError("a run is named twice: name each once")


def _page_of_one(told: "_Told") -> Page:
    return Page(f"{told.task_name}: {told.run.path}", told.lead(), told.sections())


def _page_of_several(several: Sequence["_Told"]) -> Page:
    lead = [Text(f"A comparison of {len(several)} runs. What each did follows at the end.")]
    sections = [Section("The runs", [_facts_of_all(several)]), Section("Accuracy", _compared(several))]
    chapters = [Chapter(told.label, [Section("Result", told.lead()), *told.sections()]) for told in several]
    return Page("Comparison of runs", lead, sections, chapters)


def _facts_of_all(several: Sequence["_Told"]) -> Table:
    head = ["run", "task", "position method", "seed", "parameters", "finished", "certificate"]
    rows = [
        [
            told.label,
            told.task_in_words,
            told.position,
            str(told.seed),
            f"{told.num_parameters:,}" if told.num_parameters else "",
            ", ".join(told.records),
            told.verdict or "none",
        ]
        for told in several
    ]
    return Table(head, rows, numbers=(3, 4))


def _compared(several: Sequence["_Told"]) -> list[Block]:
    """The metrics of several runs, each in a chart and a table."""
    blocks: list[Block] = []
    metrics = {row["metric"]: told.metric(row["metric"]) for told in several for row in told.rows}
    for name, metric in metrics.items():
        rows: list[dict[str, Any]] = [
            row | {"run": told.label} for told in several for row in told.rows if row["metric"] == name
        ]
        trained = {told.task.max_length for told in several if told.task is not None}
        if len({row["length"] for row in rows}) > 1:
            blocks.append(_metric_chart(rows, metric, "run", "model", trained.pop() if len(trained) == 1 else None))
        suite = rows[0]["suite"]
        lengths = sorted({row["length"] for row in rows if row["suite"] == suite})
        lines: dict[tuple[str, str], dict[int, str]] = {}
        for row in rows:
            if row["suite"] == suite:
                lines.setdefault((row["run"], row["model"]), {})[row["length"]] = metric.shown(row["value"])
        unit = ", %" if metric.in_percent else ""
        blocks.append(Text(f"{metric.title.capitalize()}{unit}, suite {suite}, by length:", "note"))
        table = [[run, model, *(own.get(length, "") for length in lengths)] for (run, model), own in lines.items()]
        blocks.append(Table(["run", "model", *map(str, lengths)], table, tuple(range(2, 2 + len(lengths)))))
    without = [told.label for told in several if not told.rows]
    if without:
        blocks.append(Text(f"Not evaluated: {', '.join(without)}.", "note"))
    return blocks


def _metric_chart(
    rows: Sequence[Mapping[str, Any]], metric: Metric, color: str, dash: str, trained: int | None
) -> Chart:
    values = [row["value"] for row in rows if math.isfinite(row["value"]) and row["value"] > 0]
    wide = metric.of_logarithms and bool(values) and max(values) > 10 * min(values)
    return Chart(charts.metric_by_length(rows, metric.title, color, dash, trained, metric.in_percent, wide))


@dataclass(frozen=True)
class _Told:
    """A run, as a page tells of it.

    Attributes:
        run: The run.
        label: What it is called.
        cells: Attention weights that there is room for.

    Raises:
        UserError: If a file of a finished phase was changed.
    """

    run: Run
    label: str
    cells: int

    def __post_init__(self) -> None:
        for phase in PHASES:
            if self.run.has(phase):
                self.run.check(phase)

    # Facts.

    @cached_property
    def records(self) -> dict[Phase, dict[str, Any]]:
        """The records of the finished phases."""
        return {phase: self.run.record(phase) for phase in PHASES if self.run.has(phase)}

    @property
    def first(self) -> Mapping[str, Any]:
        """The record of the phase that the run began with."""
        return self.records[self.run.first]

    @cached_property
    def _task(self) -> Task | str:
        try:
            return self.run.task(self.run.first)
        except UserError as error:
            console.remark(f"Warning: {error}.")
            return str(error)

    @property
    def task(self) -> Task | None:
        """The task; `None` if it cannot be made."""
        return self._task if isinstance(self._task, Task) else None

    @property
    def task_name(self) -> str:
        """The task's name."""
        return _class_name(self.first.get("task"))

    @property
    def task_in_words(self) -> str:
        """The task with its settings."""
        return _in_words(self.first.get("task"))

    @property
    def position(self) -> str:
        """The position method of the model in words."""
        described = self.first.get("model", {}).get("position")
        if described is None and self.task is not None:
            return type(self.run.architecture(self.run.first).positions).__name__
        return _in_words(described)

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.first["seed"])

    @property
    def verdict(self) -> str | None:
        """The verdict of the certificate, and whether it is stale."""
        if "certify" not in self.records:
            return None
        return str(self.run.verdict) + (" (stale)" if self.run.stale("certify") is not None else "")

    @cached_property
    def models(self) -> dict[Literal["fit", "retrain"], Model]:
        """The trained models, the retrained one last."""
        phases: tuple[Literal["fit", "retrain"], ...] = ("fit", "retrain")
        if self.task is None:
            return {}
        return {phase: self.run.load_model(phase) for phase in phases if phase in self.records}

    @property
    def num_parameters(self) -> int:
        """Parameters of the last model."""
        models = list(self.models.values())
        return sum(weight.numel() for weight in models[-1].parameters()) if models else 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that a run such as this can have."""
        first = self.run.first
        windows = first == "calibrate" or self.first.get("model", {}).get("backbone") in get_args(WindowBackbone)
        if not isinstance(self.task, Calibratable) or not windows:
            return tuple(phase for phase in PHASES if phase in ("fit", "evaluate") or phase in self.records)
        never: set[Phase] = set() if first == "fit" else {"fit"}
        if not isinstance(self.task, Certifiable) or self.task.local_rule() is None:
            never |= {"certify", "explain"}
        elif self.run.verdict in ("wrong", "undecided"):
            never.add("explain")
        return tuple(phase for phase in PHASES if phase in self.records or phase not in never)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the evaluation, each with the name of the model; those of single shapes are left out."""
        if "evaluate" not in self.records:
            return []
        rows = read_rows(self.run.folder("evaluate") / RESULTS)
        return [row.plain() | {"model": terminal.weights_name(row.weights)} for row in rows]

    def metric(self, name: str) -> Metric:
        """A metric of the evaluation, by its name."""
        known = list(self.task.objective.metrics) if self.task is not None else [EXACT_MATCH]
        if isinstance(self.task, Decodable):
            with suppress(UserError):  # a library that computes it is missing
                known.append(self.task.decoded_metric)
        return next((metric for metric in known if metric.name == name), Metric(name, higher_is_better=True, digits=4))

    # The page.

    def lead(self) -> list[Text]:
        """What matters most."""
        found: list[Text] = []
        verdict = self.run.verdict
        if verdict is not None:
            kind: dict[str, Literal["good", "bad"]] = {"correct": "good", "wrong": "bad"}
            found.append(Text(_VERDICTS.get(verdict, verdict), kind.get(verdict, "warning")))
        found += [Text(warning.removeprefix("Warning: "), "warning") for warning in self.run.warnings(*self.records)]
        missing = [phase for phase in self.phases if phase not in self.records and phase != "explain"]
        if missing:
            found.append(Text(f"The run is not finished: {', '.join(missing)} {_are(missing)} missing.", "warning"))
        if isinstance(self._task, str):
            found.append(Text(f"The task cannot be made, so that less is shown: {self._task}", "warning"))
        return found

    def sections(self) -> list[Section]:
        """All that there is to tell."""
        judged = self.metric(self.rows[0]["metric"]) if self.rows else EXACT_MATCH
        parts = {
            "The run": self._the_run(),
            "Accuracy" if judged.in_percent else judged.title.capitalize(): self._accuracy(),
            "Attention": self._attention(),
            "Window": self._window(),
            "Sample problems": self._samples(),
            "Certificate": self._certificate(),
            "What the model computes": self._explanation(),
            "Environment": self._environment(),
        }
        left_out = [[title, part] for title, part in parts.items() if isinstance(part, str)]
        sections = [Section(title, part) for title, part in parts.items() if not isinstance(part, str)]
        return [*sections, Section("Left out", [Table([], left_out)])] if left_out else sections

    def _the_run(self) -> list[Block]:
        facts = [
            ["folder", str(self.run.path)],
            ["task", self.task_in_words],
            ["model", _sizes_in_words(self.first.get("model", {}))],
            ["position method", self.position],
            ["seed", str(self.seed)],
        ]
        if self.num_parameters:
            facts.append(["parameters", f"{self.num_parameters:,}"])
        rows = [[phase, *self._state(phase)] for phase in self.phases]
        blocks: list[Block] = [Table([], facts), Table(["phase", "state", "seconds", "result"], rows, numbers=(2,))]
        missing = [self._command(phase) for phase in self.phases if phase not in self.records]
        if missing:
            blocks += [Text("What is missing is done by:"), Code(missing)]
        blocks += [Text("These commands do the run again, in a folder beside it:"), Code(command_lines(self.run))]
        for phase in self.records:
            settings = self.run.read(phase, CONFIG).decode()
            if settings.strip() not in ("", "{}"):
                blocks.append(Folded(f"All settings of {phase}", [Code(settings.splitlines())]))
        pictures = [
            Picture(self.run.read(phase, "training.png"), f"Loss and metric over the steps of {phase}")
            for phase in self.records
            if "training.png" in self.records[phase]["files"]
        ]
        if pictures:
            blocks.append(Folded("Course of the trainings", pictures))
        return blocks

    def _state(self, phase: Phase) -> list[str]:
        """State, seconds and result of a phase."""
        if phase not in self.records:
            return ["interrupted" if self.run.interrupted(phase) else "missing", "", ""]
        record = self.records[phase]
        state = f"finished {record['finished'][:16].replace('T', ' ')} UTC"
        if self.run.stale(phase) is not None:
            state += ", stale"
        seconds = record["results"].get("seconds")
        return [state, f"{seconds:.0f}" if isinstance(seconds, int | float) else "", _result(phase, record["results"])]

    def _command(self, phase: Phase) -> str:
        """The command that does a missing phase."""
        return next_command(self.run, phase, " --resume" if self.run.interrupted(phase) else "")

    def _accuracy(self) -> list[Block]:
        if "evaluate" not in self.records:
            return [Text("The models were not measured yet."), Code([self._command("evaluate")])]
        blocks: list[Block] = []
        for name in dict.fromkeys(row["metric"] for row in self.rows):
            metric = self.metric(name)
            rows = [row for row in self.rows if row["metric"] == name]
            by_length = [row for row in rows if row["shape"] is None]
            if len({row["length"] for row in by_length}) > 1:
                trained = None if self.task is None else self.task.max_length
                blocks.append(_metric_chart(by_length, metric, "model", "suite", trained))
            blocks.append(_table_of_results(rows, metric))
        if any(isinstance(block, Chart) for block in blocks):
            blocks.insert(0, Text(_ABOUT_CHARTS, "note"))
        files = self.records["evaluate"]["files"]
        if CURVES in files:
            curves = json.loads(self.run.read("evaluate", CURVES))
            told = [curve | {"model": terminal.weights_name(curve["weights"])} for curve in curves]
            metric = self.metric(told[0]["metric"])
            blocks.append(Text("The same point by point, at the largest length:"))
            blocks.append(Chart(charts.metric_by_output(told, metric.title, metric.in_percent)))
        pictures = {"digit_accuracy.png": "Accuracy of each place", "attention.png": "Attention in long prompts"}
        for name, words in pictures.items():
            if name in files:
                blocks.append(Folded(words, [Picture(self.run.read("evaluate", name), words)]))
        return blocks

    def _attention(self) -> list[Block] | str:
        if "calibrate" not in self.records:
            return self._not_yet("calibrate", "The attention was not averaged yet.", _NO_WINDOWS)
        if not isinstance(self.task, Calibratable):
            return "The tokens of the attention maps have no names without the task."
        maps = AttentionMaps.load(self.run.folder("calibrate") / MAPS)
        window = self.run.window()
        sizes = {shape: sum(weights.numel() for weights in own.values()) for shape, own in maps.maps.items()}
        fitting = [shape for shape, size in sizes.items() if size <= self.cells]
        shape = max(fitting, key=lambda shape: (sizes[shape], shape)) if fitting else min(sizes, key=sizes.__getitem__)
        layout = window.read(self.task.layout(shape))
        lines = _Lines(window)
        shown: list[charts.HeadMap] = []
        queries: dict[str, charts.Tokens] = {}
        keys: dict[str, charts.Tokens] = {}
        for (site, layer), heads in maps.num_heads.items():
            name = _site_name(site, layer)
            positions = site_positions(site, layout)
            queries[name], keys[name] = map(_names, positions)
            weights = (100 * maps.maps[shape][f"{site}.{layer}"]).round().int()
            for head in range(heads):
                opened = lines.cells(site, layer, head, *positions)
                percent = weights[head].flatten().tolist()
                shown.append(charts.HeadMap(name, head, percent, opened.flatten().tolist()))
        of_whom = "a model from elsewhere" if "fit" not in self.records else "the vanilla model"
        words = (
            f"Attention of {of_whom}, averaged over {maps.solved[shape]:,} problems of shape {shape_name(shape)} that "
            "it solves. A darker cell has more of it, in the dark a brighter one. What the window keeps is outlined."
        )
        if shape != maps.longest:
            words += f" The longest shape is {shape_name(maps.longest)}, whose maps are too large for a page."
        widest = max(len(own.names) for own in keys.values())
        chart = Chart(charts.attention_maps(shown, queries, keys, lines.words), min(900, 260 + 24 * widest))
        return [Text(words), chart]

    def _not_yet(self, phase: Phase, yet: str, never: str) -> list[Block] | str:
        """What is told in place of a phase that is not finished: that it is to come, or why it never does."""
        return [Text(yet), Code([self._command(phase)])] if phase in self.phases else never

    def _window(self) -> list[Block] | str:
        if "calibrate" not in self.records:
            return self._not_yet("calibrate", "There is no window yet.", _NO_WINDOWS)
        window = self.run.window()
        rows = [
            [_site_name(site, layer), str(head), "; ".join(map(_line_in_words, rules))]
            for site in SITES
            for layer in range(window.layers(site))
            for head in range(window.num_heads)
            if (rules := [rule for rule in window.rules_at(site, layer) if rule.head == head])
        ]
        closed = window.num_heads * sum(window.layers(site) for site in SITES) - len(rows)
        words = f"{len(window.rules)} lines stay open."
        if closed:
            words += f" {closed} {'head is' if closed == 1 else 'heads are'} closed altogether."
        blocks: list[Block] = [Text(words), Table(["attention", "head", "open keys"], rows, numbers=(1,))]
        if isinstance(self.task, Calibratable) and rows:
            blocks += self._picture_of(window, self.task)
        return blocks

    def _picture_of(self, window: Window, task: Calibratable) -> list[Block]:
        lines = _Lines(window)
        cells: list[charts.OpenCells] = []
        queries: dict[tuple[str, str], charts.Tokens] = {}
        keys: dict[tuple[str, str], charts.Tokens] = {}
        cut = False
        for shape in _shapes_of_windows(task):
            with suppress(UserError):  # a fixed width has no room for the shape
                layout = window.read(task.layout(shape))
                for site, layer, head in lines.heads:
                    positions = site_positions(site, layout)
                    name = f"{_site_name(site, layer)}, head {head}"
                    for part, piece in _parts(len(positions[0])).items():
                        size = f"{shape_name(shape)}{part}"
                        shown = _cut_out(lines, site, layer, head, positions, piece)
                        cut = cut or bool(part)
                        queries[size, name], keys[size, name] = shown.queries, shown.keys
                        cells.append(charts.OpenCells(size, name, *shown.cells))
        if not cells:
            return []
        words = "Each mark is a key that stays open to a query. "
        words += "Of large sizes a part is shown, with the keys that are open to it." if cut else ""
        widest = max(len(own.names) for own in keys.values())
        return [Text(words), Chart(charts.window(cells, queries, keys, lines.words), min(900, 280 + 22 * widest))]

    def _samples(self) -> list[Block] | str:
        models = {phase: model for phase, model in self.models.items() if isinstance(model, DecodingModel)}
        if not isinstance(self.task, Solvable):
            return "The problems of this task cannot be written as text."
        if not models:
            return "There is no trained model that could be asked."
        samples = sample_problems(self.task, models, self.cells)
        if not samples:
            return "No problem of this task is short enough to be shown."
        names = {phase: f"{terminal.weights_name(phase)} model" for phase in models}
        head = ["problem", "length", "right", *(f"{name}, as it wrote it" for name in names.values())]
        rows: list[list[str | Marked]] = [
            [
                Marked([(character, True) for character in sample.source]),
                "beyond training" if sample.beyond else "trained",
                sample.right.text,
                *(_marked(sample.right, sample.answers[phase]) for phase in models),
            ]
            for sample in samples
        ]
        words = "The models' own answers, decoded step by step"
        words += ", least significant digit first" if isinstance(self.task, DigitTask) else ""
        blocks: list[Block] = [Text(f"{words}; what is wrong is underlined."), Table(head, rows)]
        seen = [sample for sample in samples if sample.attention]
        if not seen:
            return [*blocks, Text("The model has no attention that could be shown.")]
        whose = list(names.values())[-1]
        blocks.append(
            Text(
                f"Where the {whose} looked when it wrote a token of its answer: choose the token by a click on it, or "
                "by the slider. The attention of a head to the problem, and that to the tokens written before, is "
                "shown by the shade of each."
            )
        )
        named = [f"{i}: {sample.source}" for i, sample in enumerate(seen, 1)]
        return [*blocks, Chart(_attended_chart(seen, named))]

    def _certificate(self) -> list[Block] | str:
        if "certify" not in self.records:
            return self._not_yet("certify", "The model is not certified yet.", "This task has no rule to prove.")
        blocks: list[Block] = []
        reason = self.run.stale("certify")
        if reason is not None:
            blocks.append(Text(f"The certificate is stale: {reason}.", "warning"))
        path = self.run.folder("certify") / CERTIFICATE
        try:
            stated = read_certificate(self.run.read("certify", CERTIFICATE).decode())
        except ValueError as error:
            again = next_command(self.run, "certify", " --overwrite")
            return [*blocks, Text(f"{path} cannot be read: {error}; make it anew with '{again}'.", "warning")]
        facts = [["verdict", _VERDICTS[stated["verdict"]]]]
        facts += [[name, stated[key]] for name, key in (("reason", "reason"), ("problem", "problem")) if stated[key]]
        if stated["verdict"] == "correct":
            facts += _figures(stated)
        blocks.append(Table([], facts))
        blocks.append(Text("The verdict rests on these assumptions:"))
        blocks.append(Table([], [[str(i), text] for i, text in enumerate(stated["assumptions"], 1)]))
        blocks.append(Text("A checker that shares no code with the proof, and the proof itself, check it again:"))
        verify = next_command(self.run, "certify", f" --verify {path}")
        return [*blocks, Code([f"python -m abc_toolkit.checker {path}", verify])]

    def _explanation(self) -> list[Block] | str:
        if "explain" not in self.records:
            never = "Only certified models are explained."
            return self._not_yet("explain", "What the model computes was not read out of it yet.", never)
        blocks: list[Block] = []
        reason = self.run.stale("explain")
        if reason is not None:
            blocks.append(Text(f"This is stale: {reason}.", "warning"))
        data = json.loads(self.run.read("explain", TRANSDUCER))
        checks = data["checks"]
        same = "yes" if checks["is_the_rule"] else f"no: {checks['difference']}"
        facts = [
            ["the task's rule, up to renaming", same],
            ["held to the model", f"{checks['held_to_the_model']:,} of {checks['assignments']:,} assignments"],
            ["states", str(sum(len(own["states"]) for own in data["machines"]))],
        ]
        blocks.append(Table([], facts))
        if isinstance(self.task, DigitTask):
            blocks += _steps(transducers.read_explanation(data, self.task))
        words = "The states and steps of the transducer"
        return [*blocks, Picture(self.run.read("explain", FIGURE), words)]

    def _environment(self) -> list[Block]:
        names = list(versions())
        rows = [
            [phase, *(str(record["versions"].get(name, "")) for name in names), _commit(record.get("commit"))]
            for phase, record in self.records.items()
        ]
        here = f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}"
        hashes = [
            [f"{phase}/{name}", value]
            for phase, record in self.records.items()
            for name, value in record["files"].items()
        ]
        return [
            Table(["phase", *names, "commit of abc_toolkit"], rows),
            Text(f"This page was written on {here}. {_NOT_TOLD}", "note"),
            Folded("SHA-256 of all files", [Table(["file", "SHA-256"], hashes)]),
        ]


@dataclass(frozen=True)
class _CutOut:
    """A part of a head's open cells.

    Attributes:
        queries: The queries that are shown.
        keys: The keys that are shown.
        cells: Query, key and line of each cell.
    """

    queries: charts.Tokens
    keys: charts.Tokens
    cells: tuple[list[int], list[int], list[int]]


class _Lines:
    """The lines of a window, which open cells.

    Args:
        window: The window.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._numbers: dict[str, int] = {}
        for rule in window.rules:
            self._numbers.setdefault(_line_in_words(rule), 1 + len(self._numbers))

    @property
    def words(self) -> list[str]:
        """All lines in words; a cell names one by its number, from 1 on."""
        return list(self._numbers)

    @property
    def heads(self) -> list[tuple[Site, int, int]]:
        """The heads that are not closed, by site, layer and number."""
        rules = sorted(self._window.rules, key=lambda rule: (SITES.index(rule.site), rule.layer, rule.head))
        return list(dict.fromkeys((rule.site, rule.layer, rule.head) for rule in rules))

    def cells(self, site: Site, layer: int, head: int, queries: Positions, keys: Positions) -> Tensor:
        """The number of the line that opens each cell, `[query, key]`; 0 where it is closed."""
        is_open = dense_bias(self._window, site, layer, queries, keys)[head] > -torch.inf
        if site == "decoder":
            is_open &= keys.coordinates["raw"] <= queries.coordinates["raw"][:, None]
        found = torch.zeros(is_open.shape, dtype=torch.int)
        own = [rule for rule in self._window.rules_at(site, layer) if rule.head == head]
        for rule in sorted(own, key=lambda rule: rule.fallback):
            opened = rule.holds(queries, keys) & is_open & (found == 0)
            found[opened] = self._numbers[_line_in_words(rule)]
        return found


def _cut_out(
    lines: _Lines, site: Site, layer: int, head: int, positions: tuple[Positions, Positions], piece: slice
) -> _CutOut:
    """The open cells of some queries, and the keys that are worth showing with them."""
    queries, keys = positions[0][piece], positions[1]
    cells = lines.cells(site, layer, head, queries, keys)
    shown = list(range(len(keys)))
    if len(shown) > _MOST_KEYS or len(queries) < len(positions[0]):
        shown = cells.any(dim=0).nonzero()[:, 0].tolist()
    if len(shown) > _MOST_KEYS:
        shown = shown[: _MOST_KEYS // 2] + shown[-_MOST_KEYS // 2 :]
    own = cells[:, torch.tensor(shown, dtype=torch.long)]
    q, k = own.nonzero().unbind(1)
    found = (q.tolist(), k.tolist(), own[q, k].tolist())
    return _CutOut(_names(positions[0], piece), _names(keys, shown), found)


def _parts(queries: int) -> dict[str, slice]:
    """The parts of a window that are shown: all of it, or of a large one its beginning, its middle and its end."""
    if queries <= _WHOLE:
        return {"": slice(0, queries)}
    middle = (queries - _PART) // 2
    return {
        ", first tokens": slice(0, _PART),
        ", tokens in the middle": slice(middle, middle + _PART),
        ", last tokens": slice(queries - _PART, queries),
    }


def _shapes_of_windows(task: Task) -> list[Shape]:
    """The shapes at which a window is shown."""
    found: list[Shape] = []
    for multiple in _MULTIPLES:
        with suppress(UserError):  # there are no longer problems
            found.append(task.evaluation_shapes(multiple * task.max_length, task.suites[0], torch.Generator())[0])
    return list(dict.fromkeys(found))


def _names(positions: Positions, shown: slice | Sequence[int] | None = None) -> charts.Tokens:
    """Names of tokens by segment and place, all different."""
    segments = [positions.names[segment] for segment in positions.segment.tolist()]
    places = positions.coordinates["place"].tolist() if "place" in positions.coordinates else range(len(segments))
    rows = positions.coordinates["row"].tolist() if "row" in positions.coordinates else [0] * len(segments)
    alone = {name for name in segments if segments.count(name) == 1}
    tabled = {segment for segment, row in zip(segments, rows, strict=True) if row}
    names: list[str] = []
    for segment, place, row in zip(segments, places, rows, strict=True):
        where = f" {row}, {place}" if segment in tabled else "" if segment in alone or segment == END else f" {place}"
        names.append(f"{segment}{where}")
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    numbers = range(len(names)) if shown is None else range(len(names))[shown] if isinstance(shown, slice) else shown
    return charts.Tokens([names[i] for i in numbers], [segments[i] for i in numbers])


def _attended_chart(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Any]:
    attended: list[charts.Attended] = []
    strips: list[charts.Strip] = []
    for sample, name in zip(samples, names, strict=True):
        answer = list(sample.answers.values())[-1]
        strips.append(charts.Strip(name, list(sample.source), answer.tokens, sample.right.tokens))
        for (layer, head), weights in sample.attention.items():
            percent = (100 * weights).round().int().flatten().tolist()
            attended.append(charts.Attended(name, layer, head, percent))
    return charts.attended_tokens(attended, strips)


def _marked(right: Answer, answer: Answer) -> Marked:
    """An answer as it was written, up to its end."""
    shown: list[tuple[str, bool]] = []
    for written, wanted in zip(answer.tokens, right.tokens, strict=True):
        if written == END:
            return Marked([*shown, (f" {END}", False)] if wanted != END else shown)
        shown.append((written, written == wanted))
    return Marked(shown)


def _table_of_results(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Block:
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        size = shape_name(row["shape"] or (row["length"],))
        shown = f"{metric.shown(row['value'])} [{metric.shown(row['low'])}, {metric.shown(row['high'])}]"
        cells.setdefault((size, row["suite"]), {})[row["model"]] = shown
    unit = ", %" if metric.in_percent else ""
    table = [[size, suite, *(own.get(model, "") for model in models)] for (size, suite), own in cells.items()]
    title = f"{metric.title.capitalize()}{unit} with 95 % intervals"
    whole = Table(["length", "suite", *models], table, tuple(range(2, 2 + len(models))))
    return Folded(title, [whole], shown=len(table) <= _MOST_SHOWN)


def _steps(explanation: "transducers.Explanation") -> list[Block]:
    """The steps of a transducer, folded, as a table."""
    rows: list[list[str]] = []
    for own in explanation.machines:
        words = transducers.parameters_in_words(explanation, own)
        for edge in transducers.folded(explanation, own):
            following = "end" if edge.following < 0 else own.names[edge.following]
            start = " (start)" if edge.state == own.transducer.start else ""
            rows.append([words, own.names[edge.state] + start, edge.reads, edge.writes, following])
    head = ["for", "state", "reads", "writes", "next state"]
    if len(explanation.machines) == 1:
        head, rows = head[1:], [row[1:] for row in rows]
    table = Table(head, rows[:_MOST_STEPS])
    blocks: list[Block] = [table]
    if len(rows) > _MOST_STEPS:
        blocks.append(Text(f"{len(rows) - _MOST_STEPS} more rows are in {TRANSDUCER}.", "note"))
    return blocks


def _figures(stated: Mapping[str, Any]) -> list[list[str]]:
    """The figures of a certificate that says correct."""
    sizes = " and ".join(map(str, stated["bound"].get("sizes", {}).values()))
    meaning = stated["meaning"]
    return [
        ["layouts gone through", f"{stated['layouts']:,}, of sizes up to {sizes}; longer ones bring nothing new"],
        ["assignments, each one run", f"{stated['assignments']:,} of {stated['kinds']} kinds"],
        ["smallest margin", f"{stated['smallest_margin']:.3g}, {stated['narrowest']}"],
        ["bound on rounding", f"{stated['largest_rounding']:.2g}; {stated['precision']}"],
        ["margin less rounding", f"at least {stated['smallest_slack']:.2g}"],
        ["meaning, proved by induction", "; ".join(meaning.get("proved", ())) or "nothing: there is no identity"],
        ["held to", f"{meaning.get('held_to', 0):,} problems of up to {meaning.get('longest', 0)} digits"],
    ]


def _result(phase: Phase, results: Mapping[str, Any]) -> str:
    """What came of a phase, in words."""
    if phase in ("fit", "retrain"):
        metrics = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in results["metrics"].items())
        reached = "" if results.get("reached", True) else ", its goal not reached"
        return f"{results['steps']:,} steps{reached}; held-out: {metrics}"
    if phase == "calibrate":
        return f"{results['rules']} lines" + ("" if results.get("sufficient", True) else ", not sufficient")
    if phase == "evaluate":
        return f"{results['rows']} rows"
    return str(results.get("verdict", "")) if phase == "certify" else f"{results.get('states')} states"


def _line_in_words(rule: Rule) -> str:
    return rule.describe() + (f", bias {rule.bias:.2f}" if rule.bias else "")


def _site_name(site: Site, layer: int) -> str:
    return f"{terminal.SITE_NAMES[site]}, layer {layer}"


def _class_name(described: Any) -> str:
    return str(described["class_path"]).rpartition(".")[2] if isinstance(described, Mapping) else str(described)


def _in_words(described: Any) -> str:
    """A described value by its class and settings."""
    if described is None:
        return "by default"
    if not isinstance(described, Mapping) or "class_path" not in described:
        return str(described).lower() if isinstance(described, bool) else str(described)
    given = {name: value for name, value in described.get("init_args", {}).items() if value is not None}
    own = ", ".join(f"{name} {_in_words(value)}" for name, value in given.items())
    return _class_name(described) + (f" ({own})" if own else "")


def _sizes_in_words(model: Mapping[str, Any]) -> str:
    names = {"num_encoder_layers": "encoder layers", "num_decoder_layers": "decoder layers", "num_heads": "heads"}
    names |= {"model_dim": "wide", "feedforward_dim": "wide in feed-forward blocks"}
    sizes = ", ".join(f"{model[name]} {words}" for name, words in names.items() if name in model)
    return f"{model.get('backbone') or 'encoder-decoder'}: {sizes}"


def _commit(commit: Any) -> str:
    return f"{commit[:12]}{'+' if commit.endswith('+') else ''}" if isinstance(commit, str) else "unknown"


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"
