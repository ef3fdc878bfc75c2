import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from abc_toolkit import certify as certifier
from abc_toolkit.calibration.window import Condition, Rule, Window, Windowed
from abc_toolkit.certify import Cones, Enumeration, certify, cone_logits
from abc_toolkit.evaluation import solve_problems
from abc_toolkit.positions import NoPE, PositionMethod, Sinusoidal
from abc_toolkit.tasks import Addition, Multiplication, Parity, Shape, Successor, Task
from abc_toolkit.tasks.addition import Carrying
from abc_toolkit.tasks.base import DigitTask, LocalRule
from abc_toolkit.transformer import Architecture, Transformer, teacher_forced
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

OWN, BELOW, TWO_BELOW = ((Condition("place", offset, "place"),) for offset in (0, 1, 2))
FIRST = (Condition("place", 0),)
SIZES = Architecture(model_dim=32, feedforward_dim=64, num_heads=2)


def cross(head: int, conditions: tuple[Condition, ...] = OWN, segment: str = "operand 1", layer: int = 0) -> Rule:
    return Rule("cross", layer, head, segment, conditions)


def decoder(head: int, conditions: tuple[Condition, ...], segment: str = "answer", layer: int = 1) -> Rule:
    return Rule("decoder", layer, head, segment, conditions)


RULES: dict[str, tuple[DigitTask, tuple[Rule, ...]]] = {
    "parity": (Parity(max_length=5), (cross(0),)),
    "successor": (Successor(max_length=4), (cross(0), cross(1, layer=1), decoder(0, TWO_BELOW))),
    "addition": (Addition(max_length=2), (cross(0), cross(1, segment="operand 2"), decoder(0, TWO_BELOW))),
    "multiplication": (
        Multiplication(max_length=3),
        (cross(0), cross(1, FIRST, "operand 2"), decoder(0, TWO_BELOW), decoder(1, FIRST, "start")),
    ),
    "unpadded addition": (
        Addition(max_length=2, padding="none"),
        (cross(0), cross(1, segment="operand 2"), decoder(0, TWO_BELOW), cross(1, (), "operator", 1)),
    ),
}


def window(task: Task, rules: Sequence[Rule], encoder: int = 0) -> Window:
    return Window(type(task).__name__, encoder, 2, 2, tuple(rules), {})


def make(task: Task, rules: Sequence[Rule], inner: PositionMethod | None = None, encoder: int = 0) -> Transformer:
    torch.manual_seed(0)
    sizes = replace(SIZES, num_encoder_layers=encoder)
    position = Windowed(window(task, rules, encoder), inner or NoPE())
    return Transformer(len(task.vocabulary), sizes, position).eval()


@pytest.fixture(scope="module", params=["parity", "successor"])
def trained(request: pytest.FixtureRequest) -> tuple[DigitTask, Transformer]:
    """A small model that has learnt all of its contexts."""
    task, rules = RULES[request.param]
    model = make(task, rules).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    shapes = task.training_shapes()
    for step in range(700 if task.base == 2 else 1600):
        problems = task.sample(generator, 64, shapes[step % len(shapes)])
        logits = teacher_forced(model, problems, task.layout(problems.shape))
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten()).backward()
        optimizer.step()
    return task, model.eval()


def every_problem(task: DigitTask, shape: Shape) -> tuple[Tensor, Tensor]:
    """Sources and targets of all problems of a shape, by the task's oracle."""
    texts = []
    for digits in itertools.product(task.symbols[: task.base], repeat=sum(task.operand_lengths(shape))):
        first = "".join(digits[: task.operand_lengths(shape)[0]])
        second = "".join(digits[task.operand_lengths(shape)[0] :])
        texts.append(task.parse(first + task.operator + second)[1])
    source = torch.stack([task.vocabulary.encode(text) for text in texts])
    target = torch.stack([task.vocabulary.encode(task.solve(text)) for text in texts])
    return source, functional.pad(target, (0, 1), value=EOS)


@pytest.mark.parametrize("name", RULES)
def test_what_is_enumerated_is_what_occurs(name: str) -> None:
    task, rules = RULES[name]
    rule = task.local_rule()
    assert rule is not None
    wider = (*rules, decoder(0, BELOW), decoder(1, FIRST), cross(0, (Condition("index", 0),), layer=1))
    shapes = [shape for shape in task.training_shapes() if task.num_problems(shape) <= 10_000][-3:]
    for shape, own in itertools.product(shapes, (rules, wider)):
        source, target = every_problem(task, shape)
        prefix = functional.pad(target[:, :-1], (1, 0), value=BOS)
        cones = Cones(window(task, own), task.layout(shape))
        for query in range(target.shape[1]):
            cone = cones.of(query)
            strings = {"source": source, "prefix": prefix}
            leaves = torch.stack([strings[string][:, number] for string, number in cone.leaves], dim=1)
            occurs = set(map(tuple, torch.cat([leaves, target[:, query : query + 1]], dim=1).tolist()))
            enumeration = Enumeration(task, rule, shape, cone)
            tokens, required = enumeration.tokens(enumeration.contexts())
            found = torch.cat([tokens, required[:, None]], dim=1).tolist()
            assert len(found) == len(set(map(tuple, found)))
            assert set(map(tuple, found)) == occurs


@pytest.mark.parametrize("name", RULES)
def test_a_context_is_found_in_a_problem(name: str) -> None:
    task, rules = RULES[name]
    rule = task.local_rule()
    assert rule is not None
    shape = replace(task, max_length=5).training_shapes()[-1]
    cones = Cones(window(task, rules), task.layout(shape))
    for query in range(len(cones.layout.target)):
        enumeration = Enumeration(task, rule, shape, cones.of(query))
        contexts = enumeration.contexts()
        for context in contexts[:: max(1, len(contexts) // 7)]:
            own_shape, text = task.parse(enumeration.problem(context))
            source, target = task.vocabulary.encode(text), task.vocabulary.encode(task.solve(text))
            strings = {"source": source, "prefix": functional.pad(target, (1, 0), value=BOS)}
            (leaves,), (required,) = enumeration.tokens(context[None])
            assert own_shape == shape
            assert leaves.tolist() == [int(strings[string][number]) for string, number in enumeration.cone.leaves]
            assert int(required) == int(functional.pad(target, (0, 1), value=EOS)[query])


ENCODER = (
    Rule("encoder", 0, 0, "operand 1", (Condition("place", 1, "place"),)),
    Rule("encoder", 0, 1, "operand 1", (Condition("index", 0),), 0.5, fallback=True),
)


@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_a_cone_alone_gives_the_models_logits(name: str, encoder: int) -> None:
    task, rules = RULES[name]
    own = (*rules, decoder(1, BELOW, layer=0), *ENCODER[: 2 * encoder])
    model = make(task, own, encoder=encoder)
    for shape in task.training_shapes():
        layout = task.layout(shape)
        problems = task.sample(torch.Generator().manual_seed(1), 16, shape)
        prefix = functional.pad(problems.target[:, :-1], (1, 0), value=BOS)
        whole = teacher_forced(model, problems, layout)
        cones = Cones(window(task, own, encoder), layout)
        for query in range(len(layout.target)):
            cone = cones.of(query)
            strings = {"source": problems.source, "prefix": prefix}
            leaves = torch.stack([strings[string][:, number] for string, number in cone.leaves], dim=1)
            torch.testing.assert_close(cone_logits(model, cone, leaves), whole[:, query], atol=2e-5, rtol=1e-5)


def fails(task: DigitTask, model: Transformer, longest: int) -> bool:
    """Whether the model fails on any problem up to a length: every one is tried."""
    with torch.no_grad():
        for shape in replace(task, max_length=longest).training_shapes():
            source, target = every_problem(task, shape)
            prefix = functional.pad(target[:, :-1], (1, 0), value=BOS)
            if (model(source, prefix, task.layout(shape)).argmax(-1) != target).any():
                return True
    return False


def test_a_right_model_is_certified(trained: tuple[DigitTask, Transformer]) -> None:
    task, model = trained
    certificate = certify(task, model)
    assert (certificate.verdict, certificate.reason) == ("correct", "")
    assert not fails(task, model, 4 if task.base == 10 else 8)
    assert certificate.smallest_gap > 2 * certificate.largest_deviation > 0
    assert certificate.outside < 1e-4
    assert certificate.rule_checked == (11_110 if task.base == 10 else 62)
    assert certificate.contexts > 5
    for length in (60, 300):
        problems = task.sample(torch.Generator().manual_seed(2), 8, (length,), "carry")
        with torch.no_grad():
            assert (teacher_forced(model, problems, task.layout((length,))).argmax(-1) == problems.target).all()


def test_no_broken_model_is_certified(trained: tuple[DigitTask, Transformer]) -> None:
    """Weights are disturbed until something goes wrong; what is certified is right on every short problem."""
    task, model = trained
    generator = torch.Generator().manual_seed(0)
    verdicts = []
    for number in range(24):
        broken = copy.deepcopy(model)
        parameters = list(broken.parameters())
        parameter = parameters[int(torch.randint(len(parameters), (), generator=generator))]
        scale = 10 ** (2.5 * torch.rand((), generator=generator) - 1.5) * (parameter.data.std().nan_to_num() + 0.1)
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
        certificate = certify(task, broken)
        verdicts.append(certificate.verdict)
        wrong = fails(task, broken, 3 if task.base == 10 else 7)
        assert not (wrong and certificate.verdict == "correct"), number
        if certificate.verdict == "wrong":
            assert certificate.problem is not None
            answer = solve_problems(broken, task, [task.parse(certificate.problem)])[0]
            assert answer != task.answer(task.solve(task.parse(certificate.problem)[1]))
            assert certificate.problem in certificate.reason
    assert {"correct", "wrong"} <= set(verdicts)


def test_a_model_that_ends_too_early_or_has_lost_a_line_is_refuted(trained: tuple[DigitTask, Transformer]) -> None:
    task, model = trained
    early = copy.deepcopy(model)
    early.output.bias.data[EOS] += 100
    rules = RULES[task.name][1]
    lost = make(task, rules[1:])
    lost.load_state_dict(model.state_dict())
    untrained = make(task, rules)
    for broken in (early, lost, untrained):
        certificate = certify(task, broken)
        assert certificate.verdict == "wrong", certificate
        assert certificate.problem is not None
        (answer,) = solve_problems(broken, task, [task.parse(certificate.problem)])
        assert answer != task.answer(task.solve(task.parse(certificate.problem)[1]))


class Other(Carrying):
    """A rule that forgets the carry."""

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        total = digits[0] + digits[1]
        return total // 10, total % 10


@dataclass(frozen=True)
class Forgetful(Addition):
    """Addition with a wrong rule."""

    def local_rule(self) -> LocalRule:
        return Other()


class Counting(Carrying):
    """A rule that knows whether a place is odd."""

    num_states = 4

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        after, written = super().step(state % 2, digits, constants)
        return after + 2 * (1 - state // 2), written


@dataclass(frozen=True)
class Swinging(Addition):
    """Addition with a rule that never settles."""

    def local_rule(self) -> LocalRule:
        return Counting()


def test_what_cannot_be_decided_is_said_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    task, rules = RULES["addition"]
    plain = Transformer(len(task.vocabulary), SIZES)
    cases = [
        (task, plain, "the model has no window"),
        (task, make(task, rules, Sinusoidal()), "Sinusoidal positions"),
        (Parity(form="label"), make(Parity(form="label"), (cross(0),)), "parity has no local rule"),
        (Forgetful(), make(Forgetful(), rules), "the local rule of forgetful does not say what integers say of 1+9"),
        (Swinging(), make(Swinging(), rules), "the states of the local rule of swinging do not settle"),
        (task, make(task, (*rules, cross(0, (Condition("raw", 0, "raw"),)))), "'operand 1, raw = query's raw' (cross"),
        (task, make(task, (*rules, cross(0, ()))), ""),
        (task, make(task, (*rules, decoder(1, (), layer=0))), ""),
    ]
    monkeypatch.setattr(certifier, "MOST_CONTEXTS", 10**5)
    for own, model, reason in cases:
        certificate = certify(own, model)
        assert certificate.verdict == "undecided", certificate
        assert reason in certificate.reason
        assert certificate.reason
        assert "\n" not in certificate.reason


def test_a_thin_gap_is_not_enough(trained: tuple[DigitTask, Transformer], monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = trained
    monkeypatch.setattr(certifier, "_deviation", lambda *_: 100.0)
    certificate = certify(task, model)
    assert certificate.verdict == "undecided"
    assert "the smallest gap between logits" in certificate.reason


@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_tasks(name: str) -> None:
    task = RULES[name][0]
    rule = task.local_rule()
    assert rule is not None
    assert certifier._checked_rule(task, rule) == sum(
        task.num_problems(shape) for shape in task.training_shapes() if task.num_problems(shape) <= 20_000
    )
    state = torch.arange(rule.num_states)
    after, written = rule.step(state, [torch.full_like(state, task.base - 1)] * len(rule.operands), [state * 0 + 9])
    assert int(after.max()) < rule.num_states
    assert int(written.max()) < task.base <= NUM_SPECIAL + task.base
