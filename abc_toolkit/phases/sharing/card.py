"""The card of an exported model: what it does, how it came about, what was measured and what is proved."""

import inspect
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from abc_toolkit.errors import UserError
from abc_toolkit.phases.measure import reported_metrics
from abc_toolkit.phases.sharing.format import LIBRARY, WEIGHTS
from abc_toolkit.runs.folder import CERTIFICATE, WINDOW
from abc_toolkit.tasks import ProblemError, Solvable, Task
from abc_toolkit.tasks.base import Calibratable
from abc_toolkit.tasks.lengths import shape_name

Rows = Sequence[Mapping[str, Any]]


def check_license(name: str) -> None:
    """Refuses what is no identifier of a license.

    Raises:
        UserError: With an example.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,40}", name):
        raise UserError(f"--license {name!r}: give an identifier of the Hub's, such as mit, apache-2.0 or other")


def write_card(
    task: Task,
    config: Mapping[str, Any],
    rows: Rows,
    certificate: Mapping[str, Any] | None,
    unproved: str,
    license: str | None,  # noqa: A002 - as cards call it
) -> str:
    """The card, in Markdown with a YAML head.

    Args:
        task: The task.
        config: The configuration of the export.
        rows: Rows of an evaluation of the model.
        certificate: The certificate that holds, if there is one.
        unproved: Why there is none.
        license: The license that it names.
    """
    head = yaml.safe_dump(_head(task, rows, certificate, license), sort_keys=False, allow_unicode=True)
    kind = "calibrated" if config["phase"] == "retrain" else "vanilla"
    parts = [
        f"# {task.name}, {kind}",
        _what(task, config),
        f"## How it was trained\n\n{_training(config)}",
        f"## Results\n\n{_results(task, rows)}",
        f"## What is proved\n\n{_proved(certificate, unproved)}",
        f"## How to use it\n\n{_use(task)}",
        f"## Limits\n\n{_limits(task, config, certificate)}",
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def _head(task: Task, rows: Rows, certificate: Any, license: str | None) -> dict[str, Any]:  # noqa: A002
    """What the Hub reads of a card."""
    found: dict[str, Any] = {"library_name": LIBRARY}
    if license is not None:
        found["license"] = license
    kind = "text-generation" if isinstance(task, Calibratable) else "other"
    if kind != "other":
        found["pipeline_tag"] = kind
    found["tags"] = [LIBRARY, "attention-bias-calibration", "length-generalization", task.name]
    if certificate is not None:
        found["tags"].append("certified")
    if rows:
        results = [
            {
                "task": {"type": kind, "name": task.name},
                "dataset": {"type": f"{LIBRARY}/{task.name}", "name": f"{row['suite']}, length {_size(row)}"},
                "metrics": [
                    {
                        "type": row["metric"],
                        "value": row["value"],
                        "name": f"{row['metric'].replace('_', ' ')} of {row['samples']:,} problems",
                    }
                ],
            }
            for row in rows
        ]
        found["model-index"] = [{"name": task.name, "results": results}]
    return found


def _size(row: Mapping[str, Any]) -> str:
    shape: Sequence[int] | None = row.get("shape")
    return shape_name(tuple(shape)) if shape else str(row["length"])


def _what(task: Task, config: Mapping[str, Any]) -> str:
    described = inspect.getdoc(type(task)) or ""
    described = re.split(r"\n\s*\n(?=Attributes:|Args:)", described)[0]
    inside = ""
    if config["window"] is not None:
        inside = (
            "\n\nThe model was trained inside a window: each head attends to the lines that the window leaves open "
            f"(`{WINDOW}`), which were read off the attention of a vanilla model of the same task."
        )
    settings = ", ".join(f"{name} {value}" for name, value in config["task"].get("init_args", {}).items())
    return f"{described}\n\nSettings of the task: {settings or 'none'}.{inside}"


def _training(config: Mapping[str, Any]) -> str:
    training = config["training"]
    phases = training["settings"]
    settings = yaml.safe_dump({"task": config["task"]} | phases, sort_keys=False, allow_unicode=True)
    commands = "\n".join(f"abc {phase} --config settings.yaml" for phase in phases)
    packages = ", ".join(f"{name} {number}" for name, number in config["versions"].items())
    steps = training["results"].get("steps")
    taken = f"{steps:,} steps, " if isinstance(steps, int) else ""
    return (
        f"{taken}seed {training['seed']}, with {packages}. These commands, with the settings below, train it again:\n\n"
        f"```sh\n{commands}\n```\n\n"
        f"<details><summary>settings.yaml</summary>\n\n```yaml\n{settings}```\n\n</details>"
    )


def _results(task: Task, rows: Rows) -> str:
    if not rows:
        return "The export has no evaluation of this model."
    metrics = {metric.name: metric for metric in reported_metrics(task, rows[0]["decode"])}
    lines = ["| problems | length | metric | value | 95 % interval | samples |", "|---|---|---|---|---|---|"]
    for row in rows:
        metric = metrics.get(row["metric"])

        def shown(value: Any, metric: Any = metric) -> str:
            if not isinstance(value, int | float):
                return "-"
            return f"{value:.4g}" if metric is None else metric.shown(value) + (" %" if metric.in_percent else "")

        interval = f"{shown(row['low'])} to {shown(row['high'])}"
        cells = (row["suite"], _size(row), row["metric"], shown(row["value"]), interval, f"{row['samples']:,}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    how = "decoded step by step" if rows[0]["decode"] == "steps" else "predicted under a correct prefix, all at once"
    return "\n".join(lines) + f"\n\nProblems were drawn from the seed {rows[0]['seed']}. Answers were {how}."


def _proved(certificate: Mapping[str, Any] | None, unproved: str) -> str:
    if certificate is None:
        return f"Nothing: {unproved}."
    meaning = certificate["meaning"]
    identities = "; ".join(meaning["proved"]) or "the rule is that of the task, by a test on problems"
    assumptions = "\n".join(f"- {assumption}" for assumption in certificate["assumptions"])
    versions = ", ".join(f"{name} {number}" for name, number in certificate["versions"].items())
    return (
        "The model is right at every length: each token that it writes is the one that the task's rule requires "
        f"(`{CERTIFICATE}`, made with {versions}).\n\n"
        f"- All {certificate['assignments']:,} assignments of its receptive fields were tried; "
        f"{certificate['beyond_training']:,} of them do not occur in training lengths.\n"
        f"- The smallest margin is {certificate['smallest_margin']:.3g}, and rounding in float32 changes a margin by "
        f"at most {certificate['largest_rounding']:.2g}.\n"
        f"- What the rule computes: {identities}.\n\n"
        f"The proof assumes:\n\n{assumptions}\n\n"
        "A checker that shares no code with the toolkit checks it anew:\n\n"
        f"```sh\npython -m abc_toolkit.checker {CERTIFICATE} --weights {WEIGHTS} --window {WINDOW}\n```"
    )


def _use(task: Task) -> str:
    lines = ["```python", "import abc_toolkit", "", 'model = abc_toolkit.from_pretrained("FOLDER or user/name")']
    command = ""
    if isinstance(task, Solvable):
        problem = _problem(task)
        lines.append(f"print(model.solve([{json.dumps(problem)}]))")
        command = f"\n\nOn the command line, `abc solve --model FOLDER {shlex.quote(problem)}` answers."
    return "\n".join([*lines, "```"]) + (
        f"{command} A folder needs the package `abc_toolkit` alone, a name on the Hub its extra `abc_toolkit[hub]`. "
        "Weights are read as safetensors, and no code of the folder is run."
    )


def _problem(task: Solvable) -> str:
    """A problem as a person writes it, or a word for one where problems are not written as the model reads them."""
    drawn = task.sample(torch.Generator().manual_seed(0), 1, task.training_shapes()[-1])
    text = task.vocabulary.decode(drawn.source[0])
    try:
        return text if task.parse(text)[1] == text else "PROBLEM"
    except ProblemError:
        return "PROBLEM"


def _limits(task: Task, config: Mapping[str, Any], certificate: Any) -> str:
    shapes = [max(shape) for shape in task.training_shapes()]
    found = [f"- It was trained on lengths up to {max(shapes)}."] if shapes else []
    if certificate is None:
        found.append("- Beyond what the results show, nothing is known of its answers.")
    if config["phase"] == "fit":
        found.append("- A vanilla model mostly fails on problems that are longer than those that it was trained on.")
    if isinstance(task, Calibratable) and isinstance(task, Solvable):
        found.append(f"- It reads the characters `{task.symbols}`, and knows no other task.")
    return "\n".join(found)
