"""The outside judge: QEMU's own NVMe controller, driven over qtest. No guest, no KVM, no wall clock.

qtest is a text protocol on QEMU's standard input and output: port and memory accesses, and a virtual clock that only
moves when told to, which is when QEMU's controller does its work (a timer or bottom half behind each doorbell).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

CACHE = Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "nvmeemu"
QEMU = CACHE / "bin" / "qemu-system-x86_64"
BAR = 0xE0000000
MEMORY = 512  # MiB
_ADDRESS, _DATA = 0xCF8, 0xCFC  # PCI configuration mechanism #1
_STEP = 1_000_000  # nanoseconds
_MOMENT = 0.0002  # seconds
_PATIENCE = 20  # seconds


def _namespace(nsid: int, image: Path, block_size: int) -> tuple[str, ...]:
    sizes = f"logical_block_size={block_size},physical_block_size={block_size}"
    return (
        *("-drive", f"if=none,id=disk{nsid},format=raw,file={image},discard=unmap"),
        *("-device", f"nvme-ns,drive=disk{nsid},bus=nvme,nsid={nsid},{sizes}"),
    )


class QemuNvme:
    """A ``testing.Bus`` to a QEMU of its own, whose controller has a namespace for each of ``disks``: NSID -> (image,
    bytes in a block)."""

    def __init__(self, disks: Mapping[int, tuple[Path, int]]) -> None:
        self._qemu = subprocess.Popen(
            (
                *(QEMU, "-M", "q35", "-nodefaults", "-display", "none", "-m", f"{MEMORY}M"),
                *("-accel", "qtest", "-qtest", "stdio", "-qtest-log", "none"),
                *("-device", "nvme,id=nvme,serial=JUDGE,mdts=9"),
                *(word for nsid, (image, size) in disks.items() for word in _namespace(nsid, image, size)),
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = Path(f"/proc/{self._qemu.pid}/task")
        self._slot = self._find()
        self._config(0x10, BAR)
        self._config(0x14, 0)
        self._config(0x04, 0b110)  # memory space, bus master

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._qemu.kill()
        self._qemu.communicate()

    def _ask(self, line: str) -> str:
        assert self._qemu.stdin is not None
        assert self._qemu.stdout is not None
        self._qemu.stdin.write(line + "\n")
        self._qemu.stdin.flush()
        while True:
            answer = self._qemu.stdout.readline()
            if not answer:
                raise AssertionError(f"QEMU ended: {self._qemu.stderr and self._qemu.stderr.read()}")
            words = answer.split(maxsplit=1)
            if words[0] == "OK":
                return words[1].strip() if len(words) > 1 else ""
            if words[0] != "IRQ":
                raise AssertionError(f"{line!r}: {answer!r}")

    def _config(self, register: int, value: int) -> None:
        self._ask(f"outl {_ADDRESS:#x} {0x80000000 | self._slot << 11 | register:#x}")
        self._ask(f"outl {_DATA:#x} {value:#x}")

    def _find(self) -> int:
        for slot in range(32):
            self._ask(f"outl {_ADDRESS:#x} {0x80000000 | slot << 11 | 8:#x}")
            if int(self._ask(f"inl {_DATA:#x}"), 16) >> 8 == 0x010802:
                return slot
        raise AssertionError("no NVMe controller on the bus")

    # --- testing.Bus

    def read_bar(self, offset: int, size: int) -> bytes:
        word = {1: "b", 2: "w", 4: "l", 8: "q"}[size]
        return int(self._ask(f"read{word} {BAR + offset:#x}"), 16).to_bytes(size, "little")

    def write_bar(self, offset: int, data: bytes) -> None:
        word = {1: "b", 2: "w", 4: "l", 8: "q"}[len(data)]
        self._ask(f"write{word} {BAR + offset:#x} {int.from_bytes(data, 'little'):#x}")

    def read_memory(self, iova: int, size: int) -> bytes:
        return bytes.fromhex(self._ask(f"read {iova:#x} {size:#x}").removeprefix("0x")) if size else b""

    def write_memory(self, iova: int, data: bytes) -> None:
        if data:
            self._ask(f"write {iova:#x} {len(data):#x} 0x{data.hex()}")

    def settle(self) -> None:
        self._step(_STEP)

    def advance(self, seconds: float) -> None:
        """Let (virtual) time pass."""
        self._step(round(seconds * 1e9))

    def _step(self, nanoseconds: int) -> None:
        self._ask(f"clock_step {nanoseconds}")
        end = time.monotonic() + _PATIENCE
        while self._is_at_work():  # its disk works in real time
            if time.monotonic() > end:
                raise AssertionError("QEMU does not come to rest")
            time.sleep(_MOMENT)

    def _is_at_work(self) -> bool:
        """Some thread of QEMU's does not sleep: it runs, or would if it got a processor, or waits for a disk."""
        states = (task.joinpath("stat").read_text().rpartition(")")[2].split()[0] for task in self._threads.iterdir())
        try:
            return any(state != "S" for state in states)
        except OSError:  # a thread has ended meanwhile
            return True
