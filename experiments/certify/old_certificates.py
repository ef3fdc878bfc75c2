"""What the independent checker says of wrong models that an earlier certifier called correct.

For each kind of fault a run is written: weights, window, and a certificate that states what that certifier
would have: layouts gone through up to the length that it guessed, positions that it did not see, tokens that it took to
be what one sample shows, a window that was changed afterwards, figures that were made up. The checker must not agree.

    python -m experiments.certify.old_certificates
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import SITES, NoPE
from abc_toolkit.proof.basis import Basis, basis_of
from abc_toolkit.proof.bound import Bound
from abc_toolkit.proof.certificate import Certificate, Part, document
from abc_toolkit.proof.enumeration import Reading, kinds_of
from abc_toolkit.proof.meaning import Meaning
from abc_toolkit.proof.rounding import BoundedModel
from abc_toolkit.proof.verdict import _layouts, _predictions, silent
from abc_toolkit.runs.description import describe
from abc_toolkit.runs.files import save_json, save_text, sha256
from abc_toolkit.runs.folder import save_weights, versions
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Window
from tests.proof import test_kinds as wrong_models

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A wrong model.

    Attributes:
        make: Makes the task and the model.
        blind: Whether positions beside the window were not seen.
        sampled: Whether tokens that the rule does not name were those of one sample.
        change: What happens to the run's folder once it was certified.
    """

    make: Callable[[], tuple[DigitTask, EncoderDecoder]]
    blind: bool = False
    sampled: bool = False
    change: Callable[[Path], None] | None = None


def add_a_line(run: Path) -> None:
    """Changes the window once it was certified."""
    path = run / "retrain" / "window.json"
    window = Window.load(path)
    line = replace(window.rules[0], conditions=wrong_models.PINNED, bias=20.0)
    save_text(path, window.with_rules([*window.rules, line]).to_json())


def forge(run: Path) -> None:
    """Makes up figures."""
    path = run / "certify" / "certificate.json"
    stated = json.loads(path.read_text())
    stated["bound"] = {"sizes": dict.fromkeys(stated["bound"]["sizes"], 10**9)}
    stated |= {"longest": 10**9, "deviations": {}, "smallest_margin": 50.0, "smallest_slack": 49.0}
    save_json(path, stated)


CASES = {
    "1: a circle of 30 places in a composition": Case(lambda: wrong_models.adder(wrong_models.CIRCLE, known=14), True),
    "1: a method with parameters of its own": Case(lambda: wrong_models.beside(wrong_models.Shifted()), True),
    "2: a line that opens at one width alone": Case(lambda: wrong_models.with_line(*wrong_models.PINNED)),
    "3: a rule that counts its places": Case(wrong_models.counting),
    "6: an operand that does not matter": Case(
        lambda: wrong_models.idle(min(set(range(6)) - set(wrong_models.shown()))), sampled=True
    ),
    "7: a window changed afterwards": Case(lambda: wrong_models.adder(known=10), change=add_a_line),
    "7: figures made up": Case(lambda: wrong_models.adder(known=10), change=forge),
}


def guessed(window: Window) -> int:
    """The length up to which the earlier certifier went: the largest constant of each layer, twice, and a little."""
    layers = [window.rules_at(site, layer) for site in SITES for layer in range(window.layers(site))]
    reach = sum(1 + max((abs(c.equals) for rule in rules for c in rule.conditions), default=0) for rules in layers)
    return 2 * (2 + min(reach, 3)) + 6  # of lines of several conditions it saw none that opened


def claim(task: DigitTask, model: EncoderDecoder, case: Case) -> tuple[Certificate, Basis]:
    """What the earlier certifier would have stated."""
    assert isinstance(model.position, Windowed)
    seen = model
    if case.blind:
        position = Windowed(model.position.window, NoPE())
        seen = EncoderDecoder(len(task.vocabulary), model.architecture, position).eval()
        own = seen.state_dict()
        seen.load_state_dict({name: value for name, value in model.state_dict().items() if name in own})
    basis = basis_of(task, seen)
    longest = guessed(basis.window)
    sizes = dict.fromkeys((f"s{number}" for number in range(len(task.least_sizes))), longest)
    layouts = _layouts(task, Bound(sizes, 0, 0, 1, ""))
    readings = [Reading(basis.rule, own.layout) for own in layouts]
    kinds = kinds_of(task, _predictions(basis, seen, layouts, readings, silent))
    if case.sampled:
        for kind in kinds:
            tokens, _ = kind.enumeration.tokens(kind.assignments)
            shown = torch.tensor(wrong_models.shown()) + 2
            for column in kind.enumeration.free:
                if len(kind.enumeration.free[column]) > 1:
                    kept = torch.isin(tokens[:, column], shown)
                    kind.assignments, tokens = kind.assignments[kept], tokens[kept]
    bounded = BoundedModel(seen)
    found = [bounded.margins(kind) for kind in kinds if len(kind.assignments)]
    margin = min(float(own.margin.min()) for own in found)
    # That certifier had no bound of rounding: where there is none, its certificate would have said something finite.
    rounding = max(float(own.rounding.nan_to_num(posinf=0.0).max()) for own in found)
    slack = min(float(own.slack.nan_to_num(neginf=margin).min()) for own in found)
    count = sum(len(kind.assignments) for kind in kinds)
    parts = (Part("", 1, count, margin, "", rounding, slack),)
    meaning = Meaning((), "", 10_000, 40)
    return Certificate(
        "correct", bound=sizes, longest=longest, layouts=len(layouts), parts=parts, kinds=len(kinds), assignments=count,
        smallest_margin=margin, largest_rounding=rounding, smallest_slack=slack, meaning=meaning,
        deviations={"one batch": 1e-6}, outside=0.0,
    ), basis  # fmt: skip


def checked(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """What the checker says of one case."""
    task, model = case.make()
    assert isinstance(model.position, Windowed)
    run = folder / name.split(":")[0].strip() / name.split(":")[1].strip().replace(" ", "-")
    for phase in ("retrain", "certify"):
        (run / phase).mkdir(parents=True, exist_ok=True)
    save_weights(run / "retrain", model)
    save_text(run / "retrain" / "window.json", model.position.window.to_json())
    certificate, basis = claim(task, model, case)
    architecture = describe(replace(model.architecture, position=model.position.inner))
    hashes = {
        "weights": sha256(run / "retrain" / "weights.safetensors"),
        "window": sha256(run / "retrain" / "window.json"),
    }
    stated = document(certificate, basis, task=describe(task), architecture=architecture, versions=versions(), **hashes)
    save_json(run / "certify" / "certificate.json", stated)
    if case.change is not None:
        case.change(run)
    start = time.perf_counter()
    command = [sys.executable, "-m", "abc_toolkit.checker", str(run / "certify" / "certificate.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip().splitlines()[-1]
    claimed = {key: asdict(certificate)[key] for key in ("longest", "assignments", "smallest_margin")}
    return {"case": name, "claimed": claimed, "status": done.returncode, "checker": said} | {
        "seconds": round(time.perf_counter() - start, 1)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/old_certificates"))
    parser.add_argument("--results", type=Path, default=HERE / "old_certificates.json")
    settings = parser.parse_args()
    results = []
    for name, case in CASES.items():
        results.append(checked(name, case, settings.folder))
        print(f"{name}: {results[-1]['status']}, {results[-1]['checker']}", flush=True)
        save_json(settings.results, results)


if __name__ == "__main__":
    main()
