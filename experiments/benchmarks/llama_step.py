"""Tokens a second of a training step of our Llama block against transformers' `LlamaModel` of the same size.

A step is forward, backward and AdamW, of a decoder-only model that reads vectors and gives a number at each. Both
models have as many parameters, the same read-in and read-out, and rotary positions. Both take the same batch in turn,
on one thread; time is the processor's, which other work on the machine disturbs least. Each round times every variant
once; a ratio is the median of the rounds' ratios, with the least and the greatest in brackets. Above 1, our step is the
faster.

    python experiments/benchmarks/llama_step.py --rounds 15

With `--positions`, the time of our step with other position methods, as a multiple of that with RoPE.

    python experiments/benchmarks/llama_step.py --rounds 9 --positions
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import DecoderOnly
from abc_toolkit.positions import FIRE, ALiBi, DynamicYaRN, NoPE, PositionMethod, RoPE, YaRN
from abc_toolkit.tasks import LinearRegression

ROUND_SECONDS = 0.4  # a round takes as many steps of a variant as fit into it
POSITIONS: dict[str, PositionMethod] = {
    "NoPE": NoPE(),
    "ALiBi": ALiBi(),
    "FIRE": FIRE(width=102),
    "YaRN": YaRN(),
    "DynamicYaRN": DynamicYaRN(),
}


@dataclass(frozen=True)
class Case:
    """A size of the models and of their batches.

    Attributes:
        name: What it is called.
        layers: Depth.
        width: Width of the stream.
        heads: Attention heads a layer.
        hidden: Width of the feed-forward blocks.
        points: Points of a prompt, which has a token for each and one for each label but the last.
        batch: Prompts.
        dim: Width of a point.
    """

    name: str
    layers: int
    width: int
    heads: int
    hidden: int
    points: int
    batch: int
    dim: int

    @property
    def tokens(self) -> int:
        """Tokens of a prompt."""
        return 2 * self.points - 1


CASES = (
    Case("tiny, short", 2, 256, 4, 1024, points=16, batch=16, dim=8),
    Case("tiny", 2, 256, 4, 1024, points=51, batch=16, dim=8),
    Case("study here", 6, 64, 4, 128, points=12, batch=64, dim=4),
)
Step = Callable[[Tensor, Tensor], None]


def stepping(parameters: list[nn.Parameter], predict: Callable[[Tensor], Tensor]) -> Step:
    """A training step of squared error."""
    adam = torch.optim.AdamW(parameters, lr=3e-4, fused=True)

    def step(inputs: Tensor, targets: Tensor) -> None:
        functional.mse_loss(predict(inputs), targets).backward()
        adam.step()
        adam.zero_grad()

    return step


def ours(case: Case, position: PositionMethod) -> tuple[Step, int]:
    """Our step, and the number of parameters."""
    task = LinearRegression(max_length=case.points, dim=case.dim)
    sizes = Architecture(0, case.layers, case.width, case.heads, case.hidden, block="llama", position=position)
    model, layout = DecoderOnly(task.interface, sizes), task.layout((case.points,))
    parameters = list(model.parameters())
    return stepping(parameters, lambda inputs: model(inputs, None, layout)), sum(p.numel() for p in parameters)


def theirs(case: Case, transformers: Any) -> tuple[Step, int]:
    """The step of transformers' model without its unused table of tokens, and the number of parameters."""
    config = transformers.LlamaConfig(
        vocab_size=3,
        hidden_size=case.width,
        intermediate_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        rms_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaModel(config)
    model.set_input_embeddings(None)
    read_in, read_out = nn.Linear(case.dim, case.width, bias=False), nn.Linear(case.width, 1, bias=False)

    def predict(inputs: Tensor) -> Tensor:
        hidden = model(inputs_embeds=read_in(inputs), use_cache=False).last_hidden_state
        return read_out(hidden)[..., 0]

    parameters = [*model.parameters(), *read_in.parameters(), *read_out.parameters()]
    return stepping(parameters, predict), sum(p.numel() for p in parameters)


def measured(case: Case, steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor's time that a step of each variant takes, a number a round."""
    task = LinearRegression(max_length=case.points, dim=case.dim)
    batch = task.sample(torch.Generator().manual_seed(0), case.batch, (case.points,))

    def timed(step: Step, count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            step(batch.inputs, batch.targets)
        return (time.process_time() - start) / count

    for step in steps.values():
        timed(step, 3)
    count = max(1, round(ROUND_SECONDS / timed(next(iter(steps.values())), 3)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        # Every other round goes the other way, so that none is always the one after the same neighbour.
        for name in list(steps) if number % 2 else list(steps)[::-1]:
            seconds[name].append(timed(steps[name], count))
    return seconds


def spread(values: list[float]) -> str:
    """The median of some numbers, with the least and the greatest."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Prints a row for each case, or for each case and position method."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--positions", action="store_true", help="compare our step with other position methods")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if settings.positions:
        print(f"{'size':<12}{'tokens':>7} {'position':<12}{'ms a step':>10}  times RoPE")
        for case in CASES:
            methods = {"RoPE": RoPE()} | POSITIONS
            seconds = measured(case, {name: ours(case, method)[0] for name, method in methods.items()}, settings.rounds)
            for name, own in seconds.items():
                ratios = [a / b for a, b in zip(own, seconds["RoPE"], strict=True)]
                row = f"{case.name:<12}{case.tokens:>7} {name:<12}{1000 * statistics.median(own):>10.1f}"
                print(f"{row}  {spread(ratios)}", flush=True)
        return

    import transformers  # takes seconds, and only this comparison needs it

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, one thread, {settings.rounds} rounds")
    print(f"{'size':<12}{'tokens':>7}{'batch':>6} {'ours, tokens/s':>16}{'transformers':>14}  ratio")
    for case in CASES:
        (own, size), (other, their_size) = ours(case, RoPE()), theirs(case, transformers)
        assert size == their_size, (size, their_size)
        seconds = measured(case, {"ours": own, "transformers": other}, settings.rounds)
        rates = {name: case.batch * case.tokens / statistics.median(values) for name, values in seconds.items()}
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True)]
        row = f"{case.name:<12}{case.tokens:>7}{case.batch:>6} {rates['ours']:>16,.0f}{rates['transformers']:>14,.0f}"
        print(f"{row}  {spread(ratios)}", flush=True)


if __name__ == "__main__":
    main()
