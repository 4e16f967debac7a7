"""The guest's half of the benchmarks: all drives in one guest, each with its IOPS and its register accesses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import guest

SETUP = Path(__file__).resolve().parents[2] / "scripts" / "setup.sh"
COMPONENTS = ("qemu:x86", "linux:trixie:amd64", "tools:amd64", "tools-fio:amd64")  # those of scripts/bench.sh --guest


@pytest.mark.slow
def test_all_drives_are_measured_in_one_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([SETUP, *COMPONENTS], check=True)
    monkeypatch.setattr(guest, "IDLE_SECONDS", 1.0)
    found = guest.measure(rounds=1, seconds=0.3)
    names = ("default", "mapped", "qemu-nvme", "virtio-blk", "ahci")
    iops, accesses = found["guest_iops"], found["guest_register_accesses"]
    assert isinstance(iops, dict)
    assert isinstance(accesses, dict)
    assert set(iops) == {f"{name} {load} qd{depth}" for name in names for load in guest.LOADS for depth in guest.DEPTHS}
    assert all(value > 0 for value in iops.values())
    assert set(guest.marks(found)) == set(guest.MARKS)
    assert accesses["mapped qd1"] == 0
    assert accesses["default qd1"] <= 2 < accesses["ahci qd1"]
