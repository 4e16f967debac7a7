"""Faults that the guest arms: Set Features with FID C0h, byte by byte as nvme-cli 2.13 sends it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest

from faults.rig import BLOCK, Rig
from nvmeemu.plugins.ocp import KINDS, OCP, offer
from nvmeemu.spec import AdminOpcode, Command, Completion, LogId, Status
from nvmeemu.testing import CC, CommandError

CONTROLLER, UUID_LIST = 0x01, 0x17
HANG, NAND_CORRUPTION, NO_MORE_SPARES, INCOMPLETE_SHUTDOWN, ADMIN_TIMEOUT = 1, 7, 10, 11, 18
UNKNOWN = 22


class Armed(Rig):
    """A controller that offers the feature, and nvme-cli's commands."""

    def __init__(self) -> None:
        super().__init__()
        offer(self.bench.controller.state, self.faults)

    def set(self, *entries: bytes, uuid_index: int = 1, save: bool = False) -> Completion:
        """nvme ocp set-error-injection: one buffer of exactly the entries, their number in CDW11."""
        place = self.driver.alloc(4096)
        self.driver.bus.write_memory(place, b"".join(entries))
        return self._features(AdminOpcode.SET_FEATURES, place, len(entries), uuid_index, int(save) << 31)

    def get(self, place: int = 0, select: int = 0) -> Completion:
        """nvme ocp get-error-injection; nvme-cli 2.13 forgets to give its buffer."""
        return self._features(AdminOpcode.GET_FEATURES, place, 0, 1, select << 8)

    def _features(self, opcode: int, place: int, number: int, uuid_index: int, cdw10: int) -> Completion:
        command = Command(
            opcode=opcode, nsid=0xFFFFFFFF, prp1=place, cdw10=0xC0 | cdw10, cdw11=number, cdw14=uuid_index
        )
        return self.driver.execute(self.driver.admin, command)


def entry(kind: int, *, enable: bool = True, single: bool = True, reads: int = 0) -> bytes:
    """OCP Datacenter NVMe SSD 2.0, Error Injection Data Structure Entry: flags, reserved, type, then 28 bytes of the
    type, of which the first two are the number of reads to trigger device panic."""
    return struct.pack("<BxHH26x", enable | single << 1, kind, reads)


@pytest.fixture
def rig() -> Iterator[Armed]:
    rig = Armed()
    with closing(rig.bench):
        yield rig


def test_it_is_not_there_unless_asked_for() -> None:
    rig = Rig()
    command = Command(opcode=AdminOpcode.GET_FEATURES, cdw10=0xC0)
    assert rig.driver.execute(rig.driver.admin, command).status == Status.INVALID_FIELD
    command = Command(opcode=AdminOpcode.IDENTIFY, prp1=rig.place, cdw10=UUID_LIST)
    assert rig.driver.execute(rig.driver.admin, command).status == Status.INVALID_FIELD
    assert not rig.driver.identify(CONTROLLER)[97] & 2


def test_the_uuid_list_has_ocp_first(rig: Armed) -> None:
    assert rig.driver.identify(CONTROLLER)[97] & 2  # CTRATT bit 9
    page = rig.driver.identify(UUID_LIST)
    assert page[:48] == bytes(48)
    assert UUID(bytes=page[48:64]) == OCP
    assert page[64:] == bytes(4096 - 64)


@pytest.mark.kills("single-is-ignored")
def test_an_injection_is_armed_fires_once_and_is_told(rig: Armed) -> None:
    assert rig.set(entry(NAND_CORRUPTION)).status == Status.SUCCESS
    place = rig.driver.alloc(4096)
    assert rig.get(place).dw0 == 1
    assert rig.driver.bus.read_memory(place, 64) == entry(NAND_CORRUPTION) + bytes(32)
    assert rig.run(rig.read()).status == Status.UNRECOVERED_READ_ERROR
    assert rig.run(rig.read()).status == Status.SUCCESS


@pytest.mark.kills("reads-to-panic-are-one-off")
def test_reads_are_counted_until_it_panics(rig: Armed) -> None:
    rig.set(entry(HANG, reads=3))
    assert [rig.run(rig.read()).status for _ in range(2)] == [0, 0]
    assert rig.run(rig.write()).status == Status.SUCCESS
    rig.submit(rig.read())
    assert rig.later(3600) == []
    rig.driver.enable()
    rig.queue = rig.driver.create_queues(1)
    assert rig.run(rig.read()).status == Status.SUCCESS


def test_what_is_not_single_lasts_until_it_is_disabled(rig: Armed) -> None:
    rig.set(entry(NAND_CORRUPTION, single=False), entry(INCOMPLETE_SHUTDOWN))
    assert rig.get().dw0 == 2
    assert [rig.run(rig.read()).status for _ in range(3)] == [Status.UNRECOVERED_READ_ERROR] * 3
    rig.set(entry(NAND_CORRUPTION, enable=False))
    assert rig.run(rig.read()).status == Status.SUCCESS
    assert rig.get().dw0 == 1
    rig.set()
    assert rig.get().dw0 == 0
    assert len(rig.faults) == 0


def test_no_more_spares_is_a_warning_and_a_read_only_drive(rig: Armed) -> None:
    rig.set(entry(NO_MORE_SPARES))
    rig.run(rig.read())
    assert rig.driver.get_log(2, BLOCK)[3] == 0
    assert rig.run(rig.write()).status == Status.NAMESPACE_WRITE_PROTECTED


def test_an_admin_timeout_leaves_the_way_out(rig: Armed) -> None:
    rig.set(entry(ADMIN_TIMEOUT, single=False))
    rig.submit(Command(opcode=AdminOpcode.IDENTIFY, prp1=rig.place, cdw10=1), rig.driver.admin)
    assert rig.completions(rig.driver.admin) == []
    assert rig.set().status == Status.SUCCESS
    assert len(rig.driver.identify(CONTROLLER)) == 4096


@pytest.mark.parametrize(
    ("do", "status"),
    [
        (lambda rig: rig.set(entry(UNKNOWN)), Status.INVALID_FIELD),
        (lambda rig: rig.set(entry(HANG), uuid_index=2), Status.INVALID_FIELD),
        (lambda rig: rig.set(entry(HANG), save=True), Status.FEATURE_NOT_SAVEABLE),
        (lambda rig: rig.get(select=4), Status.INVALID_FIELD),
        (lambda rig: rig.set(entry(UNKNOWN, enable=False)), Status.SUCCESS),
        (lambda rig: rig.set(entry(HANG), uuid_index=0), Status.SUCCESS),
    ],
)
def test_bad_commands_are_refused(rig: Armed, do: Any, status: Status) -> None:
    assert do(rig).status == status
    assert (len(rig.faults) > 0) == (status == Status.SUCCESS and rig.get().dw0 > 0)


def test_default_and_capabilities(rig: Armed) -> None:
    rig.set(entry(HANG))
    assert rig.get(select=1).dw0 == 0
    assert rig.get(select=3).dw0 == 1 << 2  # changeable


@pytest.mark.kills("a-reset-keeps-injections")
def test_a_reset_of_the_function_ends_all(rig: Armed) -> None:
    rig.set(entry(HANG))
    rig.bench.controller.reset()
    assert len(rig.faults) == 0
    rig.driver.enable()
    assert rig.get().dw0 == 0


# --- what each kind does, to the command that sets it off and from then on


def _fails(rig: Armed, status: Status, dnr: bool) -> None:
    completion = rig.run(rig.read())
    assert (completion.status, completion.dnr) == (status, dnr)
    assert rig.run(rig.read()).status == Status.SUCCESS


def _never_answers(rig: Armed) -> None:
    """Until the host resets the controller."""
    rig.submit(rig.read())
    assert rig.later(3600) == []
    assert rig.driver.status.rdy
    assert not rig.driver.status.cfs
    rig.driver.submit(rig.driver.admin, Command(opcode=AdminOpcode.GET_FEATURES, cdw10=7))
    rig.bench.settle()
    assert rig.completions(rig.driver.admin) == []
    _works_after_a_reset(rig)


def _works_after_a_reset(rig: Armed) -> None:
    rig.driver.enable()
    rig.queue = rig.driver.create_queues(1)
    assert rig.run(rig.read()).status == Status.SUCCESS


def _is_fatal(rig: Armed) -> None:
    rig.submit(rig.read())
    assert rig.later(3600) == []
    assert rig.driver.status.cfs
    _works_after_a_reset(rig)
    assert not rig.driver.status.cfs


def _is_lost(rig: Armed, *, can_be_aborted: bool) -> None:
    cid = rig.submit(rig.read())
    assert rig.later(3600) == []
    assert rig.run(rig.write()).status == Status.SUCCESS
    assert rig.abort(cid) is can_be_aborted


def _takes(rig: Armed, seconds: float) -> None:
    rig.submit(rig.read())
    assert rig.later(seconds - 0.001) == []
    (completion,) = rig.later(0.002)
    assert completion.status == Status.SUCCESS
    assert rig.run(rig.read()).status == Status.SUCCESS


def _warns(rig: Armed, warning: int, *events: int) -> bytes:
    """The SMART log says so, and the host hears these events; the command succeeds."""
    rig.await_events(4)
    assert rig.events() == []
    assert rig.run(rig.read()).status == Status.SUCCESS
    assert set(rig.events()) == set(events)
    page = rig.driver.get_log(LogId.SMART, 512)
    assert page[0] & warning
    return page


def _has_no_spares(rig: Armed) -> None:
    assert _warns(rig, 1, 0x020201, 0x040002)[3] == 0  # and the namespace has changed
    assert rig.run(rig.write()).status == Status.NAMESPACE_WRITE_PROTECTED
    assert rig.run(rig.read()).status == Status.SUCCESS


def _is_too_hot(rig: Armed) -> None:
    assert int.from_bytes(_warns(rig, 2, 0x020101)[1:3], "little") == 360


def _shuts_down_without_end(rig: Armed) -> None:
    assert rig.run(rig.read()).status == Status.SUCCESS
    rig.driver.set_reg(CC, rig.driver.reg(CC) | 1 << 14)
    rig.later(3600)
    assert rig.driver.status.shst == 1


def _fails_admin(rig: Armed) -> None:
    assert rig.run(rig.read()).status == Status.SUCCESS
    with pytest.raises(CommandError) as failed:
        rig.driver.identify(CONTROLLER)
    assert (failed.value.status, failed.value.completion.dnr) == (Status.INTERNAL_ERROR, True)
    assert len(rig.driver.identify(CONTROLLER)) == 4096


def _loses_admin(rig: Armed) -> None:
    assert rig.run(rig.read()).status == Status.SUCCESS
    rig.submit(Command(opcode=AdminOpcode.IDENTIFY, prp1=rig.place, cdw10=CONTROLLER), rig.driver.admin)
    rig.bench.clock.advance(3600)
    assert rig.completions(rig.driver.admin) == []
    assert len(rig.driver.identify(CONTROLLER)) == 4096


RETRY, NO_RETRY = False, True
EFFECTS: dict[int, Callable[[Armed], object]] = {
    1: _never_answers,
    2: lambda rig: _is_lost(rig, can_be_aborted=False),
    3: lambda rig: _warns(rig, 4, 0x020001),
    4: _is_fatal,
    5: _is_fatal,
    6: lambda rig: _fails(rig, Status.INTERNAL_ERROR, RETRY),
    7: lambda rig: _fails(rig, Status.UNRECOVERED_READ_ERROR, RETRY),
    8: lambda rig: _fails(rig, Status.INTERNAL_ERROR, NO_RETRY),
    9: _is_fatal,
    10: _has_no_spares,
    11: _shuts_down_without_end,
    14: lambda rig: _takes(rig, 1.0),
    15: lambda rig: _fails(rig, Status.INTERNAL_ERROR, NO_RETRY),
    16: lambda rig: _is_lost(rig, can_be_aborted=True),
    17: _fails_admin,
    18: _loses_admin,
    19: lambda rig: _takes(rig, 0.02),
    21: _is_too_hot,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_does_what_its_name_says(rig: Armed, kind: int) -> None:
    rig.set(entry(kind))
    (fault,) = rig.faults
    assert fault.name.startswith("OCP: ")
    EFFECTS[kind](rig)
    assert fault.hits == 1
