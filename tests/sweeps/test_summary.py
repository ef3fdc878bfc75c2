import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from abc_toolkit.errors import UserError
from abc_toolkit.phases.measure import Row
from abc_toolkit.runs.folder import PIPELINE, Run
from abc_toolkit.sweeps.engine import Outcome, State
from abc_toolkit.sweeps.specification import STATE
from abc_toolkit.sweeps.summary import interval, latex, summarize
from tests.small_runs import finish

VALUES = {("a", 0): 0.5, ("a", 1): 0.75, ("a", 2): 1.0, ("b", 0): 0.25, ("b", 1): 0.75}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    runs = {}
    for (which, seed), value in VALUES.items():
        name = f"{which}-{seed}"
        run = Run(tmp_path / name)
        row = Row("parity", "uniform", 6, 13, 4, "exact_match", value, 0, 1, "fit", seed, "parallel")
        for phase in PIPELINE:
            finish(run, phase, json.dumps([row.plain()]))
        runs[name] = Outcome({"which_one": which, "seed": str(seed)}, [], "finished")
    (tmp_path / STATE).write_text(json.dumps(asdict(State(runs))))
    return tmp_path


def test_a_row_is_of_all_seeds(sweep: Path) -> None:
    made = summarize(sweep)
    assert made.columns == (
        *("which_one", "weights", "length", "suite", "metric"), "runs", "median", "least", "most", "mean"
    )  # fmt: skip
    same = ("fit", "6", "uniform", "exact_match")
    # 4.30 is the quantile of Student's t for two degrees of freedom, 12.7 for one, from a printed table.
    assert made.rows == (
        ("a", *same, "3", "0.75", "0.5", "1", f"0.75 ± {4.303 * 0.25 / 3**0.5:.2g}"),
        ("b", *same, "2", "0.5", "0.25", "0.75", f"0.5 ± {12.706 * 0.125**0.5 / 2**0.5:.2g}"),
    )
    assert interval([2.0]) == "2"


def test_pairs_differ_in_one_setting_alone(sweep: Path) -> None:
    made = summarize(sweep, compare="which_one=a,b")
    assert made.rows == (("fit", "6", "uniform", "exact_match", "2", "0.125", "0.125 ± 1.6", "1", "0"),)


def test_labels_may_have_commas(sweep: Path) -> None:
    labels = {"a": "X(one=1, two=2)", "b": "X(one=1,length=3)"}
    plain = json.loads((sweep / STATE).read_text())
    for run in plain["runs"].values():
        run["settings"]["which_one"] = labels[run["settings"]["which_one"]]
    (sweep / STATE).write_text(json.dumps(plain))
    for first, second, sign in (("a", "b", ""), ("b", "a", "-")):
        rows = summarize(sweep, compare=f"which_one={labels[first]},{labels[second]}").rows
        assert rows[0][5] == f"{sign}0.125"
    rows = summarize(sweep, only=f"which_one={labels['a']},length=6").rows
    assert [row[0] for row in rows] == [labels["a"]]


def test_rows_are_chosen(sweep: Path) -> None:
    assert [row[0] for row in summarize(sweep, only="which_one=b,length=6").rows] == ["b"]


def test_tables_can_be_read_by_others(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = summarize(sweep, format="csv")
    assert [tuple(row) for row in csv.reader(io.StringIO(capsys.readouterr().out))] == [made.columns, *made.rows]
    summarize(sweep, format="markdown", output=sweep / "table.md")
    lines = (sweep / "table.md").read_text().splitlines()
    assert (len(lines), {line.count("|") for line in lines}) == (4, {len(made.columns) + 1})
    assert r"which\_one & weights" in latex(made)
    assert r"$\pm$" in latex(made)
    summarize(sweep)
    assert "5 runs in" in capsys.readouterr().out


def test_folders_of_runs_need_no_sweep(pipeline: Path) -> None:
    made = summarize(pipeline.parent)
    assert made.columns[:2] == ("task", "position")
    assert {row[0] for row in made.rows} == {"Parity(max_length=3, form=scratchpad)"}
    assert {row[:3] for row in summarize(pipeline, only="length=6,metric=exact_match").rows} == {
        (*made.rows[0][:2], weights) for weights in ("fit", "retrain")
    }


def test_runs_with_the_same_settings_are_told(sweep: Path) -> None:
    shutil.copytree(sweep / "a-0", sweep / "c-0")
    plain = json.loads((sweep / STATE).read_text())
    plain["runs"]["c-0"] = plain["runs"]["a-0"]
    (sweep / STATE).write_text(json.dumps(plain))
    with pytest.raises(UserError, match="two runs with the same settings, c-0 one of them"):
        summarize(sweep)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "which=a"}, "--only which=a: write COLUMN=VALUE with a column of which_one"),
        ({"only": "which_one"}, "--only which_one: write COLUMN=VALUE"),
        ({"only": "which_one=c"}, "no row is left; which_one is one of a, b"),
        ({"compare": "which_one=a"}, "write COLUMN=A,B"),
        ({"compare": "which=a,b"}, "write COLUMN=A,B"),
        ({"compare": "which_one=a,c"}, "no two runs differ in this alone; which_one is one of a, b"),
    ],
)
def test_what_cannot_be_summarized_is_told(sweep: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        summarize(sweep, **options)  # type: ignore[arg-type]


def test_a_folder_without_runs_is_told(tmp_path: Path, abc: Callable[..., tuple[int, str, str]]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        status, _, error = abc("summarize", str(folder))
        assert (status, error.count("\n")) == (2, 1)
    entry = {"settings": {"seed": "0"}, "words": [], "state": "finished"}
    for damaged in (
        3,
        {"runs": 3},
        {"runs": {"a": 3}},
        {"runs": {"a": entry}},
        {"runs": {"a": entry | {"settings": 3}}},
    ):
        (tmp_path / STATE).write_text(json.dumps(damaged))
        status, _, error = abc("summarize", str(tmp_path))
        assert (status, error.count("\n"), "is damaged" in error) == (2, 1, True)


def test_results_of_another_kind_are_told(sweep: Path, abc: Callable[..., tuple[int, str, str]]) -> None:
    (sweep / "a-0" / "evaluate" / "results.json").write_text('[{"value": 1}]')
    status, _, error = abc("summarize", str(sweep))
    assert (status, error.count("\n"), "results.json" in error) == (2, 1, True)
