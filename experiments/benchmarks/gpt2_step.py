"""Tokens a second of a training step of our language model against transformers' `GPT2LMHeadModel` of the same size.

A step is forward, backward and AdamW, of a decoder-only model with learned positions, ReLU and an output layer of its
own. Both take the same batch of random tokens in turn, on one thread. Time is the processor's, which other work on the
machine disturbs least. Each round times both models once; a ratio is the median of the rounds' ratios, with a 95 %
interval of the median by its ranks. Above 1, our step is the faster.

    python experiments/benchmarks/gpt2_step.py --rounds 15
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import DecoderOnly
from abc_toolkit.positions import Learned
from abc_toolkit.tasks import Interface, LanguageModel

ROUND_SECONDS = 1.0  # a round takes as many steps of a model as fit into it
Step = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Case:
    """A size of the models and of their batches.

    Attributes:
        layers: Depth.
        width: Width of the stream; feed-forward blocks are four times as wide.
        heads: Attention heads a layer.
        tokens: Tokens of a window.
        batch: Windows.
        vocabulary: Number of different tokens.
    """

    layers: int
    width: int
    heads: int
    tokens: int
    batch: int
    vocabulary: int


CASES = (
    Case(4, 128, 4, tokens=128, batch=16, vocabulary=256),
    Case(4, 128, 4, tokens=128, batch=16, vocabulary=2000),
    Case(4, 128, 4, tokens=512, batch=4, vocabulary=256),
)


def stepping(model: nn.Module, predict: Callable[[Tensor], Tensor]) -> Step:
    """A training step of cross-entropy."""
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(inputs: Tensor, targets: Tensor) -> None:
        functional.cross_entropy(predict(inputs).flatten(0, 1), targets.flatten()).backward()
        adam.step()
        adam.zero_grad()

    return step


def ours(case: Case) -> tuple[Step, int]:
    """Our step, and the number of parameters."""
    interface = Interface(num_outputs=case.vocabulary, num_tokens=case.vocabulary)
    position = Learned(capacity=case.tokens)
    model = DecoderOnly(
        interface, Architecture(0, case.layers, case.width, case.heads, 4 * case.width, position=position)
    )
    layout = LanguageModel(Path("unread"), max_length=case.tokens).layout((case.tokens,))
    step = stepping(model, lambda inputs: model(inputs, None, layout))
    return step, sum(p.numel() for p in model.parameters())


def theirs(case: Case, transformers: Any) -> tuple[Step, int]:
    """The step of transformers' model, and the number of parameters."""
    config = transformers.GPT2Config(
        vocab_size=case.vocabulary,
        n_positions=case.tokens,
        n_embd=case.width,
        n_layer=case.layers,
        n_head=case.heads,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config)
    step = stepping(model, lambda inputs: model(inputs, use_cache=False).logits)
    return step, sum(p.numel() for p in model.parameters())


def measured(case: Case, steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor's time that a step of each model takes, a number a round."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(case.vocabulary, (case.batch, case.tokens + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def timed(step: Step, count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            step(inputs, targets)
        return (time.process_time() - start) / count

    for step in steps.values():
        timed(step, 2)
    count = max(1, round(ROUND_SECONDS / timed(next(iter(steps.values())), 2)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        # Every other round goes the other way, so that neither is always the first.
        for name in list(steps) if number % 2 else list(steps)[::-1]:
            seconds[name].append(timed(steps[name], count))
    return seconds


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median: the narrowest pair of ranks that holds it with that probability."""
    ordered, number = sorted(values), len(values)
    beyond, rank = 0.0, 0  # probability that the median is below the value of this rank
    while rank < number // 2 and beyond + comb(number, rank) / 2**number <= 0.025:
        beyond += comb(number, rank) / 2**number
        rank += 1
    rank = max(0, rank - 1)
    return ordered[rank], ordered[number - 1 - rank]


def main() -> None:
    """Prints a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    import transformers  # takes seconds, and only this comparison needs it

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, one thread, {settings.rounds} rounds")
    print(f"{'tokens':>6}{'batch':>6}{'vocabulary':>11}{'parameters':>21}{'ours, tokens/s':>16}{'GPT-2':>9}  ratio")
    for case in CASES:
        (own, size), (other, their_size) = ours(case), theirs(case, transformers)
        assert size == their_size + case.vocabulary, (size, their_size)  # GPT-2's output layer has no biases
        seconds = measured(case, {"ours": own, "GPT-2": other}, settings.rounds)
        rates = {name: case.batch * case.tokens / statistics.median(values) for name, values in seconds.items()}
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["GPT-2"], strict=True)]
        low, high = interval(ratios)
        row = f"{case.tokens:>6}{case.batch:>6}{case.vocabulary:>11}{f'{size:,} / {their_size:,}':>21}"
        row += f"{rates['ours']:>16,.0f}{rates['GPT-2']:>9,.0f}"
        print(f"{row}  {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
