"""What the recorder sees: everything that host and device said, in its order."""

from __future__ import annotations

from zlib import crc32

import pytest

from nvmeemu import trace
from nvmeemu.faults import Fault, Faults
from nvmeemu.ports import PciState
from nvmeemu.spec import (
    AdminOpcode,
    Command,
    DatasetManagement,
    DsmRange,
    EventType,
    FeatureId,
    LogId,
    NvmOpcode,
    ReadWrite,
    SetFeatures,
    Status,
)
from nvmeemu.testing import CC, CSTS, PAGE
from tracing import Traced, ready

KIB = 1024


def names(bench: Traced) -> list[str]:
    return [type(record).__name__ for record in bench.records]


def test_a_read_is_told_from_its_doorbell_to_its_interrupt() -> None:
    bench = ready()
    bench.driver.read(slba=0, blocks=1)  # the driver asks for the size of a block first
    before = len(bench.records)
    data = bench.driver.read(slba=0, blocks=8)
    told = bench.records[before:]
    assert [type(one) for one in told] == [
        trace.Doorbell,
        trace.Fetch,
        trace.Digest,
        trace.Completion,
        trace.Interrupt,
        trace.Doorbell,
    ]
    tail, fetch, digest, completion, interrupt, head = told
    cid = fetch.cid  # type: ignore[union-attr]
    assert tail == trace.Doorbell(0, 0, 1, False, False, 2)
    assert isinstance(fetch, trace.Fetch)
    assert (fetch.sqid, fetch.slot, fetch.opcode) == (1, 1, NvmOpcode.READ)
    assert digest == trace.Digest(0, 0, 1, cid, True, 8 * 512, crc32(data))
    assert isinstance(completion, trace.Completion)
    assert (completion.cqid, completion.slot, completion.sqid, completion.cid) == (1, 1, 1, cid)
    assert completion.cqe == bench.ram.read(bench.driver.queues[1].cq + 16, 16)
    assert interrupt == trace.Interrupt(0, 0, 0, trace.Signal.MSIX)
    assert head == trace.Doorbell(0, 0, 1, True, False, 2)


def test_registers_are_told_as_the_host_saw_them() -> None:
    bench = Traced()
    bench.driver.enable()
    reads = [one for one in bench.of(trace.RegisterRead) if one.offset == CSTS]
    assert [one.data[0] & 1 for one in reads] == [0, 1]
    writes = [one for one in bench.of(trace.RegisterWrite) if one.offset == CC]
    assert [one.data[0] & 1 for one in writes] == [0, 1]


def test_times_are_those_of_the_clock() -> None:
    bench = ready()
    bench.clock.advance(1.5)
    bench.driver.get_feature(FeatureId.ARBITRATION)
    assert bench.of(trace.Fetch)[-1].time == 1_500_000_000


@pytest.mark.kills("digest-of-the-last-piece", "lists-of-two-pages")
def test_a_list_of_pages_is_told_as_its_runs() -> None:
    bench = ready()
    driver = bench.driver
    pages = [driver.alloc(PAGE) for _ in range(6)]
    order = [pages[0], pages[1], pages[4], pages[3]]  # the first two follow each other
    command = ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=order[0] + KIB, nlb=30)
    command.prp2 = driver.prp_list(order[1:])
    driver.succeed(driver.queues[1], command)
    (found,) = bench.of(trace.Prp)
    assert found.runs == ((order[0] + KIB, 7 * KIB), (pages[4], 4 * KIB), (pages[3], 4 * KIB))
    assert found.length == 30 * 512
    assert bench.of(trace.Digest)[-1].crc == crc32(bytes(30 * 512))
    driver.read(slba=0, blocks=16)  # two pages: PRP1 and PRP2 say it
    assert len(bench.of(trace.Prp)) == 1


def test_what_the_host_gives_with_a_command_is_in_the_trace() -> None:
    bench = ready()
    driver = bench.driver
    ranges = bytes(DsmRange(slba=8, length=8)) + bytes(DsmRange(slba=64, length=16))
    place = driver.alloc(PAGE)
    bench.ram.write(place, ranges)
    driver.succeed(
        driver.queues[1], DatasetManagement(opcode=NvmOpcode.DATASET_MANAGEMENT, nsid=1, nr=2, ad=True, prp1=place)
    )
    bench.ram.write(place, b"\x15\x16\x17\x18\x19\x1a\0\0")
    command = SetFeatures(opcode=AdminOpcode.SET_FEATURES, fid=FeatureId.TIMESTAMP, prp1=place)
    driver.succeed(driver.admin, command)
    driver.write(slba=0, data=b"secret!!" * 64)
    assert [(one.sqid, one.to_host, one.data) for one in bench.of(trace.Data)] == [
        (1, False, ranges),
        (0, False, b"\x15\x16\x17\x18\x19\x1a\0\0"),
    ]
    assert bench.of(trace.Digest)[-1].crc == crc32(b"secret!!" * 64)


def test_the_payload_is_there_if_it_was_asked_for() -> None:
    bench = ready(payload=True)
    data = bytes(range(256)) * 512  # 128 KiB: several records
    bench.driver.write(slba=0, data=data)
    bench.driver.read(slba=0, blocks=256)
    for to_host in (False, True):
        pieces = [one for one in bench.of(trace.Data) if one.to_host == to_host and one.sqid == 1]
        assert len(pieces) == 3
        assert b"".join(one.data for one in pieces) == data
        assert [one.offset for one in pieces] == [0, 49152, 98304]
    assert bench.memory.reader().description.payload


@pytest.mark.kills("a-transfer-is-told-twice")
def test_each_transfer_is_told_once() -> None:
    """Compare takes the host's data twice, a slow read asks twice where it goes."""
    bench = ready(manual=True)
    driver = bench.driver
    place = driver.alloc(PAGE)
    for opcode in (NvmOpcode.COMPARE, NvmOpcode.READ):
        driver.submit(driver.queues[1], ReadWrite(opcode=opcode, nsid=1, prp1=place, nlb=1, fua=True))
        bench.worker.finish_all()
        bench.settle()
    assert [(one.to_host, one.length) for one in bench.of(trace.Digest)] == [(False, 512), (True, 512)]


def test_data_that_never_came_is_not_told() -> None:
    bench = ready()
    driver = bench.driver
    driver.execute(driver.queues[1], ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=driver.alloc(PAGE), slba=1 << 40))
    assert not bench.of(trace.Digest)
    assert bench.of(trace.Completion)[-1].status == Status.LBA_OUT_OF_RANGE


def test_a_completion_that_waited_is_told_when_and_as_it_was_written() -> None:
    bench = Traced()
    driver = bench.driver
    driver.enable(acqs=2)
    for _ in range(3):
        driver.submit(driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST + 1))  # no such command
    assert len(bench.of(trace.Completion)) == 1
    bench.clock.advance(1)
    while driver.poll(driver.admin):
        pass
    found = bench.of(trace.Completion)
    assert [(one.time, one.slot, one.completion.phase) for one in found] == [
        (0, 0, True),
        (1_000_000_000, 1, True),
        (1_000_000_000, 0, False),
    ]


def test_shadow_doorbells_are_told_when_the_device_finds_them() -> None:
    bench = ready()
    driver = bench.driver
    shadow, event = driver.alloc(PAGE), driver.alloc(PAGE)
    driver.succeed(driver.admin, Command(opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=event))
    queue = driver.queues[1]
    for _ in range(2):
        driver.submit(queue, Command(opcode=NvmOpcode.FLUSH, nsid=1), ring=False)
    bench.ram.write(shadow + 8, queue.sq_tail.to_bytes(4, "little"))
    driver.ring_sq(queue)
    shadows = [one for one in bench.of(trace.Doorbell) if one.is_shadow]
    assert shadows == [trace.Doorbell(0, 0, 1, False, True, 2)]
    while driver.poll(queue, ring=False):
        pass
    bench.ram.write(shadow + 12, queue.cq_head.to_bytes(4, "little"))
    driver.ring_cq(queue)
    driver.submit(queue, Command(opcode=NvmOpcode.FLUSH, nsid=1), ring=False)
    bench.ram.write(shadow + 8, queue.sq_tail.to_bytes(4, "little"))
    driver.ring_sq(queue)
    shadows = [one for one in bench.of(trace.Doorbell) if one.is_shadow]
    assert shadows[1:] == [trace.Doorbell(0, 0, 1, False, True, 3), trace.Doorbell(0, 0, 1, True, True, 2)]


def test_events_interrupt_modes_memory_and_resets_are_told() -> None:
    bench = ready()
    driver = bench.driver
    driver.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, 1 << 1)
    bench.controller.set_health(temperature=500)
    assert bench.of(trace.AsyncEvent) == [trace.AsyncEvent(0, 0, EventType.SMART, 1, LogId.SMART)]
    bench.ram.msix_enabled = False
    bench.controller.interrupts_changed()
    driver.execute(driver.admin, Command(opcode=AdminOpcode.GET_FEATURES))
    assert [one.msix for one in bench.of(trace.InterruptMode)] == [True, False]
    assert [one.signal for one in bench.of(trace.Interrupt)][-2:] == [trace.Signal.PIN_UP, trace.Signal.PIN_DOWN]
    bench.controller.taps.attached("qemu, pid 7")
    bench.controller.pci_changed(PciState(bus_master=True, power_state=3))
    bench.controller.taps.add_region(1 << 40, memoryview(bytes(4096)))
    bench.controller.taps.remove_region(1 << 40)
    bench.controller.reset()
    bench.controller.taps.left()
    told = [one for one in bench.records if not isinstance(one, trace.Doorbell | trace.Interrupt)][-6:]
    assert told == [
        trace.ClientAttached(0, 0, "qemu, pid 7"),
        trace.PciChange(0, 0, True, False, False, False, 3, False),
        trace.DmaMap(0, 0, 1 << 40, 4096, False),
        trace.DmaUnmap(0, 0, 1 << 40),
        trace.Reset(0, 0),
        trace.ClientLeft(0, 0),
    ]


def test_bad_doorbells_are_told() -> None:
    bench = ready()
    bench.driver.set_reg(0x1000 + 8 * 40, 7)
    bench.driver.set_reg(0x1002, 1)
    assert bench.of(trace.Doorbell)[-1] == trace.Doorbell(0, 0, 40, False, False, 7)
    assert bench.of(trace.RegisterWrite)[-1] == trace.RegisterWrite(0, 0, 0x1002, b"\1\0\0\0")


def test_a_cid_that_is_used_again_after_a_reset_is_told_again() -> None:
    bench = ready(manual=True)
    for _ in range(2):
        driver = bench.driver
        place = driver.alloc(PAGE)
        write = ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=place, nlb=1, cid=77, fua=True)
        driver.submit(driver.queues[1], write)
        driver.disable()
        bench.worker.finish_all()
        driver.enable()
        driver.create_queues()
    assert len(bench.of(trace.Digest)) == 2


@pytest.mark.kills("a-cid-hides-the-next-transfer")
def test_a_cid_that_is_used_again_for_a_lost_command_is_told_again() -> None:
    """Its completion never came, and nothing was reset."""
    bench = ready()
    Faults(bench.controller, seed=1).add(
        Fault(match={"opcode": "write"}, at="completion", do="drop", when={"times": 1})
    )
    place = bench.driver.alloc(PAGE)
    for blocks in (1, 2):
        command = ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, slba=0, nlb=blocks, cid=7, prp1=place)
        bench.driver.submit(bench.driver.queues[1], command)
    assert [one.length for one in bench.of(trace.Digest)] == [512, 1024]


def test_with_the_native_engine_each_record_is_there_once() -> None:
    """Commands that the engine leaves to Python, too, again and again with the same CID."""
    with Traced(engine="native") as bench:
        driver = bench.driver
        assert bench.engine is not None
        bench.engine.trace(bench.memory.put)
        driver.enable()
        driver.create_queues()
        place = driver.alloc(PAGE)
        for opcode in (NvmOpcode.READ, NvmOpcode.COMPARE, NvmOpcode.COMPARE, NvmOpcode.READ):
            driver.execute(driver.queues[1], ReadWrite(opcode=opcode, nsid=1, prp1=place, nlb=1, cid=9))
        found = [one for one in bench.records if getattr(one, "sqid", 0) == 1]
        for kind in (trace.Fetch, trace.Digest, trace.Completion):
            assert sum(isinstance(one, kind) for one in found) == 4, kind


def test_the_description_says_what_was_traced() -> None:
    bench = Traced(block_size=4096)
    namespace = bench.controller.state.namespaces[1]
    description = bench.memory.reader().description
    assert description.identity["serial"] == "TEST0001"
    assert description.limits["io_queues"] == 64
    assert description.namespaces == [
        {
            "nsid": 1,
            "blocks": 4096,
            "block_size": 4096,
            "identity": "mem:16777216",
            "ids": {"nguid": namespace.nguid.hex(), "eui64": "0" * 16, "uuid": namespace.uuid.hex},
            "read_only": False,
            "volatile_cache": False,
        }
    ]
