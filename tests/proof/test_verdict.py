import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from abc_toolkit.calibration.sufficiency import Evidence, views
from abc_toolkit.models.base import predict
from abc_toolkit.models.decoding import solve_problems
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import Cyclic, Sinusoidal
from abc_toolkit.proof import Certificate, certify, rounding, verdict
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.proof.bound import bound_of
from abc_toolkit.proof.enumeration import Kind, kinds_of
from abc_toolkit.proof.forward import margins
from abc_toolkit.proof.rounding import BoundedModel
from abc_toolkit.proof.verdict import indistinguishable
from abc_toolkit.tasks import Addition, LongMultiplication, Parity, Problems, Successor, Task
from abc_toolkit.tasks.digits.addition import Carrying
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.digits.identity import CopyIdentity, Identity, SumIdentity
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.vocabulary import EOS
from abc_toolkit.windows.rules import Condition, Rule
from tests.small_windows import (
    BELOW,
    FIRST,
    LEARNT,
    OWN,
    RULES,
    SIZES,
    TWO_BELOW,
    cross,
    decoder,
    fails,
    kinds,
    learnt,
    make,
    window,
)

SLOW_ADDITION = pytest.param("addition without a decoder", marks=pytest.mark.slow)
LONGEST = {"parity": 8, "successor": 3, "addition": 2}  # of the problems that are tried one by one


SLOW = [pytest.mark.slow]


@pytest.fixture(params=[pytest.param(name, marks=SLOW * (name == "successor")) for name in LEARNT])
def trained(request: pytest.FixtureRequest) -> tuple[DigitTask, EncoderDecoder]:
    return learnt(request.param)


def check_refuted(task: DigitTask, model: EncoderDecoder, certificate: Certificate) -> None:
    """Whether a model really fails on the problem that its refutation names."""
    assert certificate.verdict == "wrong", certificate
    assert certificate.problem is not None
    (answer,) = solve_problems(model, task, [task.parse(certificate.problem)])
    right = task.answer(task.solve(task.parse(certificate.problem)[1]))
    assert answer != right
    assert certificate.reason.startswith(f"{certificate.problem} makes {right}, and the model says {answer}: at place ")
    assert "\n" not in certificate.reason


def test_a_right_model_is_certified(trained: tuple[DigitTask, EncoderDecoder]) -> None:
    task, model = trained
    certificate = certify(task, model)
    assert (certificate.verdict, certificate.reason, certificate.problem) == ("correct", "", None)
    assert not fails(task, model, LONGEST[task.name])
    assert certificate.smallest_slack > 0
    assert certificate.largest_rounding > 100 * certificate.largest_deviation > 0
    assert certificate.outside < 1e-4
    assert certificate.meaning is not None
    assert certificate.meaning.held_to >= 10_000
    assert certificate.meaning.longest == 10 * task.max_length
    assert (
        certificate.meaning.proved
        == {
            "parity": ("each bit is the parity of the bits so far",),
            "successor": ("operand 1 + 1 = answer",),
            "addition": ("operand 1 + operand 2 = answer",),
        }[task.name]
    )
    for length in (60, 300):
        shape = (length,) * len(task.training_shapes()[0])
        problems = task.sample(torch.Generator().manual_seed(2), 8, shape, "carry")
        with torch.no_grad():
            assert (predict(model, problems, task.layout(shape)).argmax(-1) == problems.target).all()


def segments_of(words: str) -> list[str]:
    """Segments of the leaves of a receptive field in words: which prediction stands for a kind may differ."""
    return re.findall(r"(\w+(?: \d)?) place \d+", words.split(", from ")[1])


def test_a_certificate_says_what_it_rests_on(trained: tuple[DigitTask, EncoderDecoder]) -> None:
    task, model = trained
    certificate = certify(task, model)
    assert certificate.kinds == len(certificate.parts) > 1
    assert certificate.assignments == sum(part.assignments for part in certificate.parts) > 5
    assert certificate.smallest_margin == min(part.smallest_margin for part in certificate.parts)
    assert certificate.smallest_slack == min(part.smallest_slack for part in certificate.parts)
    assert certificate.largest_rounding == max(part.largest_rounding for part in certificate.parts)
    thinnest = min(certificate.parts, key=lambda part: part.smallest_margin)
    assert certificate.narrowest == thinnest.narrowest
    basis = basis_of(task, model)
    assert certificate.bound == bound_of(task, basis.rule, basis.window, 1).sizes
    assert certificate.longest == max(certificate.bound.values()) > task.max_length
    assert certificate.layouts == certificate.longest  # addition's operands are of one width
    lengths = range(1, certificate.longest + 1)
    shapes = [(length,) * len(certificate.bound) for length in lengths]
    assert certificate.tokens == sum(sum(task.num_tokens(shape)) for shape in shapes)
    predictions = sum(task.num_tokens(shape)[1] for shape in shapes)
    assert sum(part.predictions for part in certificate.parts) == predictions
    for part in certificate.parts:
        assert part.smallest_margin - part.largest_rounding <= part.smallest_slack < part.smallest_margin
        assert 0 < part.largest_rounding < 1
        words = re.fullmatch(r"(at place \d+ of [x\d]+), from (.+)", part.receptive_field)
        assert words
        shown = re.sub(r" = [^,]*", "", part.narrowest)
        assert shown.count(",") == part.receptive_field.count(",")
    for own in kinds(task, model):
        segments, least = segments_of(own.enumeration.describe()), float(margins(model, own, own.assignments).min())
        same = [part for part in certificate.parts if segments_of(part.receptive_field) == segments]
        assert any(p.assignments >= len(own.assignments) and p.smallest_margin <= least + 1e-4 for p in same)


@pytest.mark.parametrize("longest", [1, 3, 4])
def test_what_lies_beyond_training_is_counted(longest: int) -> None:
    task, model = learnt("successor")
    short = replace(task, max_length=longest)
    certificate = certify(short, model)
    assert (certificate.verdict, certificate.assignments) == ("correct", 1341)
    known = {
        (number, int(assignment))
        for number, own in enumerate(kinds(replace(task, max_length=8), model))
        for enumeration, part in own.parts
        if enumeration.sizes[0] <= longest
        for assignment in part
    }
    assert certificate.beyond_training == 1341 - len(known)
    assert (certificate.beyond_training > 0) == (longest < 4)
    assert len(certificate.examples) == len(set(certificate.examples)) == min(5, certificate.beyond_training)
    if longest == 3:  # an answer of two zeros below a digit other than one
        assert all("answer place 1 = 0, answer place 2 = " in example for example in certificate.examples)
    for example in certificate.examples:
        assert re.match(r"at place \d of \d, from operand 1 place \d = \d, ", example)
        assert max(map(int, re.match(r"at place (\d) of (\d)", example).groups())) > longest  # type: ignore[union-attr]


def test_deviations_are_of_every_way_of_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = learnt("parity")
    ways = ("one batch", "the batch shuffled", "batches of one", "cached, a token at a time")
    ways = (*ways, "cached, in pieces of 5 tokens")
    ways = (*ways, "long problems, one batch", "long problems, in pieces of 256 tokens")
    expected = {f"{path}, {way}" for path in ("dense", "gathered") for way in ways}
    expected.add("gathered, the receptive field alone")
    deviations = certify(task, model).deviations
    assert set(deviations) == expected
    assert model.path == "auto"  # as before
    assert all(0 < value < 1e-4 for value in deviations.values())
    # Each is of its own way: what goes wrong in one shows there alone.
    own_forward, own_advance, own_field = EncoderDecoder.forward, EncoderDecoder.advance, verdict.receptive_field_logits

    def forward(self: EncoderDecoder, source: Tensor, *others: Any) -> Tensor:
        off = 1.0 * (self.path == "dense" and source.dtype == torch.long and self.output.weight.dtype == torch.float32)
        return own_forward(self, source, *others) + off * (2 if len(source) == 1 else 1)

    def advance(self: EncoderDecoder, tokens: Tensor, state: Any) -> Tensor:
        return own_advance(self, tokens, state) + {1: 3, 5: 4}.get(tokens.shape[1], 6)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderDecoder, "forward", forward)
        patch.setattr(EncoderDecoder, "advance", advance)
        patch.setattr(verdict, "receptive_field_logits", lambda *arguments: own_field(*arguments) + 5)
        found = verdict._deviations(basis_of(task, model), model, BoundedModel(model), (14,))
    off = {"batches of one": 2, "cached, a token at a time": 3, "cached, in pieces of 5 tokens": 4}
    off["long problems, in pieces of 256 tokens"] = 6
    for way in ways:
        assert found[f"dense, {way}"] == pytest.approx(off.get(way, 1), abs=1e-3), way
        pieces = "cached" in way or "pieces" in way
        assert found[f"gathered, {way}"] == pytest.approx(off[way] if pieces else 0, abs=1e-3), way
    assert found["gathered, the receptive field alone"] == pytest.approx(5, abs=1e-3)


def test_tokens_outside_are_changed_and_those_inside_kept() -> None:
    for name, shape in (("successor", (6,)), ("addition", (6, 6))):
        task, rules = RULES[name]
        model = make(task, rules)
        basis = basis_of(task, model)
        assert verdict._outside(basis, model, shape) < 1e-4
        for lacking in range(len(rules)):
            narrower = window(task, [rule for number, rule in enumerate(rules) if number != lacking])
            if name == "addition" or lacking == 2:  # the successor's own digit is open in two layers
                assert verdict._outside(replace(basis, window=narrower), model, shape) > 0.01


# Models that are made wrong.


def least_margin(model: EncoderDecoder, own: Sequence[Kind]) -> float:
    return min(float(margins(model, kind, kind.assignments).min()) for kind in own)


def least_slack(model: EncoderDecoder, own: Sequence[Kind]) -> float:
    bounded = BoundedModel(model)
    return min(float(bounded.margins(kind).slack.min()) for kind in own)


def test_no_broken_model_is_certified(trained: tuple[DigitTask, EncoderDecoder]) -> None:
    """Weights are disturbed until something just goes wrong; what is certified is right on every short problem."""
    task, model = trained
    generator = torch.Generator().manual_seed(0)
    longer = replace(task, max_length={"parity": 5, "successor": 4, "addition": 3}[task.name])
    own = kinds(longer, model)
    verdicts = []
    for number in range({"parity": 3, "successor": 3, "addition": 2}[task.name]):
        parameters = [p for p in model.parameters() if p.numel() > 1]
        chosen = (
            parameters if number % 2 else [parameters[int(torch.randint(len(parameters), (), generator=generator))]]
        )
        noise = {id(p): torch.randn(p.shape, generator=generator) * (p.std() + 0.1) for p in chosen}

        def disturbed(scale: float, noise: dict[int, Tensor] = noise) -> EncoderDecoder:
            broken = copy.deepcopy(model)
            for own, other in zip(model.parameters(), broken.parameters(), strict=True):
                if id(own) in noise:
                    other.data += scale * noise[id(own)]
            return broken

        low, high = 0.0, 1.0
        while least_margin(disturbed(high), own) > 0 and high < 1000:
            high *= 2
        if high > 1000:  # the share of a single key is one, whatever asks for it
            continue
        for _ in range(9 if task.name == "addition" else 15):
            middle = (low + high) / 2
            low, high = (middle, high) if least_margin(disturbed(middle), own) > 0 else (low, middle)
        while least_slack(disturbed(low), own) <= 0:
            certificate = certify(task, disturbed(low))
            assert certificate.verdict == "undecided"
            assert certificate.reason.startswith("rounding can make ")
            verdicts.append("too thin")
            low *= 0.8
        for scale, expected in ((low, "correct"), (high, "wrong")):
            broken = disturbed(scale)
            certificate = certify(task, broken)
            verdicts.append(certificate.verdict)
            if certificate.verdict == "undecided":  # the one bit that a person reads may be right all the same
                assert (task.name, expected) == ("parity", "wrong")
                assert certificate.reason.startswith("the model is wrong in ")
                continue
            assert certificate.verdict == expected, (number, certificate)
            if certificate.verdict == "wrong":
                check_refuted(task, broken, certificate)
                assert certificate.problem is not None
                short = max(task.parse(certificate.problem)[0]) <= LONGEST[task.name]
                assert fails(task, broken, LONGEST[task.name]) or not short
            else:
                assert certificate.smallest_margin == pytest.approx(least_margin(broken, own), abs=1e-4)
                assert not fails(task, broken, LONGEST[task.name])
    assert verdicts.count("correct") > 1
    assert verdicts.count("wrong") > 1
    assert "too thin" in verdicts or task.name == "addition"


@pytest.mark.parametrize("name", ["parity", "successor", SLOW_ADDITION])
def test_a_model_that_ends_at_the_wrong_place_or_has_lost_a_line_is_refuted(name: str) -> None:
    task, model = learnt(name)
    early, late = copy.deepcopy(model), copy.deepcopy(model)
    early.output.bias.data[EOS] += 100
    late.output.bias.data[EOS] -= 100
    rules = model.position.window.rules  # type: ignore[attr-defined]
    lost = make(task, rules[1:])
    lost.load_state_dict(model.state_dict())
    for broken in (early, late, lost, make(task, rules)):
        check_refuted(task, broken, certify(task, broken))


def test_a_proof_goes_through_with_pairs() -> None:
    task, model = learnt("addition without a decoder")
    assert isinstance(task, Addition)
    plain, pairs = (certify(own, model) for own in (task, replace(task, interleaved=True)))
    assert (plain.verdict, pairs.verdict) == ("correct", "correct"), pairs.reason
    assert pairs.assignments == plain.assignments
    assert pairs.smallest_margin == pytest.approx(plain.smallest_margin, rel=1e-4)
    with torch.no_grad():
        model.output.bias[3] += 2 * pairs.smallest_margin + 1
    refuted = certify(replace(task, interleaved=True), model)
    assert refuted.verdict == "wrong"
    assert refuted.problem is not None
    assert refuted.problem.startswith("+")


def test_positions_that_repeat_may_stand_beside_the_window() -> None:
    task, model = learnt("parity", Cyclic(("place",), period=3))
    certificate = certify(task, model)
    assert (certificate.verdict, certificate.reason) == ("correct", "")
    assert not fails(task, model, 9)
    # A bit, the one before it in the answer, and where the place stands in the period.
    assert certificate.assignments == 2 + 3 * 4 + 3 * 2
    untrained = make(task, RULES["parity"][1], Cyclic(("place",), period=3))
    check_refuted(task, untrained, certify(task, untrained))


# Windows that do not show enough.


def check_alike(task: Task, rules: Sequence[Rule], reason: str) -> None:
    """Whether the two problems of a reason need the tokens that it names, and have equal views."""
    words = r"; the window is not sufficient: (\S+) needs (.+) at place (\d+) and (\S+) needs (.+) at place (\d+), but"
    found = re.search(words, reason)
    assert found is not None, reason
    seen, needs = [], []
    for text, token, place in (found.groups()[:3], found.groups()[3:]):
        shape, source = task.parse(text)
        target = task.solve(source)
        assert token == (target[int(place)] if int(place) < len(target) else "the end")
        tokens = [
            task.vocabulary.encode(source)[None],
            torch.cat([task.vocabulary.encode(target), torch.tensor([EOS])]),
        ]
        problem = Problems(shape, tokens[0], tokens[1][None])
        seen.append(int(views(window(task, rules), problem, task.layout(shape))[0, int(place)]))
        needs.append(token)
    assert seen[0] == seen[1]
    assert needs[0] != needs[1]


@pytest.mark.parametrize("name", ["parity", "successor", SLOW_ADDITION])
def test_a_window_that_lacks_a_line_is_blamed(name: str) -> None:
    task, rules = RULES[name]
    blamed = []
    for number in range(len(rules)):
        fewer = [rule for other, rule in enumerate(rules) if other != number]
        model = make(task, fewer)
        certificate = certify(task, model)
        check_refuted(task, model, certificate)
        lacks = bool(Evidence(task, Generator().manual_seed(0)).conflicts(window(task, fewer)))
        assert ("the window is not sufficient" in certificate.reason) == lacks
        if lacks:
            check_alike(task, fewer, certificate.reason)
        blamed.append(lacks)
    # The successor's own digit is open in two layers.
    assert blamed == {"parity": [True], "successor": [True, False, True], "addition": [True] * 4}[task.name]


def test_an_untrained_model_in_a_sufficient_window_is_wrong_by_itself() -> None:
    task, rules = RULES["successor"]
    assert "sufficient" not in certify(task, make(task, rules)).reason


LINES = [
    *(
        cross(head, conditions, layer=layer)
        for layer in (0, 1)
        for head in (0, 1)
        for conditions in (OWN, BELOW, FIRST)
    ),
    *(cross(head, (Condition("index", 0),), layer=layer) for layer in (0, 1) for head in (0, 1)),
    *(
        decoder(head, conditions, layer=layer)
        for layer in (0, 1)
        for head in (0, 1)
        for conditions in (BELOW, TWO_BELOW)
    ),
    *(decoder(head, (), "start", layer) for layer in (0, 1) for head in (0, 1)),
    replace(cross(0, BELOW), bias=1.0),
    replace(cross(1, BELOW, layer=1), fallback=True),
    replace(decoder(0, FIRST), fallback=True, bias=-0.5),
]


@pytest.mark.parametrize("name", RULES)
def test_calibration_and_proof_agree_on_what_a_line_is_for(name: str) -> None:
    task, rules = RULES[name]
    evidence = Evidence(task, Generator().manual_seed(0), num_problems=2000)
    found = []
    for number in range(-1, len(rules)):
        fewer = [rule for other, rule in enumerate(rules) if other != number]
        found.append(indistinguishable(make(task, fewer), kinds(task, make(task, fewer))) is None)
        assert found[-1] == (not evidence.conflicts(window(task, fewer)))
    assert any(found) == (name not in ("addition", "unpadded addition"))  # which lack where a carry comes from
    assert not all(found)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("task", [Parity(max_length=4), Successor(max_length=2)], ids=lambda task: task.name)
def test_calibration_and_proof_agree_on_what_a_window_shows(task: DigitTask, biases: bool) -> None:
    """Hashes of views on problems and logits of random weights on assignments find the same conflicts.

    Where keys of a head have different biases, views tell apart even keys that all hold the same.
    """
    generator = Generator().manual_seed(0)
    evidence = Evidence(task, Generator().manual_seed(1), num_problems=2000)
    found = []
    for _ in range(8 if biases else 12):
        share = 0.1 + 0.3 * float(torch.rand((), generator=generator))
        rules = [rule for rule in LINES if torch.rand((), generator=generator) < share]
        rules = rules if biases else list({replace(rule, bias=0.0): None for rule in rules})
        conflicts = evidence.conflicts(window(task, rules))
        pair = indistinguishable(make(task, rules), kinds(task, make(task, rules)))
        assert not conflicts if pair is None else conflicts or biases, rules
        found.append(pair is None)
        for enumeration, assignment in pair or ():
            needed = enumeration.problem(assignment).target[:, enumeration.field.query]
            assert enumeration.tokens(assignment[None])[1] == needed
        if pair is not None:
            (first, one), (second, other) = pair
            assert first.tokens(one[None])[1] != second.tokens(other[None])[1]
    assert 0.05 < sum(found) / len(found) < 0.95


def test_what_is_alike_does_not_follow_from_the_weights() -> None:
    task, rules = RULES["parity"]
    own = kinds(task, make(task, ()))
    state = torch.get_rng_state()
    pairs = [indistinguishable(model, own) for model in (make(task, ()), learnt("parity")[1])]
    assert all(pair is not None for pair in pairs)
    torch.set_rng_state(state)
    flat = make(task, rules)
    for parameter in flat.parameters():
        parameter.data.zero_()
    assert indistinguishable(flat, kinds(task, flat)) is None


# What cannot be decided.


class Other(Carrying):
    """A rule that forgets the carry."""

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
        total = digits[0] + digits[1]
        return total // 10, [total % 10]


class Counting(Carrying):
    """A rule that knows whether a place is odd."""

    num_states = 4

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
        after, written = super().step(state % 2, digits, constants)
        return after + 2 * (1 - state // 2), written

    def identities(self) -> tuple[Identity, ...]:
        """What is carried by states that a swing keeps apart."""
        (one,) = super().identities()
        assert isinstance(one, SumIdentity)
        wider = [tuple(replace(own, per_state=(1,) * 4) for own in shares) for shares in (one.takes, one.gives)]
        return (SumIdentity(one.statement, *wider, carry=(0, 1, 0, 1)),)


class Leaving(Carrying):
    """A rule that goes to a state that it has not."""

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
        after, written = super().step(state, digits, constants)
        return after + 1, written


class Boasting(Carrying):
    """A rule that claims more than it does."""

    def identities(self) -> tuple[Identity, ...]:
        return (*super().identities(), CopyIdentity("answer = operand 1", "operand 1", "answer"))


@dataclass(frozen=True)
class Ruled(Addition):
    """Addition with another rule."""

    rule: type[LocalRule] = Carrying

    def local_rule(self) -> LocalRule:
        return self.rule()


@dataclass(frozen=True)
class Miscounting(Addition):
    """Addition whose problems are wrong, and whose rule is right."""

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return (super().compute(operands) + 1) % 10


LABEL = Parity(form="label")
CROSS_ALL, DECODER_ALL = cross(1, (), "operand 2"), decoder(1, (), layer=0)
ENCODER_ALL = Rule("encoder", 0, 1)
GROWS = "is open to more tokens, the longer the problem"
APART = "compares positions that move apart as the length grows: nothing bounds what longer problems bring"
UNDECIDABLE: dict[str, tuple[DigitTask, tuple[Rule, ...], str]] = {
    "no local rule": (LABEL, (cross(0),), "parity has no local rule"),
    "a wrong rule": (
        Ruled(max_length=2, rule=Other),
        (),
        "the local rule of ruled does not say what 'solve' says of 1+9 (shape 1x1)",
    ),
    "wrong problems": (
        Miscounting(max_length=2),
        (),
        "'compute' of miscounting does not say what 'solve' says of 0+0 (shape 1x1)",
    ),
    "a rule that leaves its states": (
        Ruled(max_length=2, rule=Leaving),
        (),
        "the local rule of ruled leaves its states or the task's symbols",
    ),
    "an identity that is not kept": (
        Ruled(max_length=2, rule=Boasting),
        (),
        "the local rule of ruled does not keep 'answer = operand 1': in state 0, at digits (0, 1) with constants ()",
    ),
    "raw in a table": (
        LongMultiplication(max_length=2),
        (cross(0, (Condition("raw", 0, "raw"),)),),
        "the line 'operand 1, raw = query's raw' (cross layer 0 head 0) counts whole strings",
    ),
    "all of an operand": (
        Addition(max_length=2),
        (CROSS_ALL,),
        f"the line 'operand 2, all of it' (cross layer 0 head 1) {GROWS}",
    ),
    "all of the answer": (
        Addition(max_length=2),
        (DECODER_ALL,),
        f"the line 'answer, all of it' (decoder layer 0 head 1) {GROWS}",
    ),
    "all, in the encoder": (
        Addition(max_length=2),
        (ENCODER_ALL, cross(0)),
        f"the line 'any token, all of it' (encoder layer 0 head 1) {GROWS}",
    ),
    "the other end": (
        Successor(max_length=2),
        (cross(0, (Condition("place", 0, "index"),)),),
        f"the line 'operand 1, place = query's index' (cross layer 0 head 0) {APART}",
    ),
    "far away": (
        Successor(max_length=2),
        (cross(0), cross(1, (Condition("place", 100_000),))),
        "layouts would have to be gone through up to sizes of ",
    ),
}


@pytest.mark.parametrize("case", UNDECIDABLE)
def test_what_cannot_be_decided_is_said_with_the_reason(case: str) -> None:
    task, rules, reason = UNDECIDABLE[case]
    certificate = certify(task, make(task, rules, encoder=1))
    assert certificate.verdict == "undecided", certificate
    assert certificate.reason.startswith(reason)
    assert "\n" not in certificate.reason
    assert (certificate.problem, certificate.parts, certificate.assignments) == (None, (), 0)


@pytest.mark.slow
def test_a_rule_that_swings_is_decided() -> None:
    """Its states repeat after two places, up to which more is gone through."""
    task, model = learnt("addition without a decoder")
    plain, swinging = (certify(own, model) for own in (task, Ruled(max_length=task.max_length, rule=Counting)))
    assert (swinging.verdict, swinging.assignments) == ("correct", plain.assignments)
    assert swinging.longest > plain.longest


def test_a_model_without_a_window_or_with_positions_in_it_is_not_decided() -> None:
    task, rules = RULES["addition"]
    for model, reason in (
        (EncoderDecoder(len(task.vocabulary), SIZES), "the model has no window"),
        (make(task, rules, Sinusoidal()), "nothing is known for every length of what Sinusoidal positions tell"),
    ):
        certificate = certify(task, model)
        assert certificate.verdict == "undecided"
        assert certificate.reason.startswith(reason)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    task, model = learnt("parity")
    model.decoder[1].feedforward[0].weight.data[3, 4] = value
    certificate = certify(task, model)
    assert certificate.verdict == "undecided"
    words = "the weights decoder.1.feedforward.0.weight are no finite numbers in single precision"
    assert certificate.reason == words
    assert certify(task, learnt("parity")[1].double()).reason.endswith("are no finite numbers in single precision")


def test_too_many_assignments_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    task, rules = RULES["addition"]
    monkeypatch.setattr(verdict, "kinds_of", partial(kinds_of, most=1000))
    certificate = certify(task, make(task, rules))
    assert certificate.verdict == "undecided"
    assert certificate.reason.startswith(
        "there are more than 1,000 assignments: a prediction depends on at place 1 of 2x2"
    )


def test_what_takes_too_long_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "MOST_PREDICTIONS", 50)
    monkeypatch.setattr(verdict, "meaning_of", None)
    certificate = certify(*learnt("parity"))
    words = r"layouts would have to be gone through up to sizes of 10, with some \d+ predictions, more than 50: the "
    words += "farthest line of the window is 'operand 1, own place', the rule settles within 1 places, and positions "
    assert certificate.verdict == "undecided"
    assert re.fullmatch(words + "repeat after 1", certificate.reason)


def test_a_token_in_the_middle_of_nowhere_is_gone_through() -> None:
    """A line of a fixed place opens beyond it, and what it shows there is tried."""
    task, model = learnt("parity")
    for place in (3, 8):
        rules = (*model.position.window.rules, cross(0, (Condition("place", place),), layer=1))  # type: ignore[attr-defined]
        disturbed = make(task, rules)
        disturbed.load_state_dict(model.state_dict())
        attention = disturbed.decoder[1].cross_attention
        attention.output.weight.data += 30 * torch.randn(attention.output.weight.shape)
        certificate = certify(task, disturbed)
        check_refuted(task, disturbed, certificate)
        assert certificate.problem is not None
        assert len(certificate.problem) > place
        basis = basis_of(task, disturbed)
        assert bound_of(task, basis.rule, basis.window, 1).sizes["s0"] > place + 1


def test_a_thin_margin_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rounding can make more of it than it is."""
    task, model = learnt("parity")
    sure = certify(task, model)
    coarse = rounding.UNIT * sure.smallest_margin / sure.largest_rounding
    words = (
        r"rounding can make ([\d.e+]+|inf) of a difference of logits, and the margin is ([\d.]+) at place \d of \d, .+"
    )
    for unit, expected in ((coarse / 100, "correct"), (4 * coarse, "undecided")):
        monkeypatch.setattr(rounding, "UNIT", unit)
        certificate = certify(task, model)
        assert certificate.verdict == expected
        if expected == "undecided":
            found = re.fullmatch(words, certificate.reason)
            assert found
            assert float(found[1]) > float(found[2]) >= 0.99 * sure.smallest_margin


def test_what_is_measured_must_be_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = learnt("parity")
    sure = certify(task, model)
    for deviation, expected in ((1.01, "undecided"), (0.99, "correct"), (torch.nan, "undecided")):
        most = deviation * sure.largest_rounding
        monkeypatch.setattr(verdict, "_deviations", lambda *_, most=most: {"one": 0.0, "other": most, "third": 0.0})
        certificate = certify(task, model)
        assert certificate.verdict == expected
        words = f"a logit deviates by {most:.2g} from one path to another, more than the bound of rounding, "
        assert certificate.reason.startswith(words if expected == "undecided" else "")


def test_a_model_that_computes_something_else_is_not_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own logits, in float64, must be those that the proof is of."""
    task, model = learnt("parity")
    own_forward = EncoderDecoder.forward
    for off, expected in ((1e-9, "correct"), (1e-4, "undecided")):
        with monkeypatch.context() as patch:
            patch.setattr(EncoderDecoder, "forward", lambda *arguments, off=off: own_forward(*arguments) + off)
            certificate = certify(task, model)
        assert certificate.verdict == expected
        words = "the model computes other logits than this proof is of: they differ by 0.0001"
        assert certificate.reason == (words if expected == "undecided" else "")


def test_tokens_outside_must_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = learnt("parity")
    sure = certify(task, model)
    for change, expected in ((2.01, "undecided"), (1.99, "correct"), (torch.nan, "undecided")):
        most = change * sure.largest_rounding
        monkeypatch.setattr(verdict, "_outside", lambda *_, most=most: most)
        certificate = certify(task, model)
        assert certificate.verdict == expected
        words = f"tokens outside of what a prediction depends on changed a logit by {most:.2g}"
        assert certificate.reason == (words if expected == "undecided" else "")


def test_a_refutation_that_the_model_refutes_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    task, rules = RULES["parity"]

    def right(_: EncoderDecoder, task: Task, problems: Sequence[Any]) -> list[str]:
        return [task.answer(task.solve(source)) for _, source in problems]

    monkeypatch.setattr(verdict, "solve_problems", right)
    model = make(task, rules)
    certificate = certify(task, model)
    assert certificate.verdict == "undecided"
    words = r"the model is wrong in (\d+) assignments, but its answers are right, as to [01]+: at place \d of \d, from"
    found = re.match(words, certificate.reason)
    assert found
    own = kinds(replace(task, max_length=8), model)
    assert int(found[1]) == sum(int((margins(model, part, part.assignments) <= 0).sum()) for part in own)
    monkeypatch.setattr(verdict, "_text", lambda *_: None)
    certificate = certify(task, model)
    assert certificate.verdict == "undecided"
    words = (
        rf"the model is wrong in {found[1]} assignments, and no problem was found in which one of them occurs, such as"
    )
    assert re.match(words, certificate.reason)


def test_progress_is_shown_of_what_takes_long() -> None:
    task, model = learnt("parity")
    shown: dict[str, list[int]] = {}

    def bar(items: Sequence[Any], title: str) -> Iterator[Any]:
        shown[title] = [len(items), 0]
        for item in items:
            shown[title][1] += 1
            yield item

    certificate = certify(task, model, bar)
    layouts, number = certificate.layouts, certificate.kinds
    assert shown == {
        "finding receptive fields": [layouts, layouts],
        "running the model on assignments": [number, number],
    }
