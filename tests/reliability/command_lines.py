"""Command lines and files of settings that make no sense, or by accident some, and what comes of each."""

import contextlib
import dataclasses
import hashlib
import io
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

import abc_toolkit
from abc_toolkit.calibration import Paper, Places
from abc_toolkit.cli.commands import COMMANDS
from abc_toolkit.cli.main import main
from abc_toolkit.cli.parser import options
from abc_toolkit.phases import calibrate, evaluate, pipeline, training
from abc_toolkit.positions import PositionMethod
from abc_toolkit.tasks import Parity, Task

LIMIT = 20  # seconds
SMALL = 4  # steps, problems and lengths of what is valid by accident are cut to so many, or some more


def _words(text: str) -> list[str]:
    return text.split()


NUMBERS = (
    *_words("""
    0 -1 1 2 3 -0 +1 007 0x10 0b1 1_000 1:40 1,2 3.5 -2.5 1e3 1e-300 1e400 -1e400 nan .nan NaN inf .inf -inf
    1000000000 -1000000000 9999999999999999999 999999999999999999999999999999 ½ ² ٣ \uff11\uff12 1.2.3 --1 1j 1/2 0.999
    """),
    *(
        "9" * 400,
        "9" * 5000,
        "0." + "3" * 400,
        "1 2",
    ),
)
TEXTS = (
    *_words("""
    null None ~ true false yes No on ten é 日本 🦆 é [red] [/x] [ ] { } [] {} [[[]]] *x &x !!python/name:os.system
    # ' % %s %(x)s {0} ${HOME} $(id) `id` @ @file | > ? = == a=b -- - -x --x --seed --seed=1 1x x 1x,2x 1x:3x
    3:1 1x: : , 1,,2 3x2 99999x99999 0x0 1x1x1 uniform carry,nosuch retrain fit all auto cpu gpu tpu cuda mps
    ddp deepspeed 16-mixed dense gathered steps pre
    """),
    *(
        "",
        " ",
        "\t",
        "\u202e",
        "a\nb",
        "\x1b[31mred\x1b[0m",
        "\x07",
        "\x7f",
        "\x85",
        "\ufeff",
        "\udcff",
        "a" * 300,
        "a" * 5000,
        "[1, 2]",
        "[" * 3000,
        "- " * 3000,
        "{a: 1}",
        "{a: }",
        "{1: 2}",
        "a: b",
        "a: b: c",
        "- a",
        "&a [*a]",
        "!x y",
        "!!binary x",
        "!!int x",
        "# c",
        '"',
        "\\",
        "? a",
        "<<: 3",
        "uniform, carry",
    ),
)
PATHS = (
    *_words("""
    . .. / ~ ~nobody /dev/null /dev/zero /dev/full /dev/stdin /proc/self/mem /etc/passwd nowhere nowhere/deep/er
    runs runs/parity runs/parity/fit runs/parity/fit/record.json file.txt empty.yaml binary link loop pipe
    file.txt/x http://localhost:1/x file:///x s3://x/y runs/parity/calibrate/window.json
    runs/parity/retrain/weights.safetensors runs/parity/fit/config.yaml
    """),
    *("a\\b",),
)
CLASSES = (
    *_words("""
    Parity parity Addition LongMultiplication Copy Task DigitTask NoPE RoPE Compose Windowed Randomized Places
    Paper CSVLogger TensorBoardLogger WandbLogger Logger Nosuch a.b .a a. abc_toolkit.tasks.Parity
    abc_toolkit.tasks abc_toolkit.tasks.Nosuch abc_toolkit.positions.NoPE os.path os.system builtins.dict
    builtins.eval torch.nn.Linear lightning.pytorch.Trainer yaml.YAMLObject
    """),
    *(
        "{class_path: Parity}",
        "{class_path: Parity, init_args: {max_length: 3}}",
        "{class_path: Parity, init_args: 3}",
        "{class_path: Nosuch, init_args: {}}",
        "{class_path: 3}",
        "{class_path: [Parity]}",
        "{init_args: {max_length: 3}}",
        "{class_path: Parity, init_args: {nosuch: 3}}",
        "{class_path: Parity, more: 3}",
        "{class_path: os.system}",
        "{class_path: Compose, init_args: {methods: [NoPE, {class_path: RoPE}]}}",
        "{class_path: Compose, init_args: {}}",
    ),
)
POOL = (*NUMBERS, *TEXTS, *PATHS, *CLASSES)
# What makes a command small and lets it go on where the words behind it make sense.
TINY = (
    *("--trainer.max_steps", "2", "--trainer.validate_every", "2", "--trainer.accelerator", "cpu"),
    *("--data.validation_problems", "8", "--data.batch_size", "8"),
    *("--model.model_dim", "16", "--model.feedforward_dim", "16"),
)
BASE: dict[str, tuple[str, ...]] = {
    "run": (
        *("--task", "Parity", "--run", "new"),
        *(word.replace("--", f"--{phase}.") for phase in ("fit", "retrain") for word in TINY),
        *("--calibrate.problems", "8", "--evaluate.samples", "2", "--evaluate.length", "2"),
    ),
    "fit": ("--task", "Parity", "--run", "new", *TINY),
    "calibrate": ("--problems", "16", "--overwrite"),
    "retrain": ("--overwrite", *TINY),
    "evaluate": ("--samples", "2", "--length", "2", "--overwrite"),
    "solve": (),
    "certify": ("--overwrite",),
    "explain": ("--overwrite",),
    "report": ("runs/parity", "--overwrite"),
    "export": ("new",),
    "sweep": ("empty.yaml",),
    "summarize": ("runs",),
}


class TooLongError(BaseException):
    """A command line was not done in time."""


@dataclass(frozen=True)
class Case:
    """A command line, and the file of settings that it may name.

    Attributes:
        words: Its words.
        settings: Content of `settings.yaml`.
        stdin: What stands on standard input.
    """

    words: tuple[str, ...]
    settings: bytes | None = None
    stdin: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        kind: `refused` or `done`, or what is wrong.
        told: What was said, or the traceback.
        seconds: How long it took.
    """

    kind: str
    told: str
    seconds: float

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("refused", "done")


def made(path: Path) -> Path:
    """A folder with a small finished run and files of several kinds."""
    from abc_toolkit.models.base import Architecture
    from abc_toolkit.tasks.objective import Stopping
    from abc_toolkit.training.data import Data
    from abc_toolkit.training.loop import TrainerSettings
    from abc_toolkit.training.module import Optimizer

    run = path / "runs" / "parity"
    training: dict[str, Any] = {
        "data": Data(validation_problems=64),
        "optimizer": Optimizer(warmup_steps=10, averaging=0.9),
        "trainer": TrainerSettings(max_steps=800, validate_every=20, accelerator="cpu"),
    }
    sizes = Architecture(model_dim=32, feedforward_dim=64, num_heads=2)
    abc_toolkit.fit(Parity(max_length=3), run=run, model=sizes, stopping=Stopping(1.0, 0.02, 0), **training)
    abc_toolkit.calibrate(run=run, problems=64)
    abc_toolkit.retrain(run=run, stopping=Stopping(1.0, 0.05, 0), **training)
    abc_toolkit.evaluate(run=run, length="1x", samples=4)
    return furnished(path)


def furnished(path: Path) -> Path:
    """Adds files of several kinds to a folder."""
    (path / "file.txt").write_text("101\n11\n")
    (path / "empty.yaml").touch()
    (path / "binary").write_bytes(bytes(range(256)))
    (path / "link").symlink_to("file.txt")
    (path / "loop").symlink_to("loop")
    os.mkfifo(path / "pipe")
    return path


def command_line(draws: random.Random) -> Case:
    """A command line, each of whose options is one of its command's, most with a value that it does not take."""
    command = draws.choice(list(COMMANDS))
    words = [command, *BASE[command]]
    for _ in range(draws.choice((1, 1, 1, 2, 2, 3))):
        option = draws.choice([*_names(command, draws), *(("",) if COMMANDS[command].operands else ())])
        value = draws.choice(draws.choice((NUMBERS, TEXTS, PATHS, CLASSES)))
        if not option:
            words.append(value)
        elif draws.random() < 0.1:
            words.append(f"--{option}")
        elif draws.random() < 0.5:
            words.append(f"--{option}={value}")
        else:
            words += [f"--{option}", value]
    if draws.random() < 0.05:
        words.insert(draws.randint(0, len(words)), draws.choice(POOL))
    if draws.random() < 0.03:
        words = draws.sample(words, len(words))
    stdin = draws.choice((b"", b"101\n", b"\xff\n", b"1" * 500, b"\0\n", b"1 1\n\n"))
    return Case(tuple(words), stdin=stdin)


def settings_file(draws: random.Random) -> Case:
    """A command with a file of settings in which something is changed."""
    command = draws.choice(list(COMMANDS))
    small = {"max_steps": 2, "validate_every": 2, "accelerator": "cpu"}
    data, model = {"validation_problems": 8, "batch_size": 8}, {"model_dim": 16, "feedforward_dim": 16}
    content: dict[str, Any] = {
        "task": {"class_path": "Parity", "init_args": {"max_length": 3}},
        "run": "new" if command in ("run", "fit") else "runs/parity",
        "overwrite": command not in ("run", "fit"),
        "seed": 1,
        "fit": {"trainer": small, "data": data, "model": model | {"position": {"class_path": "Cyclic"}}},
        "calibrate": {"problems": 16, "method": {"class_path": "Places", "init_args": {"min_attention": 0.02}}},
        "retrain": {"trainer": small, "data": data, "model": model, "until": "validated"},
        "evaluate": {"length": "2", "samples": 2, "sets": ["uniform"]},
    }
    text = yaml.safe_dump(content, sort_keys=False)
    for _ in range(draws.choice((1, 1, 1, 2, 4))):
        text = _changed(text, draws)
    raw = text.encode("utf-8", "surrogateescape")
    if draws.random() < 0.1:
        raw = draws.choice((text.encode("utf-16"), b"\xef\xbb\xbf" + raw, raw.replace(b"\n", b"\r\n"), raw + b"\xff"))
    if draws.random() < 0.1:
        spoilt = bytearray(raw or b"x")
        spoilt[draws.randrange(len(spoilt))] ^= 1 << draws.randrange(8)
        raw = bytes(spoilt)
    operands = {"solve": ("101",), "report": ("runs/parity",), "export": ("new",)}
    operands |= {"sweep": ("settings.yaml",), "summarize": ("runs",)}
    words = [command, "--config", "settings.yaml", *operands.get(command, ())]
    return Case(tuple(words), raw)


def _changed(text: str, draws: random.Random) -> str:
    lines = text.split("\n")
    at = draws.randrange(len(lines))
    value = draws.choice(POOL)
    name = draws.choice([*options()["fit"], *options()["run"], *options()["evaluate"], value])
    key, colon, _ = lines[at].partition(":")
    indent = " " * draws.choice((0, 0, 2, 3, 4))
    new = {
        "value": [f"{key}{colon} {value}"],
        "key": [f"{indent}{value}: 3"],
        "option": [lines[at], f"{indent}{name}: {value}"],
        "twice": [lines[at], lines[at]],
        "gone": [],
        "deeper": [f" {lines[at]}"],
        "tab": [f"\t{lines[at]}"],
        "empty": [f"{key}{colon}"],
        "text": [value],
        "end": [lines[at][: draws.randint(0, len(lines[at]))]],
    }
    lines[at : at + 1] = new[draws.choice(list(new))]
    if draws.random() < 0.05:
        lines = lines[: draws.randrange(len(lines) + 1)]
    return "\n".join(lines)


def _names(command: str, draws: random.Random) -> Iterator[str]:
    """The options of a command, and for each that chooses a class some settings of such classes."""
    kinds = (*_below(Task), *_below(PositionMethod), Places, Paper)
    for name, is_open in options()[command].items():
        yield name
        if is_open:
            settings = [field.name for kind in draws.sample(kinds, 4) for field in dataclasses.fields(kind)]
            yield from (f"{name}.{setting}" for setting in draws.sample(settings, min(3, len(settings))))


def _below(kind: type) -> list[Any]:
    found = []
    for child in kind.__subclasses__():
        found += [child, *_below(child)]
    return [child for child in found if child.__module__.startswith("abc_toolkit.") and dataclasses.is_dataclass(child)]


def snapshot(folder: Path) -> dict[str, str]:
    """What is in a folder: every name, with what it is and holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link to {os.readlink(path)}"
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            what = "folder" if path.is_dir() else "other"
        found[str(path.relative_to(folder))] = what
    return found


class Bench:
    """Does cases one after the other, in this process, each in a folder that is as it was for the first.

    Args:
        template: The folder that each begins with.
        folder: Where they are done; must not be there yet.
    """

    def __init__(self, template: Path, folder: Path) -> None:
        self.template = template
        self.folder = folder
        self.changed = True
        self._before: dict[str, str] = {}

    def prepare(self, case: Case) -> dict[str, str]:
        """Makes the folder what it is before a case, and tells what is in it."""
        if self.changed:
            self.changed = False
            shutil.rmtree(self.folder, ignore_errors=True)
            ignored = shutil.ignore_patterns("pipe", "loop")
            shutil.copytree(self.template, self.folder, symlinks=True, ignore=ignored)
            os.mkfifo(self.folder / "pipe")
            (self.folder / "loop").symlink_to("loop")
            self._before = snapshot(self.folder)
        before = dict(self._before)
        if case.settings is not None:
            (self.folder / "settings.yaml").write_bytes(case.settings)
            before["settings.yaml"] = hashlib.sha256(case.settings).hexdigest()
        return before

    def outcome(self, case: Case) -> Outcome:
        """What comes of a case."""
        before = self.prepare(case)
        with _cut_short():
            status, out, err, seconds = called(case, self.folder)
        after = snapshot(self.folder)
        with contextlib.suppress(OSError):
            (self.folder / "settings.yaml").unlink()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        self.changed = bool(changed)
        return judged(case, status, out, err, seconds, changed)


def judged(case: Case, status: Any, out: str, err: str, seconds: float, changed: list[str]) -> Outcome:
    """What is to be thought of how a command line ended."""
    lines = err.splitlines()
    solves_lines = case.words[:1] == ("solve",) and all("line " in line or "is read as" in line for line in lines)
    if not isinstance(status, int):
        kind = str(status)
    elif status == 0 or (status in (1, 3) and "certify" in case.words):
        kind = "done"
    elif status != 2:
        kind = f"exit status {status}"
    elif solves_lines:
        kind = "refused"
    elif case.words[:1] == ("run",) and "Next:  abc calibrate" in err:
        kind = "done"  # the first phase, with whose model a later one cannot go on
    elif len(lines) != 1:
        kind = f"{len(lines)} lines"
    elif out:
        kind = "output beside an error"
    elif changed:
        kind = f"changed {', '.join(changed[:3])}"
    elif any(ord(character) < 32 or 127 <= ord(character) < 160 for character in lines[0]):
        kind = "control characters"
    else:
        kind = "refused"
    if seconds > LIMIT:
        kind = "too long"
    return Outcome(kind, err[-1500:], seconds)


def called(case: Case, folder: Path) -> tuple[Any, str, str, float]:
    """Exit status, standard output, standard error and seconds of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    here, argv, environment = os.getcwd(), sys.argv, dict(os.environ)
    start = time.monotonic()
    status: Any = None

    def late(*_: object) -> None:
        raise TooLongError

    os.chdir(folder)
    sys.argv = ["abc"]
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(case.stdin))
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(list(case.words))
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except TooLongError:
                status = "too long"
                err.write(traceback.format_exc())
            except BaseException as error:
                status = f"traceback: {type(error).__name__}"
                err.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.argv, sys.stdin = argv, stdin
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)
    return status, out.getvalue(), err.getvalue(), time.monotonic() - start


@contextlib.contextmanager
def _cut_short() -> Iterator[None]:
    """Lets what is valid by accident do little of what it is asked for."""
    train, trainer = training.train, training.lightning_trainer
    own_evaluation, problems = evaluate.evaluate_models, calibrate.validation_problems

    def short(settings: Any) -> Any:
        several = str(settings.devices).isdigit() and int(settings.devices) > 1
        few = min(settings.max_steps, SMALL)
        return trainer(dataclasses.replace(settings, max_steps=few, **({"devices": 1} if several else {})))

    def trained(asked: Any, network: Any, **settings: Any) -> Any:
        data, stopping = asked.data, asked.stopping
        fewer = {"batch_size": min(data.batch_size, 64), "validation_problems": min(data.validation_problems, 64)}
        data = dataclasses.replace(data, **fewer)
        stopping = dataclasses.replace(stopping, decay_steps=min(stopping.decay_steps, SMALL))
        return train(dataclasses.replace(asked, data=data, stopping=stopping), network, **settings)

    def evaluated(task: Any, models: Any, sizes: Any, sets: Any, samples: int, *others: Any) -> Any:
        few = [size for size in sizes if max(size if isinstance(size, tuple) else (size,)) < 500][:SMALL] or [1]
        return own_evaluation(task, models, few, sets, min(samples, SMALL), *others)

    def drawn(task: Any, seed: int, count: int) -> Any:
        return problems(task, seed, min(count, 100))

    with (
        mock.patch.multiple(training, train=trained, lightning_trainer=short),
        mock.patch.object(evaluate, "evaluate_models", evaluated),
        mock.patch.object(calibrate, "validation_problems", drawn),
        mock.patch.object(pipeline, "lightning_trainer", short),
    ):
        yield
