"""What every position method must do. A test case inherits all of it by giving `cases`."""

import copy
import dataclasses
import itertools
import math
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from abc_toolkit.layout import Layout, Positions, digit_layout
from abc_toolkit.positions import SITES, AttentionPosition, PositionMethod, Site

NUM_HEADS, HEAD_DIM, NUM_LAYERS = 2, 4, 2
LAYOUTS = [
    digit_layout((("operand 1", n), ("operator", 1), ("operand 2", m)), max(n, m) + 1) for n, m in ((1, 1), (3, 2))
]
LONG = digit_layout((("operand 1", 700), ("operator", 1), ("operand 2", 650)), 701)


@dataclass(frozen=True)
class PositionCase:
    """What a contract test is given.

    Attributes:
        method: The method.
        learns: Whether it has parameters.
    """

    method: PositionMethod
    learns: bool = False


def pairs(layout: Layout) -> dict[Site, tuple[Positions, Positions]]:
    """Queries and keys of every site."""
    source, target = layout.source, layout.target
    return {"encoder": (source, source), "decoder": (target, layout.prefix), "cross": (target, source)}


class PositionContract:
    """Checks of a position method; `cases` holds methods by name."""

    cases: ClassVar[dict[str, PositionCase]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", [pytest.param(case, id=name) for name, case in self.cases.items()])

    def hooks(self, case: PositionCase) -> dict[tuple[Site, int], AttentionPosition]:
        sites = itertools.product(SITES, range(NUM_LAYERS))
        return {(site, layer): case.method.at(site, layer, NUM_HEADS, HEAD_DIM) for site, layer in sites}

    def test_is_an_immutable_value(self, case: PositionCase) -> None:
        method = case.method
        fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
        assert type(method)(**fields) == method == pickle.loads(pickle.dumps(method))
        for name in [*fields, "anything"]:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(method, name, None)

    def test_is_hashable(self, case: PositionCase) -> None:
        assert hash(copy.deepcopy(case.method)) == hash(case.method)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_embed_adds_the_same_to_every_problem(self, case: PositionCase, dtype: torch.dtype) -> None:
        for positions in (p for layout in LAYOUTS for p in (layout.source, layout.target)):
            x = torch.randn(3, len(positions), 8, dtype=dtype)
            kept = x.clone()
            embedded = case.method.embed(x, positions)
            assert torch.equal(x, kept)
            assert (embedded.dtype, embedded.shape) == (x.dtype, x.shape)
            added = embedded - x
            torch.testing.assert_close(added, added[:1].expand_as(added), atol=1e-5, rtol=0)

    def test_embed_of_a_step_is_that_of_the_whole(self, case: PositionCase) -> None:
        target = LAYOUTS[1].target
        x = torch.randn(2, len(target), 8)
        steps = [case.method.embed(x[:, i : i + 1], target[i : i + 1]) for i in range(len(target))]
        torch.testing.assert_close(torch.cat(steps, dim=1), case.method.embed(x, target))

    def test_hooks_keep_shapes(self, case: PositionCase) -> None:
        for (site, _), hook in self.hooks(case).items():
            assert isinstance(hook, AttentionPosition)
            for layout in LAYOUTS:
                q_positions, k_positions = pairs(layout)[site]
                q, k, scores = self.tensors(q_positions, k_positions)
                rotated = hook.rotate(q, k, q_positions, k_positions)
                assert (rotated[0].shape, rotated[1].shape) == (q.shape, k.shape)
                bias = hook.bias(q_positions, k_positions)
                if bias is not None:
                    assert bias.shape in {(n, len(q_positions), len(k_positions)) for n in (1, NUM_HEADS)}
                    assert not (bias.isnan() | (bias == torch.inf)).any()
                transformed = hook.transform(scores, q, k, q_positions, k_positions)
                assert transformed.shape == scores.shape
                assert hook.transforms or torch.equal(transformed, scores)

    def test_a_step_sees_what_the_whole_sees(self, case: PositionCase) -> None:
        """Decoding has the keys so far and one query; under the causal mask the whole must say the same."""
        for layer in range(NUM_LAYERS):
            hook = case.method.at("decoder", layer, NUM_HEADS, HEAD_DIM)
            q_positions, k_positions = pairs(LAYOUTS[1])["decoder"]
            q, k, _ = self.tensors(q_positions, k_positions)
            whole_q, whole_k = hook.rotate(q, k, q_positions, k_positions)
            whole = hook.bias(q_positions, k_positions)
            for i in range(len(q_positions)):
                query, keys = q_positions[i : i + 1], k_positions[: i + 1]
                rotated = hook.rotate(q[:, :, i : i + 1], k[:, :, : i + 1], query, keys)
                torch.testing.assert_close(rotated[0], whole_q[:, :, i : i + 1])
                torch.testing.assert_close(rotated[1], whole_k[:, :, : i + 1])
                bias = hook.bias(query, keys)
                assert (bias is None) == (whole is None)
                if bias is not None and whole is not None:
                    torch.testing.assert_close(bias, whole[:, i : i + 1, : i + 1])

    def test_pointwise_means_that_keys_may_be_gathered(self, case: PositionCase) -> None:
        chosen = torch.tensor([4, 0, 3])
        for (site, _), hook in self.hooks(case).items():
            q_positions, k_positions = pairs(LAYOUTS[1])[site]
            bias = hook.bias(q_positions, k_positions)
            if not hook.pointwise or bias is None:
                continue
            gathered = hook.bias(q_positions, k_positions[chosen])
            assert gathered is not None
            torch.testing.assert_close(gathered, bias[:, :, chosen])

    def test_hooks_hold_for_gathered_keys(self, case: PositionCase) -> None:
        """Keys that each query of a head has to itself, `[head, query, slot]`, are those of the whole."""
        for (site, _), hook in self.hooks(case).items():
            if not hook.pointwise:
                continue
            among = hook.among_open_keys()
            q_positions, k_positions = pairs(LAYOUTS[1])[site]
            q, k, _ = self.tensors(q_positions, k_positions)
            chosen = torch.randint(len(k_positions), (NUM_HEADS, len(q_positions), 3))
            heads, queries = torch.arange(NUM_HEADS)[:, None, None], torch.arange(len(q_positions))[:, None]
            whole_q, whole_k = among.rotate(q, k, q_positions, k_positions)
            few = k_positions[chosen]
            gathered_q, gathered_k = among.rotate(q, k[:, heads, chosen], q_positions, few)
            torch.testing.assert_close(gathered_q, whole_q)
            torch.testing.assert_close(gathered_k, whole_k[:, heads, chosen])

            scores = whole_q @ whole_k.transpose(-1, -2)
            whole = among.transform(scores, whole_q, whole_k, q_positions, k_positions)
            gathered = among.transform(scores[:, heads, queries, chosen], gathered_q, gathered_k, q_positions, few)
            torch.testing.assert_close(gathered, whole[:, heads, queries, chosen])

            bias, gathered_bias = (among.bias(q_positions, keys) for keys in (k_positions, few))
            assert (bias is None) == (gathered_bias is None)
            if bias is not None and gathered_bias is not None:
                bias = bias.expand(NUM_HEADS, -1, -1)
                torch.testing.assert_close(gathered_bias.expand_as(chosen), bias[heads, queries, chosen])

    def test_open_keys_and_what_is_among_them_are_the_whole(self, case: PositionCase) -> None:
        for (site, _), hook in self.hooks(case).items():
            q_positions, k_positions = pairs(LAYOUTS[1])[site]
            table = hook.open_keys(q_positions, k_positions, math.inf)
            assert (hook.why_not_gathered() is None) == (table is not None and hook.pointwise)
            if table is None or not hook.pointwise:
                continue
            among = hook.among_open_keys().bias(q_positions, k_positions)
            dense = torch.full((NUM_HEADS, len(q_positions), len(k_positions)), -torch.inf)
            for head, query, slot in (table.bias > -torch.inf).nonzero().tolist():
                key = int(table.index[head, query, slot])
                inner = 0.0 if among is None else float(among[head % len(among), query, key])
                assert dense[head, query, key] == -torch.inf
                dense[head, query, key] = table.bias[head, query, slot] + inner
            expected = hook.bias(q_positions, k_positions)
            assert expected is not None
            if site == "decoder":
                future = k_positions.coordinates["raw"] > q_positions.coordinates["raw"][:, None]
                expected = expected.masked_fill(future, -torch.inf)
            torch.testing.assert_close(dense, expected.expand_as(dense))

    def test_any_length(self, case: PositionCase) -> None:
        for (site, _), hook in self.hooks(case).items():
            q_positions, k_positions = pairs(LONG)[site]
            embedded = case.method.embed(torch.zeros(1, len(q_positions), 8), q_positions)
            assert embedded.isfinite().all()
            q_positions, k_positions = q_positions[-3:], k_positions[-5:]
            q, k, _ = self.tensors(q_positions, k_positions)
            assert all(t.isfinite().all() for t in hook.rotate(q, k, q_positions, k_positions))
            bias = hook.bias(q_positions, k_positions)
            assert bias is None or not bias.isnan().any()

    def test_parameters_are_declared(self, case: PositionCase) -> None:
        found = [p for h in self.hooks(case).values() if isinstance(h, torch.nn.Module) for p in h.parameters()]
        assert bool(found) == case.learns

    def test_docstring_names_the_source(self, case: PositionCase) -> None:
        assert "Source:" in (type(case.method).__doc__ or "")

    @staticmethod
    def tensors(q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and scores."""
        q, k = (torch.randn(2, NUM_HEADS, len(positions), HEAD_DIM) for positions in (q_positions, k_positions))
        return q, k, q @ k.transpose(-1, -2)
