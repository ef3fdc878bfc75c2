"""Attacks, against prompts made of nested lists from their table."""

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import Addition, Conjunction, LinearRegression, Majority, Parity, SparseLinearRegression
from abc_toolkit.tasks.base import ATTENTION, check_suites
from abc_toolkit.tasks.functions.attacks import OOD, attack, attack_names
from abc_toolkit.tasks.functions.base import InContextTask
from abc_toolkit.testing.task_contract import generator

WHERE = ("begin", "middle", "end")


def table(n: int, d: int, total: int) -> dict[str, tuple[list[list[int]], bool]]:
    """The parts of every attack, as numbers of points of the other prompt, and whether only the last part counts.

    A part that would need a negative number of points is missing, and the attack with it.
    """
    instruction = [number for number in range(n) if number < 2 * d]
    answer = [number for number in range(n) if number >= n - d]
    target = [number for number in range(n) if number >= n - math.ceil(d / 2)]
    noise = instruction[-1]
    found: dict[str, tuple[list[list[int]], bool]] = {"duplicates/all": ([total * [noise]], False)}
    for c in range(1, n + 1):
        if n / 10 <= c <= 2 * n / 5:
            found[f"duplicates/tail_{c}"] = ([list(range(n - c)), c * [noise], target], True)
    room = total - 2 * d - len(target)
    for name, number in (("near", n - 2 * d), ("middle", room // 2), ("far", room)):
        if number >= 0:
            found[f"duplicates/gap_{name}"] = ([instruction, number * [noise], target], True)

    def around(inner: list[int], number: int, where: str) -> list[list[int]]:
        if where == "middle":
            half = number // 2
            return [half * [noise], inner, (number - half) * [noise]]
        return [inner, number * [noise]] if where == "begin" else [number * [noise], inner]

    for where in WHERE:
        if total >= 2 * d:
            found[f"duplicates/inst_{where}"] = (around(instruction, total - 2 * d, where), False)
        left = total - 2 * d - d - len(target)
        if left >= 0:
            found[f"lost_in_the_middle/{where}"] = ([instruction, *around(answer, left, where), target], True)
    return {name: made for name, made in found.items() if sum(map(len, made[0])) <= total}


def test_the_study_by_hand() -> None:
    """50 points of 16 channels, made into 400."""
    names = attack_names(50, 16)
    assert [name for name in names if "tail" in name] == [f"duplicates/tail_{c}" for c in range(5, 21)]
    assert len(names) == 1 + 16 + 3 + 3 + 3
    lengths = {name: len(attack(name, 50, 16, 400).points) for name in names}
    assert {lengths[f"duplicates/tail_{c}"] for c in range(5, 21)} == {58}
    assert [lengths[f"duplicates/gap_{where}"] for where in ("near", "middle", "far")] == [58, 220, 400]
    assert {number for name, number in lengths.items() if "tail" not in name and "gap" not in name} == {400}
    lost = attack("lost_in_the_middle/middle", 50, 16, 400)
    assert lost.points.tolist() == [*range(32), *[31] * 172, *range(34, 50), *[31] * 172, *range(42, 50)]
    assert lost.counted.tolist() == [False] * 392 + [True] * 8


def test_what_is_left_of_two_halves_follows_the_middle() -> None:
    assert attack("duplicates/inst_middle", 4, 1, 5).points.tolist() == [1, 0, 1, 1, 1]
    assert attack("lost_in_the_middle/middle", 4, 1, 7).points.tolist() == [0, 1, 1, 3, 1, 1, 3]


@settings(max_examples=300)
@given(d=st.integers(1, 6), n=st.integers(1, 30), total=st.integers(1, 70))
def test_every_attack_is_that_of_the_table_or_refused(d: int, n: int, total: int) -> None:
    names = attack_names(n, d)
    if n < 2 * d:
        assert names == ()
        return
    expected = table(n, d, total)
    assert set(expected) <= set(names)
    assert set(names) == set(table(n, d, 200))  # into which every one fits
    for name in names:
        if name in expected:
            parts, last_part = expected[name]
            made = attack(name, n, d, total)
            assert made.points.tolist() == [point for part in parts for point in part]
            uncounted = sum(map(len, parts[:-1])) if last_part else 0
            assert made.counted.tolist() == [place >= uncounted for place in range(len(made.points))]
            continue
        with pytest.raises(UserError) as refused:
            attack(name, n, d, total)
        message = str(refused.value)
        assert message.splitlines() == [message]
        assert name in message
        assert f"into {total} points" in message
        shortest = int(message.rpartition("such as ")[2])
        assert total < shortest
        assert attack(name, n, d, shortest).counted.any()
        with pytest.raises(UserError):
            attack(name, n, d, shortest - 1)


TASKS = [
    LinearRegression(max_length=12, dim=4),
    LinearRegression(max_length=50, dim=16),
    LinearRegression(max_length=30, dim=11),
    LinearRegression(max_length=20, dim=7),
    SparseLinearRegression(max_length=9, dim=3),
    Conjunction(max_length=18, dim=8),
    Majority(max_length=7, dim=3, marked=True),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_prompts_of_attacks(task: InContextTask) -> None:
    """Points repeated have one label, which follows from the one function; what is counted are points."""
    for suite in task.suites[1:]:
        for length in (3 * task.max_length, 8 * task.max_length - 1):
            ((asked,),) = task.evaluation_shapes(length, suite, generator())
            batch = task.sample(generator(), 3, (asked,), suite)
            (total,) = batch.shape
            parts, last_part = table(task.max_length, task.dim, length)[suite]
            expected = [point for part in parts for point in part]
            assert total == len(expected), suite
            assert batch.inputs.shape[1] == batch.targets.shape[1] == 2 * total - 1
            assert batch.counted is not None
            uncounted = sum(map(len, parts[:-1])) if last_part else 0
            counted = [number % 2 == 0 and number // 2 >= uncounted for number in range(2 * total - 1)]
            assert batch.counted.tolist() == 3 * [counted]
            for tokens, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
                seen = defaultdict(set)
                labels = defaultdict(set)
                for place, number in enumerate(expected):
                    seen[number].add(tuple(tokens[2 * place]))
                    labels[number].add(targets[2 * place])
                    if place:
                        assert tokens[2 * place - 1][0] == targets[2 * place - 2]
                assert {len(points) for points in seen.values()} == {1}
                assert {len(values) for values in labels.values()} == {1}


def test_attacks_are_refused_by_the_task(generator: torch.Generator) -> None:
    task = LinearRegression(max_length=12, dim=4)
    for suite, shortest in (
        ("duplicates/gap_near", 14),
        ("duplicates/tail_4", 14),
        ("duplicates/gap_far", 10),
        ("duplicates/inst_end", 8),
        ("lost_in_the_middle/begin", 14),
    ):
        with pytest.raises(UserError, match=rf"{suite} does not fit into {shortest - 1} points .* as {shortest}$"):
            task.evaluation_shapes(shortest - 1, suite, generator)
        assert task.evaluation_shapes(shortest, suite, generator)


def test_points_too_few_for_an_instruction_have_no_attacks() -> None:
    assert LinearRegression(max_length=7, dim=4).suites == (OOD,)
    assert len(LinearRegression(max_length=8, dim=4).suites) > 10


def test_suites_by_their_groups() -> None:
    task = LinearRegression(max_length=12, dim=4)
    duplicates = tuple(suite for suite in task.suites if suite.startswith("duplicates/"))
    lost = tuple(f"lost_in_the_middle/{where}" for where in WHERE)
    assert task.suites == (OOD, *duplicates, *lost)
    assert check_suites(task, None) == task.default_suites == (OOD,)
    assert check_suites(task, "ood,lost_in_the_middle") == (OOD, *lost)
    assert check_suites(task, " lost_in_the_middle , ood ") == (*lost, OOD)
    assert check_suites(task, ["duplicates"]) == duplicates
    assert check_suites(task, "duplicates/all,duplicates") == duplicates
    assert check_suites(task, ("duplicates/gap_far", "duplicates"))[0] == "duplicates/gap_far"
    assert set(check_suites(task, ("duplicates/gap_far", "duplicates"))) == set(duplicates)
    assert check_suites(task, f"ood,{ATTENTION},ood") == (OOD, ATTENTION)
    for wrong in ("duplicate", "duplicates/", "duplicates/nothing", "uniform", "", "ood,"):
        with pytest.raises(UserError) as refused:
            check_suites(task, wrong)
        message = str(refused.value)
        assert message.splitlines() == [message]
        assert message.endswith("they are ood, duplicates, lost_in_the_middle, attention")
        assert repr(wrong.rpartition(",")[2]) in message
    with pytest.raises(UserError, match="an empty list names no evaluation set"):
        check_suites(task, [])


def test_attention_is_shown_where_the_task_says_of_what() -> None:
    assert check_suites(Majority(max_length=3), ATTENTION) == (ATTENTION,)
    for task in (Addition(), Parity()):
        assert check_suites(task, None) == task.suites
        with pytest.raises(UserError, match="'attention' names no evaluation set"):
            check_suites(task, ATTENTION)


@given(points=st.integers(1, 20))
def test_the_last_point_is_observed_over_the_labels(points: int) -> None:
    task = LinearRegression(max_length=3, dim=2)
    query, keys = task.observed_attention((points,))
    assert task.observed_outputs((points,)).tolist() == list(range(0, 2 * points - 1, 2))
    layout = task.layout((points,)).source
    segments = [layout.names[number] for number in layout.segment.tolist()]
    assert query == len(segments) - 1
    assert segments[query] == "point"
    assert keys.tolist() == [number for number, segment in enumerate(segments) if segment == "label"]
    assert segments == (["point", "label"] * points)[:-1]
    pairs = [number // 2 for number in range(2 * points - 1)]
    assert layout.coordinates["place"].tolist() == layout.coordinates["point"].tolist() == pairs
    assert layout.coordinates["index"].tolist() == [points - 1 - pair for pair in pairs]
