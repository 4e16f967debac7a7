"""Names are spelled in one way everywhere: words with a space, "_", "-" or nothing between them, in any case."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest

from faults.rig import Rig
from nvmeemu.faults import Fault, FaultError
from nvmeemu.faults.actions import ACTIONS
from nvmeemu.faults.file import of_words, scenario
from nvmeemu.faults.match import Match
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import At
from nvmeemu.faults.scenarios import SCENARIOS
from nvmeemu.profiles.steps import SubmitStep, parse_steps
from nvmeemu.spec import AdminOpcode, Cns, FeatureId, GetFeatures, Identify, LogId, NvmOpcode, Status, Write
from nvmeemu.spec.names import bare
from nvmeemu.trace import filters
from nvmeemu.trace.commands import TracedCommand
from nvmeemu.trace.records import Fetch

SPELLINGS = ["get_log_page", "get-log-page", "Get Log Page", "GET_LOG_PAGE", "GetLogPage", "get log_page"]


def fetched(opcode: int, sqid: int = 0) -> TracedCommand:
    return TracedCommand(Fetch(0, 0, sqid, 0, bytes([opcode]) + bytes(63)))


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.kills("names-with-underscores-only")
def test_an_opcode_in_every_place(name: str) -> None:
    fault = Fault({"opcode": name}, "execute", "drop")
    command = Identify(opcode=AdminOpcode.GET_LOG_PAGE)
    assert fault.meets(Passage(At.EXECUTE, qid=0, command=command))
    assert not fault.meets(Passage(At.EXECUTE, qid=1, command=command))
    assert of_words([f"match.opcode={name}", "do=drop"])["match"] == {"opcode": name}
    assert filters.opcode(name)(fetched(AdminOpcode.GET_LOG_PAGE))
    assert not filters.opcode(name)(fetched(AdminOpcode.GET_LOG_PAGE, sqid=1))
    if " " not in name:  # there a space ends a word
        (step,) = parse_steps(f"admin {name} lid=Error-Information")
        assert isinstance(step, SubmitStep)
        assert step.command.opcode == AdminOpcode.GET_LOG_PAGE


@pytest.mark.parametrize(
    ("field", "names", "value", "other"),
    [
        ("cns", ["controller", "CONTROLLER", "0x1", 1], Cns.CONTROLLER, Cns.NAMESPACE),
        ("cns", ["active-namespaces", "Active Namespaces", "active_namespaces"], Cns.ACTIVE_NAMESPACES, Cns.NAMESPACE),
    ],
)
@pytest.mark.kills("cns-has-no-names")
def test_the_structures_of_identify(field: str, names: list[Any], value: int, other: int) -> None:
    for name in (*names, names, [names[0], 7]):
        match = Match(At.EXECUTE, {"opcode": "identify", field: name})
        command = Identify(opcode=AdminOpcode.IDENTIFY, cns=value)
        assert Passage(At.EXECUTE, qid=0, command=command) in match
        command = Identify(opcode=AdminOpcode.IDENTIFY, cns=other)
        assert Passage(At.EXECUTE, qid=0, command=command) not in match


@pytest.mark.parametrize("name", ["number_of_queues", "Number of Queues", "number-of-queues", 7, "7", "5-7"])
def test_features(name: Any, rig: Rig) -> None:
    fault = rig.add({"status": "internal_error"}, "execute", {"fid": name})
    rig.run(GetFeatures(opcode=AdminOpcode.GET_FEATURES, fid=FeatureId.TIMESTAMP), rig.driver.admin)
    assert fault.hits == 0
    found = rig.run(GetFeatures(opcode=AdminOpcode.GET_FEATURES, fid=FeatureId.NUMBER_OF_QUEUES), rig.driver.admin)
    assert (found.status, fault.hits) == (Status.INTERNAL_ERROR, 1)


def test_log_pages(rig: Rig) -> None:
    fault = rig.add({"delay": 0}, "execute", {"lid": ["Error Information", "smart"]})
    rig.driver.get_log(LogId.FIRMWARE_SLOT, 512)
    assert fault.hits == 0


def test_a_name_that_is_none_is_told_with_those_there_are() -> None:
    with pytest.raises(FaultError, match=r"^match\.cns: 'ctrl' is none of namespace, controller, "):
        Fault({"cns": "ctrl"}, "execute", "drop")


@pytest.mark.parametrize(
    ("fault", "same"),
    [
        ({"do": {"Wrong-Phase": True}}, {"do": {"wrong_phase": True}}),
        ({"do": "unknown cid"}, {"do": "unknown_cid"}),
        ({"do": "guard error"}, {"do": "guard_error"}),
        ({"do": {"Wrong-Metadata": "ONES", "lba": 7}}, {"do": {"wrong_metadata": "ones", "LBA": "7"}}),
        ({"do": {"status": "Write Fault"}}, {"do": {"status": Status.WRITE_FAULT}}),
        ({"do": {"Corrupt": "ZEROS"}}, {"do": {"corrupt": "zeros"}}),
        ({"do": {"error": "eio"}}, {"do": {"error": "EIO"}}),
        ({"match": {"queue": "IO"}, "do": "drop", "at": "Execute"}, {"match": {"queue": "io"}, "do": "drop"}),
        ({"match": {"queue": "Admin"}, "do": "drop"}, {"match": {"queue": 0}, "do": "drop"}),
        ({"match": {"vector": "PIN"}, "do": "drop", "at": "interrupt"}, {"match": {"vector": "pin"}, "do": "drop"}),
        ({"match": {"register": "Aqa"}, "do": "drop", "at": "register"}, {"match": {"register": 0x24}, "do": "drop"}),
        (
            {"match": {"FID": 7, "Opcode": "Set-Features"}, "do": "drop"},
            {"match": {"opcode": 9, "fid": 7}, "do": "drop"},
        ),
        ({"do": {"set": {"MQES": 2}}, "at": "register"}, {"do": {"set": {"mqes": 2}}}),
        ({"do": {"Status": "write fault", "DNR": True}}, {"do": {"status": "write_fault", "dnr": True}}),
        ({"match": {"type": "Smart"}, "do": "drop", "at": "event"}, {"match": {"type": 1}, "do": "drop"}),
    ],
)
def test_all_other_names_of_faults(fault: dict[str, Any], same: dict[str, Any]) -> None:
    made, other = Fault(**fault), Fault(**{"at": fault.get("at", "").lower() or None, **same})
    assert [type(action) for action in made.actions] == [type(action) for action in other.actions]
    assert [vars(action) for action in made.actions] == [vars(action) for action in other.actions]
    assert made.at == other.at
    assert (made.match.queues, made.match.commands) == (other.match.queues, other.match.commands)


def test_names_of_fields_and_of_times() -> None:
    """Of registers, commands, structures and tables, as well as what they hold."""
    made = Fault({"LBA": 3}, do="drop", when={"After-Seconds": 2, "Nth": 3})
    assert (made.when.after_seconds, made.when.nth) == (2, 3)
    assert Fault.of({"Match": {"LBA": 3}, "Do": "drop"}).as_table() == Fault({"lba": 3}, do="drop").as_table()
    with pytest.raises(FaultError, match=r"^match: lba, LBA: one of them is there twice$"):
        Fault({"lba": 3, "LBA": 4}, do="drop")


@pytest.mark.parametrize(
    ("step", "same"),
    [
        ("READ CC", "read cc"),
        ("Wait RDY = 1", "wait rdy = 1"),
        ("Admin Identify CNS=Active-Namespaces", "admin identify cns=active_namespaces"),
        ("Q1 Read SLBA=8 NLB=8 -> LBA-out-of-range|Success", "q1 read slba=8 nlb=8 -> success|lba_out_of_range"),
        ("admin identify cns=controller -> NN>=4", "admin identify cns=controller -> nn>=4"),
        ("admin async-event-request -> Parked", "admin async_event_request -> parked"),
        ("MSIX masking", "msix masking"),
        ("PCI Interrupt-Disable = 1", "pci interrupt_disable = 1"),
    ],
)
def test_steps_of_profiles(step: str, same: str) -> None:
    made, other = (parse_steps(text)[0] for text in (step, same))
    assert replace(made, text="") == replace(other, text="")


def test_no_two_names_of_a_kind_have_the_same_letters() -> None:
    """Or one of them could not be meant."""
    for kind in (AdminOpcode, NvmOpcode, Status, Cns, FeatureId, LogId):
        assert len({bare(one.name) for one in kind}) == len(kind)
    assert len({bare(name) for name in ACTIONS}) == len(ACTIONS)


@pytest.mark.parametrize("name", ["stuck-reset", "Stuck Reset", "stuck_reset"])
def test_scenarios(name: str) -> None:
    assert [one.as_table() for one in scenario(name)] == [one.as_table() for one in SCENARIOS["stuck-reset"]()]


@pytest.mark.parametrize("key", ["lba", "nsid", "cid", "slba"])
@pytest.mark.kills("a-pair-is-two-numbers")
def test_a_pair_may_mean_a_range_and_is_refused(key: str) -> None:
    with pytest.raises(FaultError, match=rf'^match\.{key}: \(0, 7\): write "0-7" for the range, \[0, 7\] for the two$'):
        Fault({"opcode": "write", key: (0, 7)}, do="drop")
    for meant, hits in (("0-7", [1, 1, 1]), ([0, 7], [1, 0, 1])):
        fault = Fault({"opcode": "write", "slba": meant}, do="drop")
        commands = [Write(nsid=1, slba=slba, nlb=1) for slba in (0, 3, 7)]
        assert [fault.meets(Passage(At.EXECUTE, qid=1, command=one)) for one in commands] == hits


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("io", [0, 1, 1]),
        ("IO", [0, 1, 1]),
        ("admin", [1, 0, 0]),
        ("Admin", [1, 0, 0]),
        ("0", [1, 0, 0]),
        ("2", [0, 0, 1]),
    ],
)
def test_the_queues_of_a_trace(text: str, met: list[int]) -> None:
    assert [filters.queue(text)(fetched(2, sqid)) for sqid in (0, 1, 2)] == met
    match = Match(At.EXECUTE, {"queue": text})
    assert [Passage(At.EXECUTE, qid=qid, command=Identify()) in match for qid in (0, 1, 2)] == met


@pytest.mark.parametrize("text", ["i/o", "-1", "65536", "one"])
def test_a_queue_that_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        filters.queue(text)
