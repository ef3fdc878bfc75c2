"""Models that are broken, and models that cannot be decided: what `abc certify` says of each, and `abc solve` after it.

Each is made from a finished run of addition, as a user would make it: weights or a window changed on disk, or trained
again for too short. A refutation counts when `abc solve --check` fails on the very problem that it names.

    python experiments/certify/broken.py --run runs/pipeline/addition-0
"""

import argparse
import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from abc_toolkit.models.base import predict
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.proof import certify
from abc_toolkit.runs.files import save_json, save_text
from abc_toolkit.runs.folder import CERTIFICATE, WINDOW, Run, save_weights
from abc_toolkit.vocabulary import EOS
from abc_toolkit.windows.rules import Condition, Rule, Window

HERE = Path(__file__).parent
ABC = str(Path(sys.executable).parent / "abc")


def abc(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One command, as it is typed."""
    return subprocess.run([ABC, *map(str, arguments)], capture_output=True, text=True)


def perturbed(model: EncoderDecoder, place: Run) -> None:
    """Noise on one matrix, little by little, until the model fails in the first assignments."""
    weight = model.decoder[-1].feedforward[3].weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std()
    own, low, high = weight.data.clone(), 0.0, 4.0
    while high - low > 0.01:
        middle = (low + high) / 2
        weight.data = own + middle * noise
        low, high = (low, middle) if certify(place.task("fit"), model).verdict == "wrong" else (middle, high)
    weight.data = own + high * noise


def early_end(model: EncoderDecoder, place: Run) -> None:
    """Some steps of training on answers that end one place early."""
    task, generator = place.task("fit"), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(300):
        shape = task.training_shapes()[step % len(task.training_shapes())]
        problems = task.sample(generator, 64, shape)
        target = problems.target.clone()
        target[:, -2] = EOS
        logits = predict(model, problems, task.layout(shape))[:, :-1]
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), target[:, :-1].flatten()).backward()
        optimizer.step()


def changed(change: Callable[[EncoderDecoder, Run], None]) -> Callable[[Run], None]:
    """A change of the retrained model's weights."""

    def make(place: Run) -> None:
        model = copy.deepcopy(place.load_model("retrain"))
        change(model, place)
        save_weights(place.folder("retrain"), model)

    return make


def retrained(*options: object, window: Callable[[Window], Window] | None = None) -> Callable[[Run], None]:
    """Training again, otherwise than it should be."""

    def make(place: Run) -> None:
        own = list(options)
        if window is not None:
            path = place.path / WINDOW
            save_text(path, window(place.window()).to_json())
            own += ["--window", path]
        done = abc("retrain", "--run", place.path, "--overwrite", "--until", "validated", *own)
        assert not done.returncode, done.stderr

    return make


def without(segment: str, equals: int) -> Callable[[Window], Window]:
    """A window without one line of a segment: own place minus a number."""
    line = (Condition("place", equals, "place"),)
    return lambda window: window.with_rules(
        [rule for rule in window.rules if (rule.key_segment, rule.conditions) != (segment, line)]
    )


def with_line(rule: Rule) -> Callable[[Window], Window]:
    """A window with one line more."""
    return lambda window: window.with_rules([*window.rules, rule])


def with_encoder(window: Window) -> Window:
    """The same window for a model with an encoder layer, one head of which sees all."""
    return replace(window, num_encoder_layers=1, rules=(*window.rules, Rule("encoder", 0, 0)))


def too_wide(window: Window) -> Window:
    """A window that shows four places of both operands."""
    lines = [
        Rule("cross", 0, head, f"operand {operand}", (Condition("place", head, "place"),))
        for head in range(4)
        for operand in (1, 2)
    ]
    return window.with_rules([*window.rules, *lines])


ONE_STEP = ("--trainer.max_steps", 1)
FAR = Rule("cross", 0, 0, None, (Condition("place", 10**6),))
TURNED = Rule("cross", 0, 0, None, (Condition("place", 0, "index"),))
CASES: dict[str, Callable[[Run], None]] = {
    "noise on a weight, until the first assignments fail": changed(perturbed),
    "training stopped after 200 steps": retrained("--trainer.max_steps", 200),
    "operand 2 closed at its own place": retrained("--trainer.max_steps", 600, window=without("operand 2", 0)),
    "operand 1 closed one place below": retrained("--trainer.max_steps", 600, window=without("operand 1", 1)),
    "trained to end one place early": changed(early_end),
    "an open head in cross-attention": retrained(*ONE_STEP, window=with_line(Rule("cross", 0, 0))),
    "an open head in self-attention": retrained(*ONE_STEP, window=with_line(Rule("decoder", 0, 3, "answer"))),
    "an open head in the encoder": retrained(*ONE_STEP, "--model.num_encoder_layers", 1, window=with_encoder),
    "a line that moves away as the length grows": retrained(*ONE_STEP, window=with_line(TURNED)),
    "a line that opens far away": retrained(*ONE_STEP, window=with_line(FAR)),
    "positions beside the window": retrained(*ONE_STEP, "--model.position", "Sinusoidal"),
    "too wide a window": retrained(*ONE_STEP, window=too_wide),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished run of addition")
    parser.add_argument("--folder", type=Path, default=Path("runs/broken"))
    parser.add_argument("--results", type=Path, default=HERE / "broken.json")
    settings = parser.parse_args()
    results = []
    for name, make in CASES.items():
        place = Run(settings.folder / name.replace(" ", "-"))
        shutil.rmtree(place.path, ignore_errors=True)
        place.path.mkdir(parents=True)
        for phase in ("fit", "calibrate", "retrain"):
            shutil.copytree(settings.run / phase, place.path / phase)
        make(place)
        status = abc("certify", "--run", place.path).returncode
        certificate = json.loads((place.folder("certify") / CERTIFICATE).read_text())
        result = {"case": name, "status": status} | {key: certificate[key] for key in ("verdict", "reason", "problem")}
        if certificate["problem"] is not None:
            solved = abc("solve", "--run", place.path, certificate["problem"], "--check")
            result["solve"] = " ".join((solved.stdout + solved.stderr).split())
        results.append(result)
        save_json(settings.results, results)
        print(f"{name}: {result['verdict']} ({status}). {result['reason']} {result.get('solve', '')}\n", flush=True)


if __name__ == "__main__":
    main()
