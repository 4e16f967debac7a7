"""Firmware, boot loaders and whole systems start from the drive."""

import pytest

from guest.conftest import Script


@pytest.mark.parametrize("firmware", ["seabios", pytest.param("ovmf", marks=pytest.mark.slow)])
def test_grub_loads_linux_from_the_drive(script: Script, drive: list[str], firmware: str) -> None:
    ended = script(*drive, "--job", "grub", "--firmware", firmware)
    assert ended.status == 0
    assert "rebooted the same way and found them" in ended.verdict


@pytest.mark.slow
def test_grub_on_arm64_loads_linux_from_the_drive(script: Script, drive: list[str]) -> None:
    ended = script(*drive, "--job", "grub", "--arch", "arm64")
    assert ended.status == 0
    assert "GRUB (efi) loaded Linux" in ended.verdict


@pytest.mark.parametrize("arch", ["x86_64", pytest.param("arm64", marks=pytest.mark.slow)])
def test_the_uefi_shell_reads_and_writes_a_fat(script: Script, drive: list[str], arch: str) -> None:
    ended = script(*drive, "--job", "uefi-shell", "--arch", arch)
    assert ended.status == 0
    assert "verified after a power-off and on the host" in ended.verdict


@pytest.mark.slow
def test_xen_s_first_domain_uses_the_drive(script: Script, drive: list[str]) -> None:
    ended = script(*drive, "--job", "xen")
    assert ended.status == 0
    assert "loaded Xen, Linux" in ended.verdict


@pytest.mark.slow
@pytest.mark.parametrize("firmware", ["seabios", "ovmf"])
def test_a_whole_debian_system_keeps_its_files(script: Script, drive: list[str], firmware: str) -> None:
    ended = script(*drive, "--job", "debian", "--firmware", firmware)
    assert ended.status == 0
    assert "booted twice to a login, found 4 MiB from the first boot; so did the host" in ended.verdict
