"""`explain`: what a certified model computes, as a transducer."""

import time
from pathlib import Path

from abc_toolkit.errors import UserError
from abc_toolkit.models.transformer import TransformerModel
from abc_toolkit.phases.base import run_with
from abc_toolkit.proof import CannotDecideError
from abc_toolkit.proof.certificate import read_certificate
from abc_toolkit.proof.explanation import Explanation
from abc_toolkit.proof.explanation import explain as read_out
from abc_toolkit.report import terminal, transducers
from abc_toolkit.runs.files import save_json, save_text
from abc_toolkit.runs.folder import CERTIFICATE, Run, save_record
from abc_toolkit.tasks import Certifiable

TRANSDUCER, GRAPH, FIGURE = "transducer.json", "transducer.dot", "transducer.png"


def explain(*, run: Path | None = None, overwrite: bool = False) -> Explanation:
    """Reads out of a certified model what it computes: the least transducer, its states and steps.

    The transducer is compared with the task's rule, and held to the model on every assignment. It is printed, drawn,
    and saved as JSON and as a Graphviz file.

    Args:
        run: Run folder; the newest in runs/ if not given.
        overwrite: Replace an explanation that is there.

    Returns:
        The transducer and what was checked.

    Raises:
        UserError: If the run has no certificate of its model that says correct, or the model cannot be explained.
    """
    target = run_with(run, "certify", Certifiable, "abc explain")
    _check_certified(target)
    task, model = target.task("retrain"), target.load_model("retrain")
    assert isinstance(model, TransformerModel)  # as it is certified
    inputs = target.produced("retrain") | target.produced("certify")
    start = time.perf_counter()
    with target.writing("explain", overwrite=overwrite, inputs=inputs) as folder:
        try:
            found = read_out(task, model, terminal.track)
        except CannotDecideError as error:
            raise UserError(f"the model of {target.path} cannot be explained by a transducer: {error}") from None
        from abc_toolkit.report import figures  # slow to import

        save_json(folder / TRANSDUCER, transducers.as_json(found))
        save_text(folder / GRAPH, transducers.as_dot(found))
        figures.transducer(folder / FIGURE, found)
        seconds = time.perf_counter() - start
        results = {
            "states": found.num_states,
            "machines": len(found.machines),
            "is_the_rule": found.difference is None,
            "held_to": found.held,
            "assignments": found.assignments,
            "seconds": seconds,
        }
        seed = int(target.record("retrain")["seed"])
        save_record(folder, "explain", seed, {}, results, inputs=inputs, facts={"task": task})
    transducers.print_explanation(found)
    terminal.done(f"{seconds:.0f} s.", target.folder("explain"), None)
    return found


def _check_certified(run: Run) -> None:
    """Refuses a run whose model has no certificate that holds.

    Raises:
        UserError: If the certificate is stale, of another version, or does not say correct.
    """
    path = run.folder("certify") / CERTIFICATE
    again = f"do 'abc certify --run {run.path} --overwrite' first"
    reason = run.stale("certify")
    if reason is not None:
        raise UserError(f"{path} is stale: {reason}; {again}")
    try:
        stated = read_certificate(run.read("certify", CERTIFICATE).decode())
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {' '.join(str(error).split())}; {again}") from None
    if stated["verdict"] != "correct":
        verdict = {"wrong": "the model is wrong", "undecided": "nothing can be decided"}[stated["verdict"]]
        raise UserError(
            f"only a certified model is explained, and {path} says that {verdict} ({stated['reason']}): train it "
            f"longer with 'abc retrain --run {run.path} --overwrite', and certify it again"
        )
