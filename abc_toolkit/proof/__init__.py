"""Proof of correctness at every length: receptive fields, assignments, rounding, meaning, the verdict."""

from abc_toolkit.proof.certificate import Certificate
from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.proof.verdict import certify

__all__ = ["CannotDecideError", "Certificate", "certify"]
