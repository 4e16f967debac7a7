"""Linux of many versions, on many machines: I/O that is verified in the guest and on the host."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.conftest import Script

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("--smp 2", id="6.12-2-cpus"),
        pytest.param("--iommu", id="6.12-iommu"),
        pytest.param("--linux bullseye", id="5.10", marks=slow),
        pytest.param("--linux bookworm", id="6.1", marks=slow),
        pytest.param("--linux trixie-backports", id="7.x-backports", marks=slow),
        pytest.param("--linux forky", id="7.x-forky", marks=slow),
        pytest.param("--smp 4", id="6.12-4-cpus", marks=slow),
        pytest.param("--smp 4 --iommu", id="6.12-4-cpus-iommu", marks=slow),
        pytest.param("--mem 6G", id="6.12-6G", marks=slow),
        pytest.param("--arch arm64 --smp 2", id="arm64", marks=slow),
        pytest.param("--arch riscv64 --smp 2", id="riscv64", marks=slow),
        pytest.param("--arch s390x", id="s390x", marks=slow),  # big-endian, and behind an IOMMU
    ],
)
def test_linux_reads_what_it_wrote(script: Script, drive: list[str], options: str) -> None:
    ended = script(*drive, "--job", "io", *options.split())
    assert ended.status == 0
    assert ended.verdict.startswith("guest: PASS (io: ")
    assert "verified in the guest and on the host" in ended.verdict


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--arch riscv64"], ids=["x86_64", "riscv64"])
def test_linux_with_the_interrupt_pin_only(script: Script, recorded: list[str], options: str) -> None:
    ended = script(*recorded, "--job", "io", *options.split(), "--nvme-arg", "--no-msix")
    assert ended.status == 0
    assert "verified in the guest and on the host" in ended.verdict


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("--nvme-arg --no-msix", id="no-msix"),
        pytest.param("--nvme-arg --no-msix --nvme-arg --engine=python", id="no-msix-python", marks=slow),
        pytest.param("--append pci=nomsi", id="nomsi", marks=slow),
        pytest.param("--append nvme.poll_queues=1", id="polled", marks=slow),
        pytest.param("--nvme-arg --no-msix --append nvme.poll_queues=1", id="no-msix-polled", marks=slow),
    ],
)
def test_linux_with_two_cpus_and_few_interrupts(script: Script, recorded: list[str], options: str) -> None:
    """The pin with several processors was a storm of interrupts, at times "nobody cared"."""
    ended = script(*recorded, "--job", "io", "--smp", "2", *options.split())
    assert ended.status == 0
    assert " interrupts for " in ended.out


def test_linux_reads_what_it_wrote_without_the_native_engine(script: Script, recorded: list[str]) -> None:
    ended = script(*recorded, "--job", "io", "--smp", "2", "--nvme-arg", "--engine=python")
    assert ended.status == 0
    assert "verified in the guest and on the host" in ended.verdict


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("--block-size=4096 --metadata=8 --protection=1", id="16-bit-guard"),
        pytest.param("--block-size=4096 --metadata=16 --protection=1 --guard=64", id="64-bit-guard", marks=slow),
        pytest.param("--block-size=512 --metadata=64", id="metadata-alone", marks=slow),
    ],
)
def test_linux_reads_what_it_wrote_into_blocks_with_metadata(script: Script, drive: list[str], words: str) -> None:
    """Its block layer makes guards and reference tags and has them checked; a file system lies on it, and what the host
    finds in the image are its files."""
    ended = script(*drive, *(f"--nvme-arg={word}" for word in words.split()))
    assert ended.status == 0
    assert "verified in the guest and on the host" in ended.verdict


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """300 huge pages set apart."""
    before = HUGE_PAGES.read_text()
    try:
        HUGE_PAGES.write_text("300")
        got = HUGE_PAGES.read_text().strip()
    except OSError as error:
        got = str(error)
    if got != "300":
        pytest.skip(f"no huge pages on this machine: wrote 300 to {HUGE_PAGES}, got {got}")
    yield
    HUGE_PAGES.write_text(before)


@pytest.mark.slow
@pytest.mark.usefixtures("huge_pages")
def test_guest_memory_may_be_in_huge_pages(script: Script, drive: list[str]) -> None:
    ended = script(*drive, "--job", "io", "--hugepages")
    assert ended.status == 0


def test_two_drives_on_two_servers_serve_one_guest(script: Script, drive: list[str]) -> None:
    ended = script(*drive, "--job", "two")
    assert ended.status == 0
    assert "each drive holds its own data" in ended.verdict
