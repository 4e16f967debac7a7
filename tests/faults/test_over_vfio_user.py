"""Faults where the way to the host matters - registers, interrupts, removal, resets - over the socket, in a server's
process, set off through the control socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.app.control import Control
from nvmeemu.spec import Command, Completion, NvmOpcode, ReadWrite
from nvmeemu.testing import CAP, CC, CSTS, INTMS, Driver, VfioBus
from server.process import Served

pytestmark = pytest.mark.long

PATIENCE = 120.0
MOMENT = 300  # milliseconds in which nothing comes
WRITES = {"opcode": "write"}


class Host:
    """A driver in this process, its drive in another one, and the drive's control socket."""

    def __init__(self, path: str, control: str) -> None:
        self.bus = VfioBus(path)
        self.driver = Driver(self.bus)
        self.control = Control(control).open()
        self.driver.enable()
        self.queue = self.driver.create_queues(1, vector=1)
        self.place = self.driver.alloc(4096)
        self.bus.wait_for_interrupt(0)

    def add(self, do: Any, at: str | None = None, match: Any = None, **when: Any) -> None:
        placed = {} if at is None else {"at": at}
        self.control.call("fault.add", do=do, match=match or {}, when=when, **placed)

    def wait(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < end

    def submit(self) -> None:
        command = ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=self.place, slba=0, nlb=1)
        self.driver.submit(self.queue, command)

    def completion(self) -> Completion | None:
        """The next one."""
        found: list[Completion | None] = []

        def look() -> bool:
            self.bus.settle()
            found.append(self.driver.poll(self.queue))
            return found[-1] is not None

        self.wait(look)
        return found[-1]

    def start_again(self) -> None:
        self.driver.enable()
        self.queue = self.driver.create_queues(1, vector=1)
        self.submit()
        assert self.completion() is not None

    def close(self) -> None:
        self.control.close()
        self.bus.close()


@pytest.fixture(params=["python", "native"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    options = ("--disk", "mem:16M", "--control", tmp_path / "c", "--engine", request.param)
    served = Served(str(tmp_path / "s"), *options)
    yield served
    served.close()


@pytest.fixture
def host(served: Served, tmp_path: Path) -> Iterator[Host]:
    host = Host(served.path, str(tmp_path / "c"))
    yield host
    host.close()
    assert served.stop() == 0


def test_registers_read_what_a_fault_sets(host: Host) -> None:
    host.add({"set": {"cfs": 1}}, "register", {"register": "csts"}, times=1)
    assert host.driver.status.cfs
    assert not host.driver.status.cfs
    host.add({"corrupt": "ones"}, "register", {"register": "cap", "access": "read"})
    assert host.driver.reg(CAP, 8) == (1 << 64) - 1


def test_register_writes_are_dropped_delayed_and_doubled(host: Host) -> None:
    for do in ("drop", {"delay": 0.2}, "duplicate"):
        host.driver.set_reg(INTMS + 4, 0xFFFFFFFF)  # INTMC
        host.add(do, "register", {"register": "intms"}, nth=1)
        host.driver.set_reg(INTMS, 4)
        assert host.driver.reg(INTMS) == (4 if do == "duplicate" else 0)
        time.sleep(0.4)
        assert host.driver.reg(INTMS) == (0 if do == "drop" else 4)
        host.control.call("fault.remove")


def test_an_interrupt_is_lost(host: Host) -> None:
    host.add("drop", "interrupt", {"vector": 1}, nth=1)
    host.submit()
    assert host.bus.wait_for_interrupt(MOMENT) == []
    assert host.completion() is not None
    host.submit()
    assert host.bus.wait_for_interrupt(int(PATIENCE * 1000)) == [1]


def test_an_interrupt_is_late(host: Host) -> None:
    host.add({"delay": 0.5}, "interrupt", {"vector": 1})
    start = time.monotonic()
    host.submit()
    assert host.bus.wait_for_interrupt(int(PATIENCE * 1000)) == [1]
    assert time.monotonic() - start >= 0.5


def test_an_interrupt_comes_for_nothing_and_twice(host: Host) -> None:
    host.add({"spurious": 1})
    assert host.bus.wait_for_interrupt(int(PATIENCE * 1000)) == [1]
    assert host.driver.poll(host.queue) is None
    host.add(["duplicate", {"delay": 0.1}], "interrupt", {"vector": 1})
    host.submit()
    assert host.bus.wait_for_interrupt(int(PATIENCE * 1000)) == [1]


def test_interrupts_change_their_order(host: Host) -> None:
    host.add({"reorder": True, "within": 600}, "interrupt", {"vector": 1}, nth=1)
    host.submit()
    assert host.bus.wait_for_interrupt(MOMENT) == []
    host.driver.submit(host.driver.admin, Command(opcode=0x0A, cdw10=7))
    fired: list[int] = []
    while 1 not in fired:
        fired += host.bus.wait_for_interrupt(int(PATIENCE * 1000)) or [1]
    assert 0 in fired


def test_the_drive_is_pulled_and_comes_back(host: Host) -> None:
    host.add({"remove": True, "seconds": 2}, "execute", WRITES)
    host.submit()
    host.wait(lambda: host.driver.reg(CSTS) == 0xFFFFFFFF)
    assert host.driver.reg(CAP, 8) == (1 << 64) - 1
    assert host.driver.poll(host.queue) is None
    host.wait(lambda: host.driver.reg(CSTS) != 0xFFFFFFFF)
    assert host.driver.reg(CC) == 0
    host.control.call("fault.remove")
    host.start_again()


def test_a_fatal_error_is_ended_by_a_reset(host: Host) -> None:
    host.add("cfs", "execute", WRITES, nth=1)
    host.submit()
    host.wait(lambda: host.driver.status.cfs)
    assert host.driver.poll(host.queue) is None
    host.start_again()
    assert not host.driver.status.cfs


def test_a_hung_controller_is_ended_by_a_reset(host: Host) -> None:
    host.add("hang", "execute", WRITES, nth=1)
    host.submit()
    assert host.bus.wait_for_interrupt(MOMENT) == []
    assert host.driver.status.rdy
    host.start_again()


@pytest.mark.parametrize("value", [0, 1])
def test_rdy_is_stuck(host: Host, value: int) -> None:
    host.add({"rdy": value})
    for enable in (0, 1):
        host.driver.set_reg(CC, host.driver.reg(CC) & ~1 | enable)
        time.sleep(0.1)
        assert host.driver.status.rdy == bool(value)
    host.control.call("fault.remove")
    host.start_again()


def test_rdy_is_slow(host: Host) -> None:
    host.add({"slow_rdy": 0.5})
    start = time.monotonic()
    host.driver.set_reg(CC, host.driver.reg(CC) & ~1)
    host.wait(lambda: not host.driver.status.rdy)
    assert time.monotonic() - start >= 0.5


def test_a_shutdown_never_completes(host: Host) -> None:
    host.add("endless_shutdown")
    host.driver.set_reg(CC, host.driver.reg(CC) | 1 << 14)
    time.sleep(0.3)
    assert host.driver.status.shst == 1
    host.control.call("fault.remove")
    host.wait(lambda: host.driver.status.shst == 2)


def test_a_client_that_comes_after_a_removed_one_finds_the_drive_as_the_fault_leaves_it(
    served: Served, tmp_path: Path
) -> None:
    control = str(tmp_path / "c")
    host = Host(served.path, control)
    host.add("remove")
    host.close()
    with VfioBus(served.path) as bus, Control(control) as client:
        driver = Driver(bus)
        assert driver.reg(CSTS) == 0xFFFFFFFF
        client.call("fault.remove")
        driver.enable()
    assert served.stop() == 0
