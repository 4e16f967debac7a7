"""What a real Linux does about faults, in its kernel's own words: it waits, aborts, resets, recovers or gives the
drive up. Whatever happens, data that the drive has acknowledged before is there afterwards."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.app.control import Control
from nvmeemu.guest.guest import Guest
from tools.guest.run import Run, Settings

IMPATIENT = "nvme_core.io_timeout=3 nvme_core.admin_timeout=6"  # seconds
CAP_TO = "6"  # 500 ms
PATIENCE = 120.0
DRIVE = "/dev/nvme0n1"
READ = f"dd if={DRIVE} of=/dev/null bs=4k count=1 skip=1000 iflag=direct"
WRITE = f"dd if=/dev/zero of={DRIVE} bs=4k count=1 seek=1000 oflag=direct"
READ_ALL = f"dd if={DRIVE} bs=64k count=16 iflag=direct 2>/dev/null | sha256sum"
FILL = f"head -c 1048576 /dev/urandom >/data && dd if=/data of={DRIVE} bs=64k oflag=direct 2>&1 && sha256sum </data"

Fault = dict[str, Any]


@dataclass
class Linux:
    """A running guest with an impatient driver, and the control socket of its drive."""

    guest: Guest
    control: Control
    address: str
    sha: str = field(default="")

    def check_data(self) -> None:
        assert self.guest.check(READ_ALL).split()[0] == self.sha, "data that was acknowledged is not there"

    def await_message(self, pattern: str, source: str = "dmesg") -> str:
        """Wait until the kernel has said it; what it has said by then."""
        end = time.monotonic() + PATIENCE
        while not re.search(pattern, said := self.guest.check(source)):
            assert time.monotonic() < end, f"the kernel never says {pattern!r}, but\n{said}"
            self.guest.check("sleep 0.5")
        return said

    @contextmanager
    def traced(self, event: str) -> Iterator[str]:
        """Have the kernel's own tracing tell of this event of its driver; the command that shows what it has told."""
        folder = "/sys/kernel/tracing"
        switch = f"{folder}/events/nvme/{event}/enable"
        self.guest.check(f"[ -e {folder}/trace ] || mount -t tracefs none {folder}")
        self.guest.check(f"echo >{folder}/trace && echo 1 >{switch}")
        yield f"cat {folder}/trace"
        self.guest.check(f"echo 0 >{switch}")

    def await_drive(self) -> None:
        script = f"for i in $(seq 240); do [ -b {DRIVE} ] && {READ} 2>/dev/null && exit; sleep 0.5; done; exit 1"
        self.guest.check(script, PATIENCE * 2)

    def bind(self) -> None:
        """Have the driver, which has given the drive up, take it again."""
        self.guest.check(f"echo {self.address} >/sys/bus/pci/drivers/nvme/unbind; true")
        self.guest.check(f"echo {self.address} >/sys/bus/pci/drivers/nvme/bind")


@pytest.fixture(scope="module")
def booted() -> Iterator[Linux]:
    with tempfile.TemporaryDirectory(prefix="nvme-", dir="/var/tmp") as name:
        folder = Path(name)
        control = folder / "c"
        options = ("--control", str(control), "--cap-to", CAP_TO, "--ocp")
        run = Run(Settings(append=IMPATIENT, nvme_args=options, timeout=1800), folder)
        with run.boot(run.linux(), complaints="") as guest:
            guest.check(f"for i in $(seq 100); do [ -b {DRIVE} ] && exit; sleep 0.1; done; exit 1")
            address = guest.check("basename $(readlink -f /sys/class/nvme/nvme0/device)").strip()
            with Control(control) as client:
                linux = Linux(guest, client, address)
                linux.sha = guest.check(FILL).split()[-2]
                yield linux


@pytest.fixture
def linux(booted: Linux) -> Iterator[Linux]:
    """Before each test the drive works, and after it the data is there."""
    booted.control.call("fault.remove")
    booted.check_data()
    booted.guest.check("dmesg -c >/dev/null")
    yield booted
    booted.control.call("fault.remove")
    booted.await_drive()
    booted.check_data()


@dataclass(frozen=True)
class Case:
    """With these faults the command ends with this status, and the kernel says this, in this order. Slow are those in
    which it waits for more than one timeout."""

    id: str
    faults: list[Fault]
    command: str
    status: int
    messages: tuple[str, ...]
    is_slow: bool = False

    def parameter(self) -> Any:
        return pytest.param(self, id=self.id, marks=[pytest.mark.slow] if self.is_slow else [])


TIMEOUT = r"QID [1-9]\d* timeout, "
ABORTING, RESETTING = TIMEOUT + "aborting", TIMEOUT + "reset controller"
IO_WRITE = {"opcode": "write"}
IO_READ = {"opcode": "read"}
ONCE = {"nth": 1}
FLOOD = 200  # events

RECOVERS = [
    Case(
        "a write that is never completed is aborted and done again",
        [{"match": IO_WRITE, "at": "execute", "do": "drop", "when": ONCE}],
        WRITE,
        0,
        (ABORTING, "Abort status: 0x0"),
    ),
    Case(
        "a controller that does not know the command any more is reset",
        [{"match": IO_WRITE, "at": "fetch", "do": "drop", "when": ONCE}],
        WRITE,
        0,
        (ABORTING, "Abort status: 0x0", RESETTING),
        is_slow=True,
    ),
    Case(
        "a completion with the wrong phase is not seen: abort, reset, done again",
        [{"match": IO_WRITE, "do": "wrong_phase", "when": ONCE}],
        WRITE,
        0,
        (ABORTING, RESETTING),
        is_slow=True,
    ),
    Case(
        "a lost interrupt is found out by looking",
        [{"match": {"vector": "1-64"}, "at": "interrupt", "do": "drop", "when": {"times": 1}}],
        READ,
        0,
        (TIMEOUT + "completion polled",),
    ),
    Case(
        "a completion of an unknown command is told, and the command is aborted",
        [{"match": IO_READ, "do": "unknown_cid", "when": ONCE}],
        READ,
        0,
        ("invalid id 65535 completed on queue", ABORTING),
    ),
    Case(
        "a completion that comes twice is told and ignored",
        [{"match": IO_READ, "at": "completion", "do": "duplicate", "when": ONCE}],
        READ,
        0,
        (r"genctr mismatch|invalid id \d+ completed on queue",),
    ),
    Case(
        "a read that fails for good is an I/O error",
        [{"match": {**IO_READ, "lba": "8000-8007"}, "do": {"status": "unrecovered_read_error"}}],
        READ,
        1,
        ("critical medium error, dev nvme0n1, sector 8000",),
    ),
    Case(
        "a full disk is told",
        [{"match": IO_WRITE, "do": {"error": "ENOSPC"}}],
        WRITE,
        1,
        ("error, dev nvme0n1, sector 8000",),
    ),
    Case(
        "a fatal controller is reset",
        [{"match": IO_WRITE, "at": "execute", "do": "cfs", "when": ONCE}],
        WRITE,
        0,
        ("controller is down; will reset: CSTS=0x3",),
    ),
    Case(
        "a hung controller is reset, and recovers",
        [{"match": IO_WRITE, "at": "execute", "do": "hang", "when": ONCE}],
        WRITE,
        0,
        (ABORTING, RESETTING),
        is_slow=True,
    ),
    Case(
        "RDY that comes late is waited for",
        [{"match": IO_WRITE, "at": "execute", "do": ["hang", {"slow_rdy": 1.5}], "when": ONCE}],
        WRITE,
        0,
        (ABORTING, RESETTING),
        is_slow=True,
    ),
]


@pytest.mark.parametrize("case", [case.parameter() for case in RECOVERS])
def test_linux_recovers(linux: Linux, case: Case) -> None:
    for fault in case.faults:
        linux.control.call("fault.add", **fault)
    result = linux.guest.run(case.command, PATIENCE)
    assert result.status == case.status, result.output
    said = ""
    for pattern in case.messages:
        said = linux.await_message(pattern)
    places = [re.search(pattern, said) for pattern in case.messages]
    assert [found.start() for found in places if found] == sorted(found.start() for found in places if found), said
    assert all(fault["hits"] for fault in linux.control.call("fault.list"))


GIVEN_UP = [
    Case(
        "RDY that stays 1: the reset is aborted and the drive given up",
        [{"match": IO_WRITE, "at": "execute", "do": ["hang", {"rdy": 1}], "when": ONCE}],
        WRITE,
        1,
        (ABORTING, RESETTING, r"Device not ready; aborting reset, CSTS=0x1", "Disabling device after reset failure"),
        is_slow=True,
    ),
    Case(
        "RDY that stays 0: the same after a fatal error",
        [{"match": IO_WRITE, "at": "execute", "do": ["cfs", {"rdy": 0}], "when": ONCE}],
        WRITE,
        1,
        ("controller is down; will reset", "Device not ready; aborting initiali", "Disabling device after"),
        is_slow=True,
    ),
    Case(
        "a drive that is pulled is given up",
        [{"match": IO_WRITE, "at": "execute", "do": "remove", "when": ONCE}],
        WRITE,
        1,
        ("controller is down; will reset: CSTS=0xffffffff", "Disabling device after reset failure: -19"),
    ),
]


@pytest.mark.parametrize("case", [case.parameter() for case in GIVEN_UP])
def test_linux_gives_the_drive_up_and_can_take_it_again(linux: Linux, case: Case) -> None:
    for fault in case.faults:
        linux.control.call("fault.add", **fault)
    result = linux.guest.run(case.command, PATIENCE)
    assert result.status == case.status, result.output
    for pattern in case.messages:
        linux.await_message(pattern)
    linux.control.call("fault.remove")
    linux.bind()


def test_a_status_without_dnr_is_tried_again(linux: Linux) -> None:
    """The kernel says nothing of that in dmesg, but in its trace: the command's statuses (and More) and its retries."""
    fault = {"match": IO_WRITE, "do": {"status": "internal_error", "dnr": False}, "when": ONCE}
    linux.control.call("fault.add", **fault)
    with linux.traced("nvme_complete_rq") as told:
        assert linux.guest.run(WRITE, PATIENCE).status == 0
        linux.await_message(r"(?s)qid=[1-9]\d*, .*retries=0, .*status=0x2006\b.*retries=1, .*status=0x0\b", told)
    (found,) = linux.control.call("fault.list")
    assert (found["seen"], found["hits"]) == (2, 1)


def test_queues_are_as_long_as_a_capability_that_was_set_says(linux: Linux) -> None:
    """Linux reads CAP as two halves."""
    for entries in (2, 32):
        linux.control.call("fault.remove")
        fault = {"match": {"register": "cap", "access": "read"}, "do": {"set": {"mqes": entries}}}
        linux.control.call("fault.add", **fault)
        linux.bind()
        linux.await_drive()
        assert int(linux.guest.check("cat /sys/class/nvme/nvme0/sqsize")) == entries - 1
        linux.check_data()
        assert all(fault["hits"] for fault in linux.control.call("fault.list"))
    linux.control.call("fault.remove")
    linux.bind()
    linux.await_drive()
    assert int(linux.guest.check("cat /sys/class/nvme/nvme0/sqsize")) == 1023


def test_a_namespace_that_vanishes_goes_from_the_guest_and_comes_back(linux: Linux) -> None:
    linux.control.call("fault.add", do={"vanish": 1})
    linux.guest.check(f"for i in $(seq 100); do [ -b {DRIVE} ] || exit 0; sleep 0.2; done; exit 1", PATIENCE)
    linux.await_message("nvme0: rescanning namespaces")
    linux.control.call("fault.remove")
    linux.await_drive()
    linux.await_message("(?s)rescanning namespaces.*rescanning namespaces")


def test_a_namespace_that_shrinks_is_smaller_in_the_guest_at_once(linux: Linux) -> None:
    before = int(linux.guest.check("cat /sys/block/nvme0n1/size"))
    linux.control.call("fault.add", do={"shrink": 1})
    half = f"[ $(cat /sys/block/nvme0n1/size) = {before // 2} ]"
    linux.guest.check(f"for i in $(seq 100); do {half} && exit 0; sleep 0.2; done; exit 1", PATIENCE)
    linux.await_message("detected capacity change")
    linux.control.call("fault.remove")
    whole = f"[ $(cat /sys/block/nvme0n1/size) = {before} ]"
    linux.guest.check(f"for i in $(seq 100); do {whole} && exit 0; sleep 0.2; done; exit 1", PATIENCE)


def test_a_flood_of_events_is_survived(linux: Linux) -> None:
    """The kernel hears every one of them, and asks for another one after each, while commands are served."""
    requests = {"match": {"opcode": "async_event_request"}, "at": "fetch", "do": "drop", "when": {"after": 1 << 30}}
    counter = linux.control.call("fault.add", **requests)  # counts, and never fires
    with linux.traced("nvme_async_event") as told:
        linux.control.call("fault.add", do={"flood": FLOOD, "interval": 0.005})
        linux.guest.check(READ, PATIENCE)
        heard = f"{told} | grep -c NVME_AEN=0x020101 || true"
        linux.await_message(rf"(?m)^{FLOOD}$", heard)
    found = {fault["id"]: fault for fault in linux.control.call("fault.list")}
    assert found[counter["id"]]["seen"] >= FLOOD - 1  # Linux has one at a time; the last may be on its way
    linux.guest.check(READ, PATIENCE)


def test_the_guest_arms_a_fault_itself(linux: Linux) -> None:
    armed = linux.guest.check("nvme ocp set-error-injection /dev/nvme0 --type=15 --number=1", PATIENCE)
    assert "type: 15" in armed
    (fault,) = linux.control.call("fault.list")
    assert fault["name"] == "OCP: I/O command failure"
    assert linux.guest.run(READ, PATIENCE).status == 1
    linux.await_message("error, dev nvme0n1, sector 8000")
    assert "0x00000001" in linux.guest.check("nvme ocp get-error-injection /dev/nvme0", PATIENCE)
