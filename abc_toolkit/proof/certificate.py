"""The certificate: the verdict on a model, and the document that states everything that the verdict rests on.

The document holds the facts (task, architecture, layout, rule, identities), their hashes, and for a correct model the
figures of the proof. It can be checked in two ways: `difference` compares it with a document that is computed anew, and
`abc_toolkit.checker` checks it without the rest of the toolkit.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NoReturn, TypeGuard

from abc_toolkit.proof.basis import Basis
from abc_toolkit.proof.bound import layout_cases
from abc_toolkit.proof.meaning import Meaning
from abc_toolkit.proof.rounding import PRECISION
from abc_toolkit.runs.files import canonical_hash
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

SCHEMA = 3
ARGUMENT = 1  # version of the lemma and of the bounds: certificates of other versions are refused


@dataclass(frozen=True)
class Part:
    """One kind of predictions: a function that the model computes, on all assignments of its receptive field.

    Attributes:
        receptive_field: One of the predictions, with the tokens of its receptive field.
        predictions: Number of predictions of this kind, over all layouts up to the bound.
        assignments: Number of assignments.
        smallest_margin: Least margin: the required token's logit minus the next best.
        narrowest: The assignment with this margin.
        largest_rounding: Largest error of a difference of logits.
        smallest_slack: Least margin minus its error.
    """

    receptive_field: str
    predictions: int
    assignments: int
    smallest_margin: float
    narrowest: str
    largest_rounding: float
    smallest_slack: float


@dataclass(frozen=True)
class Certificate:
    """The verdict on a model.

    Attributes:
        verdict: `correct` at every length, `wrong`, or `undecided`.
        reason: Why the verdict is not `correct`: the problem that the model fails on, or what is to blame.
        problem: A problem that `abc solve` fails on.
        bound: The bound of each size of a layout.
        longest: The largest bound.
        layouts: Number of layouts up to the bound.
        tokens: Number of tokens in these layouts.
        parts: The kinds of predictions.
        kinds: Their number.
        assignments: Number of assignments of all kinds.
        beyond_training: Number of assignments that occur in no training shape.
        examples: Some of these.
        smallest_margin: Least margin: the required token's logit minus the next best.
        narrowest: The assignment with this margin.
        largest_rounding: Largest float32 error of a difference of logits, in any order of summation.
        smallest_slack: Least margin minus its error.
        meaning: The meaning of the local rule.
        deviations: Largest measured difference from float64, for each way to compute logits.
        outside: Largest measured change of a logit when all tokens outside its receptive field are replaced.
    """

    verdict: Literal["correct", "wrong", "undecided"]
    reason: str = ""
    problem: str | None = None
    bound: Mapping[str, int] = field(default_factory=dict[str, int])
    longest: int = 0
    layouts: int = 0
    tokens: int = 0
    parts: tuple[Part, ...] = ()
    kinds: int = 0
    assignments: int = 0
    beyond_training: int = 0
    examples: tuple[str, ...] = ()
    smallest_margin: float = math.nan
    narrowest: str = ""
    largest_rounding: float = math.nan
    smallest_slack: float = math.nan
    meaning: Meaning | None = None
    deviations: Mapping[str, float] = field(default_factory=dict[str, float])
    outside: float = math.nan

    @property
    def largest_deviation(self) -> float:
        """The largest deviation; NaN if one of them is NaN."""
        values = list(self.deviations.values())
        return math.nan if any(math.isnan(value) for value in values) else max(values, default=math.nan)


ASSUMPTIONS = (
    "the layout, that is, the segment and the coordinates of every token, is given to the window",
    "the hardware works, and PyTorch's kernels compute the sums, products and functions that the model is made of",
    "the functions by which a task says the lengths of its segments do nothing but arithmetic with them",
)
# The fields of a correct model's certificate beside the facts, in the order of the file.
_FIGURES = (
    "bound", "longest", "layouts", "tokens_gone_through", "kinds", "assignments", "beyond_training", "examples",
    "smallest_margin", "narrowest", "largest_rounding", "smallest_slack", "meaning", "deviations", "outside", "parts",
)  # fmt: skip
_FACTS: Mapping[str, type | tuple[type, ...]] = {
    "schema": int, "argument": int, "verdict": str, "reason": str, "problem": (str, type(None)), "task": dict,
    "architecture": dict, "tokens": dict, "positions": list, "layout": dict, "rule": dict, "identities": list,
    "hashes": dict, "versions": dict, "precision": str, "assumptions": list,
}  # fmt: skip
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "bound": dict, "longest": int, "layouts": int, "tokens_gone_through": int, "kinds": int, "assignments": int,
    "beyond_training": int, "examples": list, "smallest_margin": float, "narrowest": str, "largest_rounding": float,
    "smallest_slack": float, "meaning": dict, "deviations": dict, "outside": float, "parts": list,
}  # fmt: skip
_MEASURED = ("deviations", "outside")
_LARGEST = 10**300
_CLOSE = 1e-6  # relative difference of figures in float64 that is allowed


class CertificateError(ValueError):
    """A certificate cannot be read; the message is one line."""


def document(
    certificate: Certificate,
    basis: Basis | None,
    *,
    task: Any,
    architecture: Any,
    weights: str,
    window: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Everything that a verdict rests on, as JSON.

    Args:
        certificate: The verdict.
        basis: The basis of the proof; `None` if the model has none.
        task: The task, by its class and fields.
        architecture: The model's architecture.
        weights: SHA-256 of the weights' file.
        window: SHA-256 of the window's file.
        versions: Versions of the software that computed it.
    """
    facts: dict[str, Any] = {"task": task, "architecture": architecture}
    facts |= dict.fromkeys(("tokens", "positions", "layout", "rule", "identities")) | basis_facts(basis)
    facts = json.loads(json.dumps(facts))  # as they will be read: tuples become lists
    hashes = {"weights": weights, "window": window} | {name: canonical_hash(value) for name, value in facts.items()}
    head = {
        "schema": SCHEMA,
        "argument": ARGUMENT,
        "verdict": certificate.verdict,
        "reason": certificate.reason,
        "problem": certificate.problem,
    }
    stated = {"hashes": hashes, "versions": dict(versions), "precision": PRECISION, "assumptions": list(ASSUMPTIONS)}
    return head | facts | stated | (_figures(certificate) if certificate.verdict == "correct" else {})


def _figures(certificate: Certificate) -> dict[str, Any]:
    """The figures of a correct model's certificate, as JSON."""
    assert certificate.meaning is not None
    found = {name: getattr(certificate, name) for name in _FIGURES if hasattr(certificate, name)}
    found["bound"] = {"sizes": dict(certificate.bound)}
    found["tokens_gone_through"] = certificate.tokens
    found["meaning"] = asdict(certificate.meaning)
    found["parts"] = [asdict(part) for part in certificate.parts]
    return json.loads(json.dumps({name: found[name] for name in _FIGURES}))


def basis_facts(basis: Basis | None) -> dict[str, Any]:
    """The basis of a proof as JSON: tokens, positions, layout, rule, identities."""
    if basis is None:
        return {}
    task = basis.task
    positions = [
        {name: getattr(method, name) for name in ("coordinates", "base", "period", "channels")}
        for method in basis.cyclic
    ]
    return {
        "tokens": {
            "count": len(task.vocabulary),
            "bos": BOS,
            "eos": EOS,
            "first_symbol": NUM_SPECIAL,
            "symbols": task.symbols,
        },
        "positions": positions,
        "layout": _plain_layout(task),
        "rule": basis.rule.plain(),
        "identities": [identity.plain() for identity in basis.rule.identities()],
    }


def _plain_layout(task: DigitTask) -> dict[str, Any]:
    """The family of a task's layouts as JSON, with the values that each token can have."""

    def with_values(item: dict[str, Any]) -> dict[str, Any]:
        if "items" in item:
            return item | {"items": [with_values(part) for part in item["items"]]}
        return item | {"values": list(task.values(item["segment"]))}

    found: list[dict[str, Any]] = []
    segments: list[str] = []
    for case in layout_cases(task):
        plain = case.description.plain()
        segments = plain["segments"]
        own: dict[str, Any] = {"where": [expression.plain() for expression in case.where]}
        own["start"] = with_values(plain["start"])
        own |= {name: [with_values(item) for item in plain[name]] for name in ("source", "target")}
        found.append(own)
    return {"segments": segments, "least": list(task.least_sizes), "cases": found}


def read_certificate(text: str) -> dict[str, Any]:
    """The document in the text of a certificate's file.

    Raises:
        CertificateError: If the text is no JSON, of another schema, or a field is missing or of the wrong type.
    """

    def refuse(constant: str) -> NoReturn:
        raise CertificateError(f"it holds {constant}, which is not a number")

    try:
        data = json.loads(text, parse_constant=refuse)
    except CertificateError:
        raise
    except (ValueError, RecursionError) as error:
        raise CertificateError(f"it is not JSON ({error})") from None
    if not _is_object(data) or "verdict" not in data:
        raise CertificateError("it is not a certificate: it states no verdict")
    if data.get("schema") != SCHEMA:
        schema = json.dumps(data.get("schema"))[:60]
        raise CertificateError(f"it is of schema {schema}, and this version reads schema {SCHEMA}")
    try:
        _check_fields(data)
    except RecursionError:
        raise CertificateError("it is nested deeper than any certificate") from None
    return data


def _check_fields(data: Mapping[str, Any]) -> None:
    """Checks that a certificate has the fields of its verdict, and no others."""
    wanted = dict(_FACTS)
    if data["verdict"] == "correct":
        wanted |= _TYPES
    elif data["verdict"] in ("wrong", "undecided"):
        optional = ("tokens", "positions", "layout", "rule", "identities")
        wanted |= {name: (dict, list, type(None)) for name in optional}
    else:
        raise CertificateError(f"its verdict is {json.dumps(data['verdict'])[:60]}, which is unknown")
    for name, kind in wanted.items():
        if name not in data:
            raise CertificateError(f"its field {name} is missing")
        value = data[name]
        kind = (int, float) if kind is float else kind
        if not isinstance(value, kind) or isinstance(value, bool) or _not_finite(value):
            raise CertificateError(f"its field {name} is {json.dumps(value)[:60]}, of the wrong type")
    unknown = sorted(set(data) - set(wanted))
    if unknown:
        raise CertificateError(f"it has a field {json.dumps(unknown[0])[:60]}, which is not a field of certificates")


def _not_finite(value: Any) -> bool:
    """Whether a value in JSON is or contains a number that is not finite."""
    if _is_object(value):
        return any(map(_not_finite, value.values()))
    if _is_list(value):
        return any(map(_not_finite, value))
    return isinstance(value, float) and not math.isfinite(value)


def foreign(stated: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """The first field of a certificate that belongs to another model, in words; `None` if all are the model's.

    Args:
        stated: The certificate.
        facts: Hashes and versions of the model.
    """
    if stated["argument"] != ARGUMENT:
        return f"its argument is version {stated['argument']}, and this is version {ARGUMENT}"
    for name in facts["hashes"]:
        if stated["hashes"].get(name) != facts["hashes"][name]:
            return f"the hash of its {name} differs"
    for name, version in facts["versions"].items():
        if stated["versions"].get(name) != version:
            return f"it was made with {name} {stated['versions'].get(name)}, and {version} is installed"
    return None


def difference(stated: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first field of a certificate that differs from a document computed anew, in words; `None` if all agree.

    Measured deviations differ between machines: they must be numbers within the bound of rounding.
    """
    for name in (*_FACTS, *_FIGURES):
        if name not in found and name not in stated:
            continue
        if name in _MEASURED:
            values = stated[name].values() if isinstance(stated[name], dict) else [stated[name]]
            numbers = all(type(value) in (int, float) and 0 <= value <= stated["largest_rounding"] for value in values)
            if not numbers or (isinstance(stated[name], dict) and set(stated[name]) != set(found[name])):
                return f"{name} are not within the bound of rounding"
        elif not _equal(stated.get(name), found.get(name)):
            return f"{name} is {json.dumps(stated.get(name))[:80]}, and {json.dumps(found.get(name))[:80]} is found"
    return None


def _equal(stated: Any, found: Any) -> bool:
    """Whether two values in JSON are equal, up to small differences of floating-point numbers."""
    if _is_object(stated) and _is_object(found):
        return set(stated) == set(found) and all(_equal(stated[name], found[name]) for name in found)
    if _is_list(stated) and _is_list(found):
        return len(stated) == len(found) and all(map(_equal, stated, found))
    if isinstance(found, float) and isinstance(stated, int | float) and not isinstance(stated, bool):
        return math.isclose(stated, found, rel_tol=_CLOSE) if abs(stated) < _LARGEST else False
    return type(stated) is type(found) and stated == found


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value in JSON is an object."""
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether a value in JSON is a list."""
    return isinstance(value, list)
