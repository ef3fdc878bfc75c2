from dataclasses import dataclass

from abc_toolkit.positions import NoPE, PositionMethod
from abc_toolkit.testing.discovery import import_all, left_out
from abc_toolkit.testing.position_contract import PositionContract


def test_every_position_method_has_a_contract_test() -> None:
    for package in ("abc_toolkit.positions", "abc_toolkit.windows", "tests.positions", "tests.windows"):
        import_all(package)
    assert left_out(PositionMethod, PositionContract, "abc_toolkit.", "method") == set()


def test_a_method_left_out_is_named() -> None:
    @dataclass(frozen=True)
    class Forgotten(NoPE):
        pass

    assert left_out(PositionMethod, PositionContract, __name__, "method") == {"Forgotten"}
    assert Forgotten() != NoPE()
