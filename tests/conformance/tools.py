"""What the conformance tests share: commands that must fail, what the device says of itself, disks that tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.spec import (
    PAGE_MIN,
    AdminOpcode,
    Cns,
    Command,
    Completion,
    DatasetManagement,
    DsmRange,
    FeatureId,
    HostBehaviorSupport,
    IdentifyController,
    IdentifyNamespace,
    NvmOpcode,
    ReadWrite,
    SetFeatures,
    Status,
)
from nvmeemu.testing import Bench, Driver, QueuePair

GUARD = b"\xa5"
NewBench = Callable[..., Bench]  # the fixture new_bench: ``Bench`` with the engine of the test's parameter
Disks = Mapping[int, tuple[int, int]]  # NSID -> (bytes, bytes in a block)
DriverOf = Callable[[Disks], Driver]  # the fixture driver_of
Advance = Callable[[float], None]  # the fixture advance: seconds
UNLIMITED = 1 << 20  # bytes that a test transfers at most from a device without MDTS


def fails(driver: Driver, queue: QueuePair, command: Command, status: Status, *, dnr: bool | None = True) -> Completion:
    """Run a command that must end with this status, and Do Not Retry (None: either is right)."""
    completion = driver.execute(queue, command)
    assert completion.status == status, f"{completion!r} for {command!r}, expected {status!r}"
    if dnr is not None:
        assert completion.dnr == dnr, f"DNR {completion.dnr} with {status!r}"
    assert completion.dw0 == completion.dw1 == 0
    return completion


def admin(driver: Driver, opcode: int, **fields: Any) -> Completion:
    """Run an admin command given by its opcode and plain dwords."""
    return driver.execute(driver.admin, Command(opcode=opcode, **fields))


def identify_controller(driver: Driver) -> IdentifyController:
    return IdentifyController(driver.identify(Cns.CONTROLLER))


def identify_namespace(driver: Driver, nsid: int = 1) -> IdentifyNamespace:
    return IdentifyNamespace(driver.identify(Cns.NAMESPACE, nsid))


def know_extended_formats(driver: Driver) -> None:
    """Set LBAFEE of Host Behavior Support, as Linux does."""
    page = driver.alloc(PAGE_MIN)
    driver.bus.write_memory(page, bytes(HostBehaviorSupport(lbafee=1)))
    driver.succeed(driver.admin, SetFeatures(fid=FeatureId.HOST_BEHAVIOR_SUPPORT, prp1=page))


def blocks_of(driver: Driver, nsid: int = 1) -> int:
    return identify_namespace(driver, nsid).nsze


def block_size(driver: Driver, nsid: int = 1) -> int:
    page = identify_namespace(driver, nsid)
    return 1 << page.lbaf[page.flbas & 0xF].lbads


def largest_transfer(driver: Driver) -> int:
    """What MDTS allows, in bytes."""
    mdts = identify_controller(driver).mdts
    return PAGE_MIN << mdts if mdts else UNLIMITED


def guarded(driver: Driver, size: int, align: int = PAGE_MIN) -> int:
    """Memory filled with guard bytes, with a page of them before and after; the address of its ``size`` bytes."""
    place = driver.alloc(size + 2 * align, align)
    driver.bus.write_memory(place, GUARD * (size + 2 * align))
    return place + align


def is_untouched(driver: Driver, place: int, size: int) -> bool:
    return driver.bus.read_memory(place, size) == GUARD * size


def read_command(prp1: int, prp2: int = 0, *, slba: int = 0, blocks: int = 1, nsid: int = 1) -> ReadWrite:
    return ReadWrite(opcode=NvmOpcode.READ, nsid=nsid, prp1=prp1, prp2=prp2, slba=slba, nlb=blocks)


def write_command(prp1: int, prp2: int = 0, *, slba: int = 0, blocks: int = 1, nsid: int = 1) -> ReadWrite:
    return ReadWrite(opcode=NvmOpcode.WRITE, nsid=nsid, prp1=prp1, prp2=prp2, slba=slba, nlb=blocks)


def dsm_command(driver: Driver, ranges: Sequence[tuple[int, int]], *, ad: bool = True, nsid: int = 1) -> Command:
    """Dataset Management of ranges (slba, blocks)."""
    place = driver.alloc(PAGE_MIN)
    data = b"".join(bytes(DsmRange(slba=slba, length=length)) for slba, length in ranges)
    driver.bus.write_memory(place, data)
    opcode = NvmOpcode.DATASET_MANAGEMENT
    return DatasetManagement(opcode=opcode, nsid=nsid, prp1=place, nr=len(ranges), ad=ad)


def flush_command(nsid: int = 1) -> Command:
    return Command(opcode=NvmOpcode.FLUSH, nsid=nsid)


def aer() -> Command:
    return Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST)


class TellingBackend(MemoryBackend):
    """A disk with a volatile cache that remembers what was asked of it (``calls``) and fails as it is told
    (``failures``: name of the operation -> errno).

    The native engine cannot reach it and leaves its commands to Python; with ``is_direct`` it can, and what the engine
    does itself is not told: ordinary reads and writes, nothing else.
    """

    def __init__(
        self, size: int = 1 << 20, *, read_only: bool = False, volatile_cache: bool = True, is_direct: bool = False
    ) -> None:
        super().__init__(size)
        if not is_direct:
            self.direct = None
        self.read_only = read_only
        self.volatile_cache = volatile_cache
        self.calls: list[tuple[str, int, int]] = []
        self.failures: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def _told(self, name: str, offset: int = 0, length: int = 0) -> None:
        self.calls.append((name, offset, length))
        if name.removesuffix(" fua") in self.failures:
            raise OSError(self.failures[name.removesuffix(" fua")], "made to fail")

    def read_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        return False

    def write_now(self, offset: int, views: Sequence[memoryview]) -> bool:
        return False

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self._told("read", offset, sum(map(len, views)))
        super().read_now(offset, views)

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:
        self._told("write fua" if fua else "write", offset, sum(map(len, views)))
        super().write_now(offset, views)

    def flush(self) -> None:
        self._told("flush")

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        self._told("zero deallocate" if deallocate else "zero", offset, length)
        super().zero(offset, length, deallocate)

    def deallocate(self, offset: int, length: int) -> None:
        self._told("deallocate", offset, length)
        super().zero(offset, length, True)
