"""The guest of the examples: one Linux for all of them, because to boot is what takes the time."""

from collections.abc import Iterator

import pytest

from nvmeemu.pytest_plugin import Boot, NvmeGuest

SLEEPY = "nvme_core.io_timeout=5 nvme_core.admin_timeout=5"  # seconds; 30 and 60 are too long for a test
BACK_AGAIN = """
grep -q live /sys/class/nvme/nvme0/state && exit
echo 1 >/sys/class/nvme/nvme0/device/remove
echo 1 >/sys/bus/pci/rescan
until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
"""


@pytest.fixture(scope="session")
def booted(nvme_boot: Boot) -> Iterator[NvmeGuest]:
    with nvme_boot(size="64M", append=SLEEPY) as guest:
        yield guest


@pytest.fixture
def nvme_guest(booted: NvmeGuest) -> NvmeGuest:
    """In place of the plugin's, which would boot for each test: the drive works, whatever the test before did."""
    booted.check(BACK_AGAIN)
    return booted
