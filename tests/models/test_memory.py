"""What takes too much memory is refused before any of it is taken."""

import re
import time
from contextlib import nullcontext
from inspect import isabstract
from types import SimpleNamespace

import psutil
import pytest
import torch

from abc_toolkit import tasks
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.memory import check_fits, check_held_out, check_training_memory
from abc_toolkit.positions import Abacus, Compose, Cyclic, Learned
from abc_toolkit.tasks import Task
from abc_toolkit.tasks.structures.trees import TreeTask

KINDS = [getattr(tasks, name) for name in tasks.__all__]
TASKS = [kind for kind in KINDS if isinstance(kind, type) and issubclass(kind, Task) and not isabstract(kind)]
# Lengths are those of what files hold, and of trees there are none so deep.
LIMITED = (tasks.ImageClassification, tasks.LanguageModel, tasks.Translation, TreeTask)
TASKS = [kind for kind in TASKS if not issubclass(kind, LIMITED)]


@pytest.fixture(autouse=True)
def _sixteen_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**34))


def longest(kind: type[Task], length: int) -> Task:
    """A task trained to a length, or to one token more where it takes odd lengths alone."""
    try:
        return kind(max_length=length)  # type: ignore[call-arg]
    except UserError:
        return kind(max_length=length + 1)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", TASKS, ids=lambda kind: kind.__name__)
def test_any_task_of_a_billion_digits_is_refused_at_once(kind: type[Task]) -> None:
    check_training_memory(kind(), Architecture(), 64, 2560, "cpu")
    # A hundred thousand tokens that are read for an answer of one do fit.
    for length in (*([] if kind is tasks.EvenPairs else [10**5]), 10**9, 10**15):
        start = time.perf_counter()
        with pytest.raises(UserError, match=r"would take about .* GiB and there are 16\.0 GiB"):
            check_training_memory(longest(kind, length), Architecture(), 64, 2560, "cpu")
        assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("sizes", "numbers", "reason"),
    [
        ({"model_dim": 10**6}, {}, "the model"),
        ({"feedforward_dim": 10**9}, {}, "the model"),
        ({"num_decoder_layers": 10**6}, {}, "at most 1,024 layers, and this has 1,000,000"),
        ({"num_encoder_layers": 2000}, {}, "at most 1,024 layers, and this has 2,001"),
        ({"backbone": "mamba", "model_dim": 10**6}, {}, "the model"),
        ({"backbone": "decoder-only", "feedforward_dim": 10**9}, {}, "the model"),
        ({"position": Learned(capacity=10**9)}, {}, "the model"),
        ({"position": Compose((Cyclic(), Abacus(capacity=10**12)))}, {}, "the model"),
        ({}, {"batch_size": 10**9}, "a batch of the longest problems"),
        ({}, {"held_out": 10**10}, "10,000,000,000 held-out problems .--data.validation_problems"),
    ],
)
def test_large_settings_are_refused(sizes: dict[str, object], numbers: dict[str, int], reason: str) -> None:
    architecture = Architecture(**sizes)  # type: ignore[arg-type]
    asked = {"batch_size": 64, "held_out": 2560} | numbers
    with pytest.raises(UserError) as refused:
        check_training_memory(tasks.Addition(), architecture, **asked, accelerator="cpu")
    assert re.search(reason, str(refused.value))


def test_what_is_refused_grows_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for gib in (1, 7, 300):
        monkeypatch.setattr(psutil, "virtual_memory", lambda gib=gib: SimpleNamespace(total=gib * 2**30))
        check_fits(0.99 * gib * 2**30, "it", cpu)
        with pytest.raises(UserError, match=f"it would take about {2 * gib} GiB and there are {gib}"):
            check_fits(2 * gib * 2**30, "it", cpu)
    check_held_out(tasks.Addition(), 10**6, "--problems")
    with pytest.raises(UserError, match=r"10,000,000,000 held-out problems .--problems"):
        check_held_out(tasks.Addition(), 10**10, "--problems")


@pytest.mark.parametrize("sizes", [{}, {"num_encoder_layers": 2, "num_decoder_layers": 3}, {"backbone": "mamba"}])
def test_the_estimate_of_a_model_is_near_its_parameters(
    sizes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the bound of what is refused, five copies of the parameters that the model then has."""
    from abc_toolkit.runs.folder import build_model

    architecture = Architecture(model_dim=96, feedforward_dim=200, **sizes)  # type: ignore[arg-type]
    model = build_model(tasks.Addition(), architecture, None)
    parameters = 20 * sum(parameter.numel() for parameter in model.parameters())
    for factor, outcome in ((0.7, pytest.raises(UserError)), (1.3, nullcontext())):
        limit = int(factor * parameters)
        monkeypatch.setattr(psutil, "virtual_memory", lambda limit=limit: SimpleNamespace(total=limit))
        with outcome:
            check_training_memory(tasks.Addition(max_length=1), architecture, 1, 1, "cpu")
