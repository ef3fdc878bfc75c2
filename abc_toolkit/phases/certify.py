"""`certify`: the proof that a retrained model is right at every length."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abc_toolkit.errors import UserError
from abc_toolkit.phases.base import run_with
from abc_toolkit.proof import CannotDecideError, Certificate
from abc_toolkit.proof import certify as prove
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.proof.certificate import difference, document, foreign, read_certificate
from abc_toolkit.report import terminal
from abc_toolkit.runs.description import describe
from abc_toolkit.runs.files import read_text, save_json
from abc_toolkit.runs.folder import (
    CERTIFICATE,
    Run,
    save_record,
    versions,
)
from abc_toolkit.tasks import Certifiable


def certify(
    *,
    run: Path | None = None,
    verify: Path | None = None,
    overwrite: bool = False,
) -> Certificate:
    """Proves that the retrained model is right at every length, or finds a problem that it fails on.

    Exit status 0: correct at every length; 1: wrong, with a problem on which abc solve fails; 3: it cannot be decided.

    Args:
        run: Run folder; the newest in runs/ if not given.
        verify: Certificate to check again from the run's files, field by field; none is written.
        overwrite: Replace a certificate that is there.

    Returns:
        The verdict and what it rests on.

    Raises:
        UserError: If there is no finished retrain, or the certificate to verify is not this run's or does not hold.
    """
    target = run_with(run, "retrain", Certifiable, "abc certify")
    task, architecture = target.task("retrain"), target.architecture("retrain")
    model = target.load_model("retrain")
    inputs = target.produced("retrain")
    facts = {"hashes": target.certified_hashes(), "versions": versions()}
    stated = None if verify is None else _stated(verify, facts)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = None
        if stated is None:
            _check_certificate(target, overwrite)
            folder = stack.enter_context(target.writing("certify", overwrite=overwrite, inputs=inputs))
        certificate = prove(task, model, terminal.track)
        basis = None
        with contextlib.suppress(CannotDecideError):
            basis = basis_of(task, model)
        found = document(
            certificate,
            basis,
            task=describe(task),
            architecture=describe(architecture),
            versions=facts["versions"],
            **facts["hashes"],
        )
        seconds = time.perf_counter() - start
        if folder is not None:
            save_json(folder / CERTIFICATE, found)
            seed = int(target.record("retrain")["seed"])
            results = {"verdict": certificate.verdict, "seconds": seconds}
            save_record(folder, "certify", seed, {}, results, inputs=inputs, facts={"task": task})
    if stated is not None:
        wrong = foreign(stated, found) or difference(stated, found)
        if wrong is not None:
            raise UserError(f"--verify {verify} does not hold: {wrong}; certify the run anew")
    terminal.print_certificate(certificate, task.name)
    terminal.done(f"{seconds:.0f} s.", target.folder("certify") / CERTIFICATE if verify is None else verify, None)
    return certificate


def _check_certificate(run: Run, overwrite: bool) -> None:
    """Refuses to replace a certificate that nobody asked to replace, and says whether it is stale."""
    path = run.folder("certify") / CERTIFICATE
    if not run.has("certify") or overwrite:
        return
    reason = run.stale("certify")
    if reason is not None:
        raise UserError(f"{path} is stale: {reason}; replace it with --overwrite")
    raise UserError(f"{path} is there already: replace it with --overwrite, or check it with --verify {path}")


def _stated(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a certificate's file states, if it is one of a run's files and of this version."""
    try:
        stated = read_certificate(read_text(path))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--verify {path} cannot be checked: {reason}; certify the run anew") from None
    wrong = foreign(stated, facts)
    if wrong is not None:
        raise UserError(f"--verify {path} is not of this run: {wrong}; certify the run anew")
    return stated
