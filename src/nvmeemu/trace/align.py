"""Alignment of two sequences: which elements of one are which of the other, in order.

This is patience diff: elements that are there once in both sequences are anchors, and so are the parts between two
anchors. difflib aligns a part without anchors. That is fast for long sequences with few differences, and it aligns
others as a person would.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher

_MOST_PAIRS = 4_000_000  # beyond it difflib would take minutes; the rest counts as different


def align(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs of indices of equal elements, both ascending."""
    found: list[tuple[int, int]] = []
    todo = [(0, len(a), 0, len(b))]
    while todo:
        start_a, end_a, start_b, end_b = todo.pop()
        while start_a < end_a and start_b < end_b and a[start_a] == b[start_b]:
            found.append((start_a, start_b))
            start_a, start_b = start_a + 1, start_b + 1
        while start_a < end_a and start_b < end_b and a[end_a - 1] == b[end_b - 1]:
            end_a, end_b = end_a - 1, end_b - 1
            found.append((end_a, end_b))
        if start_a == end_a or start_b == end_b:
            continue
        anchors = _anchors(a, b, start_a, end_a, start_b, end_b)
        if not anchors:
            found += _by_difflib(a, b, start_a, end_a, start_b, end_b)
            continue
        for at_a, at_b in (*anchors, (end_a, end_b)):
            todo.append((start_a, at_a, start_b, at_b))
            start_a, start_b = at_a, at_b  # the anchor is the next part's common beginning
    return sorted(found)


def _anchors(
    a: Sequence[Hashable], b: Sequence[Hashable], start_a: int, end_a: int, start_b: int, end_b: int
) -> list[tuple[int, int]]:
    """The anchors of two parts: the longest ascending sequence of the elements that are there once in each."""
    once_b = _once(b, start_b, end_b)
    pairs = [(at, once_b[one]) for one, at in _once(a, start_a, end_a).items() if one in once_b]
    tops: list[int] = []  # the smallest last ``b`` of a sequence of each length, and which pair that is
    last: list[int] = []
    before: list[int] = []
    for number, (_, at_b) in enumerate(pairs):
        length = bisect_left(tops, at_b)
        before.append(last[length - 1] if length else -1)
        tops[length : length + 1] = [at_b]
        last[length : length + 1] = [number]
    found = []
    number = last[-1] if last else -1
    while number >= 0:
        found.append(pairs[number])
        number = before[number]
    return found[::-1]


def _once(sequence: Sequence[Hashable], start: int, end: int) -> dict[Hashable, int]:
    """Where the elements are that are there once, in order."""
    times = Counter(sequence[start:end])
    return {sequence[at]: at for at in range(start, end) if times[sequence[at]] == 1}


def _by_difflib(
    a: Sequence[Hashable], b: Sequence[Hashable], start_a: int, end_a: int, start_b: int, end_b: int
) -> list[tuple[int, int]]:
    if (end_a - start_a) * (end_b - start_b) > _MOST_PAIRS:
        return []
    matcher = SequenceMatcher(None, a[start_a:end_a], b[start_b:end_b], autojunk=False)
    return [
        (start_a + block.a + number, start_b + block.b + number)
        for block in matcher.get_matching_blocks()
        for number in range(block.size)
    ]
