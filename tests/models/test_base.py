from typing import Any

import pytest

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.positions import NoPE, RoPE, Sinusoidal


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "--model.num_heads 3 does not divide --model.model_dim 64"),
        ({"num_decoder_layers": 0}, "num_decoder_layers 0"),
        ({"dropout": 1.0}, "dropout 1: give"),
        ({"backbone": "decoder-only", "num_encoder_layers": 2}, "decoder-only has no encoder: leave out .* 2; its"),
        ({"backbone": "mamba", "num_encoder_layers": 1}, "mamba has no encoder"),
        ({"backbone": "mamba", "norm": "post"}, "leave out --model.norm post"),
    ],
)
def test_sizes_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Architecture(**settings)


def test_positions_that_are_not_given() -> None:
    assert Architecture().positions == Sinusoidal(("place", "segment"), base=100.0)
    assert Architecture(backbone="decoder-only").positions == Architecture().positions
    assert Architecture(backbone="mamba").positions == NoPE()
    assert Architecture(position=RoPE()).positions == RoPE()
