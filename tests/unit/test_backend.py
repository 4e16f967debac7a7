"""The backends by themselves: what a user may write after --disk, and that each is an array of bytes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeemu.backend import Backend, BackendError, BadRequest, in_words, open_backend, parse_size
from nvmeemu.backend.memory import MemoryBackend
from nvmeemu.backend.overlay import OverlayBackend
from nvmeemu.backend.raw import RawBackend
from nvmeemu.backend.uncached import UncachedBackend

SECTOR = 512
MIB = 1 << 20
SIZE = MIB + 64 * SECTOR  # more than one MiB: the overlay's map has a seam there
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}

# --- sizes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((512, "512 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1000 << 20, "1000 MiB")),
        *((10 << 30, "10 GiB"), (500107862016, "465.8 GiB"), (8 << 40, "8 TiB"), (1 << 50, "1 PiB")),
        (1 << 62, "4096 PiB"),
    ],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert in_words(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("10G", 10 << 30),
        ("1.5K", 1536),
        ("0.5P", 1 << 49),
        (" 2 MiB ", 2 << 20),
        ("3kb", 3072),
        ("1T", 1 << 40),
        ("9007199254740993", (1 << 53) + 1),  # more than a float can say
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_sizes_are_exact(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["9223372036854775808", "0x100", "1 0", "nan", "inf", "G", "1GG", "1G1", "1\n0", "½", "1\u0660x", "8192P"],
)
def test_other_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadRequest, match="10G"):
        parse_size(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "-1", "+1", "1.3", "0.1K", "ten", "1e3", "9" * 5000, "0." + "0" * 5000 + "1", "9E"],
)
def test_other_numbers_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadRequest, match="10G"):
        parse_size(text)


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str) -> None:
    size = 1
    with suppress(BadRequest):
        size = parse_size(text)
    assert 1 <= size < 1 << 63


@given(st.decimals(min_value=0, max_value=9999, places=3), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "iB"]))
def test_a_size_is_number_times_unit(number: object, unit: str, suffix: str) -> None:
    exact = Fraction(str(number)) * (1 << UNITS[unit])
    if 1 <= exact < 1 << 63 and exact.denominator == 1:
        assert parse_size(f"{number}{unit}{suffix}") == exact
    else:
        with pytest.raises(BadRequest):
            parse_size(f"{number}{unit}{suffix}")


# --- every backend is an array of bytes


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """On a real file system; /tmp may be in memory."""
    with tempfile.TemporaryDirectory(prefix="nvme-", dir="/var/tmp") as name:
        yield Path(name)


def content(seed: int) -> bytes:
    return bytes((seed + number) % 251 for number in range(SIZE % 4096 + 4096)) * (SIZE // 4096 + 1)


BASE = content(1)[:SIZE]


def raw(folder: Path) -> Backend:
    path = folder / "raw"
    path.write_bytes(BASE)
    return RawBackend(str(path))


def raw_in_memory(folder: Path) -> Backend:
    """A file system that has no RWF_NOWAIT and waits for nothing."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(BASE)
        file.flush()
        return RawBackend(file.name)


def uncached(folder: Path) -> Backend:
    path = folder / "uncached"
    path.write_bytes(BASE)
    return UncachedBackend(str(path))


def overlay(folder: Path) -> Backend:
    path = folder / "base"
    path.write_bytes(BASE)
    return OverlayBackend(RawBackend(str(path), read_only=True))


def memory(folder: Path) -> Backend:
    backend = MemoryBackend(SIZE)
    backend.write(0, [memoryview(BASE)])
    return backend


MAKERS = (raw, raw_in_memory, uncached, overlay, memory)
Make = Callable[[Path], Backend]
sectors = st.integers(0, SIZE // SECTOR - 1)
seam = st.integers(MIB // SECTOR - 20, MIB // SECTOR + 20)
pages = st.integers(0, 40)
lengths = st.integers(1, 40)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ("write", "write_now", "fua", "zero", "deallocated", "deallocate", "read", "read_now", "flush")
        ),
        seam | pages | sectors,
        lengths,
        st.integers(1, 5),
        st.integers(0, 250),
    ),
    max_size=12,
)


def cut(data: bytearray, pieces: int) -> list[memoryview]:
    """As a PRP list scatters it."""
    size = max(SECTOR // 2, len(data) // pieces)
    return [memoryview(data)[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("make", MAKERS)
@settings(max_examples=30)
@given(steps=steps)
def test_it_reads_what_was_written(folder: Path, make: Make, steps: list[tuple[str, int, int, int, int]]) -> None:
    """Against a bytearray. ``deallocate`` may leave the bytes or make them zeros; every backend of ours makes zeros."""
    backend, model = make(folder), bytearray(BASE)
    assert backend.size == SIZE
    try:
        for name, sector, number, pieces, seed in steps:
            offset = sector * SECTOR
            length = min(number * SECTOR, SIZE - offset)
            step(backend, model, name, offset, length, pieces, seed)
        found = bytearray(SIZE)
        backend.read(0, cut(found, 7))
        assert found == model
    finally:
        backend.close()


def step(backend: Backend, model: bytearray, name: str, offset: int, length: int, pieces: int, seed: int) -> None:
    if name in ("read", "read_now"):
        found = bytearray(length)
        views = cut(found, pieces)
        if name == "read":
            backend.read(offset, views)
        elif not backend.read_now(offset, views):
            return
        assert found == model[offset : offset + length]
    elif name in ("write", "write_now", "fua"):
        data = bytearray(content(seed)[:length])
        views = cut(data, pieces)
        if name != "write_now" or not backend.write_now(offset, views):
            backend.write(offset, views, fua=name == "fua")
        model[offset : offset + length] = data
    elif name == "flush":
        backend.flush()
    else:
        if name == "deallocate":
            backend.deallocate(offset, length)
        else:
            backend.zero(offset, length, name == "deallocated")
        model[offset : offset + length] = bytes(length)


@pytest.mark.parametrize("make", MAKERS)
def test_more_pieces_than_one_system_call_takes(folder: Path, make: Make) -> None:
    """IOV_MAX is 1024; a transfer of 2 MiB in pages that are not adjacent has 513."""
    backend = make(folder)
    data = bytearray(content(9)[: 3072 * 4])
    pieces = [memoryview(data)[start : start + 4] for start in range(0, len(data), 4)]
    if not backend.write_now(SECTOR, pieces):
        backend.write(SECTOR, pieces)
    found = bytearray(len(data))
    pieces = [memoryview(found)[start : start + 4] for start in range(0, len(found), 4)]
    backend.read(SECTOR, pieces)
    assert found == data
    backend.close()


# --- what each is by itself


def test_cached_data_is_had_at_once(folder: Path) -> None:
    backend = raw(folder)
    found = bytearray(4096)
    backend.read(0, [memoryview(found)])
    assert backend.read_now(0, [memoryview(found)])
    assert found == BASE[:4096]
    backend.close()


def test_the_end_of_a_file_that_became_shorter_is_an_error_not_zeros(folder: Path) -> None:
    backend = raw(folder)
    os.truncate(folder / "raw", 1000)
    found = bytearray(1024)
    assert not backend.read_now(0, [memoryview(found)])
    with pytest.raises(OSError, match="shorter") as caught:
        backend.read(0, [memoryview(found)])
    assert caught.value.errno == errno.EIO
    backend.close()


def test_the_system_keeps_a_read_only_disk_from_being_written(folder: Path) -> None:
    path = folder / "read-only"
    path.write_bytes(BASE)
    backend = RawBackend(str(path), read_only=True)
    assert not backend.volatile_cache
    assert not backend.write_now(0, [memoryview(bytes(SECTOR))])
    with pytest.raises(OSError, match="Bad file descriptor"):
        backend.write(0, [memoryview(bytes(SECTOR))])
    backend.flush()
    assert path.read_bytes() == BASE
    backend.close()


def test_memory_is_taken_as_it_is_written_and_given_back() -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    before = resident()
    backend = MemoryBackend(1 << 40)
    assert resident() < before + 4 * MIB
    for offset in range(0, 32 * MIB, MIB):
        backend.write(offset, [memoryview(bytes(b"\xff" * MIB))])
    full = resident()
    assert full > before + 24 * MIB
    backend.deallocate(0, 32 * MIB)
    assert resident() < full - 24 * MIB
    backend.close()


def test_an_overlay_keeps_no_more_than_what_was_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "large"
    path.touch()
    os.truncate(path, 1 << 40)
    backend = OverlayBackend(RawBackend(str(path), read_only=True))
    backend.write((1 << 39) + SECTOR, [memoryview(b"\xee" * SECTOR)])
    found = bytearray(3 * SECTOR)
    backend.read(1 << 39, [memoryview(found)])
    assert found == bytes(SECTOR) + b"\xee" * SECTOR + bytes(SECTOR)
    assert not backend.volatile_cache
    backend.close()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "none"))
    with pytest.raises(BackendError, match="set TMPDIR"):
        OverlayBackend(RawBackend(str(path), read_only=True))
    RawBackend(str(path)).close()  # the base was let go of


def test_a_new_disk_is_made_once_and_only_as_asked(folder: Path) -> None:
    path = folder / "new"
    for _ in range(2):
        backend = open_backend(str(path), size=MIB, create=True)
        assert (backend.size, path.stat().st_blocks) == (MIB, 0)
        backend.close()
    with pytest.raises(BackendError, match="leave out --create"):
        open_backend(str(path), size=2 * MIB, create=True)
    with pytest.raises(BadRequest, match="blocks of 4096"):
        open_backend(str(folder / "other"), size=MIB + SECTOR, create=True, block_size=4096)
    assert not (folder / "other").exists()


def test_a_refused_disk_is_not_kept_locked(folder: Path) -> None:
    path = folder / "odd"
    path.write_bytes(bytes(MIB + SECTOR))
    with pytest.raises(BackendError, match="not a multiple of 4096"):
        open_backend(str(path), block_size=4096)
    open_backend(str(path)).close()


def test_identities_differ_between_disks_and_not_between_paths_to_one(folder: Path) -> None:
    path, link, other = folder / "one", folder / "link", folder / "two"
    path.write_bytes(bytes(SECTOR))
    other.write_bytes(bytes(SECTOR))
    link.symlink_to(path)
    identities = []
    for spec in (path, link, other, f"raw:{path}", "mem:1M"):
        backend = open_backend(str(spec))
        identities.append(backend.identity)
        backend.close()
    assert identities[0] == identities[1] == identities[3]
    assert len(set(identities)) == 3
