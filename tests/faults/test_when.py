"""When a fault fires, and what it matches."""

from __future__ import annotations

import json
from typing import Any

import pytest

from faults.rig import BLOCK, NEW, OLD, Rig
from nvmeemu.faults import Fault, FaultError
from nvmeemu.faults.places import At
from nvmeemu.faults.words import numbers
from nvmeemu.spec import AdminOpcode, FeatureId, NvmOpcode, Status
from nvmeemu.testing import INTMS

FAILS: Any = {"status": "write_fault"}


def failed(rig: Rig, number: int) -> list[int]:
    """Which of so many writes fail, from 1 on."""
    return [index for index in range(1, number + 1) if rig.run(rig.write()).status != Status.SUCCESS]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"nth": 3}, [3]),
        ({"every": 3}, [3, 6]),
        ({"after": 6}, [7, 8]),
        ({"times": 2}, [1, 2]),
        ({"after": 1, "every": 2, "times": 2}, [3, 5]),
        ({"probability": 0}, []),
        ({"probability": 1.0, "seed": 5}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
@pytest.mark.kills("every-is-one-off", "after-is-one-off", "times-is-one-off", "nth-and-all-later", "chance-is-ignored")
def test_matches_are_counted(rig: Rig, when: Any, expected: list[int]) -> None:
    fault = rig.add(FAILS, match={"opcode": "write"}, **when)
    assert failed(rig, 8) == expected
    assert (fault.seen, fault.hits) == (8, len(expected))


@pytest.mark.kills("chance-without-seed")
def test_chance_comes_from_the_seed() -> None:
    def pattern(all_seed: int, **when: Any) -> list[int]:
        rig = Rig(seed=all_seed)
        rig.add(FAILS, match={"opcode": "write"}, probability=0.5, **when)
        return failed(rig, 40)

    assert pattern(1) == pattern(1)
    assert pattern(1) != pattern(2)
    assert pattern(1, seed=7) == pattern(2, seed=7)
    assert 8 < len(pattern(1)) < 32


@pytest.mark.kills("chance-goes-on-after-clear")
def test_chance_does_not_depend_on_faults_that_were_cleared(rig: Rig) -> None:
    """So a test with a seed does the same alone as behind others."""

    def chance() -> tuple[list[int], list[bytes]]:
        rig.driver.write(0, OLD * BLOCK)
        rig.add({"corrupt": "flip", "bits": 2}, "dma", {"opcode": "read"})
        rig.add(FAILS, match={"opcode": "write"}, probability=0.5)
        rig.add({"status": "internal_error"}, match={"opcode": "write"}, probability=0.2)
        seen = []
        for _ in range(5):
            rig.run(rig.read())
            seen.append(rig.got())
        result = failed(rig, 40), seen
        rig.faults.clear()
        return result

    alone = chance()
    rig.add(FAILS, match={"opcode": "read"}, probability=0.5)
    rig.run(rig.read())
    rig.faults.clear()
    assert chance() == alone


@pytest.mark.kills("after-seconds-is-ignored", "seconds-is-ignored")
def test_it_begins_after_a_time_and_lasts_for_a_time(rig: Rig) -> None:
    rig.add(FAILS, match={"opcode": "write"}, after_seconds=10, seconds="5s")
    assert failed(rig, 2) == []
    rig.bench.clock.advance(10)
    assert failed(rig, 2) == [1, 2]
    rig.bench.clock.advance(5)
    assert failed(rig, 2) == []


@pytest.mark.kills("now-is-always-now")
def test_now_may_come_later(rig: Rig) -> None:
    rig.add({"rdy": 0}, after_seconds=3)
    assert rig.driver.status.rdy
    rig.bench.clock.advance(3)
    assert not rig.driver.status.rdy


@pytest.mark.kills("a-state-lasts-for-ever")
def test_a_state_ends_by_itself(rig: Rig) -> None:
    rig.add({"vanish": 1, "seconds": 3})
    assert rig.run(rig.write()).status == Status.INVALID_FIELD
    rig.bench.clock.advance(3)
    assert failed(rig, 1) == []


@pytest.mark.kills("the-last-fault-first")
def test_faults_combine(rig: Rig) -> None:
    """In the order in which they were added; a list of actions is one fault."""
    rig.add({"delay": 1}, match={"opcode": "write"})
    rig.add(FAILS, match={"opcode": "write"})
    rig.add([{"set": {"dw0": 1}}, "duplicate"], "completion", {"opcode": "write"})
    rig.submit(rig.write())
    assert rig.completions() == []
    first, second = rig.later()
    assert (first.status, first.dw0) == (Status.WRITE_FAULT, 1)
    assert bytes(first)[:14] == bytes(second)[:14]
    rig.faults.clear()
    rig.add([{"set": {"dw0": 1}}, {"set": {"dw0": 2}}], "completion", {"opcode": "write"})
    assert rig.run(rig.write()).dw0 == 2
    rig.add({"set": {"dw0": 3}}, "completion", {"opcode": "write"})
    assert rig.run(rig.write()).dw0 == 3


@pytest.mark.parametrize(
    ("match", "is_met"),
    [
        ({"opcode": "write"}, True),
        ({"opcode": ["read", "write"]}, True),
        ({"opcode": 1}, True),
        ({"opcode": "0x01"}, True),
        ({"opcode": "001"}, True),
        ({"opcode": "0-1"}, True),
        ({"opcode": "2-0xff"}, False),
        ({"opcode": {"mask": 3, "value": 1}}, True),
        ({"opcode": {"mask": 3, "value": 2}}, False),
        ({"opcode": {NvmOpcode.READ, NvmOpcode.WRITE}}, True),
        ({"opcode": AdminOpcode.CREATE_SQ}, False),  # 01h, too
        ({"opcode": "read"}, False),
        ({"opcode": "create_sq"}, False),  # 01h, too, but of the admin queue
        ({"queue": 1}, True),
        ({"queue": "io"}, True),
        ({"queue": "admin"}, False),
        ({"queue": [2, 3]}, False),
        ({"nsid": 1}, True),
        ({"nsid": 2}, False),
        ({"lba": 8}, True),
        ({"lba": 9}, True),
        ({"lba": "9-20"}, True),
        ({"lba": "10-20"}, False),
        ({"lba": [1, 2]}, False),
        ({"nlb": 2}, True),
        ({"slba": {"mask": 0xF, "value": 8}}, True),
        ({"slba": {"mask": 7, "value": 0}}, True),
        ({"slba": {"mask": 0xF, "value": 9}}, False),
        ({"fua": True}, False),
        ({"cdw12": {"mask": 0xFFFF, "value": 1}}, True),
        ({"fid": 7}, False),
        ({"opcode": "write", "lba": "0-7"}, False),
    ],
)
@pytest.mark.parametrize("at", ["fetch", "execute", "completion"])
@pytest.mark.kills("lba-is-the-first-block", "a-name-is-for-both-queues", "a-mask-is-ignored")
def test_commands_are_matched(rig: Rig, match: Any, is_met: bool, at: str) -> None:
    fault = rig.add("drop", at, match)
    rig.submit(rig.write(NEW * 2 * BLOCK, slba=8))
    assert bool(fault.hits) == is_met


def test_completions_are_matched_by_their_status(rig: Rig) -> None:
    fault = rig.add({"set": {"dw0": 1}}, "completion", {"status": "invalid_namespace"})
    rig.run(rig.write())
    assert fault.hits == 0
    command = rig.write()
    command.nsid = 99
    assert rig.run(command).dw0 == 1


def test_admin_commands_are_matched_by_their_fields(rig: Rig) -> None:
    fault = rig.add({"set": {"dw0": 1}}, "completion", {"opcode": "get_features", "fid": [4, 7]})
    rig.driver.get_feature(FeatureId.WRITE_ATOMICITY)
    assert fault.hits == 0
    assert rig.driver.get_feature(FeatureId.NUMBER_OF_QUEUES) == 1


def test_register_accesses_are_matched(rig: Rig) -> None:
    fault = rig.add("drop", "register", {"register": "intms", "value": 4})
    rig.driver.set_reg(INTMS, 2)
    rig.driver.set_reg(INTMS, 4)
    assert (rig.driver.reg(INTMS), fault.hits) == (2, 1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({}, "do: say what shall happen"),
        ({"do": "explode"}, "do: 'explode' is none of status, "),
        ({"do": {"explode": 1, "dnr": True}}, "do: none of 'explode', 'dnr' is an action: status, "),
        ({"do": 5}, "do: 5 is no table"),
        ({"do": None}, "do: None is no table"),
        ({"do": {"status": 1, "delay": 2}}, "do: status and delay are 2 actions: make a list of them"),
        ({"do": {"status": "bad"}}, "do.status: 'bad' is none of success"),
        ({"do": {"status": 1, "dnr": 1}}, "do.dnr: 1 is neither true nor false"),
        ({"do": {"status": "success", "dnr": True}}, "do.status: success is not retried"),
        ({"do": {"status": 1, "more": True}}, "do.more: only at completion"),
        ({"do": {"delay": "soon"}}, "do.delay: 'soon' is no time"),
        ({"do": {"delay": -1}}, "do.delay: -1 is no time"),
        ({"do": {"drop": 1}}, "do.drop: takes no argument"),
        ({"do": {"drop": True, "dnr": True}}, "do.dnr: no option of drop: it has none"),
        ({"do": {"error": "EWHAT"}}, "do.error: 'EWHAT' is no errno"),
        ({"do": {"corrupt": "stale"}, "at": "fetch"}, "do.corrupt: only at backend (a disk) and dma (a buffer)"),
        ({"do": {"corrupt": "zeros", "bits": 3}}, "do.bits: how many to flip"),
        ({"do": {"set": {"nonsense": 1}}, "at": "fetch"}, "do.set: 'nonsense' is no field"),
        ({"do": {"set": {"opcode": 256}}, "at": "fetch"}, "do.set: 256 does not fit opcode"),
        ({"do": {"set": {"nonsense": 1}}, "at": "register"}, "do.set: 'nonsense' is no field"),
        ({"do": {"set": {"nonsense": 1}}, "at": "completion"}, "do.set: nothing at 'completion' has 'nonsense'"),
        ({"do": {"set": {"to": 256}}}, "do.set: 256 does not fit to"),
        ({"do": {"set": {"en": 1}}, "match": {"register": "cap"}}, "do.set: 'en' is no field of cap"),
        ({"do": {"set": {"data": 1}}}, "do.set: 'data' is no field"),
        ({"do": {"smart": {"age": 3}}}, "do.smart: {'age': 3}"),
        ({"do": {"flood": 0}}, "do.flood: 0 is not within"),
        ({"do": "drop", "at": "everywhere"}, "at: 'everywhere' is none of"),
        ({"do": {"corrupt": "flip"}, "match": {"opcode": "identify"}}, "match: no admin command comes to a disk"),
        ({"do": {"error": "EIO"}, "match": {"queue": [0]}}, "match: no admin command comes to a disk"),
        ({"do": "drop", "match": {"colour": 1}}, "match.colour: no command has such a field"),
        ({"do": "drop", "match": {"opcode": "wrote"}}, "match.opcode: 'wrote' is none of"),
        ({"do": "drop", "match": {"lba": "9-3"}}, "match.lba: '9-3' ends before it begins"),
        ({"do": "drop", "match": {"nsid": {"mask": 1}}}, "match.nsid: {'mask': 1}: give mask and value"),
        ({"do": "drop", "at": "interrupt", "match": {"opcode": 1}}, "match.opcode: nothing at 'interrupt' has that"),
        ({"do": "drop", "at": "register", "match": {"register": "x"}}, "match.register: 'x' is none of"),
        ({"do": "drop", "at": "register", "match": {"access": "read"}}, "drop at register: a register that is read"),
        ({"do": "cfs", "match": {"queue": 1}}, 'match.queue: at "now" there is nothing to match'),
        ({"do": "cfs", "when": {"nth": 1}}, 'when: "now" comes once'),
        ({"do": "drop", "when": {"nth": 0}}, "when.nth: 0 is not within"),
        ({"do": "drop", "when": {"nth": 1, "every": 2}}, "when: nth is one certain time"),
        ({"do": "drop", "when": {"seed": 1}}, "when: a seed without a probability"),
        ({"do": "drop", "when": {"probability": 2}}, "when.probability: 2 is no probability"),
        ({"do": "drop", "when": {"sometimes": 2}}, "when: no 'sometimes' there"),
        ({"do": "drop", "name": 3}, "name: 3 is not text"),
        ({"do": "drop", "where": 3}, "where: a fault has match, at, do, when, name"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(fault: Any, reason: str) -> None:
    with pytest.raises(FaultError) as refused:
        Fault.of(fault)
    assert str(refused.value).startswith(reason)
    assert "\n" not in str(refused.value)


def test_a_fault_can_be_written_down_and_read_again() -> None:
    written = {
        "name": "all of it",
        "match": {"opcode": ["read"], "lba": "1-2"},
        "at": "dma",
        "do": ["drop", {"smart": {"spare": 1}}],
        "when": {"every": 2, "times": 3},
    }
    fault = Fault.of(written)
    assert fault.as_table() == written
    assert Fault.of(fault.as_table()).as_table() == written


def test_what_is_written_in_python_can_be_sent_as_json() -> None:
    fault = Fault(
        {"opcode": {NvmOpcode.WRITE, AdminOpcode.IDENTIFY}, "nsid": frozenset({2, 1}), "lba": (7, 5, 6)},
        At.EXECUTE,
        ({"status": Status.WRITE_FAULT},),
    )
    sent = json.loads(json.dumps(fault.as_table()))
    assert sent == {
        "match": {"opcode": ["identify", "write"], "nsid": [1, 2], "lba": [7, 5, 6]},
        "at": "execute",
        "do": {"status": 0x280},
        "when": {},
    }
    assert Fault.of(sent).as_table() == fault.as_table()


def test_a_fault_is_added_once(rig: Rig) -> None:
    fault = rig.add("drop")
    with pytest.raises(FaultError, match="added before"):
        rig.faults.add(fault)


@pytest.mark.kills("taps-stay-for-ever")
def test_without_faults_nothing_stands_between(rig: Rig) -> None:
    fault = rig.add("drop", match={"opcode": "flush"})
    state = rig.bench.controller.state
    assert state.interrupts.tap is not None
    assert state.events.tap is not None
    assert state.cqs[0].server.tap is not None
    rig.faults.remove(fault)
    assert state.interrupts.tap is None
    assert state.events.tap is None
    assert state.cqs[0].server.tap is None


FIELDS = "match.{}: no command that the rest of match asks for has such a field"
BLOCKS = "match.lba: no command that the rest of match asks for names a range of blocks"
NEVER: list[tuple[str, dict[str, Any], str]] = [
    ("execute", {"cid": 70000}, "match.cid: 70000 is not within 0..65535"),
    ("execute", {"cid": [1, "0x10000"]}, "match.cid: 65536 is not within 0..65535"),
    ("execute", {"cid": "8-70000"}, "match.cid: 70000 is not within 0..65535"),
    ("execute", {"queue": 100000}, "match.queue: 100000 is not within 0..65535"),
    ("doorbell", {"queue": 100000}, "match.queue: 100000 is not within 0..65535"),
    ("doorbell", {"value": 1 << 32}, "match.value: 4294967296 is not within 0..4294967295"),
    ("execute", {"nsid": 1 << 40}, "match.nsid: 1099511627776 is not within 0..4294967295"),
    ("execute", {"fid": 511}, "match.fid: 511 is not within 0..255"),
    ("execute", {"fua": 2}, "match.fua: 2 is not within 0..1"),
    ("execute", {"nlb": 0}, "match.nlb: 0 is not within 1..65536"),
    ("execute", {"nlb": 65537}, "match.nlb: 65537 is not within 1..65536"),
    ("execute", {"opcode": "256-300"}, "match.opcode: 256 is not within 0..255"),
    ("completion", {"status": 0xFFFFF}, "match.status: 1048575 is not within 0..2047"),
    ("interrupt", {"vector": 5000}, "match.vector: 5000 is not within 0..2047"),
    ("event", {"type": 8}, "match.type: 8 is not within 0..7"),
    ("execute", {"cdw10": {"mask": 0xFF, "value": 0x100}}, "match.cdw10.value: 0x100 has bits that the mask 0xff has"),
    ("execute", {"cid": {"mask": 0x10000, "value": 0}}, "match.cid.mask: 65536 is not within 1..65535"),
    ("execute", {"slba": 0, "opcode": "identify"}, FIELDS.format("slba")),
    ("execute", {"opcode": "read", "fid": 1}, FIELDS.format("fid")),
    ("execute", {"opcode": ["read", "flush"], "nr": 1}, FIELDS.format("nr")),
    ("execute", {"queue": "io", "cns": 1}, FIELDS.format("cns")),
    ("execute", {"opcode": 0x99, "slba": 0}, FIELDS.format("slba")),
    ("execute", {"slba": 0, "fid": 1}, FIELDS.format("fid")),
    ("execute", {"lba": 0, "cns": 1}, FIELDS.format("cns")),
    ("backend", {"fid": 1}, "match: no admin command comes to a disk"),
    ("execute", {"lba": 0, "queue": "admin"}, BLOCKS),
    ("execute", {"lba": 0, "opcode": "flush"}, BLOCKS),
    (
        "execute",
        {"opcode": "identify", "queue": "io"},
        "match.opcode: no queue that match.queue asks for has 'identify'",
    ),
    ("execute", {"opcode": "read", "queue": 0}, "match.opcode: no queue that match.queue asks for has 'read'"),
    ("register", {"access": "read", "value": 3}, "match.value: only what is written"),
]


@pytest.mark.parametrize(("at", "match", "said"), NEVER)
def test_what_can_never_be_is_refused(at: str, match: dict[str, Any], said: str) -> None:
    with pytest.raises(FaultError) as refused:
        Fault(match, at, "corrupt" if at == "register" else "drop")
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("values", [{"cid": 70000}, {"sqhd": 70000}, {"dw0": 1 << 32}])
def test_what_fits_no_completion_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(FaultError, match=r"do.set.\w+: \d+ is not within"):
        Fault(at="completion", do={"set": values})


POSSIBLE: list[tuple[str, dict[str, Any]]] = [
    ("execute", {"cid": 0xFFFF, "queue": 0xFFFF, "nsid": 0xFFFFFFFF}),
    ("execute", {"fid": 0xFF, "opcode": ["get_features", "identify"]}),
    ("execute", {"nlb": 65536, "fua": True, "slba": (1 << 64) - 1}),
    ("execute", {"opcode": 2, "lba": 0}),
    ("execute", {"opcode": 2, "lid": 2}),  # a number may be an admin command's
    ("execute", {"opcode": 2, "queue": "admin", "lid": 2}),
    ("execute", {"opcode": {"mask": 3, "value": 2}, "queue": {"mask": 1, "value": 1}, "slba": 0}),
    ("execute", {"opcode": 0xC1, "cdw10": {"mask": 0xFF00, "value": 0x100}}),
    ("completion", {"status": 0x7FF}),
    ("interrupt", {"vector": 2047}),
    ("event", {"type": [0, "smart", 7]}),
    ("doorbell", {"value": 0xFFFFFFFF}),
]


@pytest.mark.parametrize(("at", "match"), POSSIBLE)
def test_what_can_be_is_not_refused(at: str, match: dict[str, Any]) -> None:
    assert Fault(match, at, "drop").as_table()["match"] == match


def test_a_number_is_no_range_that_begins_with_0() -> None:
    """A fault at block 8000 fired at block 0, too."""
    wanted = numbers(8000, "lba")
    assert [wanted.overlaps(*blocks) for blocks in ((0, 3), (0, 0), (7999, 8001), (8001, 9000))] == [0, 0, 1, 0]
    assert numbers("0-3", "lba").overlaps(3, 5)
    assert not numbers("0-3", "lba").overlaps(4, 5)
