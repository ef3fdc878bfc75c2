from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, groups_alike, predict, prefix_of
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import AlgebraicPE, NoPE, RoPE, Sinusoidal
from abc_toolkit.tasks.base import Problems
from abc_toolkit.testing.position_contract import batch_layout


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"num_heads": 3}, "--model.num_heads 3 does not divide --model.model_dim 64"),
        ({"num_decoder_layers": 0}, "num_decoder_layers 0"),
        ({"dropout": 1.0}, "dropout 1: give"),
        ({"backbone": "decoder-only", "num_encoder_layers": 2}, "decoder-only has no encoder: leave out .* 2; its"),
        ({"backbone": "mamba", "num_encoder_layers": 1}, "mamba has no encoder"),
        ({"backbone": "mamba", "norm": "post"}, "leave out --model.norm post"),
    ],
)
def test_sizes_that_do_not_go_together(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Architecture(**chosen)


def test_positions_that_are_not_given() -> None:
    assert Architecture().positions == Sinusoidal(("place", "segment"), base=100.0)
    assert Architecture(backbone="decoder-only").positions == Architecture().positions
    assert Architecture(backbone="mamba").positions == NoPE()
    assert Architecture(position=RoPE()).positions == RoPE()


lengths_of_problems = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=40)


@given(lengths_of_problems)
def test_groups_alike_need_no_more_padding(lengths: list[tuple[int, int]]) -> None:
    def padded(rows: list[int]) -> int:
        return len(rows) * sum(max(lengths[row][string] for row in rows) for string in (0, 1))

    everyone = list(range(len(lengths)))
    groups = [rows.tolist() for rows in groups_alike(batch_layout(lengths))]
    assert sorted(row for rows in groups for row in rows) == everyone
    assert 1 <= len(groups) <= 4
    assert sum(map(padded, groups)) <= padded(everyone) - 256 * (len(groups) - 1)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=9, max_size=12), st.integers(0, 9))
def test_problems_of_several_lengths_are_each_what_they_are_alone(lengths: list[tuple[int, int]], seed: int) -> None:
    """Group by group, against each problem by itself, in outputs and in gradients."""
    generator = torch.Generator().manual_seed(seed)
    layout = batch_layout(lengths)
    sources, targets = (
        torch.randint(7, (len(lengths), len(part)), generator=generator) for part in (layout.source, layout.target)
    )
    assert layout.target.present is not None
    together = Problems((1,), sources, targets, layout.target.present, layout)
    torch.manual_seed(seed)
    sizes = Architecture(1, 1, 8, 2, 8, position=AlgebraicPE("tree", branching=2, cross=True, decay=0.9))
    model = EncoderDecoder(7, sizes).double().eval()

    def gradients(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        loss = sum((part**2).sum() for part in outputs)
        return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=False))  # type: ignore[arg-type]

    whole = predict(model, together, layout)
    alone = [model(*_alone(together, row), batch_layout([lengths[row]])) for row in range(len(lengths))]
    for row, outputs in enumerate(alone):
        torch.testing.assert_close(whole[row : row + 1, : outputs.shape[1]], outputs)
    shortest = torch.tensor([sum(pair) for pair in lengths]).argsort()[:8]  # fewer than the padding is for
    few = predict(model, together[shortest], layout)
    assert few.shape == whole[shortest].shape
    present = layout.target.present[shortest]
    torch.testing.assert_close(few[present], whole[shortest][present])
    kept = [whole[row, : outputs.shape[1]] for row, outputs in enumerate(alone)]
    torch.testing.assert_close(gradients(kept), gradients(alone))


def _alone(batch: Problems, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and prefix of one problem."""
    trimmed = batch[row : row + 1].trimmed()
    return trimmed.source, prefix_of(trimmed.target)
