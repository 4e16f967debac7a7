"""Each profile of a driver that was recorded does what its recording has: starts, resets, shutdown, shapes of I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nvmeemu.profiles import load, run
from nvmeemu.profiles.learning import Learning
from nvmeemu.spec import ReadWrite, words
from nvmeemu.trace import Fetch, Record, open_trace
from nvmeemu.trace.commands import by_fetch
from profiles.host_accesses import between, ending, starts

CORPUS = Path(__file__).parents[1] / "trace/corpus"
PAGE = 4096


@dataclass
class Recording:
    """``starts``: which start of the profile is which of the recording; ``drops``: what depends on the time."""

    name: str
    starts: dict[int, int]
    has_ending: bool = True
    drops: frozenset[str] = frozenset()
    beyond: frozenset[str] = field(default_factory=lambda: frozenset({"Flush"}))  # without a cache there was none


VS_READS = frozenset({"read VS = 0x10400"})  # a timer's
RECORDINGS = {
    "freebsd-12": Recording("freebsd-12-nvd", {1: 1, 2: 2}, has_ending=False),
    "freebsd-12-intx": Recording("freebsd-12-intx", {1: 1, 2: 2}, has_ending=False),
    "freebsd-15": Recording("freebsd-15-nvd", {1: 1, 2: 2}),
    "freebsd-15-intx": Recording("freebsd-15-intx", {1: 1, 2: 2}),
    "nvme2k": Recording("nvme2k", {0: 0, 1: 1, 2: 2}),
    "nvmewin": Recording("nvmewin-learn", {0: 0, 1: 1}, drops=VS_READS),
    "openbsd-intx": Recording("openbsd-intx", {0: 0, 1: 1, 2: 2}),
    "openbsd-msix": Recording("openbsd-msix", {0: 0, 1: 1, 2: 2}),
}


def recorded(name: str) -> list[Record]:
    with open_trace(CORPUS / f"{RECORDINGS[name].name}.trace.xz") as reader:
        return list(reader)


def played(name: str) -> list[Record]:
    """With the version that was stated when they were recorded."""
    profile = load(name)
    outcome = run(replace(profile, device={**profile.device, "version": "1.4"}))
    assert outcome.findings == []
    return list(outcome.trace)


def test_whoever_was_recorded_is_compared() -> None:
    assert {name for name in RECORDINGS if load(name).standing == "observed"} == set(RECORDINGS)
    others = {path.stem for path in Path(__file__).parents[2].glob("src/nvmeemu/profiles/*.toml")} - set(RECORDINGS)
    assert {load(name).standing for name in others} == {"source", "reconstruction"}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, one in RECORDINGS.items() for number in one.starts]
)
def test_it_starts_as_the_recorded_driver_did(name: str, number: int) -> None:
    """Every register access and every admin command with its fields, in order, up to the first I/O command."""
    one = RECORDINGS[name]
    mine, theirs = list(starts(played(name)))[number], list(starts(recorded(name)))[one.starts[number]]
    assert [deed for deed in mine if deed not in one.drops] == [deed for deed in theirs if deed not in one.drops]
    assert len(theirs) > 15


@pytest.mark.parametrize("name", [name for name, one in RECORDINGS.items() if one.has_ending])
def test_it_ends_as_the_recorded_driver_did(name: str) -> None:
    drops = RECORDINGS[name].drops | {"MSI-X off"}
    mine, theirs = ([deed for deed in ending(one) if deed not in drops] for one in (played(name), recorded(name)))
    last = len(mine)
    assert last > 2
    assert mine == theirs[-last:]  # a recording may have more, after its last I/O command


@pytest.mark.parametrize("name", RECORDINGS)
def test_what_it_does_between_its_io_was_recorded(name: str) -> None:
    """Queues for a crash dump, resets, suspending, log pages: each is a part of what the driver did at one time."""
    drops = RECORDINGS[name].drops
    mine, theirs = (
        [[deed for deed in one if deed not in drops] for one in between(records)]
        for records in (played(name), recorded(name))
    )
    wanted = [one for one in mine if one]
    assert wanted
    for one in wanted:
        assert any(other[at : at + len(one)] == one for other in theirs for at in range(len(other))), one


def test_nvmewin_looks_at_the_version_again_and_again() -> None:
    """In its start, and between its I/O (the recording's clock was not Windows')."""
    for records in played("nvmewin"), recorded("nvmewin"):
        assert sum(deed in VS_READS for deed in next(starts(records))) >= 3
        assert any(VS_READS & set(one) for one in between(records))


def shapes(records: list[Record]) -> dict[str, set[object]]:
    """Of the I/O: which commands, where in their pages buffers and PRP lists begin; and the longest transfer."""
    found: dict[str, set[object]] = {"command": set(), "buffer": set(), "list": set()}
    most = 0
    for traced in by_fetch(records).values():
        fetch = traced.fetch
        if fetch.sqid:
            entry = words.command_of(fetch.sqid, fetch.sqe)
            found["command"].add(words.opcode(fetch.sqid, fetch.opcode))
            found["buffer"].add(entry.prp1 % PAGE)
            if isinstance(entry, ReadWrite) and fetch.opcode in (1, 2):
                most = max(most, entry.nlb)
                if traced.prp is not None:
                    found["list"].add(entry.prp2 % PAGE)
    found["most"] = {most}
    return found


@pytest.mark.parametrize("name", RECORDINGS)
def test_its_io_has_the_shapes_that_were_recorded(name: str) -> None:
    mine, theirs = shapes(played(name)), shapes(recorded(name))
    assert mine["command"] - RECORDINGS[name].beyond <= theirs["command"]
    assert mine["buffer"] <= theirs["buffer"]
    assert mine["list"] - {0} <= theirs["list"]
    assert max(map(int, map(str, mine["most"]))) <= max(map(int, map(str, theirs["most"])))


@pytest.mark.parametrize("name", RECORDINGS)
def test_it_learns_of_completions_as_the_recorded_driver_did(name: str) -> None:
    """The mode in which most of its I/O was awaited."""

    def of_io(records: list[Record]) -> str:
        modes = Learning(records).modes
        found = [modes[at] for at, one in enumerate(records) if isinstance(one, Fetch) and one.sqid == 1]
        return max(set(found), key=found.count)

    assert of_io(played(name)) == of_io(recorded(name))
    assert of_io(recorded(name)) != "polling"


def under_way_at_once(records: list[Record]) -> int:
    """How many admin commands."""
    most = open_now = 0
    fetched = by_fetch(records)
    ended = {id(one.completion) for one in fetched.values() if one.completion is not None and not one.fetch.sqid}
    for number, record in enumerate(records):
        open_now += number in fetched and not fetched[number].fetch.sqid
        open_now -= id(record) in ended
        most = max(most, open_now)
    return most


@pytest.mark.parametrize("name", ["freebsd-12", "freebsd-15"])
def test_freebsd_gives_nine_commands_without_waiting(name: str) -> None:
    assert under_way_at_once(played(name)) >= 9
    assert under_way_at_once(recorded(name)) >= 9


def test_nvme2k_uses_identifiers_again_while_they_are_under_way() -> None:
    def again(records: list[Record]) -> int:
        """How often."""
        open_now: list[int] = []
        found = 0
        fetched = by_fetch(records)
        ends = {id(one.completion): one.fetch.cid for one in fetched.values() if one.completion and one.fetch.sqid}
        for number, record in enumerate(records):
            if number in fetched and fetched[number].fetch.sqid:
                cid = fetched[number].fetch.cid
                found += cid in open_now
                open_now.append(cid)
            elif id(record) in ends:
                open_now.remove(ends[id(record)])
        return found

    assert again(played("nvme2k")) == 1
    assert again(recorded("nvme2k")) > 1
