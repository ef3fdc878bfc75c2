"""What every position method must do. A test case inherits all of it by giving `cases`."""

import copy
import dataclasses
import itertools
import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions, digit_layout, stream_positions
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import DecoderOnly, EncoderDecoder
from abc_toolkit.positions import SITES, AttentionPosition, ModelPosition, ModelSizes, NoPE, PositionMethod, Site
from abc_toolkit.positions.algebraic import tree_paths
from abc_toolkit.runs.description import describe, rebuild

NUM_HEADS, HEAD_DIM, NUM_LAYERS = 2, 4, 2
SIZES = ModelSizes(NUM_HEADS * HEAD_DIM, NUM_HEADS, NUM_LAYERS, NUM_LAYERS)
LAYOUTS = [
    digit_layout((("operand 1", n), ("operator", 1), ("operand 2", m)), max(n, m) + 1) for n, m in ((1, 1), (3, 2))
]
ALIKE = [digit_layout((("operand 1", n), ("operator", 1), ("operand 2", n)), n + 1) for n in (6, 60)]
LONG = digit_layout((("operand 1", 700), ("operator", 1), ("operand 2", 650)), 701)


@dataclass(frozen=True)
class PositionCase:
    """What a contract test is given.

    Attributes:
        method: The method.
        learns: Whether it has parameters.
        shifts: Whether logits stay the same when all positions of self-attention move on by one.
        configured: Whether a configuration can name it.
        capacity: Most tokens of a string that it is made for; any number, if not given.
        whole: Whether what it does at the beginning of a string depends on how long the string is.
    """

    method: PositionMethod
    learns: bool = False
    shifts: bool = False
    configured: bool = True
    capacity: int | None = None
    whole: bool = False


def pairs(layout: Layout) -> dict[Site, tuple[Positions, Positions]]:
    """Queries and keys of every site."""
    source, target = layout.source, layout.target
    return {"encoder": (source, source), "decoder": (target, layout.prefix), "cross": (target, source)}


def causal(site: Site, layout: Layout) -> Tensor | None:
    """The mask of a site, `[1, query, key]`."""
    length = len(layout.target)
    return torch.ones(1, length, length, dtype=torch.bool).tril() if site == "decoder" else None


def batch_layout(lengths: Sequence[tuple[int, int]], place_of_all: bool = True) -> Layout:
    """The layout of problems of several lengths, with coordinates of a sequence, a tree and a grid.

    Args:
        lengths: Tokens of source and target of each problem.
        place_of_all: Whether `place` counts tokens from the start, and so is the same in all problems.
    """

    def positions(sizes: Sequence[int], kind: str) -> Positions:
        raw = torch.arange(max(sizes))
        present = raw < torch.tensor(sizes)[:, None]
        ahead, problem = present.sum(dim=1, keepdim=True) - 1 - raw, torch.arange(len(sizes))[:, None]
        nodes = torch.tensor([1, 2, 3, 5, 6, 7, 12, 13])[(raw + torch.tensor(sizes)[:, None]) % 8]
        path = torch.stack([functional.pad(row, (0, 4 - row.shape[1]), value=-1) for row in map(tree_paths, nodes)])
        own = {"index": ahead, "path": path, "x": raw // 2 + 0 * problem, "y": raw % 2 + torch.tensor(sizes)[:, None]}
        shared = {"row": torch.zeros_like(raw)}
        (shared if place_of_all else own)["place"] = raw if place_of_all else ahead.clamp(min=0)
        (shared if place_of_all else own)["column"] = raw if place_of_all else ahead.clamp(min=0)
        return stream_positions((kind,), torch.zeros_like(raw), shared, own, present)

    source, target = positions([s for s, _ in lengths], "source"), positions([t for _, t in lengths], "target")
    return Layout(source, target, target)


class PositionContract:
    """Checks of a position method; `cases` holds methods by name."""

    cases: ClassVar[dict[str, PositionCase]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", [pytest.param(case, id=name) for name, case in self.cases.items()])

    def built(self, case: PositionCase) -> ModelPosition:
        """The method in a model, its parameters drawn at random so that none is left at a neutral start."""
        torch.manual_seed(0)
        built = case.method.build(SIZES)
        holder = torch.nn.ModuleList([built])
        hooks = [built.at(site, layer) for site, layer in itertools.product(SITES, range(NUM_LAYERS))]
        holder.extend(hook for hook in hooks if isinstance(hook, torch.nn.Module))
        with torch.no_grad():
            for parameter in holder.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return built.eval()

    def hooks(self, case: PositionCase) -> tuple[dict[tuple[Site, int], AttentionPosition], list[Layout]]:
        """The hooks of every site and layer, and the layouts they run on."""
        built = self.built(case)
        sites = itertools.product(SITES, range(NUM_LAYERS))
        return {(site, layer): built.at(site, layer) for site, layer in sites}, list(map(built.prepare, LAYOUTS))

    def model(self, case: PositionCase, layers: int = 2, encoder: int = 1) -> EncoderDecoder | DecoderOnly:
        """A small model with the method; without an encoder, one that reads a single string."""
        torch.manual_seed(0)
        sizes = Architecture(encoder, layers, SIZES.model_dim, NUM_HEADS, 16, position=case.method)
        model = (EncoderDecoder if encoder else DecoderOnly)(12, sizes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return model

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
        built = self.built(case).to(dtype)
        for positions in (p for layout in map(built.prepare, LAYOUTS) for p in (layout.source, layout.target)):
            x = torch.randn(3, len(positions), 8, dtype=dtype)
            kept = x.clone()
            embedded = built.embed(x, positions)
            assert torch.equal(x, kept)
            assert (embedded.dtype, embedded.shape) == (x.dtype, x.shape)
            added = embedded - x
            torch.testing.assert_close(added, added[:1].expand_as(added), atol=1e-5, rtol=0)

    def test_embed_of_a_step_is_that_of_the_whole(self, case: PositionCase) -> None:
        built = self.built(case)
        target = built.prepare(LAYOUTS[1]).target
        x = torch.randn(2, len(target), 8)
        steps = [built.embed(x[:, i : i + 1], target[i : i + 1]) for i in range(len(target))]
        torch.testing.assert_close(torch.cat(steps, dim=1), built.embed(x, target))

    def test_hooks_keep_shapes(self, case: PositionCase) -> None:
        hooks, layouts = self.hooks(case)
        for (site, _), hook in hooks.items():
            assert isinstance(hook, AttentionPosition)
            for layout in layouts:
                q_positions, k_positions = pairs(layout)[site]
                q, k, scores = self.tensors(q_positions, k_positions)
                rotated = hook.rotate(q, k, q_positions, k_positions)
                assert (rotated[0].shape, rotated[1].shape) == (q.shape, k.shape)
                bias = hook.bias(q_positions, k_positions)
                if bias is not None:
                    assert bias.shape in {(n, len(q_positions), len(k_positions)) for n in (1, NUM_HEADS)}
                    assert not (bias.isnan() | (bias == torch.inf)).any()
                transformed = hook.transform(scores, q, k, q_positions, k_positions, causal(site, layout))
                assert transformed.shape == scores.shape
                assert hook.transforms or torch.equal(transformed, scores)

    def test_a_step_sees_what_the_whole_sees(self, case: PositionCase) -> None:
        """Decoding has the keys so far and one query; under the causal mask the whole must say the same."""
        hooks, layouts = self.hooks(case)
        for layer in range(NUM_LAYERS):
            hook = hooks["decoder", layer]
            q_positions, k_positions = pairs(layouts[1])["decoder"]
            q, k, _ = self.tensors(q_positions, k_positions)
            whole_q, whole_k = hook.rotate(q, k, q_positions, k_positions)
            whole = hook.bias(q_positions, k_positions)
            mask = causal("decoder", layouts[1])
            scores = whole_q @ whole_k.transpose(-1, -2)
            transformed = hook.transform(scores, whole_q, whole_k, q_positions, k_positions, mask)
            for i in range(len(q_positions)):
                query, keys = q_positions[i : i + 1], k_positions[: i + 1]
                rotated = hook.rotate(q[:, :, i : i + 1], k[:, :, : i + 1], query, keys)
                torch.testing.assert_close(rotated[0], whole_q[:, :, i : i + 1])
                torch.testing.assert_close(rotated[1], whole_k[:, :, : i + 1])
                step = hook.transform(rotated[0] @ rotated[1].transpose(-1, -2), *rotated, query, keys)
                torch.testing.assert_close(step, transformed[:, :, i : i + 1, : i + 1])
                bias = hook.bias(query, keys)
                assert (bias is None) == (whole is None)
                if bias is not None and whole is not None:
                    torch.testing.assert_close(bias, whole[:, i : i + 1, : i + 1])

    def test_pointwise_means_that_keys_may_be_gathered(self, case: PositionCase) -> None:
        chosen = torch.tensor([4, 0, 3])
        hooks, layouts = self.hooks(case)
        for (site, _), hook in hooks.items():
            q_positions, k_positions = pairs(layouts[1])[site]
            bias = hook.bias(q_positions, k_positions)
            if not hook.pointwise or bias is None:
                continue
            gathered = hook.bias(q_positions, k_positions[chosen])
            assert gathered is not None
            torch.testing.assert_close(gathered, bias[:, :, chosen])

    def test_hooks_hold_for_gathered_keys(self, case: PositionCase) -> None:
        """Keys that each query of a head has to itself, `[head, query, slot]`, are those of the whole."""
        hooks, layouts = self.hooks(case)
        for (site, _), hook in hooks.items():
            if not hook.pointwise:
                continue
            among = hook.among_open_keys()
            q_positions, k_positions = pairs(layouts[1])[site]
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
        hooks, layouts = self.hooks(case)
        for (site, _), hook in hooks.items():
            q_positions, k_positions = pairs(layouts[1])[site]
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
            mask = causal(site, layouts[1])
            if mask is not None:
                expected = expected.masked_fill(~mask, -torch.inf)
            torch.testing.assert_close(dense, expected.expand_as(dense))

    def test_logits_shift_with_all_positions(self, case: PositionCase) -> None:
        """Where a method says so, self-attention knows differences alone."""
        hooks, layouts = self.hooks(case)
        changed = []
        for site in ("encoder", "decoder"):
            q_positions, k_positions = pairs(layouts[1])[site]
            q, k, _ = self.tensors(q_positions, k_positions)
            logits = []
            for step in (0, 1):
                moved = [
                    Positions(p.names, dict(p.coordinates) | {"raw": p.coordinates["raw"] + step})
                    for p in (q_positions, k_positions)
                ]
                logits.append(self.logits(hooks[site, 0], q, k, moved[0], moved[1], causal(site, layouts[1])))
            changed.append(not torch.allclose(logits[0], logits[1], atol=1e-4))
        assert not case.shifts or not any(changed)

    def test_a_longer_string_begins_alike(self, case: PositionCase) -> None:
        """At ten times the length, the first tokens are told what they are told at once the length."""
        if case.capacity is not None:
            return
        built, (short, long) = self.built(case), ALIKE
        hooks = [built.at("decoder", layer) for layer in range(NUM_LAYERS)]
        digits = len(short.target) - 1
        x = torch.randn(2, digits, 8)
        q, k, _ = self.tensors(short.target[:digits], short.prefix[:digits])
        mask = torch.ones(1, digits, digits, dtype=torch.bool).tril()
        found = []
        for layout in map(built.prepare, (short, long)):
            q_positions, k_positions = layout.target[:digits], layout.prefix[:digits]
            logits = [self.logits(hook, q, k, q_positions, k_positions, mask) for hook in hooks]
            found.append([built.embed(x, q_positions), *logits])
        assert case.whole != all(torch.allclose(*pair, atol=1e-4) for pair in zip(*found, strict=True))

    def test_any_length(self, case: PositionCase) -> None:
        built = self.built(case)
        if case.capacity is not None:
            with pytest.raises(UserError):
                self.model(case)(torch.zeros(1, len(LONG.source)).long(), torch.zeros(1, len(LONG.target)).long(), LONG)
            return
        layout = built.prepare(LONG)
        for site in SITES:
            hook = built.at(site, 0)
            q_positions, k_positions = pairs(layout)[site]
            embedded = built.embed(torch.zeros(1, len(q_positions), 8), q_positions)
            assert embedded.isfinite().all()
            q_positions, k_positions = q_positions[-3:], k_positions[-5:]
            q, k, _ = self.tensors(q_positions, k_positions)
            assert all(t.isfinite().all() for t in hook.rotate(q, k, q_positions, k_positions))
            bias = hook.bias(q_positions, k_positions)
            assert bias is None or not bias.isnan().any()

    def test_parameters_are_declared(self, case: PositionCase) -> None:
        without = {name for name, _ in self.model(PositionCase(NoPE())).named_parameters()}
        own = {name: p for name, p in self.model(case).named_parameters() if name not in without}
        assert bool(own) == case.learns

    def test_all_parameters_get_gradients(self, case: PositionCase) -> None:
        model = self.model(case).train()
        layout = LAYOUTS[1]
        source, prefix = self.strings(layout)
        model(source, prefix, layout).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    def test_a_row_does_not_depend_on_its_batch(self, case: PositionCase) -> None:
        model, layout = self.model(case), LAYOUTS[1]
        source, prefix = self.strings(layout)
        torch.manual_seed(1)  # for methods that draw
        whole = model(source, prefix, layout)
        torch.manual_seed(1)
        torch.testing.assert_close(model(source[1:2], prefix[1:2], layout), whole[1:2], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("place_of_all", [True, False])
    def test_a_padded_problem_is_what_it_is_alone(self, case: PositionCase, place_of_all: bool) -> None:
        """Problems of several lengths in one batch, with coordinates of their own, and each by itself."""
        model = self.model(case)
        if model.positioning.draws:  # as many numbers are drawn as there are tokens
            return
        lengths, generator = [(3, 4), (6, 2), (5, 7)], torch.Generator().manual_seed(4)
        sources, prefixes = (torch.randint(12, (3, size), generator=generator) for size in (6, 7))
        with torch.no_grad():
            together = batch_layout(lengths, place_of_all)
            try:
                alone = [
                    model(sources[n : n + 1, :s], prefixes[n : n + 1, :t], batch_layout([lengths[n]], place_of_all))[0]
                    for n, (s, t) in enumerate(lengths)
                ]
            except UserError as error:  # it is made for digits, trees or grids
                with pytest.raises(UserError, match=re.escape(str(error).split(":")[0])):
                    model(sources, prefixes, together)
                return
            whole = model(sources, prefixes, together)
            for n, (row, (_, target)) in enumerate(zip(alone, lengths, strict=True)):
                torch.testing.assert_close(whole[n, :target], row, atol=1e-5, rtol=1e-4)
            some = torch.tensor([2, 0])
            few = model(sources[some], prefixes[some], together.problems(some))
        torch.testing.assert_close(few[0], whole[2], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(few[1, :4], whole[0, :4], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize(("size", "encoder"), [(1, 0), (2, 1)])
    def test_decoding_in_pieces_is_the_whole(self, case: PositionCase, size: int, encoder: int) -> None:
        model, layout = self.model(case, encoder=encoder), LAYOUTS[1]
        source, prefix = self.strings(layout)
        with torch.no_grad():
            torch.manual_seed(1)
            whole = model(source, prefix, layout)
            torch.manual_seed(1)
            state = model.decoder_state(source, model.plan(layout, len(source), size))
            pieces = torch.cat([model.advance(part, state) for part in prefix.split(size, dim=1)], dim=1)
        torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)

    def test_half_precision(self, case: PositionCase) -> None:
        model, layout = self.model(case, layers=1), LAYOUTS[1]
        source, prefix = self.strings(layout)
        with torch.no_grad():
            torch.manual_seed(1)
            whole = model(source, prefix, layout)
            torch.manual_seed(1)
            half = copy.deepcopy(model).to(torch.bfloat16)(source, prefix, layout)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), whole, atol=0.25, rtol=0.1)

    def test_survives_files(self, case: PositionCase, tmp_path: Path) -> None:
        """A configuration and a checkpoint give the same model; nothing in them is sized by a problem."""
        if case.configured:
            assert rebuild(yaml.safe_load(yaml.safe_dump(describe(case.method))), PositionMethod) == case.method
        model = self.model(case)
        source, prefix = self.strings(LAYOUTS[1])
        torch.manual_seed(1)
        expected = model(source, prefix, LAYOUTS[1])
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        again = EncoderDecoder(12, replace(model.architecture, position=copy.deepcopy(case.method))).eval()
        again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        torch.manual_seed(1)
        torch.testing.assert_close(again(source, prefix, LAYOUTS[1]), expected)

    def test_can_be_compiled(self, case: PositionCase) -> None:
        with torch.no_grad():  # a layout that holds a gradient is made in the forward pass, not given to it
            hooks, layouts = self.hooks(case)
        q_positions, k_positions = pairs(layouts[1])["decoder"]
        q, k, _ = self.tensors(q_positions, k_positions)
        arguments = (hooks["decoder", 0], q, k, q_positions, k_positions, causal("decoder", layouts[1]))
        torch.compiler.reset()
        compiled = torch.compile(self.logits, backend="eager")
        torch.testing.assert_close(compiled(*arguments), self.logits(*arguments))

    def test_docstring_names_the_source(self, case: PositionCase) -> None:
        assert "Source:" in (type(case.method).__doc__ or "")

    @staticmethod
    def logits(
        hook: AttentionPosition,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None,
    ) -> Tensor:
        """What a softmax would be taken of, zero where it may not look."""
        q, k = hook.rotate(q, k, q_positions, k_positions)
        scores = hook.transform(q @ k.transpose(-1, -2), q, k, q_positions, k_positions, mask)
        bias = hook.bias(q_positions, k_positions)
        scores = scores if bias is None else scores + bias
        return scores if mask is None else scores.masked_fill(~mask, 0.0)

    @staticmethod
    def tensors(q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and scores."""
        q, k = (torch.randn(2, NUM_HEADS, len(positions), HEAD_DIM) for positions in (q_positions, k_positions))
        return q, k, q @ k.transpose(-1, -2)

    @staticmethod
    def strings(layout: Layout) -> tuple[Tensor, Tensor]:
        """Token ids of three problems: sources and prefixes."""
        generator = torch.Generator().manual_seed(3)
        source, prefix = (torch.randint(12, (3, len(p)), generator=generator) for p in (layout.source, layout.target))
        return source, prefix
