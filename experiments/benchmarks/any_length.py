"""What a model retrained inside a window costs at any length, its open keys gathered, against the dense path.

    python experiments/benchmarks/any_length.py --run runs/addition --repeats 5

A. Evaluation against length: time in proportion to it? From 6,000 to 60,000 digits, the exponent should be at most 1.1.
B. Evaluation by the dense path against the gathered one; at 6,000 digits it should be at least 50 times slower.
C. Decoding: a step in the middle of a long answer, with both caches and in Hugging Face's `generate` (left out without
   `transformers`); a step early and late in a very long answer; what a cache holds.
D. Training and forward passes on short problems: from how many keys a slot on does gathering pay? `KEYS_A_SLOT` in
   `abc_toolkit/attention.py` follows from it.

Everything is done once to warm up (but in B from 6,000 digits on, where once takes a minute) and then in rounds, each
of which does every variant in turn, so that noise falls on all. Tables show medians, with the least and the greatest in
brackets; a ratio is that of the medians, with the least and the greatest of single rounds. The toolkit keeps short
layouts (up to some 680 digits) and the tables made for them, and here they are found ready after the first time.
"""

import argparse
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from abc_toolkit.models.attention import KEYS_A_SLOT, AttentionPath
from abc_toolkit.models.base import predict
from abc_toolkit.models.decoding import greedy, planned, solves
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.phases.measure import evaluate_models, evaluation_problems
from abc_toolkit.runs.files import save_json
from abc_toolkit.runs.folder import Run
from abc_toolkit.seeds import seeded
from abc_toolkit.tasks import Problems, Task
from abc_toolkit.tasks.base import TRAINING, UNIFORM
from abc_toolkit.tasks.digits.base import CARRY

try:
    import transformers
except ImportError:
    transformers = None

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
Data = dict[str, Any]

PHASE = "retrain"
PATHS: tuple[AttentionPath, AttentionPath] = ("dense", "gathered")
EVALUATED = (UNIFORM, CARRY)
FIRST_OF_SLOPE, LONGEST_SLOPE = 6000, 1.1
LONG, LONG_REPEATS = 6000, 2  # from so many digits on, the dense path does one problem, so many times
LEAST_RATIO = 50
DECODED, HELD = 6000, 3000  # digits, and tokens decoded before the clock runs
BATCHES = {1: 64, 16: 8, 64: 4}  # problems side by side, and steps that are timed
VERY_LONG, EARLY, LATE, STEPS = 200_000, 10, 100_000, 256
HOLDING = (60, 600, 6000, 60_000)
TRAINED = (6, 10, 20, 35, 60, 100, 200, 600)
TRAINED_DIGITS, FEWEST, MOST = 2400, 4, 64  # digits of a batch, and how few and how many problems it may have

console = Console() if Console().is_terminal else Console(width=120)


@dataclass(frozen=True)
class Bench:
    """What is measured, and how often.

    Attributes:
        task: The task.
        model: Its model.
        device: Where it runs.
        seed: What problems follow from.
        problems: Problems of each length and set.
        repeats: Rounds.
    """

    task: Task
    model: EncoderDecoder
    device: torch.device
    seed: int
    problems: int
    repeats: int

    def clock(self) -> float:
        """Seconds, read once the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, action: Callable[[], object]) -> float:
        """How long an action takes."""
        start = self.clock()
        action()
        return self.clock() - start

    def sample(self, batch: int, length: int, set_name: str = UNIFORM) -> Problems:
        """Problems of one length on the device."""
        (shape,) = self.task.evaluation_shapes(length, UNIFORM, seeded(self.seed))
        return self.task.sample(seeded(self.seed, length), batch, shape, set_name).to(self.device)

    def evaluate(self, length: int, problems: int) -> list[float]:
        """Evaluates as a user does; exact match on each set."""
        models = {PHASE: self.model}
        rows = evaluate_models(
            self.task, models, [length], EVALUATED, problems, "parallel", self.seed, self.device
        ).rows
        return [row.value for row in rows]


def rounds(actions: Mapping[K, Callable[[], R]], repeats: int, warm_up: bool = True) -> dict[K, list[R]]:
    """What each action returns in each round; all of them take their turn in every one."""
    results: dict[K, list[R]] = {name: [] for name in actions}
    for number in range(repeats + warm_up):
        for name, action in actions.items():
            result = action()
            if number >= warm_up:
                results[name].append(result)
    return results


def short(value: float) -> str:
    """A number with about three digits, and no exponent."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def spread(values: Sequence[float], factor: float = 1.0) -> str:
    """Median, least and greatest."""
    low, middle, high = (short(factor * f(values)) for f in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def ratio(values: Sequence[float], to: Sequence[float]) -> float:
    """Ratio of the medians."""
    return statistics.median(values) / statistics.median(to)


def ratio_text(values: Sequence[float], to: Sequence[float]) -> str:
    """Ratio of the medians, and the least and the greatest of the rounds."""
    each = [value / other for value, other in zip(values, to, strict=True)]
    return f"{short(ratio(values, to))} ({short(min(each))} to {short(max(each))})"


def slope(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """The exponent of a power of the length that the times follow, by least squares."""
    return statistics.linear_regression([math.log(n) for n in lengths], [math.log(s) for s in seconds]).slope


def table(title: str, *columns: str) -> Table:
    """An empty table, its first column to the left and the others to the right."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left", no_wrap=True)
    return made


def verdict(goal: str, met: bool) -> str:
    """A goal, and whether it is met."""
    return f"goal: {goal} - {'met' if met else 'missed'}"


def evaluation_parts(bench: Bench, length: int) -> dict[str, float]:
    """Seconds a problem of an evaluation, whole and by parts; the parts are run by themselves."""
    parts = dict.fromkeys(("total", "problems", "tables", "model"), 0.0)
    parts["total"] = bench.seconds(lambda: bench.evaluate(length, bench.problems))
    for set_name in EVALUATED:
        start = bench.clock()
        made = list(evaluation_problems(bench.task, length, set_name, bench.problems, bench.seed))
        made_at = bench.clock()
        batches = []
        for problems in made:
            layout = bench.task.layout(problems.shape).to(bench.device)
            batches += planned(bench.model, problems.to(bench.device), layout, "parallel")
        planned_at = bench.clock()
        for problems, plan in batches:
            solves(bench.model, problems, plan)
        parts["problems"] += made_at - start
        parts["tables"] += planned_at - made_at
        parts["model"] += bench.clock() - planned_at
    return {name: seconds / (bench.problems * len(EVALUATED)) for name, seconds in parts.items()}


def evaluation_by_length(bench: Bench, lengths: Sequence[int]) -> Data:
    """Part A."""
    bench.model.attend("gathered")
    exact_match = {n: bench.evaluate(n, bench.problems) for n in lengths}  # which warms up, too
    times = rounds({n: partial(evaluation_parts, bench, n) for n in lengths}, bench.repeats, warm_up=False)
    seconds = {n: {part: [one[part] for one in times[n]] for part in times[n][0]} for n in lengths}
    title = f"A. Evaluation by gathering: {bench.problems} problems of each of {', '.join(EVALUATED)}"
    shown = table(title, "digits", "s a problem", "µs a digit", "problems", "layout, tables", "model", "exact match")
    for n, parts in seconds.items():
        whole = sum(statistics.median(parts[part]) for part in ("problems", "tables", "model"))
        shares = (f"{statistics.median(parts[part]) / whole:.0%}" for part in ("problems", "tables", "model"))
        right = ", ".join(f"{share:.0%}" for share in exact_match[n])
        shown.add_row(f"{n:,}", spread(parts["total"]), spread(parts["total"], 1e6 / n), *shares, right)
    console.print(shown)
    fitted = [n for n in lengths if n >= FIRST_OF_SLOPE]
    exponents = {}
    if len(fitted) > 1:
        for part in seconds[fitted[0]]:
            exponents[part] = slope(fitted, [statistics.median(seconds[n][part]) for n in fitted])
        goal = verdict(f"at most {LONGEST_SLOPE}", exponents["total"] <= LONGEST_SLOPE)
        listed = ", ".join(f"{part} {value:.2f}" for part, value in exponents.items())
        console.print(f"Exponent from {fitted[0]:,} to {fitted[-1]:,} digits: {listed} ({goal})\n")
    return {"seconds_a_problem": seconds, "exact_match": exact_match, "exponents": exponents}


def evaluation_on(bench: Bench, path: AttentionPath, length: int, problems: int) -> float:
    """Seconds a problem by one path."""
    bench.model.attend(path)
    return bench.seconds(lambda: bench.evaluate(length, problems)) / (problems * len(EVALUATED))


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def evaluation_against_dense(bench: Bench, lengths: Sequence[int]) -> Data:
    """Part B."""
    seconds: dict[int, dict[str, list[float]]] = {}
    shown = table(
        "B. Evaluation, dense path against gathered", "digits", "problems, rounds", "dense, s", "gathered, s", "ratio"
    )
    for n in lengths:
        long = n >= LONG
        problems, repeats = (1, min(bench.repeats, LONG_REPEATS)) if long else (bench.problems, bench.repeats)
        actions = {path: partial(evaluation_on, bench, path, n, problems) for path in PATHS}
        try:
            seconds[n] = rounds(actions, repeats, warm_up=not long)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            shown.add_row(f"{n:,}", f"{problems * len(EVALUATED)}", "too little memory", "", "")
            break
        dense, gathered = seconds[n]["dense"], seconds[n]["gathered"]
        many = f"{problems * len(EVALUATED)}, {repeats}"
        shown.add_row(f"{n:,}", many, spread(dense), spread(gathered), ratio_text(dense, gathered))
    console.print(shown)
    if seconds:
        longest = max(seconds)
        found = ratio(seconds[longest]["dense"], seconds[longest]["gathered"])
        goal = f"at least {LEAST_RATIO} at {LONG:,}"
        judged = verdict(goal, found >= LEAST_RATIO) if longest == LONG else f"goal: {goal} - not measured"
        console.print(f"At {longest:,} digits the dense path takes {short(found)} times as long ({judged})\n")
    return {"seconds_a_problem": seconds}


def stepping(bench: Bench, path: AttentionPath, problems: Problems) -> Callable[[int, int], float]:
    """Makes a decoder ready.

    Returns:
        What gives the seconds of a step: after so many tokens, over so many steps.
    """
    model = bench.model
    model.attend(path)
    plan = model.plan(bench.task.layout(problems.shape).to(bench.device), len(problems))
    state = model.decoder_state(problems.source, plan)

    def steps(tokens: Tensor, number: int) -> None:
        for _ in range(number):
            tokens = model.step(tokens, state).argmax(-1)

    def after(held: int, number: int) -> float:
        state.go_back(held)  # as if they had been decoded: what the cache holds of them does not matter to the clock
        return bench.seconds(lambda: steps(problems.target[:, held - 1], number)) / number

    return after


def generating(bench: Bench, batch: int, num_source: int) -> Callable[[int, int], float]:
    """The same for Hugging Face's `generate`: a T5 of the same sizes with random weights and its own cache.

    The source is handed over encoded. A step's time is the difference of two calls, so that what a call costs by
    itself is left out.
    """
    sizes = bench.model.architecture
    config = transformers.T5Config(
        vocab_size=len(bench.task.vocabulary),
        d_model=sizes.model_dim,
        d_kv=sizes.model_dim // sizes.num_heads,
        d_ff=sizes.feedforward_dim,
        num_heads=sizes.num_heads,
        num_layers=sizes.num_encoder_layers,
        num_decoder_layers=sizes.num_decoder_layers,
        pad_token_id=0,
        eos_token_id=None,  # so that it does not end
        decoder_start_token_id=1,
    )
    model = transformers.T5ForConditionalGeneration(config).eval().to(bench.device)
    encoded = torch.randn(batch, num_source, sizes.model_dim, device=bench.device)
    encoded = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=encoded)
    start = torch.ones(batch, 1, dtype=torch.long, device=bench.device)
    cross = model(encoder_outputs=encoded, decoder_input_ids=start).past_key_values.cross_attention_cache
    shape = (2, batch, sizes.num_heads, HELD, config.d_kv)
    own = [tuple(torch.randn(shape, device=bench.device)) for _ in range(sizes.num_decoder_layers)]

    def generate(held: int, number: int) -> float:
        layers = [(keys[:, :, :held], values[:, :, :held]) for keys, values in own]
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(layers), cross)
        arguments = {"encoder_outputs": encoded, "decoder_input_ids": start, "past_key_values": cache}
        taken = bench.seconds(lambda: model.generate(**arguments, max_new_tokens=number, do_sample=False))
        assert cache.get_seq_length() == held + number
        return taken

    def after(held: int, number: int) -> float:
        once = generate(held, 1)
        return (generate(held, 1 + number) - once) / number

    return after


def steps_by_batch(bench: Bench) -> Data:
    """A step in the middle of a long answer, by what keeps its keys and values."""
    title = f"C. A step after {HELD:,} tokens of an answer of {DECODED:,} digits"
    shown = table(title, "batch", "cache", "µs a step", "µs a token", "ratio")
    seconds: dict[int, dict[str, list[float]]] = {}
    for batch, number in BATCHES.items():
        problems = bench.sample(batch, DECODED)
        after = {path: stepping(bench, path, problems) for path in PATHS}
        if transformers is not None:
            after["Hugging Face"] = generating(bench, batch, problems.source.shape[1])
        actions = {name: partial(step, HELD, number) for name, step in after.items()}
        seconds[batch] = rounds(actions, bench.repeats)
        for name, values in seconds[batch].items():
            a_token = short(statistics.median(values) * 1e6 / batch)
            shown.add_row(
                f"{batch}", name, spread(values, 1e6), a_token, ratio_text(values, seconds[batch]["gathered"])
            )
    console.print(shown)
    if transformers is None:
        console.print("There is no `transformers` here, and so no row for Hugging Face: pip install transformers\n")
    return {"seconds_a_step": seconds}


def generating_gpt2(bench: Bench, num_source: int) -> Callable[[int, int], float]:
    """The same for a GPT-2 of the same sizes, which reads source and target as one string, one problem at a time."""
    sizes = bench.model.architecture
    config = transformers.GPT2Config(
        vocab_size=len(bench.task.vocabulary),
        n_positions=num_source + 2 * DECODED,
        n_embd=sizes.model_dim,
        n_inner=sizes.feedforward_dim,
        n_head=sizes.num_heads,
        n_layer=sizes.num_decoder_layers,
        bos_token_id=None,
        eos_token_id=None,  # so that it does not end
        pad_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).eval().to(bench.device)
    shape = (2, 1, sizes.num_heads, num_source + HELD, sizes.model_dim // sizes.num_heads)
    own = [tuple(torch.randn(shape, device=bench.device)) for _ in range(sizes.num_decoder_layers)]
    tokens = torch.ones(1, num_source + HELD + 1, dtype=torch.long, device=bench.device)

    def generate(held: int, number: int) -> float:
        before = num_source + held
        cache = transformers.DynamicCache([(keys[:, :, :before], values[:, :, :before]) for keys, values in own])
        given = {"input_ids": tokens[:, : before + 1], "attention_mask": torch.ones_like(tokens[:, : before + 1])}
        taken = bench.seconds(
            lambda: model.generate(**given, past_key_values=cache, max_new_tokens=number, do_sample=False)
        )
        assert cache.get_seq_length() == before + number
        return taken

    def after(held: int, number: int) -> float:
        once = generate(held, 1)
        return (generate(held, 1 + number) - once) / number

    return after


def decoding_whole(bench: Bench) -> Data:
    """Whole answers of one problem as `solve` decodes them, against steps with the dense cache and in `generate`.

    The problems are one of the suite `uniform`, and that of eight of the suite `carry` which takes longest.
    """
    problems = {"uniform": bench.sample(1, DECODED)}
    layout = bench.task.layout(problems["uniform"].shape).to(bench.device)

    def decode(own: Problems) -> float:
        bench.model.attend("gathered")
        batches = list(planned(bench.model, own, layout, "steps"))
        return bench.seconds(lambda: [greedy(bench.model, batch.source, plan) for batch, plan in batches]) / DECODED

    carries = [bench.sample(8, DECODED, CARRY)[row : row + 1] for row in range(8)]
    problems["the slowest of eight carries"] = max(carries, key=decode)

    def dense() -> float:
        return stepping(bench, "dense", problems["uniform"])(HELD, BATCHES[1])

    actions: dict[Hashable, Callable[[], float]] = {"a step with the dense cache": dense}
    if transformers is not None:
        num_source = problems["uniform"].source.shape[1]
        actions["a step of `generate`, T5"] = partial(generating(bench, 1, num_source), HELD, BATCHES[1])
        actions["a step of `generate`, GPT-2"] = partial(generating_gpt2(bench, num_source), HELD, BATCHES[1])
    actions |= {f"a whole answer, {name}": partial(decode, own) for name, own in problems.items()}
    seconds = rounds(actions, bench.repeats)
    shown = table(f"C. One problem of {DECODED:,} digits, token by token", "what", "µs a token", "ratio")
    for name, values in seconds.items():
        shown.add_row(name, spread(values, 1e6), ratio_text(seconds["a step with the dense cache"], values))
    console.print(shown)
    return {"seconds_a_token": seconds}


def steps_early_and_late(bench: Bench) -> Data:
    """A gathered step near the start and in the middle of a very long answer."""
    after = stepping(bench, "gathered", bench.sample(1, VERY_LONG))
    seconds = rounds({held: partial(after, held, STEPS) for held in (EARLY, LATE)}, bench.repeats)
    shown = table(f"C. A gathered step of an answer of {VERY_LONG:,} digits", "tokens held", "µs a step", "ratio")
    for held, values in seconds.items():
        shown.add_row(f"{held:,}", spread(values, 1e6), ratio_text(values, seconds[EARLY]))
    console.print(shown)
    return {"seconds_a_step": seconds}


def held_by_caches(bench: Bench) -> Data:
    """How much the keys and values of one problem take: of the target, by path, and of the source."""
    shown = table("C. Kept for one problem, bytes", "digits", *(f"{path} cache" for path in PATHS), "source")
    sizes = bench.model.architecture
    a_row = 2 * sizes.model_dim * bench.model.output.weight.element_size()
    kept: dict[int, dict[str, int]] = {}
    for n in HOLDING:
        layout = bench.task.layout(bench.sample(1, n).shape).to(bench.device)
        kept[n] = {"source": a_row * len(layout.source) * sizes.num_decoder_layers}
        for path in PATHS:
            bench.model.attend(path)
            kept[n][path] = a_row * sum(storage.num_rows for storage in bench.model.plan(layout).own)
        shown.add_row(f"{n:,}", *(f"{kept[n][name]:,}" for name in (*PATHS, "source")))
    console.print(shown)
    return {"bytes": kept}


@torch.no_grad()
def decoding(bench: Bench) -> Data:
    """Part C."""
    return {
        "by_batch": steps_by_batch(bench),
        "whole": decoding_whole(bench),
        "early_and_late": steps_early_and_late(bench),
        "kept": held_by_caches(bench),
    }


def training_times(bench: Bench, path: AttentionPath, problems: Problems) -> dict[str, float]:
    """Seconds of a training batch by one path: forward alone, and forward and backward."""
    layout = bench.task.layout(problems.shape).to(bench.device)
    bench.model.attend(path)
    bench.model.zero_grad()
    with torch.no_grad():
        forward = bench.seconds(lambda: predict(bench.model, problems, layout))

    def step() -> None:
        logits = predict(bench.model, problems, layout)
        functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten()).backward()

    return {"forward": forward, "both ways": bench.seconds(step)}


def keys_a_slot(bench: Bench, length: int) -> float:
    """Keys for each slot of a table of open keys, on average over the attentions."""
    bench.model.attend("gathered")
    layout = bench.task.layout(bench.sample(1, length).shape).to(bench.device)
    keys = cycle((len(layout.prefix), len(layout.source)))
    heads = bench.model.architecture.num_heads
    return statistics.mean(num * heads / slots for num, slots in zip(keys, bench.model.num_slots(layout), strict=False))


def crossing(density: Sequence[float], ratios: Sequence[float]) -> str:
    """From how many keys a slot on the dense path always takes longer, between the measured ones by logarithms."""
    slower = [place for place, value in enumerate(ratios) if value < 1]
    if not slower:
        return f"fewer than {short(density[0])}"
    last = slower[-1]
    if last + 1 == len(ratios):
        return f"more than {short(density[-1])}"
    (x, y), (low, high) = map(math.log, density[last : last + 2]), map(math.log, ratios[last : last + 2])
    return short(math.exp(x + (y - x) * -low / (high - low)))


def training(bench: Bench, lengths: Sequence[int]) -> Data:
    """Part D."""
    bench.model.train()
    seconds: dict[int, dict[str, list[dict[str, float]]]] = {}
    density = {n: keys_a_slot(bench, n) for n in lengths}
    ratios: dict[str, list[float]] = {"forward": [], "both ways": []}
    title = "D. A training batch, dense path against gathered"
    shown = table(title, "digits", "batch", "keys a slot", "pass", "dense, ms", "gathered, ms", "ratio")
    for n in lengths:
        problems = bench.sample(max(FEWEST, min(MOST, TRAINED_DIGITS // n)), n, TRAINING)
        seconds[n] = rounds({path: partial(training_times, bench, path, problems) for path in PATHS}, bench.repeats)
        for kind, found in ratios.items():
            dense, gathered = ([one[kind] for one in seconds[n][path]] for path in PATHS)
            found.append(ratio(dense, gathered))
            start = (f"{n}", f"{len(problems)}", short(density[n])) if kind == "forward" else ("", "", "")
            shown.add_row(*start, kind, spread(dense, 1e3), spread(gathered, 1e3), ratio_text(dense, gathered))
    bench.model.eval()
    console.print(shown)
    crossings = {kind: crossing(list(density.values()), found) for kind, found in ratios.items()}
    listed = ", ".join(f"{value} ({kind})" for kind, value in crossings.items())
    console.print(f"Gathering pays from so many keys a slot on: {listed}; KEYS_A_SLOT is {KEYS_A_SLOT}\n")
    return {"keys_a_slot": density, "seconds": seconds, "crossings": crossings}


def circumstances(settings: argparse.Namespace, device: torch.device) -> Data:
    """What the numbers were measured with and on."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or None
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "commit": commit,
        "run": str(settings.run),
        "seed": settings.seed,
        "problems": settings.problems,
        "repeats": settings.repeats,
        "machine": names[0] if names else platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers and transformers.__version__,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished run whose model can gather")
    parser.add_argument("--parts", nargs="+", choices=list("ABCD"), default=list("ABCD"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--problems", type=int, default=2, help="of each length and set that is evaluated")
    parser.add_argument("--lengths", nargs="+", type=int, default=[600, 6000, 12_000, 30_000, 60_000], help="of part A")
    parser.add_argument("--dense-lengths", nargs="+", type=int, default=[60, 200, 600, 2000, 6000], help="of part B")
    parser.add_argument("--training-lengths", nargs="+", type=int, default=TRAINED, help="of part D")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to save the numbers")
    return parser.parse_args()


def main() -> None:
    settings = arguments()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    run = Run(settings.run)
    model = run.load_model(PHASE).to(device)
    bench = Bench(run.task(PHASE), model, device, settings.seed, settings.problems, settings.repeats)
    parts: dict[str, Callable[[], Data]] = {
        "A": lambda: evaluation_by_length(bench, sorted(settings.lengths)),
        "B": lambda: evaluation_against_dense(bench, sorted(settings.dense_lengths)),
        "C": lambda: decoding(bench),
        "D": lambda: training(bench, sorted(settings.training_lengths)),
    }
    results = circumstances(settings, device)
    console.print(", ".join(f"{name} {value}" for name, value in results.items()), "\n")
    start = time.perf_counter()
    for name in settings.parts:
        results[name] = parts[name]()
    console.print(f"All of it took {time.perf_counter() - start:.0f} s")
    if settings.json is not None:
        save_json(settings.json, results)


if __name__ == "__main__":
    main()
