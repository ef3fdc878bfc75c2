"""The smallest trained adders with a proof: many seeds of a configuration, trained side by side.

Each configuration is the shipped decoder-only model of one layer with savings of parameters, inside a window that is
given: the digits of the place that is predicted and of the place below it, and the source's leading zero where an
operand has no digit there. So the window tells the alignment, which a model without one must learn or encode by
positions; its rules are listed in the results.

Training draws from the assignments of the training lengths alone, a part of them from those in which a seed is weakest.
Initial weights are the modules' own, the optimiser is Adam. A seed stops where it is right in every assignment of the
training lengths with a margin; no weights are chosen by hand. `abc certify`'s proof and the independent checker then
judge each seed that has stopped.

What is in the results already is skipped; `--only` names configurations.

    python experiments/smallest_adder/run.py --seeds 32 --steps 30000
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from abc_toolkit import checker
from abc_toolkit.models.attention import Gather, Scope
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.savings import Saving
from abc_toolkit.models.transformer import DecoderOnly
from abc_toolkit.positions import NoPE
from abc_toolkit.proof import certify
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.proof.certificate import document
from abc_toolkit.proof.enumeration import Kind
from abc_toolkit.runs.description import describe
from abc_toolkit.runs.files import replacing, sha256
from abc_toolkit.runs.weights import tensors_of
from abc_toolkit.tasks import Addition
from abc_toolkit.training.coverage import Coverage
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window

HERE = Path(__file__).parent
MAX_LENGTH = 3
SHARED: tuple[Saving, ...] = ("biases", "output", "arc", "scores", "values")
TIED: tuple[Saving, ...] = (*SHARED, "feedforward")


@dataclass(frozen=True)
class Configuration:
    """A model and its task.

    Attributes:
        hidden: Hidden units.
        savings: Parameters that the model does without.
        padding: How the operands are padded; operands of unequal width have heads of their own.
        end: What ends the answer.
    """

    hidden: int
    savings: tuple[Saving, ...] = SHARED
    padding: Any = "longest"
    end: Any = "layout"

    @property
    def task(self) -> Addition:
        """The task."""
        return Addition(max_length=MAX_LENGTH, padding=self.padding, end=self.end, leading_zero=True)

    @property
    def window(self) -> Window:
        """The window: an own head for each place, or for each place and operand, and the zero where none is there."""
        shared = self.padding == "longest"
        heads, rules = 2 if shared else 4, []
        for below in (0, 1):
            where = (Condition("place", below, "place"),)
            for i in (1, 2):
                head = below if shared else 2 * below + i - 1
                rules.append(Rule("decoder", 0, head, f"operand {i}", where, query_string="target"))
        rules += [Rule("decoder", 0, head, "zero", (), query_string="target", fallback=True) for head in range(heads)]
        return Window("Addition", 0, 1, heads, tuple(rules), {}, backbone="decoder-only")

    def model(self, seed: int) -> DecoderOnly:
        """A fresh model."""
        torch.manual_seed(seed)
        window = self.window
        sizes = Architecture(
            0, 1, 2, window.num_heads, self.hidden, "none", position=NoPE(), backbone="decoder-only",
            savings=self.savings,
        )  # fmt: skip
        return DecoderOnly(len(self.task.vocabulary), sizes, Windowed(window, NoPE()))


CONFIGURATIONS = {
    "12 units": Configuration(12),
    "5 units": Configuration(5),
    "4 units": Configuration(4),
    "3 units": Configuration(3),
    "4 units, no thresholds": Configuration(4, (*SHARED, "thresholds")),
    "3 units, no thresholds": Configuration(3, (*SHARED, "thresholds")),
    "4 units, tied": Configuration(4, TIED),
    "2 units, tied": Configuration(2, TIED),
    "4 units, unequal": Configuration(4, padding="none"),
    "6 units, unequal, end token": Configuration(6, padding="none", end="token"),
}


class Predictor(nn.Module):
    """The shipped model's logits in assignments, with gradients.

    Args:
        model: A model of one layer.
    """

    def __init__(self, model: DecoderOnly) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, kind: Kind) -> Tensor:
        """Logits `[assignment, num_tokens]`, given the tokens of a kind's leaves, `[assignment, leaf]`."""
        field = kind.enumeration.field
        leaves, (query,) = field.streams
        where, own = torch.tensor(leaves), leaves.index(query)
        x = self.model.embed(tokens, field.layout.prefix[where])
        block = self.model.decoder[0]
        scope = Scope(field.layout.prefix[where], gather=Gather.from_table(field.tables["decoder", 0]))
        asked = field.layout.target[torch.tensor([query])]
        x = block(x[:, own : own + 1], asked, scope, whole=block.keys_values(x))
        return self.model.read_out(self.model.decoder_norm(x))[:, 0]


class Seeds:
    """Models of one configuration, trained side by side.

    Args:
        configuration: The configuration.
        seeds: Their seeds.
        batch: Assignments a step that each seed is trained on.
    """

    def __init__(self, configuration: Configuration, seeds: Sequence[int], batch: int) -> None:
        self.configuration, self.seeds = configuration, seeds
        models = [Predictor(configuration.model(seed)) for seed in seeds]
        parameters, _ = stack_module_state(models)  # type: ignore[arg-type]
        self.parameters = {name: values.detach().requires_grad_() for name, values in parameters.items()}
        self.base = models[0]
        self.kinds = Coverage(configuration.task, configuration.model(0)).kinds
        self.data = [kind.enumeration.tokens(kind.assignments) for kind in self.kinds]
        total = sum(len(kind.assignments) for kind in self.kinds)
        self.sizes = [max(16, round(batch * len(kind.assignments) / total)) for kind in self.kinds]
        self.hard: list[Tensor | None] = [None] * len(self.kinds)
        self.generator = torch.Generator().manual_seed(0)

    @property
    def num_parameters(self) -> int:
        """Parameters of one model; none stands twice."""
        return sum(values[0].numel() for values in self.parameters.values())

    def logits(self, number: int, tokens: Tensor, shared: bool) -> Tensor:
        """Logits `[seed, assignment, token]` of assignments of a kind, `[seed, assignment, leaf]` or shared by all."""

        def of_one(parameters: Mapping[str, Tensor], own: Tensor) -> Tensor:
            return functional_call(self.base, dict(parameters), (own, self.kinds[number]))

        return vmap(of_one, in_dims=(0, None if shared else 0))(self.parameters, tokens)

    def loss(self) -> Tensor:
        """The cross-entropy of each seed on a fresh batch, `[seed]`."""
        losses: list[Tensor] = []
        for number, ((tokens, required), size) in enumerate(zip(self.data, self.sizes, strict=True)):
            rows = torch.randint(len(required), (len(self.seeds), size), generator=self.generator)
            hard = self.hard[number]
            if hard is not None:
                chosen = torch.randint(hard.shape[1], (len(self.seeds), size // 3 + 1), generator=self.generator)
                rows = torch.cat([rows, hard.gather(1, chosen)], dim=1)
            logits = self.logits(number, tokens[rows], shared=False)
            losses.append(functional.cross_entropy(logits.transpose(1, 2), required[rows], reduction="none"))
        return torch.cat(losses, dim=1).mean(dim=1)

    @torch.no_grad()
    def examine(self, num_hard: int = 256) -> Tensor:
        """The least margin of each seed over all assignments, `[seed]`; the weakest are the hard examples."""
        least = torch.full((len(self.seeds),), torch.inf)
        for number, (tokens, required) in enumerate(self.data):
            parts: list[Tensor] = []
            for own, wanted in zip(tokens.split(2048), required.split(2048), strict=True):
                logits = self.logits(number, own, shared=True)
                index = wanted[None, :, None].expand(len(self.seeds), -1, 1)
                others = logits.scatter(2, index, -torch.inf).amax(dim=2)
                parts.append(logits.gather(2, index)[..., 0] - others)
            margin = torch.cat(parts, dim=1)
            self.hard[number] = margin.topk(min(num_hard, margin.shape[1]), dim=1, largest=False).indices
            least = torch.minimum(least, margin.amin(dim=1).nan_to_num(nan=-torch.inf))
        return least

    def model(self, number: int) -> DecoderOnly:
        """One of the models."""
        own = Predictor(self.configuration.model(0))
        own.load_state_dict({name: values[number] for name, values in self.parameters.items()})
        return own.model.eval()


def train(seeds: Seeds, steps: int, rate: float, margin: float, every: int) -> list[dict[str, Any]]:
    """Trains seeds until each is right everywhere with a margin, or to the last step; returns what became of each.

    A seed that has stopped keeps the weights that it had then.
    """
    parameters = list(seeds.parameters.values())
    optimizer = torch.optim.Adam(parameters, rate)
    start = time.perf_counter()
    found: list[dict[str, Any]] = [{"seed": seed, "step": None, "margin": None} for seed in seeds.seeds]
    stopped: dict[int, list[Tensor]] = {}
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 200) * (1 - (step - 1) / steps)
        optimizer.zero_grad()
        seeds.loss().sum().backward()
        gradients = [values.grad for values in parameters if values.grad is not None]
        lengths = sum((gradient.flatten(1) ** 2).sum(dim=1) for gradient in gradients)
        clip = 1 / torch.as_tensor(lengths).sqrt().clamp(min=1)
        for gradient in gradients:
            gradient *= clip.view(-1, *[1] * (gradient.dim() - 1))
        optimizer.step()
        if step % every and step != steps:
            continue
        least = seeds.examine()
        for number, value in enumerate(least.tolist()):
            if number not in stopped and value >= margin:
                stopped[number] = [values[number].detach().clone() for values in parameters]
                found[number] |= {"step": step, "margin": value, "seconds": time.perf_counter() - start}
            elif number not in stopped:
                found[number]["margin"] = value
        best = ", ".join(f"{value:.3g}" for value in sorted(least.tolist())[-4:])
        print(f"  step {step}: {len(stopped)} stopped; largest margins {best}", flush=True)
        if len(stopped) == len(found):
            break
    with torch.no_grad():
        for number, own in stopped.items():
            for values, kept in zip(parameters, own, strict=True):
                values[number] = kept
    return found


def judge(configuration: Configuration, model: DecoderOnly, folder: Path) -> dict[str, Any]:
    """The proof of a model and the checker's word; the files that they are of lie in the folder afterwards."""
    task, window = configuration.task, configuration.window
    weights, rules, certificate = (folder / name for name in ("weights.safetensors", "window.json", "certificate.json"))
    save_file(tensors_of(model), weights)
    rules.write_text(window.to_json())
    start = time.perf_counter()
    found = document(
        certify(task, model),
        basis_of(task, model),
        task=describe(task),
        architecture=describe(model.architecture),
        weights=sha256(weights),
        window=sha256(rules),
        versions={"torch": torch.__version__},
    )
    certificate.write_text(json.dumps(found))
    names = ("verdict", "reason", "assignments", "smallest_margin", "largest_rounding", "smallest_slack")
    said = {name: found[name] for name in names if name in found} | {"proof_seconds": time.perf_counter() - start}
    if found["verdict"] == "correct":
        status = checker.main([str(certificate), "--weights", str(weights), "--window", str(rules)])
        said["checker"] = {0: "agrees", 1: "does not agree", 2: "refuses", 3: "cannot decide"}[status]
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/smallest_adder"), help="where adders are kept")
    parser.add_argument("--only", nargs="*", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--margin", type=float, default=0.1, help="margin in every assignment with which a seed stops")
    parser.add_argument("--every", type=int, default=500, help="steps from one examination to the next")
    chosen = parser.parse_args()
    results: dict[str, Any] = json.loads(chosen.results.read_text()) if chosen.results.exists() else {}
    for name in chosen.only:
        if name in results:
            continue
        configuration = CONFIGURATIONS[name]
        seeds = Seeds(configuration, range(chosen.seeds), chosen.batch)
        print(f"{name}: {seeds.num_parameters} parameters", flush=True)
        start = time.perf_counter()
        rows = train(seeds, chosen.steps, chosen.rate, chosen.margin, chosen.every)
        seconds = time.perf_counter() - start
        for number, row in enumerate(rows):
            if row["step"] is None:
                continue
            kept = chosen.runs / name.replace(", ", "_").replace(" ", "_") / str(row["seed"])
            kept.mkdir(parents=True, exist_ok=True)
            row |= judge(configuration, seeds.model(number), kept)
            print(f"  seed {row['seed']}: {row['verdict']}, margin {row['margin']:.3g}", flush=True)
        settings = {key: getattr(chosen, key) for key in ("steps", "batch", "rate", "margin", "every")}
        results[name] = asdict(configuration) | settings | {
            "parameters": seeds.num_parameters,
            "window": [rule.describe() for rule in configuration.window.rules],
            "seconds": seconds,
            "rows": rows,
        }  # fmt: skip
        with replacing(chosen.results) as file:
            file.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
