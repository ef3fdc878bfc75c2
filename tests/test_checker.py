import copy
import hashlib
import itertools
import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abc_toolkit import checker

Json = dict[str, Any]
Tensors = dict[str, np.ndarray]
N = {"s0": 1}
BITS = [2, 3]
START = {"segment": "start", "place": 0, "index": 0, "row": 0, "column": 0, "values": [0]}


def item(segment: str, values: list[int], place: Any = 0, index: Any = 0, row: Any = 0) -> Json:
    return {"segment": segment, "place": place, "index": index, "row": row, "column": place, "values": values}


def digits(segment: str, count: Json, upwards: bool = True) -> Json:
    """A number of so many bits, least significant first or last."""
    ends: list[Any] = [{"v": 1}, count | {"v": -1, "": count.get("", 0) - 1}]
    place, index = ends if upwards else ends[::-1]
    return {"repeat": count, "variable": "v", "items": [item(segment, BITS, place, index)]}


def layout(source: list[Json], target: list[Json], least: tuple[int, ...] = (1,), where: Any = ()) -> Json:
    segments = ["operand 1", "operator", "operand 2", "start", "answer", "end"]
    cases = [{"where": list(where), "source": source, "target": target}]
    return {"segments": segments, "least": list(least), "start": START, "cases": cases}


def read(name: str, role: str, row: int | None = None, segment: str | None = None) -> Json:
    return {"name": name, "role": role, "segment": segment or name, "row": row, "shift": 0}


def transducer(reads: list[Json], table: Any, **changes: Any) -> Json:
    states = len(table)
    rule = {"along": "place", "base": 2, "num_states": states, "starts": [0], "ends": [True] * states}
    return rule | {"least_constant": 0, "reads": reads, "table": table} | changes


def line(site: str, head: int, segment: str | None, *conditions: tuple[str, int, str | None], **changes: Any) -> Json:
    listed = [{"key": key, "equals": equals, "query": query} for key, equals, query in conditions]
    rule = {"site": site, "layer": 0, "head": head, "key_segment": segment, "query_segment": None}
    return rule | {"conditions": listed, "bias": 0.0, "fallback": False} | changes


def own(equals: int = 0) -> tuple[str, int, str]:
    return "place", equals, "place"


# The running exclusive or of bits: 1011 has the target 1101, least significant bit first.
PARITY = {
    "layout": layout([digits("operand 1", N)], [digits("answer", N), item("end", [1], N, -1)]),
    "rule": transducer(
        [read("operand 1", "operand"), read("answer", "answer")], [[[s ^ d, s ^ d] for d in (0, 1)] for s in (0, 1)]
    ),
    "lines": [line("decoder", 0, "answer", own(1)), line("cross", 1, "operand 1", own())],
    "identities": [
        {
            **{"kind": "running", "statement": "each bit is the parity up to it", "name": "answer"},
            **{"operand": "operand 1", "carry": [0, 1], "modulus": 2},
        }
    ],
}
SUM = [{"name": name, "per_state": [1, 1], "times_constant": False} for name in ("operand 1", "operand 2", "answer")]
# The sum of two numbers of as many bits, which are written most significant bit first.
ADDITION = {
    "layout": layout(
        [digits("operand 1", N, False), item("operator", [4]), digits("operand 2", N, False)],
        [digits("answer", N | {"": 1}), item("end", [1], N | {"": 1}, -1)],
    ),
    "rule": transducer(
        [read("operand 1", "operand"), read("operand 2", "operand"), read("answer", "answer")],
        [[[[(a + b + c) // 2, (a + b + c) % 2] for b in (0, 1)] for a in (0, 1)] for c in (0, 1)],
        ends=[True, False],
    ),
    "lines": [
        line("decoder", 0, "answer", own(1)),
        line("cross", 0, "operand 1", own()),
        line("cross", 1, "operand 1", own(1)),
        line("cross", 2, "operand 2", own()),
        line("cross", 3, "operand 2", own(1)),
    ],
    "identities": [
        {"kind": "linear", "statement": "a + b = w", "takes": SUM[:2], "gives": SUM[2:], "carry": [0, 1]},
    ],
}


def random_tensors(num_tokens: int, dim: int, hidden: int, layers: tuple[int, int], pre: bool, seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (num_tokens, dim)}

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (dim,), f"{name}.bias": (dim,)})

    for side, parts, count in (("encoder", ["self"], layers[0]), ("decoder", ["self", "cross"], layers[1])):
        for n in range(count):
            for part in parts:
                linear(f"{side}.{n}.{part}_attention.query", dim, dim)
                linear(f"{side}.{n}.{part}_attention.key_value", 2 * dim, dim)
                linear(f"{side}.{n}.{part}_attention.output", dim, dim)
                norm(f"{side}.{n}.{part}_norm")
            linear(f"{side}.{n}.feedforward.0", hidden, dim)
            linear(f"{side}.{n}.feedforward.3", dim, hidden)
            norm(f"{side}.{n}.feedforward_norm")
        if pre and count:
            norm(f"{side}_norm")
    linear("output", num_tokens, dim)
    return {
        name: (rng.normal(0, shape[-1] ** -0.5, shape) + name.endswith("norm.weight")).astype(np.float32)
        for name, shape in shapes.items()
    }


def dense_logits(tensors: Tensors, case: Json, problem: tuple[list[int], list[int]], like: Any = np.float64) -> Any:
    """Logits of every target token, and what they are read off: whole strings, every key compared with every query."""
    weights = {name: tensor.astype(like) for name, tensor in tensors.items()}
    architecture = case["architecture"]
    dim, heads, pre = architecture["model_dim"], architecture["num_heads"], architecture["norm"] == "pre"
    source, target, prefix = tokens_of(case["layout"], case["sizes"])

    def linear(name: str, x: Any, rows: slice = slice(None)) -> Any:
        return x @ weights[f"{name}.weight"][rows].T + weights[f"{name}.bias"][rows]

    def norm(name: str, x: Any) -> Any:
        c = x - x.mean(1, keepdims=True)
        return c / np.sqrt((c * c).mean(1, keepdims=True) + like(1e-5)) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def bias(site: str, layer: int, head: int, queries: list[Json], keys: list[Json]) -> Any:
        closed = np.full((len(queries), len(keys)), -np.inf)
        for fallback in (False, True):
            asks = np.isinf(closed).all(1) | (not fallback)
            for rule in case["lines"]:
                if (rule["site"], rule["layer"], rule["head"], rule["fallback"]) == (site, layer, head, fallback):
                    for (i, q), (j, k) in itertools.product(enumerate(queries), enumerate(keys)):
                        fits = rule["key_segment"] in (None, k["segment"]) and rule["query_segment"] in (None, q["segment"])
                        for c in rule["conditions"]:
                            fits &= (q[c["query"]] if c["query"] else 2 * k[c["key"]]) - k[c["key"]] == c["equals"]
                        if fits and asks[i] and (site != "decoder" or j <= i):
                            closed[i, j] = max(closed[i, j], rule["bias"])
        return closed

    def attention(name: str, site: str, layer: int, x: Any, memory: Any, queries: Any, keys: Any) -> Any:
        q, k, v = linear(f"{name}.query", x), *np.split(linear(f"{name}.key_value", memory), 2, axis=1)
        parts = []
        for head, (a, b, c) in enumerate(zip(*(np.split(y, heads, axis=1) for y in (q, k, v)), strict=True)):
            added = bias(site, layer, head, queries, keys).astype(like)
            kept = (added > -np.inf).any(1)
            logits = np.where(kept[:, None], a @ b.T / np.sqrt(like(dim // heads)) + added, 0)
            e = np.exp(logits - logits.max(1, keepdims=True))
            parts.append(np.where(kept[:, None], e / e.sum(1, keepdims=True) @ c, 0))
        return linear(f"{name}.output", np.concatenate(parts, axis=1))

    def embedded(ids: list[int], tokens: list[Json]) -> Any:
        x = weights["embedding.weight"][ids] * np.sqrt(like(dim))
        for table in case["positions"]:
            for k, name in enumerate(table["coordinates"]):
                wave = np.zeros((len(ids), dim), like)
                for (n, token), m in itertools.product(enumerate(tokens), range(dim)):
                    angle = token[name] % table["period"] * table["base"] ** (-(m // 2 * 2) / dim)
                    wave[n, m] = math.cos(angle) if m % 2 else math.sin(angle)
                wave = np.roll(wave, dim * k // len(table["coordinates"]), axis=1)
                x = x + (wave if table["channels"] == "interleaved" else np.concatenate([wave[:, ::2], wave[:, 1::2]], 1))
        return x

    def layer(side: str, n: int, x: Any, memory: Any, queries: list[Json]) -> Any:
        name = f"{side}.{n}"

        def block(part: str, x: Any, update: Callable[[Any], Any]) -> Any:
            return x + update(norm(f"{name}.{part}_norm", x)) if pre else norm(f"{name}.{part}_norm", x + update(x))

        keys = source if side == "encoder" else prefix
        x = block("self", x, lambda h: attention(f"{name}.self_attention", side, n, h, h, queries, keys))
        if side == "decoder":
            cross = f"{name}.cross_attention"
            x = block("cross", x, lambda h: attention(cross, "cross", n, h, memory, queries, source))
        inner = f"{name}.feedforward"
        return block("feedforward", x, lambda h: linear(f"{inner}.3", np.maximum(linear(f"{inner}.0", h), 0)))

    memory, x = embedded(problem[0], source), embedded([0, *problem[1][:-1]], target)
    for n in range(architecture["num_encoder_layers"]):
        memory = layer("encoder", n, memory, None, source)
    if pre and architecture["num_encoder_layers"]:
        memory = norm("encoder_norm", memory)
    for n in range(architecture["num_decoder_layers"]):
        x = layer("decoder", n, x, memory, target)
    x = norm("decoder_norm", x) if pre else x
    return linear("output", x), x


def tokens_of(layout: Json, sizes: dict[str, int]) -> tuple[list[Json], list[Json], list[Json]]:
    """Coordinates of the tokens of source, target and prefix."""

    def value(expr: Any, values: dict[str, int]) -> int:
        return expr if isinstance(expr, int) else sum(n * values.get(symbol, 1) for symbol, n in expr.items())

    def through(items: list[Json], values: dict[str, int]) -> list[Json]:
        tokens = []
        for each in items:
            if "repeat" in each:
                for n in range(value(each["repeat"], values)):
                    tokens += through(each["items"], values | {each["variable"]: n})
            else:
                coordinates = {key: value(each[key], values) for key in ("place", "index", "row", "column")}
                tokens.append({"segment": each["segment"], "values": each["values"], **coordinates})
        return tokens

    (case,) = layout["cases"]
    source, target = through(case["source"], sizes), through(case["target"], sizes)
    prefix = through([layout["start"]], sizes) + copy.deepcopy(target[:-1])
    for string in (source, target, prefix):
        for n, token in enumerate(string):
            token.update({"raw": n, "raw_from_end": len(string) - 1 - n})
    return source, target, prefix


def parity_problems(length: int) -> list[tuple[list[int], list[int]]]:
    found = []
    for bits in itertools.product((0, 1), repeat=length):
        parities = list(itertools.accumulate(bits, lambda a, b: a ^ b))
        found.append(([b + 2 for b in bits], [b + 2 for b in parities] + [1]))
    return found


def addition_problems(length: int) -> list[tuple[list[int], list[int]]]:
    found = []
    for a, b in itertools.product(range(2**length), repeat=2):
        one, two = ([n >> i & 1 for i in range(length)] for n in (a, b))
        total = [(a + b) >> i & 1 for i in range(length + 1)]
        found.append(([x + 2 for x in one[::-1]] + [4] + [x + 2 for x in two[::-1]], [x + 2 for x in total] + [1]))
    return found


def canonical(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def safetensors(tensors: Tensors, dtype: str = "F32") -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.tobytes()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class Made:
    """A certificate of a small model, its files and what is in them."""

    def __init__(self, folder: Path, task: Json, tensors: Tensors, certificate: Json) -> None:
        self.folder, self.task, self.tensors, self.certificate = folder, task, dict(tensors), copy.deepcopy(certificate)
        self.window = {"num_encoder_layers": 0, "num_decoder_layers": 1, "num_heads": 4, "rules": task["lines"]}
        self.path = folder / "certify" / "certificate.json"
        for name in ("certify", "retrain"):
            (folder / name).mkdir(exist_ok=True)

    def write(self) -> None:
        """Writes the files, with hashes that are right."""
        weights, window = safetensors(self.tensors), json.dumps(self.window).encode()
        hashes = {key: canonical(self.certificate.get(key)) for key in checker.HASHED}
        hashes |= {"weights": hashlib.sha256(weights).hexdigest(), "window": hashlib.sha256(window).hexdigest()}
        self.certificate["hashes"] = hashes
        (self.folder / "retrain" / "weights.safetensors").write_bytes(weights)
        (self.folder / "retrain" / "window.json").write_bytes(window)
        self.path.write_text(json.dumps(self.certificate))

    def run(self) -> int:
        return checker.main([str(self.path)])


def certificate_of(task: Json, num_tokens: int, dim: int) -> Json:
    architecture = {"num_encoder_layers": 0, "num_decoder_layers": 1, "model_dim": dim, "num_heads": 4}
    architecture |= {"feedforward_dim": 256, "norm": "pre", "dropout": 0.0, "backbone": "encoder-decoder"}
    architecture["position"] = {"class_path": "abc_toolkit.positions.absolute.NoPE", "init_args": {}}
    tokens = {"count": num_tokens, "bos": 0, "eos": 1, "first_symbol": 2, "symbols": "01+"[: num_tokens - 2]}
    certificate = {"schema": 3, "argument": 1, "verdict": "correct", "task": {}, "architecture": architecture}
    certificate |= {"tokens": tokens, "positions": [], "bound": {"sizes": {"s0": 10}}, "kinds": 0, "assignments": 0}
    certificate |= dict.fromkeys(("smallest_margin", "largest_rounding", "smallest_slack"), 0.0)
    return copy.deepcopy(certificate | {key: task[key] for key in ("layout", "rule", "identities")})


def measured(made: Made) -> Json:
    """What the checker finds, whether it agrees or not."""
    made.write()
    said: list[tuple[str, str]] = []
    retrain = made.folder / "retrain"
    try:
        paths = made.path, retrain / "weights.safetensors", retrain / "window.json"
        checker.check(*paths, lambda heading, text: said.append((heading, text)))
    except checker.Outcome as outcome:
        said.append(("line", outcome.line))
    return dict(said)


def solving(task: Json, problems: Callable[[int], Any], num_tokens: int, dim: int) -> tuple[Tensors, Json]:
    """A model of random weights whose last layer is chosen so that it solves a task, and its certificate."""
    certificate = certificate_of(task, num_tokens, dim)
    tensors = random_tensors(num_tokens, dim, 256, (0, 1), True, 1)
    case = {**certificate, **task}
    states, required = [], []
    for length in (1, 2, 3):
        for problem in problems(length):
            states.append(dense_logits(tensors, {**case, "sizes": {"s0": length}}, problem)[1])
            required += problem[1]
    wanted = np.where(np.eye(num_tokens)[required] > 0, 4.0, -4.0)
    x = np.hstack([np.concatenate(states), np.ones((len(wanted), 1))])
    solution = np.linalg.solve(x.T @ x + 1e-4 * len(x) * np.eye(dim + 1), x.T @ wanted)
    tensors["output.weight"] = solution[:-1].T.astype(np.float32).copy()
    tensors["output.bias"] = solution[-1].astype(np.float32)
    return tensors, certificate


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Json, Tensors, Json]]:
    """A task, a model that solves it, and a certificate that agrees."""
    kept: dict[str, tuple[Json, Tensors, Json]] = {}

    def of(name: str) -> tuple[Json, Tensors, Json]:
        if name not in kept:
            task, problems, num_tokens = (
                (PARITY, parity_problems, 4) if name == "parity" else (ADDITION, addition_problems, 5)
            )
            tensors, certificate = solving(task, problems, num_tokens, 64)
            found = measured(Made(tmp_path_factory.mktemp(name), task, tensors, certificate))
            assert "assignments" in found, found
            certificate["assignments"] = int(found["assignments"].split(";")[0])
            for key in checker.COMPARED[1:]:
                certificate[key] = float(found[key.replace("_", " ")].split(";")[0])
            kept[name] = task, tensors, certificate
        return kept[name]

    return of


@pytest.fixture
def made(solved: Callable[[str], tuple[Json, Tensors, Json]], tmp_path: Path) -> Made:
    return Made(tmp_path, *solved("parity"))


@pytest.mark.parametrize(("name", "problems"), [("parity", parity_problems), ("addition", addition_problems)])
def test_agrees_with_every_problem(
    name: str,
    problems: Callable[[int], Any],
    solved: Callable[[str], tuple[Json, Tensors, Json]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task, tensors, certificate = solved(name)
    made = Made(tmp_path, task, tensors, certificate)
    made.write()
    assert made.run() == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[-1] == "agrees"
    assert "holds" in printed.out
    seen, margins, off = set(), [], []
    for length in (1, 2, 3, 4):
        case = {**certificate, **task, "sizes": {"s0": length}}
        for source, target in problems(length)[:: 1 if length < 4 else 7]:
            logits = dense_logits(tensors, case, (source, target))[0]
            rough = dense_logits(tensors, case, (source, target), np.float32)[0]
            for n, required in enumerate(target):
                others = np.delete(np.arange(certificate["tokens"]["count"]), required)
                margins.append((logits[n, required] - logits[n, others]).min())
                off.append(abs((rough[n, required] - rough[n, others]) - (logits[n, required] - logits[n, others])).max())
        for source, target in problems(length):
            for n, required in enumerate(target):
                if name == "parity":  # reads its own bit and what was written last
                    seen.add((required, *source[n : n + 1], target[n - 1] if n else 0, n == length))
                else:  # reads two bits of both operands, and what was written last
                    bits = [tuple(operand[max(0, n - 1) : n + 1]) for operand in (source[:length][::-1], source[length + 1 :][::-1])]
                    seen.add((required, *bits, target[n - 1] if n else 0, n == 0, n == length))
    assert certificate["assignments"] == len(seen)
    assert certificate["smallest_margin"] == pytest.approx(min(margins), rel=1e-6)
    assert max(off) < certificate["largest_rounding"] < 0.1
    assert certificate["smallest_slack"] < certificate["smallest_margin"]
    assert certificate["smallest_slack"] > certificate["smallest_margin"] - certificate["largest_rounding"]
