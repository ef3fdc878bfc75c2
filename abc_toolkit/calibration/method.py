"""From attention maps to a window: the contract of a calibration method, and the search for a sufficient window."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Generator

from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.calibration.sufficiency import Clash, Evidence, reach
from abc_toolkit.layout import Layout
from abc_toolkit.positions import Site
from abc_toolkit.tasks import Calibratable, Shape
from abc_toolkit.windows.conflict import Conflict
from abc_toolkit.windows.rules import Rule, Window


@dataclass(frozen=True)
class Line:
    """A line, and the attention of one head along it.

    Attributes:
        rule: The line, with its site, layer and head.
        attention: Mean attention weight over the cells of the line in all shapes.
        support: The number of these cells over that of the longest possible line, in the shape where it is least.
    """

    rule: Rule
    attention: float
    support: float


class CalibrationMethod(abc.ABC):
    """How lines are found in attention maps. A method is an immutable value (a frozen dataclass).

    Attributes:
        complete: Whether lines are added until the window is sufficient.
        narrow: Whether lines are closed if they only show tokens that no prediction needs.
        spread: Whether lines that share a head move to heads of their own, where heads can be spared.
    """

    complete: bool = False
    narrow: bool = False
    spread: bool = False

    @abc.abstractmethod
    def rules(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Rule]:
        """The window's rules.

        Args:
            maps: Averaged attention of every shape.
            layouts: The layout of each of these shapes, as the model reads it.
        """

    def lines(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Line]:
        """Lines that may be added to a window that is not sufficient, strongest first; none by default."""
        return []


@dataclass(frozen=True)
class Found:
    """What a calibration found.

    Attributes:
        window: The window.
        dropped: The method's weakest rules, without which the search began again.
        added: Rules without which the window would not be sufficient.
        closed: Rules without which the window is still sufficient; some of them stay as fallbacks.
        moved: Rules that moved from a head that they shared to a head of their own.
        conflict: Two problems that the window cannot tell apart; `None` if none were found.
        attention: Mean attention along each line that the method measured, by its rule with bias 0.
    """

    window: Window
    dropped: tuple[Rule, ...]
    added: tuple[Rule, ...]
    closed: tuple[Rule, ...]
    moved: tuple[Rule, ...]
    conflict: Conflict | None
    attention: Mapping[Rule, float]


def find_window(
    method: CalibrationMethod, maps: AttentionMaps, task: Calibratable, window: Window, generator: Generator
) -> Found:
    """Finds a window's rules, adds lines until the window is sufficient, closes useless lines and spreads the others.

    The search adds the strongest line that leaves no conflict. If there is no such line, it adds the line that leaves
    the fewest conflicts and goes on. (Any line that shows a further token leaves fewer conflicts by chance, so the
    first line that leaves fewer is not good enough.) An added line gets a head of its own if a head can be spared.

    A head that mixes many lines shows little of each and has no room for another. If no line leaves fewer conflicts,
    the search drops the weakest quarter of the method's rules and begins again, until the window is sufficient.

    Args:
        method: How lines are found.
        maps: Averaged attention.
        task: The task.
        window: The window without its rules.
        generator: Draws the training problems on which windows are compared.
    """
    layouts = {shape: window.read(task.layout(shape)) for shape in maps.maps}
    lines, heads = method.lines(maps, layouts), maps.num_heads
    attention = {line.rule: line.attention for line in lines}
    evidence = Evidence(task, generator)
    spare = _strongest(lines) if method.complete else []
    first = window.with_rules(method.rules(maps, layouts))
    window, added, conflicts = _completed(first, spare, heads, evidence)
    dropped: list[Rule] = []
    strongest = sorted(first.rules, key=lambda rule: attention.get(replace(rule, bias=0.0), 1.0), reverse=True)
    while conflicts and spare and strongest:
        strongest = strongest[: len(strongest) * 3 // 4]
        fewer = first.with_rules([rule for rule in first.rules if rule in strongest])
        other = _completed(fewer, spare, heads, evidence)
        if not other[2]:
            window, added, conflicts = other
            dropped = [rule for rule in first.rules if rule not in strongest]
    narrow = narrowed(window, task, evidence) if method.narrow and not conflicts else window
    spread = spread_out(narrow, evidence) if method.spread and not conflicts else narrow
    moved = [rule for rule in spread.rules if rule not in narrow.rules]
    added += [rule for rule in moved if any(replace(rule, head=other.head) == other for other in added)]
    return Found(
        spread,
        dropped=tuple(dropped),
        added=tuple(rule for rule in added if rule in spread.rules),
        closed=tuple(rule for rule in window.rules if rule not in narrow.rules),
        moved=tuple(moved),
        conflict=evidence.describe(conflicts[0]) if conflicts else None,
        attention=attention,
    )


def _completed(
    window: Window, spare: Sequence[Line], heads: Mapping[tuple[Site, int], int], evidence: Evidence
) -> tuple[Window, list[Rule], Sequence[Clash]]:
    """Adds lines until a window is sufficient or no line helps.

    Returns:
        The window, the added lines, and the conflicts that are left.
    """
    conflicts = evidence.conflicts(window)
    added: list[Rule] = []
    while conflicts and spare:
        best, fewest = None, len(conflicts)
        wider_ones = (
            wider for line in spare for wider in _with_line(window, line.rule, heads[line.rule.site, line.rule.layer])
        )
        for wider in wider_ones:
            left = evidence.conflicts(wider)
            if len(left) < fewest:
                best, fewest, conflicts = wider, len(left), left
            if not left:
                break
        if best is None:
            break
        window = best
        added.append(window.rules[-1])
    return window, added, conflicts


def narrowed(window: Window, task: Calibratable, evidence: Evidence) -> Window:
    """A sufficient window without the lines that only show tokens that no prediction needs.

    The search tries four changes to each line, the last rules first: to close it in all heads of its layer, to make it
    a fallback in all of them, to close it in one head, and to make it a fallback in one head. A change is kept if the
    receptive fields of the longest training shape shrink and the window stays sufficient. The search repeats until no
    change is kept. A line that shows no further token stays.

    (Most lines that go lead to a token on which a head rests: the start token, the operator or the first digit. In the
    layers above, such a token would show everything that it has read.)

    Args:
        window: A sufficient window.
        task: The task.
        evidence: The training problems on which windows are compared.
    """
    layout = task.layout(task.training_shapes()[-1])

    def size(window: Window) -> int:
        # A line that shows a query of the source nothing but itself is of no use, and goes too.
        return int(reach(window, layout).sum()) + sum(rule.of_source for rule in window.rules)

    def without(lines: Sequence[Rule], window: Window) -> Window:
        closed = window.with_rules([rule for rule in window.rules if rule not in lines])
        back = window.with_rules([replace(rule, fallback=True) if rule in lines else rule for rule in window.rules])
        for narrower in (closed, back):
            if size(narrower) < size(window) and not evidence.conflicts(narrower):
                return narrower
        return window

    before = None
    while before != window:
        before = window
        shared = dict.fromkeys(replace(rule, head=0, bias=0.0, fallback=False) for rule in reversed(window.rules))
        for line in shared:
            window = without([r for r in window.rules if replace(r, head=0, bias=0.0, fallback=False) == line], window)
        for rule in reversed(window.rules):
            window = without([rule], window)
    return window


def spread_out(window: Window, evidence: Evidence) -> Window:
    """A sufficient window in which lines of cross-attention and decoder self-attention have heads of their own.

    The lines of the source's own queries stay where they are, as those of an encoder do.

    A softmax shows a mixture of the keys of a head. It may learn to prefer one token to another wherever they stand;
    then it no longer shows both keys, and hardly ever learns to show both again. So the search gives a head to each
    line that is alone in no head: an empty head, or a head whose lines other heads hold too and which gives them up.
    Then heads with several lines give up the lines that have a head of their own. Fallbacks stay where they are.

    Args:
        window: A sufficient window.
        evidence: The training problems on which windows are compared.
    """

    def relation(rule: Rule) -> Rule:
        return replace(rule, head=0, bias=0.0)

    def heads(window: Window, line: Rule) -> list[list[Rule]]:
        """The rules of each head of a line's site and layer."""
        own = [rule for rule in window.rules_at(line.site, line.layer) if rule.query_string == line.query_string]
        return [[rule for rule in own if rule.head == head] for head in range(window.num_heads)]

    def alone(line: Rule, among: Sequence[Sequence[Rule]]) -> bool:
        return any([relation(rule) for rule in own if not rule.fallback] == [relation(line)] for own in among)

    def with_own_head(window: Window, line: Rule) -> Iterator[Window]:
        """The window with a line alone in a head, for each head that can be spared, the emptiest first."""
        own = heads(window, line)
        for head in sorted(range(len(own)), key=lambda head: (len(own[head]), head != line.head)):
            others = own[:head] + own[head + 1 :]
            given_up = [rule for rule in own[head] if relation(rule) != relation(line)]
            if any(alone(rule, own) and not alone(rule, others) for rule in given_up):
                continue
            if {relation(rule) for rule in given_up} <= {relation(rule) for other in others for rule in other}:
                kept = [rule for rule in window.rules if rule not in own[head]]
                yield window.with_rules([*kept, replace(line, head=head, bias=0.0)])

    lines = [
        rule
        for rule in window.rules
        if rule.site != "encoder" and not (rule.of_source or rule.fallback or _is_open(rule))
    ]
    for line in lines:
        if not alone(line, heads(window, line)):
            spared = (other for other in with_own_head(window, line) if not evidence.conflicts(other))
            window = next(spared, window)
    for line in reversed(lines):  # the strongest line of a head comes first, and stays
        own = heads(window, line)
        shares = line in own[line.head] and len(own[line.head]) > 1
        if shares and alone(line, own) and not any(rule.fallback for rule in own[line.head]):
            without = window.with_rules([rule for rule in window.rules if rule != line])
            window = window if evidence.conflicts(without) else without
    return window


def _strongest(lines: Sequence[Line]) -> list[Line]:
    """For each relation of each site and layer, the line of the head that attends most along it, strongest first."""
    kept: dict[Rule, Line] = {}
    for line in lines:
        kept.setdefault(replace(line.rule, head=0), line)
    return list(kept.values())


def _with_line(window: Window, rule: Rule, num_heads: int) -> Iterator[Window]:
    """The window with one more line, its last rule, for each head that is worth trying.

    A head without positions cannot tell two neighbouring lines apart, and a model learns slowly, or not at all, what
    only one of them shows. So the line gets a head of its site and layer for itself if it can: an empty head, its own
    first, or else a head whose lines other heads hold too and which gives them up. Each head of the second kind is
    tried, as another head may mix these lines with more. The last to be tried is the head with the fewest lines, which
    keeps them. In a head that is open everywhere, the line replaces the rule that opens everything: beside that rule
    it would show nothing more.
    """
    lines: list[list[Rule]] = [[] for _ in range(num_heads)]
    for other in window.rules_at(rule.site, rule.layer):
        if not (_is_open(other) or other.fallback) and other.query_string == rule.query_string:
            lines[other.head].append(other)

    def within(head: int, given_up: Sequence[Rule] = ()) -> Window:
        target = (rule.site, rule.layer, head)
        kept = [
            other
            for other in window.rules
            if other not in given_up and not (_is_open(other) and (other.site, other.layer, other.head) == target)
        ]
        return window.with_rules([*kept, replace(rule, head=head)])

    fewest = min(range(num_heads), key=lambda head: (len(lines[head]), head != rule.head))
    if lines[fewest]:
        for head, own in enumerate(lines):
            elsewhere = {replace(line, head=head) for other in lines if other is not own for line in other}
            if elsewhere.issuperset(own):
                yield within(head, own)
    yield within(fewest)


def _is_open(rule: Rule) -> bool:
    """Whether a rule opens every key."""
    return rule.key_segment is None and not rule.conditions and not rule.fallback
