"""The bytes of a trace: what is written is read, cut or not, and docs/trace-format.md tells the truth."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeemu import trace
from nvmeemu.spec import AdminOpcode, Identify
from nvmeemu.trace import records
from nvmeemu.trace.records import KINDS, decode, encode
from nvmeemu.trace.sink import TraceFile

DOC = Path(__file__).parents[2] / "docs/trace-format.md"

SAMPLES: list[trace.Record] = [
    trace.RegisterRead(1, 0, 0x1C, b"\1\0\0\0"),
    trace.RegisterWrite(2, 0, 0x14, b"\1\0\x46\0"),
    trace.Doorbell(3, 0, 7, True, False, 0xFFFFFFFF),
    trace.Fetch(4, 1, 5, 63, bytes(range(64))),
    trace.Prp(5, 0, 1, 2, ((0x1000, 4096), (1 << 63, 512))),
    trace.Digest(6, 0, 1, 2, True, 4096, 0xDEADBEEF),
    trace.Data(7, 0, 0, 2, False, 49152, b"abc"),
    trace.Completion(8, 2, 1, 1023, bytes(range(16))),
    trace.Interrupt(9, 0, 64, trace.Signal.MSIX),
    trace.InterruptMode(10, 0, True),
    trace.DmaMap(11, 0, 1 << 40, 1 << 32, True),
    trace.DmaUnmap(12, 0, 0xFFFF_FFFF_FFFF_F000),
    trace.Reset(13, 0),
    trace.ClientAttached(14, 0, "qemu-system-x86, pid 12"),
    trace.ClientLeft(15, 0),
    trace.AsyncEvent(16, 0, 2, 0, 4),
    trace.Note(17, 0, "größer"),
    trace.Lost(18, 0, 1 << 40),
    trace.PciChange(19, 0, True, False, True, False, 3, True),
    trace.Injection(20, 0, 7, 2, 1, 0x1234, True, ("dma", "torn=700", "größer", "SQ 1 #1234 Read")),
    trace.Sgl(21, 0, 1, 2, True, ((0x1001, 3), (None, 512), (1 << 63, 512))),
    trace.MetadataDigest(22, 0, 1, 2, True, 64, 0xDEADBEEF),
    trace.Unknown(23, 3, 200, b"later"),
]


def a_file(*found: trace.Record, description: trace.Description | None = None) -> bytes:
    file = io.BytesIO()
    writer = trace.Writer(file, description or trace.Description(), started=5)
    for record in found:
        writer.write(record)
    return file.getvalue()


def reader(data: bytes) -> trace.Reader:
    return trace.Reader(io.BytesIO(data))


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_is_what_its_bytes_say(record: trace.Record) -> None:
    data = encode(record)
    assert decode(data, 0, len(data)) == record
    time, length, _, lane = records.HEADER.unpack_from(data)
    assert (time, length, lane) == (record.time, len(data), record.lane)


def test_every_kind_has_a_sample() -> None:
    assert {type(record) for record in SAMPLES} == {*KINDS.values(), trace.Unknown}


def test_a_file_gives_back_what_was_written() -> None:
    description = trace.Description(program="test", payload=True, namespaces=[{"nsid": 1}], limits={"entries": 64})
    with reader(a_file(*SAMPLES, description=description)) as found:
        assert list(found) == SAMPLES
        assert found.description == description
        assert found.started == 5
        assert not found.is_cut


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_a_cut_file_is_read_up_to_the_record_before(record: trace.Record) -> None:
    whole = a_file(SAMPLES[0], record)
    before = len(a_file(SAMPLES[0]))
    for end in range(before + 1, len(whole)):
        cut = reader(whole[:end])
        assert list(cut) == [SAMPLES[0]]
        assert cut.is_cut


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_compressed_file_is_read_as_it_is(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"trace.{suffix}"
    path.write_bytes(compress(a_file(*SAMPLES)))
    with trace.open_trace(path) as found:
        assert list(found) == SAMPLES
    path.write_bytes(compress(a_file(*SAMPLES * 100))[:-9])  # cut within what says that it is whole
    with trace.open_trace(path) as found:
        read = list(found)
        assert found.is_cut
    assert read == SAMPLES_IN_ORDER[: len(read)]


SAMPLES_IN_ORDER = sorted(SAMPLES * 100, key=lambda record: record.time)


@pytest.mark.kills("lanes-as-they-come")
def test_lanes_are_put_in_order() -> None:
    """More than a batch, so that what is sorted is cut into pieces."""
    second = 1_000_000_000
    late = [trace.Doorbell(at * 1000, 1, 1, False, False, at) for at in range(50_000)]
    mixed = [*late[:20_000:2], *late[1:20_000:2], *late[20_000:]]  # 20 ms late, at most
    far = [trace.Doorbell(at * second, 0, 2, False, False, at) for at in range(1, 5)]
    assert list(reader(a_file(*mixed, *far))) == [*late, *far]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x: not a trace"),
        (b"MZ" + bytes(100), "x: not a trace"),
        (a_file()[:20], "x: a trace that was cut within its header"),
        (a_file()[:40], "x: a trace that was cut within its header"),
        (a_file()[:8] + b"\2\0" + a_file()[10:], "x: a trace of version 2.3; this program reads 1.x"),
        (a_file()[:24] + b"[" + a_file()[25:], "x: the description in its header is damaged: "),
        (a_file()[:12] + b"\xff" * 4 + a_file()[16:], "x: the description in its header is damaged: 4294967295 bytes"),
        (a_file().replace(b"false", b'"yes"'), "x: the description in its header is damaged: bad payload"),
        (a_file()[:12] + struct.pack("<IQ", 1 << 19, 0) + b"[" * (1 << 19), "is damaged: nested too deeply"),
        (
            a_file(description=trace.Description(namespaces=[1])),  # type: ignore[list-item]
            "x: the description in its header is damaged: bad namespaces",
        ),
    ],
)
def test_what_is_no_trace_is_refused_in_a_line(data: bytes, message: str) -> None:
    with pytest.raises(trace.TraceError, match=re.escape(message)):
        trace.Reader(io.BytesIO(data), "x")


@pytest.mark.kills("no-later-minor-version")
def test_a_later_minor_version_is_read() -> None:
    data = bytearray(a_file(description=trace.Description(program="later")).replace(b'"comment":""', b'"cpu":"arm64"'))
    data[10] = 9
    data[12] += 1
    doorbell = encode(SAMPLES[2])
    data += doorbell[:8] + struct.pack("<H", len(doorbell) + 4) + doorbell[10:] + b"more"
    found = reader(bytes(data))
    assert found.description.program == "later"
    assert list(found) == [SAMPLES[2]]


@pytest.mark.parametrize("length", [0, 11, 15])
def test_a_damaged_record_is_named(length: int) -> None:
    good = a_file(SAMPLES[0])
    bad = encode(SAMPLES[2])
    found = reader(good + bad[:8] + struct.pack("<H", length) + bad[10:] + bytes(64))
    with pytest.raises(trace.TraceError, match=f"damaged at byte {len(good)}: "):
        list(found)


def test_what_comes_before_the_damage_is_given() -> None:
    found = reader(a_file(*SAMPLES) + b"\1" * 8 + bytes(64))
    given: list[trace.Record] = []
    with pytest.raises(trace.TraceError, match="damaged at byte"):
        given.extend(found)
    assert given == sorted(SAMPLES, key=lambda record: record.time)


@pytest.mark.kills("zeros-are-damage")
def test_a_file_that_ends_in_zeros_was_cut() -> None:
    """The machine went down: its file system knew how long the file is, and had not written all of it."""
    found = reader(a_file(*SAMPLES) + bytes(1 << 21))
    assert len(list(found)) == len(SAMPLES)
    assert found.is_cut


def test_a_compressed_file_that_was_cut_in_its_first_block() -> None:
    cut = io.BytesIO(bz2.compress(a_file(*SAMPLES))[:40])
    with bz2.open(cut) as file, pytest.raises(trace.TraceError, match="x: a trace that was cut within its header"):
        trace.Reader(file, "x")


@given(st.binary(max_size=400))
def test_any_bytes_are_records_or_a_trace_error(data: bytes) -> None:
    try:
        for record in reader(a_file(SAMPLES[0]) + data):
            encode(record)
    except trace.TraceError:
        pass


@pytest.mark.kills("followed-to-its-end")
def test_a_file_that_is_followed_ends_with_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "t"
    writing = TraceFile(str(path), trace.Description()).open()
    with trace.open_trace(path, follow=True) as reader:
        records = iter(reader)
        for number in range(2):
            writing.note(str(number))
            found = next(records)
            assert isinstance(found, trace.Note)
            assert found.text == str(number)
        writing.note("the last one")
        writing.close()
        assert [one.text for one in records if isinstance(one, trace.Note)] == ["the last one"]


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(trace.TraceError, match="none: No such file or directory"):
        trace.open_trace(tmp_path / "none")
    with pytest.raises(trace.TraceError, match=": Is a directory"):
        trace.open_trace(tmp_path)


def test_a_record_too_big_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        encode(trace.Note(0, 0, "x" * 70_000))


def test_the_fields_of_entries() -> None:
    fetch = trace.Fetch(0, 0, 0, 0, bytes(Identify(opcode=AdminOpcode.IDENTIFY, cid=0x1234, nsid=9)))
    assert (fetch.opcode, fetch.cid, fetch.command.nsid) == (AdminOpcode.IDENTIFY, 0x1234, 9)
    done = trace.Completion(0, 0, 0, 0, struct.pack("<IIHHHH", 77, 0, 3, 5, 0x4321, 0x10B << 1 | 1 | 1 << 15))
    assert (done.dw0, done.sqid, done.cid, done.status) == (77, 5, 0x4321, 0x10B)
    assert done.completion.dnr


def documented() -> dict[int, tuple[str, str]]:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.*?) ?\|$", DOC.read_text(), re.MULTILINE)
    return {int(kind): (name, fields) for kind, name, fields in rows}


def test_the_document_has_every_kind_with_its_fields() -> None:
    assert {kind: name for kind, (name, _) in documented().items()} == {n: one.__name__ for n, one in KINDS.items()}
    for kind, (_, fields) in documented().items():
        names = [word.removesuffix("...") for word in re.findall(r"[\d-]+ ([a-z_]+|-)", fields) if word != "-"]
        assert names == [name for name in KINDS[kind]._fields if name not in ("time", "lane")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_document_has_every_byte(kind: int) -> None:
    """Each field stands where the document says: its bytes are the ones that differ when it does."""
    record: Any = next(one for one in SAMPLES if type(one) is KINDS[kind])
    places = re.findall(r"(\d+)(-?)(\d*) ([a-z_]+|-)", documented()[kind][1])
    ends = [int(start) for start, *_ in places]
    for (start, dash, end, _), following in pairwise([*places, (str(len(encode(record))), "", "", "")]):
        last = int(end or start) if end or not dash else len(encode(record)) - 1
        assert last + 1 == int(following[0]), "without a hole"
        assert int(start) in ends
    for start, dash, end, name in places:
        if name == "-":
            continue
        last = int(end or start) if end or not dash else 1 << 16
        value = getattr(record, name)
        other = not value if isinstance(value, bool) else value[::-1] if not isinstance(value, int) else value ^ 1
        if other == value:
            other = type(value)() if not isinstance(value, str) else "x"
        changed = encode(record._replace(**{name: other}))
        differ = [at for at, (a, b) in enumerate(zip(encode(record), changed, strict=False)) if a != b and at > 11]
        assert all(int(start) <= at <= last for at in differ)
        assert differ or len(changed) != len(encode(record))
