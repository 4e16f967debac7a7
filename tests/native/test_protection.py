"""The C code of protection information and a slow reference agree, in each of its builds; known faults in it do not."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.mutants import MutantOfC
from native import protection_reference as reference
from native.mutants import loaded
from nvmeemu.subsystem import protection
from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.media import ErrorKind
from nvmeemu.subsystem.protection import Checks, ProtectionError, Tags

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "src/nvmeemu/engine/native"
MODULE = "nvmeemu.subsystem._protection"
FLAGS = ("-std=gnu11", "-O1", "-fPIC", "-w")
HAS_LIBISAL = subprocess.run(("pkg-config", "--exists", "libisal"), check=False).returncode == 0
BLOCKS = 4
CASES = 100  # three times as many as the fault needs that is hardest to find
FAULTS = (
    MutantOfC(
        "eight-bytes-in-turn", "reflected", "table[AT_ONCE - 1 - n]", "table[n]", "CRC-64 of eight bytes at a time"
    ),
    MutantOfC("no-rest", "reflected", "size > 0; size--", "size > AT_ONCE; size--", "messages of odd sizes"),
    MutantOfC(
        "guard-of-data-only", "guard_of", "if (!format->is_first &&", "if (format->is_first &&", "the guard's metadata"
    ),
    MutantOfC(
        "guard-of-more", "guard_of", "format->metadata_size - guard->total)", "format->metadata_size)", "the same"
    ),
    MutantOfC("always-last", "place", "format->is_first ? 0 :", "0 ? 0 :", "PI in the first bytes"),
    MutantOfC("no-wrap", "reference_of", "& ones(bits)", "", "a reference tag runs into the storage tag"),
    MutantOfC("type-3-counts", "reference_of", "format->type == 3 ? 0 : block", "block", "type 3 has one tag for all"),
    MutantOfC("storage-tag-too-wide", "failure_of", "& ones(format->storage_tag_size)", "", "more bits than it has"),
    MutantOfC("type-3-escapes-early", "failure_of", "(format->type != 3 || tag == ones(guard->width))", "1", "type 3"),
    MutantOfC(
        "no-escape", "failure_of", "if (application == ESCAPE", "if (0 && application == ESCAPE", "deallocated blocks"
    ),
    MutantOfC("no-application-mask", "failure_of", "& tags->application_mask", "", "bits that nobody asked for"),
    MutantOfC("no-storage-mask", "failure_of", "& tags->storage_mask", "", "the same"),
    MutantOfC(
        "reference-with-storage",
        "failure_of",
        "(tag & ones(bits)) !=",
        "tag !=",
        "a storage tag is taken for a part of it",
    ),
    MutantOfC("next-block", "pi_check", "return i;", "return i + 1;", "the error log names another block"),
    MutantOfC("little-endian", "put", "at[i] = (uint8_t)value;", "at[size - 1 - i] = (uint8_t)value;", "big endian"),
)


@dataclass(frozen=True)
class Case:
    """Blocks with protection information, and what a command says of them. ``flips``: bits of the data (from 0) and of
    the metadata (behind it) that are no longer what they were."""

    format: Format
    data: bytes
    metadata: bytes
    tags: Tags
    flips: tuple[int, ...]
    expected: Tags
    checks: Checks

    def blocks(self, data: bytes, metadata: bytes) -> Iterator[tuple[bytes, bytes]]:
        format = self.format
        for block in range(len(data) // format.data_size):
            at, beside = block * format.data_size, block * format.metadata_size
            yield data[at : at + format.data_size], metadata[beside : beside + format.metadata_size]

    def flipped(self, metadata: bytes) -> tuple[bytes, bytes]:
        whole = bytearray(self.data + metadata)
        for bit in self.flips:
            whole[bit // 8 % len(whole)] ^= 1 << bit % 8
        return bytes(whole[: len(self.data)]), bytes(whole[len(self.data) :])

    def compare(self) -> None:
        """What C makes of it, and what the reference does."""
        made = bytearray(self.metadata)
        protection.generate(self.format, self.data, made, self.tags)
        rows = enumerate(self.blocks(self.data, self.metadata))
        wanted = b"".join(reference.generated(self.format, *row, self.tags, block) for block, row in rows)
        assert made == wanted
        data, metadata = self.flipped(wanted)
        found: tuple[int, ErrorKind] | None = None
        try:
            protection.check(self.format, data, metadata, self.expected, self.checks)
        except ProtectionError as error:
            found = error.block, error.kind
        rows = enumerate(self.blocks(data, metadata))
        kinds = (
            (block, reference.failure(self.format, *row, self.expected, self.checks, block)) for block, row in rows
        )
        assert found == next(((block, kind) for block, kind in kinds if kind is not None), None)


def case_of(chance: random.Random) -> Case:
    """Any format that can be, blocks of any bytes, and often what lies at an edge."""
    guard = chance.choice(list(Guard))
    sizes = guard.storage_tag_sizes
    storage_tag_size = chance.choice([sizes.start, sizes.stop - 1, chance.choice(sizes)])
    of = Protection(chance.randint(1, 3), guard, storage_tag_size, guard is Guard.CRC16 and chance.random() < 0.5)
    size = guard.size + chance.choice([0, 0, 1, 7, 8, 9, 48])
    format = Format(512 if guard is Guard.CRC16 else 4096, size, protection=of)
    count = chance.randint(1, BLOCKS)
    limit = 1 << of.reference_bits
    tags = Tags(
        chance.choice([0, max(0, limit - 2), limit - 1, chance.randrange(limit)]),
        chance.choice([0, 0x1234, 0xFFFE, 0xFFFF]),
        chance.choice([0, (1 << 64) - 1, chance.getrandbits(64)]),
    )
    expected = tags
    if chance.random() < 0.4:  # another one, of which the mask may leave nothing
        expected = replace(
            tags,
            application=tags.application ^ chance.choice([0, 1, 0x8000]),
            storage=tags.storage ^ chance.choice([0, 1, 1 << 20]),
            reference=max(0, tags.reference - chance.randint(0, 1)),
            application_mask=chance.choice([0xFFFF, 0, 1, 0xFFFE]),
            storage_mask=chance.choice([(1 << 64) - 1, 0, 1, (1 << 64) - 2]),
        )
    bits = 8 * count * format.block_size
    flips = tuple(bits - 1 - chance.randrange(8 * count * size) for _ in range(chance.choice([0, 0, 1, 2])))
    if chance.random() < 0.2:
        flips += (chance.randrange(bits),)
    checks = Checks(*(chance.random() < 0.7 for _ in range(4)))
    data, metadata = chance.randbytes(format.data_size) * count, chance.randbytes(count * size)
    return Case(format, data, metadata, tags, flips, expected, checks)


# --- builds of the C code


class Builder:
    """Compiles protection.c, with and without libisal, as modules that stand beside the installed one."""

    def __init__(self, folder: Path) -> None:
        from cffi import FFI

        self._folder = folder
        ffi = FFI()
        ffi.cdef(re.sub(r"^#.*\n", "", (NATIVE / "protection.h").read_text(), flags=re.MULTILINE))
        ffi.set_source(MODULE, '#include "protection.h"')
        ffi.emit_c_code(str(folder / "binding.c"))
        self._cc(f"-I{sysconfig.get_path('include')}", "-c", folder / "binding.c", "-o", folder / "binding.o")

    def _cc(self, *arguments: str | Path) -> None:
        subprocess.run(("cc", *FLAGS, f"-iquote{NATIVE}", *arguments), check=True)

    def build(self, name: str, source: Path, *, with_libisal: bool) -> Any:
        library = self._folder / f"{name}.so"
        options = ("-DHAVE_LIBISAL",) if with_libisal else ()
        libraries = ("-lisal",) if with_libisal else ()
        self._cc("-shared", *options, source, self._folder / "binding.o", *libraries, "-o", library)
        return loaded(MODULE, library)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("protection"))


@contextmanager
def using(module: Any) -> Iterator[None]:
    """protection.py calls this build meanwhile. The structures that it keeps are of the other one."""
    with pytest.MonkeyPatch.context() as patch:
        protection._of_format.cache_clear()
        patch.setattr(protection, "lib", module.lib)
        patch.setattr(protection, "ffi", module.ffi)
        yield
    protection._of_format.cache_clear()


def agree(cases: int) -> None:
    chance = random.Random(1)
    for _ in range(cases):
        case_of(chance).compare()
    for guard in Guard:
        for size in range(40):
            message = chance.randbytes(size)
            assert protection.crc(guard, message) == reference.crc(guard, message)


# --- tests


@given(st.randoms(use_true_random=False))
def test_c_and_the_reference_agree(chance: random.Random) -> None:
    case_of(chance).compare()


@given(st.sampled_from(list(Guard)), st.binary(max_size=200), st.integers(0, 15))
def test_guards_of_messages_of_any_size_and_place(guard: Guard, message: bytes, offset: int) -> None:
    """The eight bytes that are taken at once need not be aligned."""
    view = memoryview(bytes(offset) + message)[offset:]
    assert protection.crc(guard, view) == reference.crc(guard, message)


@pytest.mark.parametrize("with_libisal", [True, False])
def test_each_build_agrees(builder: Builder, with_libisal: bool) -> None:
    """Without libisal, tables of our own stand in for it."""
    if with_libisal and not HAS_LIBISAL:
        pytest.fail("libisal's headers are missing: scripts/setup.sh base installs them")
    module = builder.build(f"libisal-{with_libisal}", NATIVE / "protection.c", with_libisal=with_libisal)
    with using(module):
        agree(CASES)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.skipif("NVMEEMU_SANITIZER" in os.environ, reason="it watches the real code")
def test_each_fault_is_found_out(builder: Builder, fault: MutantOfC, tmp_path: Path) -> None:
    change = fault.change(ROOT)
    source = tmp_path / "protection.c"
    source.write_text(change.text)
    with using(builder.build(fault.name, source, with_libisal=False)), pytest.raises(AssertionError):
        agree(CASES)


@given(st.integers(0, 3), st.integers(-9, 9), st.integers(-9, 9))
def test_sizes_that_are_no_whole_blocks_never_reach_c(count: int, more: int, beside: int) -> None:
    """It reads and writes as many blocks as there are: Python has counted them."""
    format = Format(512, 8, protection=Protection(1))
    data, metadata = bytes(max(0, 512 * count + more)), bytearray(max(0, 8 * count + beside))
    calls = (
        lambda: protection.generate(format, data, metadata, Tags()),
        lambda: protection.check(format, data, metadata, Tags(), Checks(guard=True)),
        lambda: protection.interleave(format, data, metadata),
    )
    is_whole = len(data) % 512 == 0 and len(metadata) == len(data) // 512 * 8
    for call in calls:
        if is_whole:
            call()
        else:
            with pytest.raises(ValueError, match="no whole blocks"):
                call()
    if len(data) % 520:
        with pytest.raises(ValueError, match="no whole blocks"):
            protection.split(format, data)


def test_metadata_that_cannot_be_written_to_is_left_alone() -> None:
    format = Format(512, 8, protection=Protection(1))
    metadata = bytes(8)
    with pytest.raises(BufferError):
        protection.generate(format, b"\1" * 512, memoryview(metadata), Tags(1, 1))
    assert not any(metadata)
