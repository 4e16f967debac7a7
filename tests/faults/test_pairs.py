"""Each action at each place where it works: what the host sees of it. And at all others: why not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from faults.protected import SLBA, STC, protected
from faults.rig import BLOCK, GUARD, NEW, OLD, Rig
from nvmeemu.faults import Fault, FaultError
from nvmeemu.faults.actions import ACTIONS
from nvmeemu.faults.places import PLACES
from nvmeemu.faults.states import State
from nvmeemu.spec import NvmOpcode, Status
from nvmeemu.testing import CAP, CSTS, INTMS

Check = Callable[[Rig], None]
CheckAt = Callable[[str, Rig], None]
PAIRS: dict[tuple[str, str], Check] = {}
EXAMPLES = {
    "status": "write_fault",
    "delay": 1,
    "error": "EIO",
    "torn": 512,
    "set": {"dw0": 1},
    "rdy": 0,
    "slow_rdy": 1,
    "smart": {"spare": 5},
    "flood": 3,
}
WRITES = {"opcode": "write"}
READS = {"opcode": "read"}
ENTRY = {"queue": 1}


def pair(do: str, at: str) -> Callable[[Check], Check]:
    """The check of a pair: one case for each."""

    def register(check: Check) -> Check:
        assert (do, at) not in PAIRS
        PAIRS[do, at] = check
        return check

    return register


def pairs(do: str, *places: str) -> Callable[[CheckAt], CheckAt]:
    """That of several pairs, in which the place is all that differs."""

    def register(check: CheckAt) -> CheckAt:
        for at in places:
            pair(do, at)(partial(check, at))
        return check

    return register


@pytest.mark.parametrize(("do", "at"), [(name, at) for name in ACTIONS for at in ACTIONS[name].places])
@pytest.mark.kills("a-pulled-drive-answers", "errors-are-swallowed", "one-bit-is-flipped", "duplicates-come-once")
@pytest.mark.kills("a-dropped-transfer-arrives", "drop-at-backend-can-be-aborted", "wrong-phase-stays")
def test_it_does_what_it_says(do: str, at: str, rig: Rig) -> None:
    if issubclass(ACTIONS[do], State):
        sets_off(rig, at, do)
    else:
        PAIRS[do, at](rig)


def test_each_pair_has_a_case_of_its_own() -> None:
    states = {do for do, action in ACTIONS.items() if issubclass(action, State)}
    assert PAIRS.keys() == {(do, at) for do in ACTIONS.keys() - states for at in ACTIONS[do].places}
    assert STATES.keys() == states


@pytest.mark.parametrize(
    ("do", "at"), [(name, at) for name in ACTIONS for at in PLACES if at not in ACTIONS[name].places]
)
def test_it_says_why_it_cannot(do: str, at: str) -> None:
    argument = EXAMPLES.get(do, True)
    with pytest.raises(FaultError) as refused:
        Fault(at=at, do={do: argument})
    assert str(refused.value).startswith(f"{do} at {at}: ")
    assert len(str(refused.value)) > len(f"{do} at {at}: ") + 10


# --- delay


@pairs("delay", "execute", "fetch", "backend", "completion", "doorbell")
def delayed_command(at: str, rig: Rig) -> None:
    rig.add({"delay": 1}, at, ENTRY if at == "doorbell" else WRITES, nth=1)
    cid = rig.submit(rig.write())
    assert rig.later(0.9) == []
    (completion,) = rig.later(0.1)
    assert (completion.cid, completion.status) == (cid, Status.SUCCESS)
    assert rig.disk() == NEW * BLOCK


@pair("delay", "interrupt")
def delayed_interrupt(rig: Rig) -> None:
    rig.add({"delay": 1}, "interrupt", {"vector": 1})
    rig.run(rig.write())
    assert rig.bench.ram.interrupts == []
    rig.later()
    assert rig.bench.ram.interrupts == [1]


@pair("delay", "register")
def delayed_register(rig: Rig) -> None:
    rig.add({"delay": 1}, "register", {"register": "intms"})
    rig.driver.set_reg(INTMS, 2)
    assert rig.driver.reg(INTMS) == 0
    rig.later()
    assert rig.driver.reg(INTMS) == 2


@pair("delay", "event")
def delayed_event(rig: Rig) -> None:
    rig.add({"delay": 1}, "event", {"type": "smart"})
    rig.await_events()
    rig.heat()
    assert rig.events() == []
    rig.later()
    assert len(rig.events()) == 1


# --- drop


@pair("drop", "execute")
def dropped_at_execute(rig: Rig) -> None:
    rig.add("drop", "execute", WRITES, nth=1)
    cid = rig.submit(rig.write())
    assert rig.later(3600) == []
    assert rig.abort(cid)
    (completion,) = rig.completions()
    assert (completion.cid, completion.status) == (cid, Status.ABORT_REQUESTED)
    assert rig.disk() == OLD * BLOCK


@pair("drop", "fetch")
def dropped_at_fetch(rig: Rig) -> None:
    rig.add("drop", "fetch", WRITES, nth=1)
    cid = rig.submit(rig.write())
    assert rig.later(3600) == []
    assert not rig.abort(cid)  # the device does not know it
    assert rig.run(rig.write()).status == Status.SUCCESS


@pair("drop", "backend")
def dropped_at_backend(rig: Rig) -> None:
    rig.add("drop", "backend", WRITES, nth=1)
    cid = rig.submit(rig.write())
    assert rig.later(3600) == []
    assert not rig.abort(cid)  # the disk has it
    assert rig.disk() == OLD * BLOCK


@pair("drop", "completion")
def dropped_at_completion(rig: Rig) -> None:
    rig.add("drop", "completion", WRITES, nth=1)
    rig.submit(rig.write())
    assert rig.later(3600) == []
    assert rig.disk() == NEW * BLOCK


@pair("drop", "dma")
def dropped_at_dma(rig: Rig) -> None:
    rig.add("drop", "dma", READS)
    assert rig.run(rig.read()).status == Status.SUCCESS
    assert rig.got() == GUARD * BLOCK


@pair("drop", "interrupt")
def dropped_interrupt(rig: Rig) -> None:
    rig.add("drop", "interrupt", nth=1)
    rig.run(rig.write())
    assert rig.bench.ram.interrupts == []
    rig.run(rig.write())
    assert rig.bench.ram.interrupts == [1]


@pair("drop", "doorbell")
def dropped_doorbell(rig: Rig) -> None:
    rig.add("drop", "doorbell", {"queue": 1, "doorbell": "sq"}, nth=1)
    rig.submit(rig.write())
    assert rig.later(3600) == []
    rig.submit(rig.write())  # its doorbell is for both
    assert len(rig.completions()) == 2


@pair("drop", "register")
def dropped_register_write(rig: Rig) -> None:
    rig.add("drop", "register", {"register": "intms"}, nth=1)
    rig.driver.set_reg(INTMS, 2)
    assert rig.driver.reg(INTMS) == 0
    rig.driver.set_reg(INTMS, 2)
    assert rig.driver.reg(INTMS) == 2


@pair("drop", "event")
def dropped_event(rig: Rig) -> None:
    rig.add("drop", "event")
    rig.await_events()
    rig.heat()
    assert rig.events() == []


# --- duplicate


@pairs("duplicate", "completion", "fetch")
def duplicated_command(at: str, rig: Rig) -> None:
    rig.add("duplicate", at, WRITES)
    cid = rig.submit(rig.write())
    assert [completion.cid for completion in rig.completions()] == [cid, cid]


@pair("duplicate", "interrupt")
def duplicated_interrupt(rig: Rig) -> None:
    rig.add("duplicate", "interrupt")
    rig.run(rig.write())
    assert rig.bench.ram.interrupts == [1, 1]


@pair("duplicate", "doorbell")
def duplicated_doorbell(rig: Rig) -> None:
    rig.await_events()
    rig.add("duplicate", "doorbell", {"queue": 1, "doorbell": "sq"})
    assert rig.run(rig.write()).status == Status.SUCCESS
    assert rig.events() == [0x010100]  # Invalid Doorbell Write Value


@pair("duplicate", "register")
def duplicated_register_write(rig: Rig) -> None:
    """Seen by what a bit that toggles would not show: a delay of both is a delay of two."""
    rig.add(["duplicate", {"delay": 1}], "register", {"register": "intms"})
    rig.driver.set_reg(INTMS, 2)
    assert len(rig.faults.kept) == 2
    rig.later()
    assert rig.driver.reg(INTMS) == 2


@pair("duplicate", "event")
def duplicated_event(rig: Rig) -> None:
    rig.add("duplicate", "event")
    rig.await_events(2)
    rig.heat()
    first, second = rig.events()
    assert first == second


# --- reorder


@pairs("reorder", "completion", "fetch", "execute")
def reordered_command(at: str, rig: Rig) -> None:
    rig.add("reorder", at, WRITES, nth=1)
    cids = [rig.driver.submit(rig.queue, rig.write(), ring=False) for _ in range(3)]
    rig.driver.ring_sq(rig.queue)
    rig.bench.settle()
    assert [completion.cid for completion in rig.completions()] == [cids[1], cids[0], cids[2]]


@pytest.mark.kills("reordered-for-ever")
def test_what_nothing_overtakes_goes_on_after_a_while(rig: Rig) -> None:
    rig.add({"reorder": True, "within": 0.5}, "completion", WRITES)
    rig.submit(rig.write())
    assert rig.completions() == []
    assert len(rig.later(0.5)) == 1


@pair("reorder", "doorbell")
def reordered_doorbell(rig: Rig) -> None:
    rig.add("reorder", "doorbell", {"queue": 1, "doorbell": "sq"}, nth=1)
    rig.submit(rig.write())
    assert rig.completions() == []
    rig.submit(rig.write(), rig.other)
    assert len(rig.completions()) == 1
    assert len(rig.completions(rig.other)) == 1


@pair("reorder", "interrupt")
def reordered_interrupt(rig: Rig) -> None:
    rig.add("reorder", "interrupt", {"vector": 1})
    rig.run(rig.write())
    rig.run(rig.write(), rig.other)
    assert rig.bench.ram.interrupts == [2, 1]


@pair("reorder", "event")
def reordered_event(rig: Rig) -> None:
    rig.add("reorder", "event", {"type": "smart"})
    rig.await_events(2)
    rig.heat()
    rig.driver.set_reg(0x1000 + 8 * 60, 1)  # the doorbell of no queue
    rig.bench.settle()
    assert [dw0 & 7 for dw0 in rig.events()] == [0, 1]


# --- status, set, corrupt


@pair("status", "execute")
def status_at_execute(rig: Rig) -> None:
    rig.add({"status": "write_fault", "dnr": False}, "execute", WRITES)
    completion = rig.run(rig.write())
    assert (completion.status, completion.dnr, completion.more) == (Status.WRITE_FAULT, False, True)
    assert rig.disk() == OLD * BLOCK


@pair("status", "completion")
def status_at_completion(rig: Rig) -> None:
    rig.add({"status": 0x2C0, "dnr": True, "more": False}, "completion", WRITES)
    completion = rig.run(rig.write())
    assert (completion.status, completion.dnr, completion.more) == (0x2C0, True, False)
    assert rig.disk() == NEW * BLOCK


@pair("status", "dma")
def status_at_dma(rig: Rig) -> None:
    rig.add({"status": "data_transfer_error"}, "dma", WRITES)
    assert rig.run(rig.write()).status == Status.DATA_TRANSFER_ERROR
    assert rig.disk() == OLD * BLOCK


def flipped(content: bytes, before: bytes) -> int:
    """How many bits are other ones."""
    return (int.from_bytes(content, "little") ^ int.from_bytes(before, "little")).bit_count()


@pair("corrupt", "backend")
def corrupted_at_backend(rig: Rig) -> None:
    rig.add({"corrupt": "flip", "bits": 3}, "backend", READS)
    assert rig.run(rig.read()).status == Status.SUCCESS
    assert flipped(rig.got(), OLD * BLOCK) == 3
    assert rig.disk() == OLD * BLOCK
    rig.add({"corrupt": "zeros"}, "backend", WRITES)
    rig.run(rig.write())
    assert rig.disk() == bytes(BLOCK)


@pair("corrupt", "dma")
def corrupted_at_dma(rig: Rig) -> None:
    for kind, expected in (("zeros", b"\0"), ("ones", b"\xff"), ("stale", GUARD)):
        rig.add({"corrupt": kind}, "dma", READS)
        rig.run(rig.read())
        assert rig.got() == expected * BLOCK
        rig.faults.clear()
    rig.add({"corrupt": "flip", "bits": 2}, "dma", WRITES)
    rig.run(rig.write())
    assert flipped(rig.disk(), NEW * BLOCK) == 2


@pair("corrupt", "fetch")
def corrupted_at_fetch(rig: Rig) -> None:
    rig.add({"corrupt": "zeros"}, "fetch", WRITES)
    completion = rig.run(rig.write())
    assert (completion.cid, completion.status) == (0, Status.INVALID_NAMESPACE)


@pair("corrupt", "completion")
def corrupted_at_completion(rig: Rig) -> None:
    rig.add({"corrupt": "ones"}, "completion", WRITES)
    assert rig.run(rig.write()).dw0 == 0xFFFFFFFF


@pair("corrupt", "doorbell")
def corrupted_doorbell(rig: Rig) -> None:
    rig.await_events()
    rig.add({"corrupt": "ones"}, "doorbell", {"queue": 1})
    rig.submit(rig.write())
    assert rig.completions() == []
    assert rig.events() == [0x010100]


@pair("corrupt", "register")
def corrupted_register(rig: Rig) -> None:
    cap = rig.driver.reg(CAP, 8)
    rig.add({"corrupt": "flip"}, "register", {"register": "cap", "access": "read"})
    assert (rig.driver.reg(CAP, 8) ^ cap).bit_count() == 1
    rig.add({"corrupt": "ones"}, "register", {"register": "intms", "access": "write"})
    rig.driver.set_reg(INTMS, 2)
    assert rig.driver.reg(INTMS) == 0xFFFFFFFF


@pair("set", "register")
def set_register(rig: Rig) -> None:
    rig.add({"set": {"cfs": True, "rdy": 0}}, "register", {"register": "csts"})
    assert rig.driver.status.cfs
    assert not rig.driver.status.rdy
    rig.add({"set": 0x12}, "register", {"register": 0x08})
    assert rig.driver.reg(0x08) == 0x12


@pair("set", "fetch")
def set_at_fetch(rig: Rig) -> None:
    rig.add({"set": {"nsid": 0xFFFF}}, "fetch", WRITES)
    assert rig.run(rig.write()).status == Status.INVALID_NAMESPACE


@pair("set", "completion")
def set_at_completion(rig: Rig) -> None:
    rig.add({"set": {"dw0": 7, "cid": 9, "sqhd": 11}}, "completion", WRITES)
    completion = rig.run(rig.write())
    assert (completion.dw0, completion.cid, completion.sqhd) == (7, 9, 11)


@pair("set", "doorbell")
def set_doorbell(rig: Rig) -> None:
    rig.await_events()
    rig.add({"set": 0xFFFF}, "doorbell", {"queue": 1, "value": "1-8"}, nth=1)
    rig.submit(rig.write())
    assert rig.completions() == []
    assert rig.events() == [0x010100]


# --- the disk


@pair("torn", "backend")
def torn_at_backend(rig: Rig) -> None:
    rig.add({"torn": 700}, "backend", WRITES)
    assert rig.run(rig.write(NEW * 2 * BLOCK)).status == Status.SUCCESS
    assert rig.disk(2) == NEW * 700 + OLD * (2 * BLOCK - 700)


@pair("torn", "dma")
def torn_at_dma(rig: Rig) -> None:
    rig.add({"torn": 700}, "dma", READS)
    assert rig.run(rig.read(2)).status == Status.SUCCESS
    assert rig.got(2) == OLD * 700 + GUARD * (2 * BLOCK - 700)


@pair("lose", "backend")
def lost_at_backend(rig: Rig) -> None:
    rig.add("lose", "backend", {"opcode": ["write", "write_zeroes"]})
    assert rig.run(rig.write()).status == Status.SUCCESS
    zeroes = rig.write()
    zeroes.opcode = NvmOpcode.WRITE_ZEROES
    assert rig.run(zeroes).status == Status.SUCCESS
    assert rig.disk() == OLD * BLOCK


@pair("error", "backend")
def error_at_backend(rig: Rig) -> None:
    rig.add({"error": "EIO"}, "backend", READS)
    assert rig.run(rig.read()).status == Status.UNRECOVERED_READ_ERROR
    rig.add({"error": "ENOSPC"}, "backend", WRITES)
    completion = rig.run(rig.write())
    assert (completion.status, completion.dnr) == (Status.WRITE_FAULT, True)
    assert rig.disk() == OLD * BLOCK


# --- completions


@pair("unknown_cid", "completion")
def unknown_cid(rig: Rig) -> None:
    rig.add("unknown_cid", match=WRITES)
    assert rig.run(rig.write()).cid == 0xFFFF


@pair("wrong_phase", "completion")
def wrong_phase(rig: Rig) -> None:
    rig.add("wrong_phase", match=WRITES, nth=1)
    rig.submit(rig.write())
    rig.submit(rig.write())
    assert rig.completions() == []  # the host waits for the first one, for ever
    place = rig.queue.cq + 16 * (rig.queue.cq_head + 1)
    assert rig.driver.bus.read_memory(place + 14, 1)[0] & 1 == rig.queue.phase


@pair("wrong_sqhd", "completion")
def wrong_sqhd(rig: Rig) -> None:
    rig.add({"wrong_sqhd": 33}, match=WRITES, nth=1)
    assert rig.run(rig.write()).sqhd == 33
    assert rig.run(rig.write()).sqhd == rig.queue.sq_tail


@pytest.mark.parametrize("at", ["fetch", "execute", "completion"])
@pytest.mark.kills("late-entries-of-a-deleted-queue")
def test_what_is_late_does_not_outlive_its_queue(rig: Rig, at: str) -> None:
    """Neither is it executed, nor is its completion written to memory that is the host's again."""
    rig.add({"delay": 1}, at, WRITES)
    rig.submit(rig.write())
    rig.driver.delete_sq(1)
    rig.driver.delete_cq(1)
    rig.driver.bus.write_memory(rig.queue.cq, bytes(1024))
    rig.later()
    assert rig.driver.bus.read_memory(rig.queue.cq, 1024) == bytes(1024)


@pytest.mark.kills("fatal-for-ever")
def test_a_fault_after_a_fatal_one_finds_a_controller_that_answers(rig: Rig) -> None:
    rig.add("cfs")
    rig.faults.clear()
    rig.driver.enable()
    rig.queue = rig.driver.create_queues(1)
    rig.add({"set": {"dw0": 7}}, "completion", WRITES)
    assert rig.run(rig.write()).dw0 == 7


# --- metadata


def is_not_right(do: str, rig: Rig) -> None:
    engine = "python" if rig.bench.engine is None else "native"
    with protected("4096+16 type 2 32 bits", engine) as (its, faults):
        fault = faults.add(Fault(READS, "backend", do))
        assert its.get(SLBA, 1, its.checks | STC, its.tags(SLBA))[0].status != Status.SUCCESS
        completion, *found = its.get(SLBA, 1)
        assert (completion.status, found == list(its.blocks(SLBA, 1))) == (Status.SUCCESS, False)
        assert fault.hits == 2


TAGS = ("application_tag", "reference_tag", "storage_tag")
OF_METADATA = ("wrong_metadata", "guard_error", *(f"{tag}_error" for tag in TAGS))
PAIRS |= {(do, "backend"): partial(is_not_right, do) for do in OF_METADATA}


# --- the device as a whole, from everywhere


def sets_off(rig: Rig, at: str, do: str) -> None:
    """Something passes the place, and that sets the state off."""
    rig.await_events(4)
    fault = rig.add({do: EXAMPLES.get(do, True)}, at)
    if at == "register":
        rig.driver.set_reg(INTMS, 0)
    elif at == "event":
        rig.heat()
    elif at != "now":
        rig.submit(rig.write())
    assert fault.hits
    rig.completions()
    STATES[do](rig)


def _is_hung(rig: Rig) -> None:
    rig.submit(rig.write())
    assert rig.later(3600) == []
    assert rig.driver.status.rdy
    rig.faults.clear()
    rig.driver.enable()
    rig.queue = rig.driver.create_queues(1)
    assert rig.run(rig.read()).status == Status.SUCCESS


def _is_fatal(rig: Rig) -> None:
    assert rig.driver.status.cfs
    rig.submit(rig.write())
    assert rig.later(10) == []
    rig.faults.clear()
    rig.driver.enable()
    assert not rig.driver.status.cfs


def _rdy_is_0(rig: Rig) -> None:
    assert not rig.driver.status.rdy
    rig.faults.clear()
    assert rig.driver.status.rdy


def _rdy_is_slow(rig: Rig) -> None:
    rig.driver.set_reg(0x14, 0)
    assert rig.driver.status.rdy
    rig.bench.clock.advance(0.9)
    assert rig.driver.status.rdy
    rig.bench.clock.advance(0.1)
    assert not rig.driver.status.rdy


def _shutdown_is_endless(rig: Rig) -> None:
    rig.driver.set_reg(0x14, rig.driver.reg(0x14) | 1 << 14)
    rig.bench.settle()
    rig.bench.clock.advance(3600)
    assert rig.driver.status.shst == 1
    rig.faults.clear()
    assert rig.driver.status.shst == 2


def _is_gone(rig: Rig) -> None:
    assert rig.driver.reg(CAP, 8) == (1 << 64) - 1
    assert rig.driver.reg(CSTS) == 0xFFFFFFFF
    rig.bench.ram.interrupts.clear()
    rig.submit(rig.write())
    assert rig.completions() == []
    assert rig.bench.ram.interrupts == []
    rig.faults.clear()
    assert not rig.driver.status.rdy  # as after power-on
    rig.driver.enable()
    rig.queue = rig.driver.create_queues(1)
    assert rig.run(rig.read()).status == Status.SUCCESS


def _namespace_is_gone(rig: Rig) -> None:
    assert rig.run(rig.read()).status == Status.INVALID_FIELD
    rig.faults.clear()
    assert rig.run(rig.read()).status == Status.SUCCESS


def _namespace_is_smaller(rig: Rig) -> None:
    end = rig.bench.backend.size // BLOCK - 1
    command = rig.read()
    command.slba = end
    assert rig.run(command).status == Status.LBA_OUT_OF_RANGE
    rig.faults.clear()
    command.slba = end
    assert rig.run(command).status == Status.SUCCESS


def _namespace_is_read_only(rig: Rig) -> None:
    assert rig.run(rig.write()).status == Status.NAMESPACE_WRITE_PROTECTED
    rig.faults.clear()
    assert rig.run(rig.write()).status == Status.SUCCESS


def _spare_is_low(rig: Rig) -> None:
    assert rig.driver.get_log(2, 512)[3] == 5
    rig.faults.clear()
    assert rig.driver.get_log(2, 512)[3] == 100


def _events_flood(rig: Rig) -> None:
    rig.later(1)
    told = [dw0 for dw0 in rig.events() if dw0 & 0xFF07 == 0x0101]
    assert len(told) >= 3


def _interrupt_for_nothing(rig: Rig) -> None:
    assert 0 in rig.bench.ram.interrupts


STATES: dict[str, Check] = {
    "cfs": _is_fatal,
    "hang": _is_hung,
    "rdy": _rdy_is_0,
    "slow_rdy": _rdy_is_slow,
    "endless_shutdown": _shutdown_is_endless,
    "remove": _is_gone,
    "vanish": _namespace_is_gone,
    "shrink": _namespace_is_smaller,
    "read_only": _namespace_is_read_only,
    "smart": _spare_is_low,
    "flood": _events_flood,
    "spurious": _interrupt_for_nothing,
}
