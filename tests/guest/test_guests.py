"""Guests use the drive."""

from pathlib import Path

import pytest

from guest import boot_sector
from guest.conftest import Script
from nvmeemu.guest import cache, machine
from tools.guest.arches import ARCHES


def test_linux_finds_its_files_again_after_a_power_off(script: Script, drive: list[str], own_tmp: Path) -> None:
    ended = script(*drive)
    assert ended.status == 0
    assert ended.verdict.startswith("guest: PASS (main: 2 boots of Linux ")
    assert "16 MiB in 44 files verified in the guest and on the host" in ended.verdict
    assert list(own_tmp.iterdir()) == []


def test_linux_with_two_cpus_uses_two_queue_pairs(script: Script, drive: list[str]) -> None:
    ended = script(*drive, "--job", "smp")
    assert ended.status == 0
    assert ended.verdict.startswith("guest: PASS (smp: 2 CPUs with 2 I/O queue pairs")


def test_linux_finds_its_data_again_after_a_reboot(script: Script, drive: list[str]) -> None:
    ended = script(*drive, "--job", "reboot")
    assert ended.status == 0
    assert ended.verdict.startswith("guest: PASS (reboot: ")


@pytest.mark.parametrize("arch", ["x86_64", "arm64", "riscv64"])
def test_u_boot_reads_and_writes(script: Script, drive: list[str], arch: str) -> None:
    ended = script(*drive, "--job", "uboot", "--arch", arch)
    assert ended.status == 0
    assert ended.verdict.startswith("guest: PASS (uboot: ")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["arm64", "riscv64", "s390x"])
def test_linux_of_other_architectures_finds_its_files_again(script: Script, drive: list[str], arch: str) -> None:
    ended = script(*drive, "--arch", arch)
    assert ended.status == 0
    assert "16 MiB in 44 files verified in the guest and on the host" in ended.verdict


def test_seabios_boots_from_the_drive(script: Script, drive: list[str], tmp_path: Path) -> None:
    disk = boot_sector.write(tmp_path / "disk")
    before = disk.read_bytes()
    ended = script(*drive, "--boot-disk", disk, "--expect", boot_sector.GREETING)
    assert ended.status == 0
    ended = script(*drive, "--boot-disk", disk)
    assert ended.status == 0
    assert "the guest has powered itself off" in ended.verdict
    assert disk.read_bytes() == before


def test_ovmf_finds_the_drive(script: Script, drive: list[str], tmp_path: Path) -> None:
    disk = boot_sector.write(tmp_path / "disk")
    ended = script(
        *drive, "--boot-disk", disk, "--firmware", "ovmf", "--expect", r"BLK\d: .*", "--expect", r"NVMe\(0x1,"
    )
    assert ended.status == 0


def test_the_probe_for_kvm_can_say_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked about TCG, which always works: where KVM does not, nothing else would show that it ever can."""
    monkeypatch.setattr(machine, "PROBE_SECONDS", 300.0)  # TCG on a busy machine
    arch = ARCHES["x86_64"]
    assert machine.linux_comes_up(arch, cache.qemu(arch.qemu), "tcg")
