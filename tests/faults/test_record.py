"""A fault that fires is in the trace and in the log, so that nobody takes it for a bug of the device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from faults.rig import Rig
from nvmeemu.app.logs import NoFlood
from nvmeemu.faults import Fault, FaultError
from nvmeemu.testing import INTMS
from nvmeemu.trace import Completion, Fetch, Injection
from nvmeemu.trace.commands import commands
from nvmeemu.trace.recorder import Recorder, describe
from nvmeemu.trace.sink import Memory

WRITE = "Write nsid=1 slba=0 nlb=1"


def traced(rig: Rig) -> Memory:
    sink = Memory(describe(rig.bench.controller))
    rig.bench.controller.observe(Recorder(sink, rig.bench.controller.state))
    return sink


def injections(sink: Memory) -> list[Injection]:
    return [record for record in sink.reader() if isinstance(record, Injection)]


@pytest.mark.parametrize(
    ("at", "do"),
    [
        ("fetch", {"set": {"nsid": 1}}),
        ("execute", {"status": "internal_error"}),
        ("dma", {"torn": 512}),
        ("backend", "lose"),
        ("completion", {"status": "write_fault"}),
    ],
)
@pytest.mark.kills("injections-are-not-told", "injections-lose-their-command")
def test_at_a_command_it_says_which(at: str, do: Any, rig: Rig) -> None:
    sink = traced(rig)
    fault = rig.faults.add(Fault({"opcode": "write"}, at, do, name="mine"))
    cids = [rig.run(rig.write()).cid, rig.run(rig.write()).cid]
    found = injections(sink)
    assert [(one.fault, one.hits, one.sqid, one.cid, one.of_command) for one in found] == [
        (fault.id, number, 1, cid, True) for number, cid in enumerate(cids, 1)
    ]
    assert {(one.at, one.action, one.name) for one in found} == {(at, fault.words, "mine")}
    assert [one.subject for one in found] == [f"SQ 1 #{cid:04x} {WRITE}" for cid in cids]
    assert [one.injections for one in commands(sink.reader()) if one.fetch.sqid == 1] == [[one] for one in found]


@pytest.mark.kills("injections-are-told-after-the-deed")
def test_it_stands_before_what_it_changes(rig: Rig) -> None:
    sink = traced(rig)
    rig.add({"status": "write_fault"}, "completion", {"opcode": "write"})
    rig.run(rig.write())
    kinds = [type(record) for record in sink.reader() if isinstance(record, Fetch | Injection | Completion)]
    completion = [Completion] * (rig.bench.engine is None)  # what the native engine posts goes another way
    assert kinds == [Fetch, Injection, *completion]


OTHERS: list[tuple[str, Any, Any, str, Callable[[Rig], Any]]] = [
    ("register", {"register": "intms"}, "drop", "write INTMS = 0x2", lambda rig: rig.driver.set_reg(INTMS, 2)),
    ("register", {"register": "cap"}, {"corrupt": "ones"}, "read CAP", lambda rig: rig.driver.capabilities),
    ("doorbell", {"queue": 1, "doorbell": "sq"}, "duplicate", "SQ 1 tail 2", lambda rig: rig.submit(rig.write())),
    ("interrupt", {"vector": 1}, "drop", "vector 1", lambda rig: rig.run(rig.write())),
    ("event", {"type": "smart"}, "drop", "event SMART", lambda rig: rig.heat()),
    ("now", None, {"spurious": 1}, "the device", lambda rig: None),
]


@pytest.mark.parametrize(("at", "match", "do", "subject", "deed"), OTHERS, ids=[one[3] for one in OTHERS])
def test_elsewhere_it_says_at_what(
    at: str, match: Any, do: Any, subject: str, deed: Callable[[Rig], Any], rig: Rig
) -> None:
    sink = traced(rig)
    fault = rig.add(do, at, match)
    deed(rig)
    found = injections(sink)
    assert [(one.fault, one.at, one.action, one.of_command) for one in found] == [
        (fault.id, at, fault.words, False)
    ] * len(found)
    assert [one.subject for one in found[:1]] == [subject]


@pytest.mark.kills("only-the-first-time-is-logged", "each-time-is-logged-at-info")
def test_the_first_time_is_told_and_all_others_to_who_asks(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    fault = rig.faults.add(Fault({"opcode": "write"}, "completion", "drop", name="mine"))
    caplog.set_level(logging.DEBUG, "nvmeemu.faults.faults")
    caplog.clear()
    cids = [rig.submit(rig.write()) for _ in range(3)]
    said = [f'fault {fault.id} "mine" fires at completion: drop: SQ 1 #{cid:04x} {WRITE}' for cid in cids]
    levels = [logging.INFO, logging.DEBUG, logging.DEBUG]
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == list(zip(levels, said, strict=True))


@pytest.mark.kills("the-sixth-fault-is-not-told")
def test_the_first_time_of_each_is_told_however_many_there_are(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The filter against floods takes what has the same text for one message."""
    caplog.set_level(logging.INFO, "nvmeemu.faults.faults")
    faults = [rig.faults.add(Fault({"opcode": "write"}, do={"delay": 0}, name=f"100 % {one}")) for one in range(12)]
    caplog.handler.addFilter(flood := NoFlood())
    caplog.clear()
    rig.submit(rig.write())
    caplog.handler.removeFilter(flood)
    assert [text.partition(" fires")[0] for text in caplog.messages] == [
        f'fault {fault.id} "100 % {number}"' for number, fault in enumerate(faults)
    ]


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("drop", "drop"),
        ({"status": "write_fault", "dnr": False}, "status=write_fault dnr=false"),
        ([{"hang": True, "seconds": 5}, {"set": {"dw0": 1}}], "hang seconds=5, set.dw0=1"),
        ([{"set": {"dw0": 1}}] * 1000, "set.dw0=1, " * 90 + "set.d ..."),
    ],
)
def test_what_it_does_in_words(do: Any, words: str) -> None:
    found = Fault(at="completion", do=do).words
    assert found == words or (len(found) == 1000 and found.endswith(" ..."))


@pytest.mark.parametrize("name", ["a\nb", "x" * 201, "\0", 7])
def test_a_name_is_one_short_line(name: Any) -> None:
    with pytest.raises(FaultError, match=r"^name: "):
        Fault(do="hang", name=name)
