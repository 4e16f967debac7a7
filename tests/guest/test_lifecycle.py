"""What may happen to a drive while it is in use."""

import pytest

from guest.conftest import Script

# QEMU 11.1.3 and device_del of a vfio-user-pci device with MSI-X; the day this test fails, change docs/guests.md.
ABORT = "memory_region_del_subregion: Assertion `subregion->container == mr' failed"


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--iommu"], ids=["plain", "iommu"])
def test_resets_and_removals_lose_nothing(script: Script, drive: list[str], options: str) -> None:
    ended = script(*drive, "--job", "resets", *options.split())
    assert ended.status == 0
    assert "function-level reset" in ended.out


@pytest.mark.slow
def test_twenty_reboots_in_the_middle_of_io_lose_nothing(script: Script, drive: list[str]) -> None:
    ended = script(*drive, "--job", "reboots", "--timeout", "1900")
    assert ended.status == 0
    assert "20 reboots" in ended.verdict


@pytest.mark.slow
def test_a_killed_qemu_leaves_the_server_ready_for_the_next(script: Script, recorded: list[str]) -> None:
    ended = script(*recorded, "--job", "restarts")
    assert ended.status == 0


def test_the_drive_is_plugged_into_a_running_guest(script: Script, recorded: list[str]) -> None:
    ended = script(*recorded, "--job", "hotplug")
    assert ended.status == 0


@pytest.mark.slow
def test_the_drive_is_unplugged_and_plugged_in_again(script: Script, recorded: list[str]) -> None:
    ended = script(*recorded, "--job", "unplug", "--nvme-arg", "--no-msix")
    assert ended.status == 0
    assert "plugged in 3 times and unplugged in between" in ended.verdict


@pytest.mark.slow
def test_unplugging_with_msix_aborts_qemu(script: Script, recorded: list[str]) -> None:
    """A fault of QEMU's that we tell users about."""
    ended = script(*recorded, "--job", "unplug")
    assert ended.status == 1
    assert ABORT in ended.out
