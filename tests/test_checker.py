import copy
import hashlib
import itertools
import json
import math
import re
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
    cases = [{"where": list(where), "start": START, "source": source, "target": target}]
    return {"segments": segments, "least": list(least), "cases": cases}


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
            "kind": "running",
            "statement": "each bit is the parity up to it",
            "answer": "answer",
            "operand": "operand 1",
            "carry": [0, 1],
            "modulus": 2,
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
STRING_PARITY = {
    **PARITY,
    "backbone": "decoder-only",
    "lines": [line("decoder", 0, "answer", own(1)), line("decoder", 1, "operand 1", own(), query_string="target")],
}
STRING_ADDITION = {
    **ADDITION,
    "backbone": "decoder-only",
    "lines": [rule | {"site": "decoder", "query_string": "target"} for rule in ADDITION["lines"]],
}


def parts_of(backbone: str) -> list[tuple[str, list[str]]]:
    """The attentions of a layer of each stack."""
    if backbone == "decoder-only":
        return [("decoder", ["self"])]
    return [("encoder", ["self"]), ("decoder", ["self", "cross"])]


def random_tensors(
    num_tokens: int,
    dim: int,
    hidden: int,
    layers: tuple[int, int],
    pre: bool,
    seed: int,
    backbone: str = "encoder-decoder",
) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (num_tokens, dim)}

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (dim,), f"{name}.bias": (dim,)})

    for side, parts in parts_of(backbone):
        count = layers[side == "decoder"]
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
    one_string = architecture["backbone"] == "decoder-only"
    source, target, prefix = tokens_of(case["layout"], case["sizes"], one_string)

    def linear(name: str, x: Any, rows: slice = slice(None)) -> Any:
        return x @ weights[f"{name}.weight"][rows].T + weights[f"{name}.bias"][rows]

    def norm(name: str, x: Any) -> Any:
        c = x - x.mean(1, keepdims=True)
        return (
            c / np.sqrt((c * c).mean(1, keepdims=True) + like(1e-5)) * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    def bias(site: str, layer: int, head: int, queries: list[Json], keys: list[Json]) -> Any:
        closed = np.full((len(queries), len(keys)), -np.inf)
        for fallback in (False, True):
            asks = np.isinf(closed).all(1) | (not fallback)
            for rule in case["lines"]:
                if (rule["site"], rule["layer"], rule["head"], rule["fallback"]) == (site, layer, head, fallback):
                    for (i, q), (j, k) in itertools.product(enumerate(queries), enumerate(keys)):
                        fits = rule["key_segment"] in (None, k["name"]) and rule["query_segment"] in (None, q["name"])
                        fits &= rule.get("query_string") in (None, q["string"])
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
                x = x + (
                    wave if table["channels"] == "interleaved" else np.concatenate([wave[:, ::2], wave[:, 1::2]], 1)
                )
        return x

    def layer(side: str, n: int, x: Any, memory: Any, queries: list[Json]) -> Any:
        name = f"{side}.{n}"

        def block(part: str, x: Any, update: Callable[[Any], Any]) -> Any:
            return x + update(norm(f"{name}.{part}_norm", x)) if pre else norm(f"{name}.{part}_norm", x + update(x))

        keys = source if side == "encoder" else prefix
        x = block("self", x, lambda h: attention(f"{name}.self_attention", side, n, h, h, queries, keys))
        if side == "decoder" and not one_string:
            cross = f"{name}.cross_attention"
            x = block("cross", x, lambda h: attention(cross, "cross", n, h, memory, queries, source))
        inner = f"{name}.feedforward"
        return block("feedforward", x, lambda h: linear(f"{inner}.3", np.maximum(linear(f"{inner}.0", h), 0)))

    memory = embedded(problem[0], source)
    x = embedded([*(problem[0] if one_string else []), 0, *problem[1][:-1]], target)
    for n in range(architecture["num_encoder_layers"]):
        memory = layer("encoder", n, memory, None, source)
    if pre and architecture["num_encoder_layers"]:
        memory = norm("encoder_norm", memory)
    for n in range(architecture["num_decoder_layers"]):
        x = layer("decoder", n, x, memory, target)
    x = (norm("decoder_norm", x) if pre else x)[-len(problem[1]) :]
    return linear("output", x), x


def tokens_of(
    layout: Json, sizes: dict[str, int], one_string: bool = False
) -> tuple[list[Json], list[Json], list[Json]]:
    """Coordinates of the tokens of source, target and prefix; as one string, the source precedes both others."""

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
                number = layout["segments"].index(each["segment"])
                tokens.append({"name": each["segment"], "segment": number, **coordinates})
        return tokens

    (case,) = layout["cases"]
    source, target = through(case["source"], sizes), through(case["target"], sizes)
    prefix = through([case["start"]], sizes) + copy.deepcopy(target[:-1])
    for token in source:
        token["string"] = "source"
    for token in target:
        token["string"] = "target"
    if one_string:
        target, prefix = copy.deepcopy(source) + target, copy.deepcopy(source) + prefix
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
        self.window |= {key: task[key] for key in ("backbone",) if key in task}
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


def certificate_of(task: Json, num_tokens: int) -> Json:
    architecture = {"num_encoder_layers": 0, "num_decoder_layers": 1, "model_dim": 32, "num_heads": 4}
    architecture |= {"feedforward_dim": 64, "norm": "pre", "dropout": 0.0}
    architecture["backbone"] = task.get("backbone", "encoder-decoder")
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
        said.append(("line", outcome.args[0]))
    return dict(said)


def solving(task: Json, problems: Callable[[int], Any], num_tokens: int) -> tuple[Tensors, Json]:
    """A model that solves a task, as its hidden layer has a unit for each assignment, and its certificate."""
    certificate = certificate_of(task, num_tokens)
    dim, hidden = (certificate["architecture"][key] for key in ("model_dim", "feedforward_dim"))
    tensors = random_tensors(num_tokens, dim, hidden, (0, 1), True, 1, certificate["architecture"]["backbone"])
    for name in ("decoder_norm", "decoder.0.feedforward_norm"):
        tensors |= {f"{name}.weight": np.ones(dim, np.float32), f"{name}.bias": np.zeros(dim, np.float32)}
    inner, outer = np.zeros((hidden, dim)), np.zeros((dim, hidden))
    tensors |= {
        f"decoder.0.feedforward.{n}": 0 * tensors[f"decoder.0.feedforward.{n}"]
        for n in ("0.bias", "3.weight", "3.bias")
    }
    required: dict[
        tuple[float, ...], int
    ] = {}  # by what the hidden layer reads, which the last normalisation shows here
    for length in (1, 2, 3):
        for problem in problems(length):
            state = dense_logits(tensors, {**certificate, **task, "sizes": {"s0": length}}, problem)[1]
            required |= {tuple(row.round(6).tolist()): token for row, token in zip(state, problem[1], strict=True)}
    states, count = np.array(list(required)), len(required)
    alike = states @ states.T
    nearest = (alike - 2 * dim * np.eye(count)).max(1)
    answers = np.linalg.qr(np.random.default_rng(2).normal(size=(dim, num_tokens + 1)) - np.eye(dim, num_tokens + 1))[
        0
    ].T
    answers = answers[:num_tokens] - answers[:num_tokens].mean(1, keepdims=True)
    inner[:count] = states
    outer[:, :count] = (40 * answers[list(required.values())] / ((alike.diagonal() - nearest) / 2)[:, None]).T
    tensors |= {
        "decoder.0.feedforward.0.weight": inner,
        "decoder.0.feedforward.3.weight": outer,
        "output.weight": answers,
    }
    tensors["decoder.0.feedforward.0.bias"][:count] = -(alike.diagonal() + nearest) / 2
    tensors["output.bias"] *= 0
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}, certificate


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Json, Tensors, Json]]:
    """A task, a model that solves it, and a certificate that agrees."""
    kept: dict[str, tuple[Json, Tensors, Json]] = {}

    def of(name: str) -> tuple[Json, Tensors, Json]:
        if name not in kept:
            task, problems, num_tokens = {
                "parity": (PARITY, parity_problems, 4),
                "addition": (ADDITION, addition_problems, 5),
                "parity as one string": (STRING_PARITY, parity_problems, 4),
            }[name]
            tensors, certificate = solving(task, problems, num_tokens)
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


@pytest.fixture
def made_as_one_string(solved: Callable[[str], tuple[Json, Tensors, Json]], tmp_path: Path) -> Made:
    return Made(tmp_path, *solved("parity as one string"))


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("parity", parity_problems),
        ("addition", addition_problems),
        ("parity as one string", parity_problems),
    ],
)
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
                off.append(
                    abs((rough[n, required] - rough[n, others]) - (logits[n, required] - logits[n, others])).max()
                )
        for source, target in problems(length):
            for n, required in enumerate(target):
                if problems is parity_problems:  # reads its own bit and what was written last
                    seen.add((required, *source[n : n + 1], target[n - 1] if n else 0, n == length))
                else:  # reads two bits of both operands, and what was written last
                    bits = [
                        tuple(operand[max(0, n - 1) : n + 1])
                        for operand in (source[:length][::-1], source[length + 1 :][::-1])
                    ]
                    seen.add((required, *bits, target[n - 1] if n else 0, n == 0, n == length))
    assert certificate["assignments"] == len(seen)
    assert certificate["smallest_margin"] == pytest.approx(min(margins), rel=1e-6)
    assert max(off) < certificate["largest_rounding"] < 1
    assert certificate["smallest_slack"] < certificate["smallest_margin"]
    assert certificate["smallest_slack"] > certificate["smallest_margin"] - certificate["largest_rounding"]


def test_needs_numpy_alone_and_says_what_it_did(made: Made) -> None:
    made.write()
    # The package's folder is given away, so that nothing of the toolkit but the checker's own file is in reach.
    code = "import runpy, sys; sys.argv[0] = 'checker'; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-I", "-c", code, checker.__file__, str(made.path)]
    done = subprocess.run(command, cwd=made.folder, capture_output=True, text=True)
    headings = ["hashes", "bound of sizes", "layouts", "kinds", "assignments", "smallest margin"]
    headings += ["largest rounding", "smallest slack", "identity", "agrees"]
    assert done.stderr == ""
    assert [line[:18].rstrip() for line in done.stdout.splitlines()] == headings
    assert done.returncode == 0
    names = (
        "import abc_toolkit.checker, sys; print([name for name in sys.modules if name.startswith(('torch', 'abc_'))])"
    )
    done = subprocess.run([sys.executable, "-c", names], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.stdout.strip() == "['abc_toolkit', 'abc_toolkit.checker']"


def test_files_elsewhere(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.write()
    arguments = [str(made.path)]
    for name, file in (("weights", "weights.safetensors"), ("window", "window.json")):
        (made.folder / "retrain" / file).rename(tmp_path / file)
        assert checker.main(arguments) == 2
        assert f"{file} cannot be read (No such file or directory): give the path" in capsys.readouterr().err
        arguments += [f"--{name}", str(tmp_path / file)]
    assert checker.main(arguments) == 0


# Disagreements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["weights", "window", *checker.HASHED])
def test_a_wrong_hash(key: str, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.write()
    made.certificate["hashes"][key] = "0" * 64
    made.path.write_text(json.dumps(made.certificate))
    assert made.run() == 1
    assert f"does NOT agree: the hash of {key} is" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bound": {"sizes": {"s0": 9}}}, "the bound of s0 is 9, and the lemma asks for 10"),
        ({"assignments": 9}, "assignments is 8, but 9 in the certificate"),
        ({"smallest_margin": 5.2307}, "smallest_margin is 5.23056"),
        ({"largest_rounding": 0.1}, "largest_rounding is 0.31363"),
        ({"smallest_slack": 4.0}, "smallest_slack is 4.9776"),
    ],
)
def test_a_wrong_number(change: Json, line: str, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.certificate |= change
    made.write()
    assert made.run() == 1
    assert f"does NOT agree: {line}" in capsys.readouterr().out.splitlines()[-1]


def test_a_larger_bound_is_gone_through_too(made: Made) -> None:
    made.certificate["bound"]["sizes"]["s0"] = 14
    found = measured(made)
    assert found["layouts"].startswith("14,")
    assert found["assignments"] == "8; 8 in the certificate"
    assert "line" not in found


def test_values_of_an_operand_are_all_that_its_tokens_have(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.certificate["rule"]["reads"][0]["values"] = [0, 1]
    assert measured(made)["assignments"] == "8; 8 in the certificate"
    made.certificate["rule"]["reads"][0]["values"] = [0]
    made.write()
    assert made.run() == 2
    line = "rule: operand 1 has values that not all tokens of 'operand 1' keep to"
    assert line in capsys.readouterr().err.splitlines()[-1]
    made.certificate["layout"]["cases"][0]["source"][0]["items"][0]["values"] = [2]
    assert measured(made)["assignments"] == "3; 8 in the certificate"


@pytest.mark.parametrize(("offset", "holds"), [(0, True), (2, True), (1, False)])
def test_something_may_be_added_to_each_digit_of_a_sum(offset: int, holds: bool, made: Made) -> None:
    made.certificate["identities"][0]["offset"] = offset
    assert measured(made)["identity"].endswith("does not hold" if not holds else "up to it: holds")


def test_a_wrong_rule_is_refuted_by_an_assignment(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.certificate["rule"]["table"][1][0] = [1, 0]
    made.write()
    assert made.run() == 1
    line = r"NOT agree: token (\d) of the target for s0 = . must be '0' where the model reads '0' as operand 1 "
    line += r"\(row 0, place \1\), '1' as answer .* it leads '1' by -"
    assert re.search(line, capsys.readouterr().out.splitlines()[-1])


def test_wrong_weights_are_refuted_by_an_assignment(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.tensors["output.weight"] = made.tensors["output.weight"][[0, 1, 3, 2]]
    made.write()
    assert made.run() == 1
    assert "must be '0' where the model reads '0' as operand 1" in capsys.readouterr().out.splitlines()[-1]


def test_what_float32_may_not_tell_apart_does_not_agree(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.tensors["output.bias"] = made.tensors["output.bias"] + np.float32(1e7)
    made.write()
    assert made.run() == 1
    assert re.search(r"it leads '0' by 5.*, and by -.* less the rounding", capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("bound", [math.nan, math.inf])
def test_what_overflows_does_not_agree(
    bound: float, made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    margins = checker.Model.margins

    def overflowing(model: checker.Model, form: checker.Form, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exact, rounding = margins(model, form, ids)
        rounding[-1, 0] = bound
        return exact, rounding

    monkeypatch.setattr(checker.Model, "margins", overflowing)
    made.write()
    assert made.run() == 1
    assert f"{-bound} less the rounding" in capsys.readouterr().out.splitlines()[-1]


def looser(made: Made) -> None:
    made.window["rules"][1]["bias"] = 0.5


def less(made: Made) -> None:
    del made.window["rules"][0]


def blind(made: Made) -> None:
    made.window["rules"][1]["query_string"] = "source"


def wider(made: Made) -> None:
    made.window["rules"].append(line("decoder", 2, "operand 1", own(1)))


def further(made: Made) -> None:
    made.window["rules"].append(line("decoder", 2, "operand 1", own(5)))


def smaller(made: Made) -> None:
    made.certificate["bound"]["sizes"]["s0"] = 9


def trained_on(made: Made) -> None:
    made.tensors["decoder.0.self_attention.key_value.weight"] *= np.float32(1.001)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (looser, ""),  # one key alone is open, whatever its bias
        (less, "must be '.' where the model reads '.' as operand 1"),
        (blind, "must be '.' where the model reads (start as start|'.' as answer)"),
        (wider, "must be end where the model reads '.' as operand 1"),
        (further, "the bound of s0 is 10, and the lemma asks for 26"),
        (smaller, "the bound of s0 is 9, and the lemma asks for 10"),
        (trained_on, "smallest_margin is 5"),
    ],
)
def test_what_was_changed_in_a_decoder_only_model_does_not_agree(
    change: Callable[[Made], None], line: str, made_as_one_string: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    made_as_one_string.window = copy.deepcopy(made_as_one_string.window)
    made_as_one_string.tensors = copy.deepcopy(made_as_one_string.tensors)
    change(made_as_one_string)
    made_as_one_string.write()
    assert made_as_one_string.run() == bool(line)
    assert re.search(line, capsys.readouterr().out.splitlines()[-1])


def test_an_identity_that_does_not_hold(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.certificate["identities"][0]["carry"] = [0, 0]
    made.write()
    assert made.run() == 1
    assert "identity 'each bit is the parity up to it' does not hold at state 0" in capsys.readouterr().out


# Bad input -----------------------------------------------------------------------------------------------------------


def put(value: Any, *keys: Any) -> Callable[[Json], None]:
    """A change of a certificate: an entry is put, or taken away where the value is `put`."""

    def change(certificate: Json) -> None:
        where: Any = certificate
        for key in keys[:-1]:
            where = where[key]
        if value is put:
            del where[keys[-1]]
        else:
            where[keys[-1]] = value

    return change


IN_TARGET = ("layout", "cases", 0, "target")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(1, "schema"), "has schema 1, and this checks schema 3: certify the model anew"),
        (put("3", "schema"), "schema is '3', of the wrong type: write the certificate anew"),
        (put(2, "argument"), "has argument 2, and this checks argument 1: take that version's checker"),
        (
            put("wrong", "verdict"),
            "has verdict 'wrong', and this checks verdict 'correct': give one that says 'correct'",
        ),
        (put(put, "kinds"), "has no field 'kinds': write the certificate anew"),
        (put(True, "kinds"), "kinds is True, of the wrong type: write the certificate anew"),
        (put(put, "bound", "sizes", "s0"), "bound, sizes has no field 's0'"),
        (put([], "bound", "sizes"), "bound, sizes is [], of the wrong type"),
        (put(1, "tokens", "bos"), "tokens, bos is 1, which is not allowed"),
        (put(2, "tokens", "count"), "tokens, count is 2, which is not allowed"),
        (put(None, "architecture"), "architecture is None, of the wrong type"),
        (put(5, "architecture", "num_heads"), "architecture: model_dim is not a multiple of num_heads"),
        (put("rms", "architecture", "norm"), "architecture, norm is 'rms', which is not allowed"),
        (put(2, "architecture", "num_decoder_layers"), "the weights have no tensor decoder.1.feedforward.0.weight"),
        (put(0, "architecture", "num_decoder_layers"), "the weights hold decoder.0.cross_attention.key_value.bias"),
        (
            put("decoder-only", "architecture", "backbone"),
            "hold decoder.0.cross_attention.key_value.bias, which is not",
        ),
        (put(16, "architecture", "feedforward_dim"), "has the shape (64, 32), not (16, 32): give the weights of this"),
        (put([{"coordinates": []}], "positions"), "positions 0 has no field 'base'"),
        (put(put, "layout", "cases", 0, "start"), "layout, cases 0 has no field 'start'"),
        (put([-1], "layout", "least"), "layout, least 0 is -1, which is not allowed"),
        (put([item("answer", BITS)], *IN_TARGET), "does not begin with token 0 of 'start' and end in token 1"),
        (put([], *IN_TARGET), "does not begin with token 0 of 'start' and end in token 1"),
        (put({"s7": 1}, *IN_TARGET, 0, "repeat"), "{'s7': 1} is no linear expression of the sizes"),
        (put({"s0": 0.5}, *IN_TARGET, 0, "repeat"), "{'s0': 0.5} is no linear expression of the sizes"),
        (put("s0", *IN_TARGET, 0, "repeat"), "repeat is 's0', of the wrong type"),
        (put("s0", *IN_TARGET, 0, "variable"), "the repeat over 's0' is nested three deep, is empty, or"),
        (put([], *IN_TARGET, 0, "items"), "the repeat over 'v' is nested three deep, is empty, or"),
        (put("sum", *IN_TARGET, 0, "items", 0, "segment"), "layout, case 0, segment is 'sum', which is not allowed"),
        (put([4], *IN_TARGET, 0, "items", 0, "values"), "layout, case 0, values 0 is 4, which is not allowed"),
        (put([], *IN_TARGET, 0, "items", 0, "values"), "layout, case 0: a token has no values"),
        (put("x", "rule", "along"), "rule, along is 'x', which is not allowed"),
        (put("sign", "rule", "reads", 0, "role"), "rule, reads 0, role is 'sign', which is not allowed"),
        (put([2], "rule", "starts"), "rule: its base, least constant, states and ends do not fit together"),
        (put([True], "rule", "ends"), "rule: its base, least constant, states and ends do not fit together"),
        (put([[[0, 0]]], "rule", "table"), "rule: its table is not an array of integers of the shape (2, 2, 2)"),
        (put([[0], [0, 0]], "rule", "table"), "rule: its table is not an array of integers of the shape (2, 2, 2)"),
        (put([2, 0], "rule", "table", 0, 0), "rule: its table holds an unknown state or symbol"),
        (put([0.5, 0], "rule", "table", 0, 0), "rule: its table is not an array of integers"),
        (put(put, "identities", 0, "modulus"), "identity 'each bit is the parity up to it' has no field 'modulus'"),
        (put(0, "identities", 0, "modulus"), "bit is the parity up to it', modulus is 0, which is not allowed"),
        (put("x", "identities", 0, "operand"), "the rule lacks its reads or its constant, or has another number"),
        (put([0], "identities", 0, "carry"), "the rule lacks its reads or its constant, or has another number"),
        (put(math.nan, "smallest_margin"), "is not JSON with finite numbers (it holds NaN): write it anew"),
        (put({"deep": [-math.inf]}, "task"), "is not JSON with finite numbers (it holds -Infinity): write it anew"),
    ],
)
def test_a_bad_certificate_is_told_in_one_line(
    change: Callable[[Json], None], line: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    change(made.certificate)
    made.write()
    assert made.run() == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert line in printed


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "is not JSON with finite numbers (Expecting value"),
        (b"\xff\xfe", "is not JSON with finite numbers ('utf-8' codec"),
        (b"[" * 10**6, "is not JSON with finite numbers (nested too deep): write it anew"),
        (b'{"schema": 1e999}', "is not JSON with finite numbers (it holds 1e999): write it anew"),
        (b'{"schema": 1' + b"0" * 5000 + b"}", "is not JSON with finite numbers ("),
        (b"[]", "is [], of the wrong type: write the certificate anew"),
    ],
)
def test_a_file_that_is_no_certificate(
    data: bytes, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "certificate.json"
    path.write_bytes(data)
    assert checker.main([str(path)]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert line in printed


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"abc", "is not a complete safetensors file: copy it anew"),
        (struct.pack("<Q", 2**63) + b"{}", "is not a complete safetensors file: copy it anew"),
        (struct.pack("<Q", 2) + b"[]", "is [], of the wrong type: copy it anew"),
        (struct.pack("<Q", 2) + b"{}", "the weights have no tensor"),
        (safetensors({"a": np.zeros(2, np.float64)}, "F64"), "tensor a is of type F64: only float32 (F32) is checked"),
        (safetensors({"a": np.zeros(2, np.float64)}), "tensor a does not fit the file: copy it anew"),
        (safetensors({"a": np.zeros(2, np.float32)})[:-1], "tensor a does not fit the file: copy it anew"),
        (
            safetensors({"a": np.array([np.nan], np.float32)}),
            "tensor a holds numbers that are not finite: such a model",
        ),
    ],
)
def test_bad_weights_are_told_in_one_line(
    data: bytes, line: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write()
    (made.folder / "retrain" / "weights.safetensors").write_bytes(data)
    assert made.run() == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert line in printed


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(3, "num_heads"), "window: num_heads is 3, but 4 in the certificate: give this model's window"),
        (put("side", "rules", 0, "site"), "window, rules 0, site is 'side', which is not allowed: give this model's"),
        (put(1, "rules", 0, "layer"), "window, rule 0: there is no such site, layer or head: give this model's window"),
        (
            put("x", "rules", 1, "conditions", 0, "key"),
            "window, rules 1, conditions 0, key is 'x', which is not allowed",
        ),
        (put(1.0, "rules", 0, "conditions", 0, "equals"), "equals is 1.0, of the wrong type: give this model's window"),
        (put(put, "rules", 0, "bias"), "window, rules 0 has no field 'bias': give this model's window"),
        (
            put("decoder-only", "backbone"),
            "window: backbone is decoder-only, but encoder-decoder in the certificate: give this model's window",
        ),
        (
            put("target", "rules", 0, "query_string"),
            "window, rule 0: query_string is 'target', which no query of this backbone has: give this model's window",
        ),
    ],
)
def test_a_bad_window_is_told_in_one_line(
    change: Callable[[Json], None], line: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    made.window = copy.deepcopy(made.window)
    change(made.window)
    made.write()
    assert made.run() == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert line in printed


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(put, "backbone"), "window: backbone is encoder-decoder, but decoder-only in the certificate: give this"),
        (put(None, "backbone"), "window: backbone is None, but decoder-only in the certificate: give this model's"),
        (put("cross", "rules", 0, "site"), "window, rule 0: there is no such site, layer or head: give this model's"),
        (put("encoder", "rules", 0, "site"), "window, rule 0: there is no such site, layer or head: give this model's"),
        (put(["source"], "rules", 0, "query_string"), "window, rule 0: query_string is ['source'], which no query of"),
    ],
)
def test_a_bad_window_of_a_decoder_only_model_is_told_in_one_line(
    change: Callable[[Json], None], line: str, made_as_one_string: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    test_a_bad_window_is_told_in_one_line(change, line, made_as_one_string, capsys)


def test_a_decoder_only_model_has_no_encoder(made_as_one_string: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made_as_one_string.certificate["architecture"]["num_encoder_layers"] = 1
    made_as_one_string.write()
    assert made_as_one_string.run() == 2
    assert "architecture: num_encoder_layers is 1, and a decoder-only model has none: write" in capsys.readouterr().err


# What is beyond the argument -----------------------------------------------------------------------------------------


def certify_lines(made: Made, *lines: Json) -> int:
    made.window = made.window | {"rules": [*made.window["rules"], *lines]}
    made.write()
    return made.run()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([line("cross", 2, "operand 1")], "window, rule 2 opens the more keys of 'operand 1'"),
        ([line("decoder", 2, None, ("row", 0, "row"))], "window, rule 2 opens the more keys of 'answer'"),
        ([line("cross", 2, "operand 1", ("index", 0, "place"), ("raw", 1, None))], ""),
    ],
)
def test_cannot_decide_about_a_window(
    lines: list[Json], reason: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    status = certify_lines(made, *lines)
    printed = capsys.readouterr().out.splitlines()[-1]
    assert (status, printed[: len(f"cannot decide: {reason}")]) == (3, f"cannot decide: {reason}") or not reason


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (line("decoder", 2, "operand 1"), "window, rule 2 opens the more keys of 'operand 1'"),
        (line("decoder", 2, "operand 1", ("raw", 2, "raw")), "the comparison of -2 + 1 ?query 0 + 1 s0 with 0"),
    ],
)
def test_cannot_decide_about_a_window_of_a_decoder_only_model(
    rule: Json, reason: str, made_as_one_string: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certify_lines(made_as_one_string, rule) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"cannot decide: {reason}")


def shifted(certificate: Json) -> None:
    certificate["rule"]["reads"][1]["shift"] = 1
    certificate["bound"]["sizes"]["s0"] = 30


def doubled(certificate: Json) -> None:
    case = certificate["layout"]["cases"][0]
    case["source"] = [*case["source"], *case["source"]]


def rope(certificate: Json) -> None:
    certificate["architecture"]["position"] = {"class_path": "abc_toolkit.positions.RoPE", "init_args": {}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (doubled, "two tokens are 'operand 1' at place 0 (s0 = 1)"),
        (rope, "the position method RoPE has no periodic table"),
        (put("mamba", "architecture", "backbone"), "the backbone 'mamba' is another model"),
        (put([1, 2], *IN_TARGET, 0, "items", 0, "values"), "nothing says which token of 'end' is required"),
        (put(10**7, "bound", "sizes", "s0"), "there are more than 3000000 sizes and tokens to try"),
        (put({"s0": 10**9}, *IN_TARGET, 0, "repeat"), "is not one of two sizes or numbers of rounds"),
        (put([{"s0": 2}], "layout", "cases", 0, "where"), "2 s0 with 0 is not one of two sizes"),
        (put("sum", "identities", 0, "kind"), "nothing is known of identities of the kind 'sum'"),
        (shifted, "the rule has no place for a token of 'answer' (s0 = 1)"),
    ],
)
def test_cannot_decide(
    change: Callable[[Json], None], reason: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    if "nothing says" in reason:
        made.certificate["rule"]["reads"][1]["segment"] = "end"
        made.certificate["rule"]["reads"][1]["role"] = "answer"
        reason = reason.replace("end", "answer")
    change(made.certificate)
    made.write()
    assert made.run() == 3
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("cannot decide: ")
    assert reason in printed.out


def test_what_overflows_at_a_token_that_no_assignment_reads(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    # No source and no prefix holds the end token, so that the figures stay as they are; masked, infinity is NaN.
    for size, status in ((1e6, 0), (1e17, 3), (3e38, 3)):
        made.tensors["embedding.weight"] = made.tensors["embedding.weight"].copy()
        made.tensors["embedding.weight"][1] = size
        made.write()
        assert made.run() == status
    assert capsys.readouterr().out.splitlines()[-1].startswith("cannot decide: float32 may overflow")


@pytest.mark.parametrize(
    ("biases", "status"),
    [
        (("decoder.0.cross_attention.query",), 0),  # there is one key alone
        (("decoder.0.cross_attention.query", "decoder.0.cross_attention.key_value"), 3),  # the product of both
        (("decoder.0.self_attention.query", "decoder.0.feedforward.3", "output"), 1),
    ],
)
def test_what_may_overflow_is_bounded_layer_by_layer(biases: tuple[str, ...], status: int, made: Made) -> None:
    for name in biases:
        made.tensors[f"{name}.bias"] = made.tensors[f"{name}.bias"] + np.float32(1e9)
    made.write()
    assert made.run() == status


def test_cannot_decide_about_a_bias_that_may_overflow(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert certify_lines(made, line("cross", 2, "operand 1", own(), bias=-1e18)) == 3
    assert "float32 may overflow, as the weights or biases allow numbers up to 1e+18" in capsys.readouterr().out


# The parts -----------------------------------------------------------------------------------------------------------

WIDE = [
    line("cross", 0, None, own(), bias=0.5),
    line("cross", 0, "operand 1", own(1), bias=-1.0),
    line("cross", 1, "operand 2", own(-1)),
    line("cross", 1, "operator", fallback=True),
    line("cross", 2, "operand 1", ("index", 0, None), query_segment="end"),
    line("decoder", 0, "answer", own(1)),
    line("decoder", 1, None, ("raw", 0, "raw"), bias=2.0),
    line("decoder", 1, None, ("raw_from_end", -1, "raw_from_end"), bias=1.0),
    line("decoder", 2, "start", ("segment", 3, None)),
    line("encoder", 0, "operand 2", own()),
    line("encoder", 1, None, ("raw", 1, "raw")),
]
WIDE_AS_ONE_STRING = [
    line("decoder", 0, None, own(), bias=0.5),
    line("decoder", 0, "operand 1", own(1), bias=-1.0, query_string="target"),
    line("decoder", 0, "operand 1", own(-1), bias=1.0, query_string="source"),
    line("decoder", 1, "operand 2", own(-1)),
    line("decoder", 1, "operator", fallback=True),
    line("decoder", 2, "operand 1", ("index", 0, None), query_segment="end"),
    line("decoder", 2, "start", ("segment", 3, None)),
    line("decoder", 2, None, ("raw", 1, "raw"), query_string="source"),
    line("decoder", 3, None, ("raw", 0, "raw"), bias=2.0, query_string="target"),
    line("decoder", 3, None, ("raw_from_end", -1, "raw_from_end"), bias=1.0),
]
TABLE = {"coordinates": ["place", "raw"], "base": 100.0, "period": 3, "channels": "interleaved"}


@pytest.mark.parametrize(
    ("layers", "norm", "positions", "backbone"),
    [
        ((0, 1), "pre", [], "encoder-decoder"),
        ((1, 2), "pre", [TABLE], "encoder-decoder"),
        ((2, 1), "post", [TABLE | {"channels": "concatenated"}], "encoder-decoder"),
        ((0, 2), "post", [], "encoder-decoder"),
        ((1, 0), "pre", [], "encoder-decoder"),
        ((0, 1), "post", [], "decoder-only"),
        ((0, 2), "pre", [TABLE], "decoder-only"),
        ((0, 3), "pre", [], "decoder-only"),
    ],
)
def test_logits_are_those_of_whole_strings(
    layers: tuple[int, int], norm: str, positions: list[Json], backbone: str
) -> None:
    one_string = backbone == "decoder-only"
    counts = {"encoder": layers[0], "decoder": layers[1], "cross": layers[1]}
    wide = WIDE_AS_ONE_STRING if one_string else WIDE
    lines = [rule | {"layer": n} for rule in wide for n in range(counts[rule["site"]])]
    sizes = {"num_encoder_layers": layers[0], "num_decoder_layers": layers[1], "num_heads": 4, "backbone": backbone}
    architecture: Json = sizes | {"model_dim": 16, "feedforward_dim": 24, "norm": norm}
    method = "Cyclic" if positions else "NoPE"
    architecture["position"] = {
        "class_path": "abc_toolkit.positions.Compose",
        "init_args": {"parts": [{"class_path": method}]},
    }
    tensors = random_tensors(5, 16, 24, layers, norm == "pre", 3, backbone)
    if norm == "pre" and not layers[1]:
        tensors |= {"decoder_norm.weight": np.ones(16, np.float32), "decoder_norm.bias": np.zeros(16, np.float32)}
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    rule, family = checker.Rule(ADDITION["rule"], 5), checker.Family(ADDITION["layout"], 5, one_string)
    model = checker.Model(architecture, positions, 5, exact)
    window = checker.Window(sizes | {"rules": lines}, architecture)
    built = checker.Layout(family.cases[0], {"s0": 3}, model, window, rule)
    case = {
        "architecture": architecture,
        "layout": ADDITION["layout"],
        "sizes": {"s0": 3},
        "lines": lines,
        "positions": positions,
    }
    kinds = set()
    for source, target in addition_problems(3)[5::9]:
        logits, rough = (dense_logits(tensors, case, (source, target), like)[0] for like in (np.float64, np.float32))
        for n, required in enumerate(target):
            leaves, form = built.receptive_field(n)
            kinds.add(form)
            held = [*(source if one_string else []), 0, *target]
            ids = [(source if leaf in built.source else held)[leaf["raw"]] for leaf in leaves]
            (margins,), (rounding,) = model.margins(form, np.array([[*ids, required]]))
            others = np.arange(5) != required
            expected = (logits[n, required] - logits[n])[others]
            np.testing.assert_allclose(margins[others], expected, atol=1e-10)
            assert (abs((rough[n, required] - rough[n])[others] - expected) <= rounding[others]).all()
    assert len(kinds) > 1 or not layers[1]


def test_relations_repeat_themselves() -> None:
    # A transient of two states, then a cycle of three.
    table = [[[1]], [[2]], [[3]], [[4]], [[2]]]
    rule = checker.Rule(transducer([], [entry[0] for entry in table]), 4)
    assert rule.cycle(()) == (2, 3)
    assert checker.Rule(PARITY["rule"], 4).cycle((True,)) == (1, 1)
    assert checker.Rule(PARITY["rule"], 4).cycle((False,)) == (0, 1)


def test_differences_that_no_integers_fulfil() -> None:
    x, y = checker.Expr.from_value("x"), checker.Expr.from_value("y")
    assert checker.possible([x - y, y - x])
    assert checker.possible([x - y - 1, checker.Expr.from_value(7) - x])
    assert not checker.possible([x - y - 1, y - x])
    assert not checker.possible([checker.Expr.from_value(-1)])
    assert not checker.possible([checker.Expr.from_value(-1) - x])
    assert not checker.possible([x - y - 5, checker.Expr.from_value(4) - x])
    assert checker.possible([x + y - 10**6])  # no difference: it is left out


@pytest.mark.parametrize("wide", [2**40, 3])
def test_distinct_rows(wide: int) -> None:
    rows = np.array([[0, wide, 1], [wide, 0, 1], [0, wide, 1], [0, 0, 0]])
    assert checker.unique_rows(rows).tolist() == [[0, 0, 0], [0, wide, 1], [wide, 0, 1]]


def shape(segment: str, row: Any, column: Any, values: list[int]) -> Json:
    return item(segment, values, column, 0, row)


# Rows of bits are added up one after the other; each row of the target is the sum so far, without its last carry.
ROWS: Json = {
    "layout": layout(
        [
            {
                "repeat": {"s1": 1},
                "variable": "r",
                "items": [
                    {"repeat": N, "variable": "c", "items": [shape("operand 1", {"r": 1}, {"c": 1}, BITS)]},
                    shape("operator", {"r": 1}, -1, [4]),
                ],
            }
        ],
        [
            {
                "repeat": {"s1": 1},
                "variable": "i",
                "items": [{"repeat": N, "variable": "j", "items": [shape("answer", {"i": 1}, {"j": 1}, BITS)]}],
            },
            shape("end", {"s1": 1}, 0, [1]),
        ],
        (1, 1),
    ),
    "rule": transducer(
        [read("operand 1", "operand", 0), read("above", "operand", 1, "answer"), read("answer", "answer", 0)],
        [[[[(a + b + c) // 2, (a + b + c) % 2] for b in (0, 1)] for a in (0, 1)] for c in (0, 1)],
    ),
}
BELOW = ("row", 1, "row")
BESIDE = ("row", 0, "row")
TWO_CASES = ADDITION["layout"] | {
    "least": [1, 1],
    "cases": [
        {
            "where": where,
            "start": START,
            "source": [digits("operand 1", N, False), item("operator", [4]), digits("operand 2", {"s1": 1}, False)],
            "target": [digits("answer", {size: 1, "": 1}), item("end", [1], {size: 1, "": 1}, -1)],
        }
        for where, size in (([{"s0": 1, "s1": -1}], "s0"), ([], "s1"))
    ],
}


@pytest.mark.parametrize(
    ("task", "lines", "layers", "expected"),
    [
        (PARITY, PARITY["lines"], 1, {"s0": 10}),
        (PARITY, [line("decoder", 0, "answer", own(3)), line("cross", 0, "operand 1", own())], 1, {"s0": 18}),
        (PARITY, [line("decoder", 0, "answer", own(1))], 2, {"s0": 10}),
        (ADDITION, [line("cross", 0, "operand 1", ("index", 2, None))], 1, None),
        ({**ADDITION, "layout": TWO_CASES}, ADDITION["lines"], 1, {"s0": 15, "s1": 15}),
        (
            ROWS,
            [
                line("decoder", 0, "answer", BELOW, own()),
                line("decoder", 1, "answer", BESIDE, own(1)),
                line("cross", 0, "operand 1", BESIDE, own()),
            ],
            1,
            {"s0": 10, "s1": 8},
        ),
        pytest.param(ROWS, [line("decoder", 1, "answer", BESIDE, own(1))], 2, None, marks=pytest.mark.slow),
        (STRING_PARITY, STRING_PARITY["lines"], 1, {"s0": 10}),
        (STRING_ADDITION, STRING_ADDITION["lines"], 1, {"s0": 10}),
        # The source's own queries, of which the second layer reads what the first has made.
        (
            STRING_PARITY,
            [*STRING_PARITY["lines"], line("decoder", 2, "operand 1", own(2), query_string="source")],
            2,
            {"s0": 14},
        ),
        (
            STRING_PARITY,
            [line("decoder", 0, "operand 1", own(2)), line("decoder", 0, "start", fallback=True)],
            2,
            None,
        ),
        # Whether a query of the source sees a key at a fixed place, itself included.
        (
            STRING_PARITY,
            [
                line("decoder", 0, "operand 1", own(), query_string="target"),
                line("decoder", 1, "operand 1", ("place", 3, None), query_string="source"),
            ],
            2,
            {"s0": 22},
        ),
        (
            STRING_PARITY,
            [
                line("decoder", 0, None, ("raw", 1, "raw"), query_string="source"),
                line("decoder", 1, "answer", ("raw_from_end", 0, "raw_from_end")),
                line("decoder", 2, "operand 1", own()),
            ],
            2,
            None,
        ),
    ],
)
def test_larger_sizes_than_the_bound_show_nothing_new(
    task: Json, lines: list[Json], layers: int, expected: dict[str, int] | None
) -> None:
    backbone = task.get("backbone", "encoder-decoder")
    sizes = {"num_encoder_layers": 0, "num_decoder_layers": layers, "num_heads": 4, "backbone": backbone}
    architecture: Json = sizes | {"model_dim": 4, "feedforward_dim": 2, "norm": "post"}
    architecture["position"] = {"class_path": "NoPE"}
    tensors = random_tensors(5, 4, 2, (0, layers), False, 4, backbone)
    model = checker.Model(architecture, [], 5, tensors)
    rule, family = checker.Rule(task["rule"], 5), checker.Family(task["layout"], 5, model.one_string)
    listed = [rule | {"layer": n} for rule in lines for n in range(layers)]
    window = checker.Window(sizes | {"rules": listed}, architecture)
    bound = checker.bound_of_sizes(family, model, window, rule)
    assert expected in (None, bound)

    def everything(limits: dict[str, int]) -> dict[checker.Form, set[tuple[int, ...]]]:
        found: dict[checker.Form, set[checker.Plan]] = {}
        for values in itertools.product(*(range(1, limit + 1) for limit in limits.values())):
            named = dict(zip(limits, values, strict=True))
            case = family.case_of(named)
            assert case is not None
            built = checker.Layout(case, named, model, window, rule)
            for n in range(len(built.target)):
                leaves, form = built.receptive_field(n)
                found.setdefault(form, set()).add(checker.plan_of(built, n, leaves, rule))
        return {
            form: {tuple(row) for plan in plans for row in checker.assignments(plan, rule).tolist()}
            for form, plans in found.items()
        }

    assert everything(bound) == everything({size: most + 2 for size, most in bound.items()})


def facts_of(task: Json, lines: list[Json], item: int, layers: int = 1, case: int = 0) -> tuple[set[str], set[str]]:
    """What the prediction of an item of the target rests on, each with a sign such that the first symbol is added."""
    backbone = task.get("backbone", "encoder-decoder")
    sizes = {"num_encoder_layers": 0, "num_decoder_layers": layers, "num_heads": 4, "backbone": backbone}
    architecture: Json = sizes | {"model_dim": 4, "feedforward_dim": 2, "norm": "post"}
    architecture["position"] = {"class_path": "NoPE"}
    model = checker.Model(architecture, [], 5, random_tensors(5, 4, 2, (0, layers), False, 4, backbone))
    rule, family = checker.Rule(task["rule"], 5), checker.Family(task["layout"], 5, model.one_string)
    window = checker.Window(
        sizes | {"rules": [line | {"layer": n} for line in lines for n in range(layers)]}, architecture
    )
    target = list(checker.flat(family.cases[case].target))
    found = checker.Prediction(family, case, target[item], model, window, rule)

    def listed(facts: set[checker.Expr]) -> set[str]:
        signed = (min(fact, fact * -1, key=lambda e: [-n for s, n in e.terms if s]) for fact in facts)
        return {str(fact).replace("?query ", "q") for fact in signed if fact.symbols}

    return listed(found.facts), listed(found.run_facts)


def test_what_a_prediction_rests_on() -> None:
    # Of an answer: the case, the rounds of the query and of the key before it, and whether there is one.
    facts, run_facts = facts_of(PARITY, PARITY["lines"], 0)
    assert facts == {"-1 + 1 s0", "1 q0", "1 + 1 q0 + -1 s0", "-1 + 1 q0", "1 q0 + -1 s0"}
    # The places of the query, of the token before, and of the first and last of all.
    assert run_facts == {"1 q0", "-1 + 1 q0", "-1 + 1 s0", "1 + 1 q0 + -1 s0", "1 q0 + -1 s0"}
    # Of the end: it reads the last answer, and no digit.
    facts, run_facts = facts_of(PARITY, PARITY["lines"], 1)
    assert facts == {"-1 + 1 s0"}
    assert run_facts == {"-1 + 1 s0"}
    # Two leaves of one number whose order the sizes tell, and a fixed place.
    lines = [line("cross", 0, "operand 1", ("place", 3, None)), line("cross", 1, "operand 1", ("index", 2, None))]
    facts, run_facts = facts_of(PARITY, lines, 1)
    assert facts == {"-1 + 1 s0", "-4 + 1 s0", "-3 + 1 s0", "-6 + 1 s0"}
    assert run_facts == {"-1 + 1 s0", "-4 + 1 s0", "-3 + 1 s0", "-6 + 1 s0"}
    # In a table, rows and columns are told apart.
    lines = [line("decoder", 0, "answer", BELOW, own()), line("cross", 0, "operand 1", BESIDE, own())]
    facts, run_facts = facts_of(ROWS, lines, 0)
    assert {fact for fact in facts if "s1" in fact} == {"-1 + 1 s1", "1 + 1 q0 + -1 s1", "1 q0 + -1 s1"}
    assert {"1 q0", "-1 + 1 q0", "1 q1"} <= facts
    assert not any(one in fact and two in fact for fact in facts for one in ("s0", "q1") for two in ("s1", "q0"))
    assert run_facts == {"1 q1", "-1 + 1 q1", "-1 + 1 s0", "1 + 1 q1 + -1 s0", "1 q1 + -1 s0"}


def test_what_else_a_prediction_may_rest_on() -> None:
    # An earlier case must not hold in place of this one.
    assert "1 s0 + -1 s1" in facts_of({**ADDITION, "layout": TWO_CASES}, [], 0, case=1)[0]
    # What is after the query is no key, whatever the window says.
    assert facts_of(PARITY, [line("decoder", 0, "answer", own(-1))], 0) == facts_of(PARITY, [], 0)
    # Whether a key at a fixed place is before the query, and before the token that was written last.
    facts, _ = facts_of(PARITY, [line("decoder", 0, "answer", ("place", 2, None))], 0)
    assert {"-2 + 1 q0", "-3 + 1 q0", "-3 + 1 s0"} <= facts
    # In two layers, a key two places before the query has read one three places before it.
    lines = [line("decoder", 0, "answer", own(2))]
    assert "-3 + 1 q0" not in facts_of(PARITY, lines, 0)[0]
    assert "-3 + 1 q0" in facts_of(PARITY, lines, 0, layers=2)[0]
    # Whether a fixed row is the query's own.
    assert "-3 + 1 q0" in facts_of(ROWS, [line("cross", 0, "operand 1", ("row", 3, None), own())], 0)[0]


def test_what_a_prediction_of_a_decoder_only_model_rests_on() -> None:
    # In one layer, the source's own queries are not read.
    read = [line("decoder", 0, "operand 1", own(), query_string="target")]
    lines = [*read, line("decoder", 1, "operand 1", ("place", 3, None), query_string="source")]
    assert facts_of(STRING_PARITY, lines, 0) == facts_of(STRING_PARITY, read, 0)
    # In two, a query of the source sees a key at place 3 if its own place is 3 or more.
    assert "-3 + 1 q0" in facts_of(STRING_PARITY, lines, 0, layers=2)[0]
    assert "-3 + 1 q0" not in facts_of(STRING_PARITY, read, 0, layers=2)[0]
    # A query of the target sees all of the source, whatever its place.
    facts, _ = facts_of(STRING_PARITY, [line("decoder", 1, "operand 1", ("place", 3, None))], 0)
    assert "-4 + 1 s0" in facts
    assert "-3 + 1 q0" not in facts
    # Where the token is that is held last: after s0 tokens of the source and q0 of the target.
    for one, other in (("raw", 2), ("raw_from_end", -2)):
        facts, _ = facts_of(STRING_PARITY, [line("decoder", 0, "answer", (one, other, one))], 0)
        assert facts == facts_of(STRING_PARITY, [line("decoder", 0, "answer", own(3))], 0)[0]
    facts, _ = facts_of(STRING_PARITY, [line("decoder", 0, None, ("raw", 1, None))], 0)
    assert "-2 + 1 s0" in facts


def test_a_query_of_the_source_sees_itself() -> None:
    family = checker.Family(STRING_ADDITION["layout"], 5, one_string=True)
    one, operator, two = (checker.Token.any_of(each, "query") for each in checker.flat(family.cases[0].source))
    answer, end = (checker.Token.any_of(each, "query") for each in checker.flat(family.cases[0].target))
    key = checker.Token.any_of(one.item, "key")

    def ways(key: checker.Token, query: checker.Token) -> list[list[str]]:
        return [[str(expr) for expr in conditions] for conditions, _ in checker.visible(key, query)]

    before, itself = "-1 + -1 ?key 0 + 1 ?query 0", ["-1 ?key 0 + 1 ?query 0", "1 ?key 0 + -1 ?query 0"]
    assert ways(key, one) == [[before], itself]
    assert ways(operator, operator) == [[]]
    assert ways(key, two) == ways(key, answer) == ways(two, end) == [[]]
    assert ways(two, operator) == ways(answer, two) == ways(end, end) == []
    assert ways(checker.Token.any_of(answer.item, "key"), answer) == [[before]]


def test_raw_counts_through_the_whole_string() -> None:
    family = checker.Family(STRING_ADDITION["layout"], 5, one_string=True)
    tensors = random_tensors(5, 32, 64, (0, 1), True, 0, "decoder-only")
    certificate = certificate_of(STRING_ADDITION, 5)
    model = checker.Model(certificate["architecture"], [], 5, tensors)
    sizes = {"num_encoder_layers": 0, "num_decoder_layers": 1, "num_heads": 4, "backbone": "decoder-only"}
    window = checker.Window(sizes | {"rules": []}, certificate["architecture"])
    built = checker.Layout(family.cases[0], {"s0": 3}, model, window, checker.Rule(ADDITION["rule"], 5))
    assert [len(string) for string in (built.source, built.asking, built.held)] == [7, 12, 12]
    for prefix, string in (("", built.asking), ("held ", built.held)):
        for number, token in enumerate(string):
            assert (token["raw"], token["raw_from_end"]) == (number, 11 - number)
            symbolic = [token["item"].coordinates[f"{prefix}{name}"] for name in ("raw", "raw_from_end")]
            values = {"s0": 3, "v": token["place" if token["item"].segment == "answer" else "index"]}
            expected = [token["raw"], token["raw_from_end"]]
            if token["item"].segment != "start":  # it holds no repeat, and its raw is that of a key alone
                assert [expr.at(values) for expr in symbolic] == expected
    assert built.held[7]["item"].coordinates["held raw"].at({"s0": 3}) == 7


COUNTING = transducer(
    # The answer tells whether the number of digits so far is one more than a multiple of three.
    [read("operand 1", "operand"), read("answer", "answer")],
    [[[(s + 1) % 3, int(s == 0)]] * 2 for s in range(3)],
)


def test_all_periods_count() -> None:
    architecture = certificate_of(PARITY, 4)["architecture"]
    architecture["position"] = {"class_path": "Cyclic", "init_args": {"period": 2}}
    tables = [{"coordinates": ["place"], "base": 10.0, "period": 2, "channels": "interleaved"}]
    model = checker.Model(architecture, tables, 4, random_tensors(4, 32, 64, (0, 1), True, 0))
    window = checker.Window(
        {"num_encoder_layers": 0, "num_decoder_layers": 1, "num_heads": 4, "rules": []}, architecture
    )
    family = checker.Family(PARITY["layout"], 4)
    assert checker.bound_of_sizes(family, model, window, checker.Rule(COUNTING, 4)) == {"s0": 2 * (3 + 2 * 3)}


def test_digits_are_there_in_rows_that_fit() -> None:
    architecture = certificate_of(PARITY, 5)["architecture"]
    model = checker.Model(architecture, [], 5, random_tensors(5, 32, 64, (0, 1), True, 0))
    window = checker.Window(
        {"num_encoder_layers": 0, "num_decoder_layers": 1, "num_heads": 4, "rules": []}, architecture
    )
    rule, family = checker.Rule(ROWS["rule"], 5), checker.Family(ROWS["layout"], 5)
    built = checker.Layout(family.cases[0], {"s0": 2, "s1": 3}, model, window, rule)
    there = {0, 1}
    assert [built.places(row) for row in range(5)] == [
        ([there, set()], 1),
        ([there, there], 1),
        ([there, there], 1),
        ([set(), there], 1),
        ([set(), set()], -1),
    ]


def test_runs_are_counted_through() -> None:
    rule, family = checker.Rule(COUNTING, 4), checker.Family(PARITY["layout"], 4)
    certificate = certificate_of(PARITY, 4)
    model = checker.Model(certificate["architecture"], [], 4, random_tensors(4, 32, 64, (0, 1), True, 0))
    window = checker.Window(
        {"num_encoder_layers": 0, "num_decoder_layers": 1, "num_heads": 4, "rules": []}, certificate["architecture"]
    )
    for size in range(1, 12):
        built = checker.Layout(family.cases[0], {"s0": size}, model, window, rule)
        for n in range(size):
            leaves, _ = built.receptive_field(n)
            found = checker.assignments(checker.plan_of(built, n, leaves, rule), rule)
            written = [(2 + ((n - 1) % 3 == 0), 2 + (n % 3 == 0))] if n else [(0, 3)]
            assert [tuple(row) for row in found.tolist()] == written


def test_runs_count_where_they_may_end() -> None:
    rule = checker.Rule(ADDITION["rule"], 5)
    plan = checker.Plan((((True, True), (0, 1, 2), 1),), (("told", 0), ("told", 1)), ("told", 2))
    assert checker.assignments(plan, rule).tolist() == [[2, 2, 2], [2, 3, 3], [3, 2, 3]]  # 1 + 1 has a carry


def test_constants_are_the_same_along_a_run() -> None:
    # A number times one digit, in base 3: the digit is a leaf or not, and unnamed leaves hold what they like.
    table = [[[[(d * c + s) // 3, (d * c + s) % 3] for c in (0, 1, 2)] for d in (0, 1, 2)] for s in (0, 1)]
    reads = [read("operand 1", "operand"), read("operand 2", "constant"), read("answer", "answer")]
    rule = checker.Rule(transducer(reads, table, base=3, ends=[True, False]), 6)
    steps = (((True,), (0, 2), 1), ((True,), (0, 2), 1), ((False,), (), 1))
    leaves = (("told", 0), ("told", 2), ("constant", 0), ("id", (1, 5)))
    plan = checker.Plan(steps, leaves, ("told", 3))
    expected = {
        (a + 2, b + 2, c + 2, free, (b * c + a * c // 3) % 3 + 2)
        for a, b, c, free in itertools.product((0, 1, 2), (0, 1, 2), (0, 1, 2), (1, 5))
    }
    assert {tuple(row) for row in checker.assignments(plan, rule).tolist()} == expected
    without = checker.Plan(steps, leaves[:1], ("told", 3))
    assert {tuple(row) for row in checker.assignments(without, rule).tolist()} == {
        (a + 2, (b * c + a * c // 3) % 3 + 2) for a, b, c in itertools.product((0, 1, 2), repeat=3)
    }


@pytest.mark.parametrize(
    ("identity", "along", "table", "holds"),
    [
        ({"kind": "copy", "operand": "a", "answer": "w"}, "place", lambda s, a, b: [0, a], True),
        ({"kind": "copy", "operand": "a", "answer": "w"}, "place", lambda s, a, b: [0, b], False),
        # The order of two numbers: the last place that differs, or the first of all.
        (
            {"kind": "order", "operands": ["a", "b"], "order": [0, -1, 1], "answer": "w", "symbols": [2, 0, 1]},
            "place",
            lambda s, a, b: [t := (s if a == b else 1 if a < b else 2), (0, 2, 1)[t]],
            True,
        ),
        (
            {"kind": "order", "operands": ["a", "b"], "order": [0, -1, 1], "answer": None, "symbols": [2, 0, 1]},
            "index",
            lambda s, a, b: [s or (0 if a == b else 1 if a < b else 2), 0],
            True,
        ),
        (
            {"kind": "order", "operands": ["a", "b"], "order": [0, -1, 1], "answer": None, "symbols": [2, 0, 1]},
            "place",
            lambda s, a, b: [s or (0 if a == b else 1 if a < b else 2), 0],
            False,
        ),
        (
            {"kind": "order", "operands": ["a", "b"], "order": [1, -1, 1], "answer": None, "symbols": [2, 0, 1]},
            "place",
            lambda s, a, b: [s if a == b else 1 if a < b else 2, 0],
            False,
        ),
        # Double the number, most significant bit first: what is carried is what the state owes.
        (
            {"kind": "linear", "takes": [("a", 2)], "gives": [("w", 1)], "carry": [0, 1, 2]},
            "index",
            lambda s, a, b: [s, a],
            False,
        ),
        (
            {"kind": "linear", "takes": [("a", 1)], "gives": [("w", 2)], "carry": [0, 1, 2]},
            "index",
            lambda s, a, b: [(2 * s + a) % 2, (2 * s + a) // 2],
            True,
        ),
        ({"kind": "remainder", "carry": [0, 1, 2], "bound": 2}, "index", lambda s, a, b: [(2 * s + a) % 2, 0], True),
        ({"kind": "remainder", "carry": [0, 1, 2], "bound": 2}, "index", lambda s, a, b: [(2 * s + a) % 3, 0], False),
        (
            {"kind": "remainder", "carry": [0, 1, 2], "bound": 2, "answer": "w"},
            "index",
            lambda s, a, b: [a, a],
            True,
        ),
        (
            {"kind": "remainder", "carry": [0, 1, 2], "bound": 2, "answer": "w"},
            "index",
            lambda s, a, b: [a, b],
            False,
        ),
        (
            {"kind": "running", "answer": "w", "operand": "b", "carry": [0, 1, 0], "modulus": 2},
            "place",
            lambda s, a, b: [s ^ b, s ^ b],
            True,
        ),
        (
            {"kind": "running", "answer": "w", "operand": "a", "carry": [0, 1, 0], "modulus": 2},
            "place",
            lambda s, a, b: [s ^ b, s ^ b],
            False,
        ),
    ],
)
def test_identities(identity: Json, along: str, table: Callable[[int, int, int], list[int]], holds: bool) -> None:
    reads = [read("a", "operand"), read("b", "operand"), read("w", "answer")]
    # States that are never reached may do anything that is a table.
    entries = [[[table(s, a, b) if s < 3 else [0, 0] for b in (0, 1)] for a in (0, 1)] for s in (0, 1, 2)]
    rule = checker.Rule(transducer(reads, np.minimum(entries, 2).tolist(), along=along), 6)
    identity = {"statement": "it is so"} | identity
    for side in {"takes", "gives"} & set(identity):
        terms = [{"name": name, "per_state": [times] * 3, "times_constant": False} for name, times in identity[side]]
        identity |= {side: terms}
    assert (checker.identity_fails(identity, rule) is None) == holds


def test_a_running_sum_starts_at_nothing() -> None:
    rule = checker.Rule(PARITY["rule"] | {"starts": [1]}, 4)
    assert checker.identity_fails(PARITY["identities"][0], rule) == "a start of the run"


def test_a_number_is_written_whole() -> None:
    # The sum lacks its last digit: of what it is then, the identity says nothing.
    short = layout(
        [digits("operand 1", N, False), item("operator", [4]), digits("operand 2", N, False)],
        [digits("answer", N | {"": -1}), item("end", [1], N, -1)],
        (2,),
    )
    certificate = certificate_of(ADDITION, 5)
    model = checker.Model(certificate["architecture"], [], 5, random_tensors(5, 32, 64, (0, 1), True, 0))
    sizes = {"num_encoder_layers": 0, "num_decoder_layers": 1, "num_heads": 4}
    window = checker.Window(sizes | {"rules": []}, certificate["architecture"])
    for described, fails in ((ADDITION["layout"], None), (short, "a place without a token")):
        rule = checker.Rule(ADDITION["rule"], 5)
        built = checker.Layout(checker.Family(described, 5).cases[0], {"s0": 3}, model, window, rule)
        built.places(0)
        assert checker.identity_fails(ADDITION["identities"][0], rule) == fails


def test_a_sum_whose_runs_end_with_a_carry_is_none(made: Made) -> None:
    rule = checker.Rule(ADDITION["rule"] | {"ends": [True, True]}, 5)
    (identity,) = ADDITION["identities"]
    assert checker.identity_fails(identity, rule) is None
    checker.assignments(checker.Plan((((False, False), (2,), 1),), (), ("told", 0)), rule)
    assert checker.identity_fails(identity, rule) is None
    checker.assignments(checker.Plan((((True, True), (2,), 1),), (), ("told", 0)), rule)
    assert checker.identity_fails(identity, rule) == "the end of a run"
