"""The records of a trace: what they are, and their bytes. docs/trace-format.md is the same for readers in C.

Each record is a named tuple: ``time`` in nanoseconds since the trace began, ``lane`` is 0 for the controller's thread
and n for the nth thread of the native engine. ``encode`` and ``decode`` are all that knows the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

from nvmeemu import spec
from nvmeemu.ports import PciState

HEADER = Struct("<QHBB")  # time, length of the whole record, kind, lane
LENGTH_OFFSET, KIND_OFFSET = 8, 10
MOST = 0xFFFF  # bytes of a record
MOST_RUNS = 0x1000  # in one Sgl record; more follow in others
BIGGEST_PIECE = 0xC000  # bytes of payload in one Data record; more follow in others


class RegisterRead(NamedTuple):
    """A read of BAR0, of any size; ``data`` is what the host got."""

    time: int
    lane: int
    offset: int
    data: bytes


class RegisterWrite(NamedTuple):
    """A write to BAR0 that is not to a doorbell of 4 bytes, which has its own record."""

    time: int
    lane: int
    offset: int
    data: bytes


class Doorbell(NamedTuple):
    """The host wrote a doorbell: the tail of a submission queue or the head of a completion queue.

    ``is_shadow``: found in the shadow doorbell buffer (Base 1.4, 5.7), without any register write.
    """

    time: int
    lane: int
    qid: int
    is_cq: bool
    is_shadow: bool
    value: int


class Fetch(NamedTuple):
    """A submission queue entry was taken from ``slot`` of its queue."""

    time: int
    lane: int
    sqid: int
    slot: int
    sqe: bytes

    @property
    def command(self) -> spec.Command:
        """The entry's common fields; ``words.command_of`` knows the others."""
        return spec.Command(self.sqe)

    @property
    def cid(self) -> int:
        return self.sqe[2] | self.sqe[3] << 8

    @property
    def opcode(self) -> int:
        return self.sqe[0]


class Prp(NamedTuple):
    """Where a command's data lies, if it took a PRP list to say so: runs of guest memory, in order, each (address,
    bytes). Otherwise PRP1 and PRP2 of the command say it."""

    time: int
    lane: int
    sqid: int
    cid: int
    runs: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Bytes."""
        return sum(size for _, size in self.runs)


class Sgl(NamedTuple):
    """Where a command's data, or its separate metadata, lies, if an SGL in guest memory said so: runs in order, each
    (address, bytes). The address of a bit bucket is None. Otherwise the command says it. If there are very many
    runs, more follow in other records."""

    time: int
    lane: int
    sqid: int
    cid: int
    of_metadata: bool
    runs: tuple[tuple[int | None, int], ...]

    @property
    def length(self) -> int:
        """Bytes."""
        return sum(size for _, size in self.runs)


class Digest(NamedTuple):
    """Data of a command has moved. This is its length in bytes and its CRC-32 (IEEE 802.3, as of ``zlib.crc32``)."""

    time: int
    lane: int
    sqid: int
    cid: int
    to_host: bool
    length: int
    crc: int


class MetadataDigest(NamedTuple):
    """The same for the separate metadata of a command."""

    time: int
    lane: int
    sqid: int
    cid: int
    to_host: bool
    length: int
    crc: int


class Data(NamedTuple):
    """The data itself, or its part from byte ``offset`` on. It is always there for what commands give the controller
    to read (features, ranges), and for the blocks of reads and writes only if asked for."""

    time: int
    lane: int
    sqid: int
    cid: int
    to_host: bool
    offset: int
    data: bytes


class Completion(NamedTuple):
    """A completion queue entry was written to ``slot`` of its queue."""

    time: int
    lane: int
    cqid: int
    slot: int
    cqe: bytes

    @property
    def completion(self) -> spec.Completion:
        return spec.Completion(self.cqe)

    @property
    def sqid(self) -> int:
        return self.cqe[10] | self.cqe[11] << 8

    @property
    def cid(self) -> int:
        return self.cqe[12] | self.cqe[13] << 8

    @property
    def status(self) -> int:
        """Status Code Type and Status Code: a ``spec.Status``."""
        return (self.cqe[14] | self.cqe[15] << 8) >> 1 & 0x7FF

    @property
    def dw0(self) -> int:
        return int.from_bytes(self.cqe[:4], "little")


class Signal(IntEnum):
    """How the device interrupts."""

    MSIX = 0  # a message, on its vector
    PIN_UP = 1  # INTA# is asserted
    PIN_DOWN = 2


class Interrupt(NamedTuple):
    """The device interrupts, or stops to do so (``signal``: a ``Signal``)."""

    time: int
    lane: int
    vector: int
    signal: int


class InterruptMode(NamedTuple):
    """The host has enabled or disabled MSI-X."""

    time: int
    lane: int
    msix: bool


class DmaMap(NamedTuple):
    """The VMM shares a region of guest memory. The device cannot use memory that the VMM maps without sharing it."""

    time: int
    lane: int
    iova: int
    size: int
    writable: bool


class DmaUnmap(NamedTuple):
    """The VMM has taken back the region that began there."""

    time: int
    lane: int
    iova: int


class Reset(NamedTuple):
    """The function was reset, and everything is as after power-on. The VMM did it (the machine was reset), or the host
    (Function Level Reset), or the client is about to leave. A Controller Reset is a write to CC."""

    time: int
    lane: int


class ClientAttached(NamedTuple):
    """A VMM has connected; ``name`` is how it is called."""

    time: int
    lane: int
    name: str


class ClientLeft(NamedTuple):
    """The VMM has disconnected."""

    time: int
    lane: int


class AsyncEvent(NamedTuple):
    """Something happened that an Asynchronous Event Request may tell the host, now or later (Base 1.4, Figure 144)."""

    time: int
    lane: int
    type: int
    info: int
    log: int


class Note(NamedTuple):
    """A remark of the recorder, of a fault that was injected, or of a user."""

    time: int
    lane: int
    text: str


class Lost(NamedTuple):
    """This many records could not be kept here, because there was no room for them."""

    time: int
    lane: int
    records: int


class PciChange(NamedTuple):
    """What the host has set in the PCI configuration space: the fields of ``ports.PciState``. Recorded when one of
    them has changed, and when a client has come. ``function_level_reset``: this write has initiated one, and a Reset
    follows."""

    time: int
    lane: int
    bus_master: bool
    memory_space: bool
    interrupt_disable: bool
    function_mask: bool
    power_state: int
    function_level_reset: bool

    @property
    def state(self) -> PciState:
        return PciState(*self[2:])


class Injection(NamedTuple):
    """A fault on purpose has fired, for the ``hits``th time. If ``of_command``, ``sqid`` and ``cid`` say at which
    command. The record comes before all that the fault changes. ``texts``: place, action, name and subject."""

    time: int
    lane: int
    fault: int
    hits: int
    sqid: int
    cid: int
    of_command: bool
    texts: tuple[str, ...]

    @property
    def at(self) -> str:
        """The place: ``completion``."""
        return self.texts[0]

    @property
    def action(self) -> str:
        """What it does: ``status=write_fault``."""
        return self.texts[1]

    @property
    def name(self) -> str:
        """Its user's name for it, or nothing."""
        return self.texts[2]

    @property
    def subject(self) -> str:
        """What it was done to: ``SQ 1 #0003 Write nsid=1 slba=0 nlb=8``."""
        return self.texts[3]


class Unknown(NamedTuple):
    """A record of a kind that a later version has added."""

    time: int
    lane: int
    kind: int
    data: bytes


Record = (
    RegisterRead
    | RegisterWrite
    | Doorbell
    | Fetch
    | Prp
    | Digest
    | Data
    | Completion
    | Interrupt
    | InterruptMode
    | DmaMap
    | DmaUnmap
    | Reset
    | ClientAttached
    | ClientLeft
    | AsyncEvent
    | Note
    | Lost
    | PciChange
    | Injection
    | Sgl
    | MetadataDigest
    | Unknown
)


# --- bytes -------------------------------------------------------------------------------------------------------

_RUN = Struct("<QI")


def _join_runs(runs: tuple[tuple[int, int], ...]) -> bytes:
    return b"".join(_RUN.pack(iova, size) for iova, size in runs)


def _split_runs(data: bytes) -> tuple[tuple[int, int], ...]:
    return tuple(_RUN.iter_unpack(data[: len(data) // _RUN.size * _RUN.size]))


_BIT_BUCKET = 1 << 31  # in the bytes of a run


def _join_sgl(runs: tuple[tuple[int | None, int], ...]) -> bytes:
    return _join_runs(tuple((0, size | _BIT_BUCKET) if iova is None else (iova, size) for iova, size in runs))


def _split_sgl(data: bytes) -> tuple[tuple[int | None, int], ...]:
    found = _split_runs(data)
    return tuple((None if size & _BIT_BUCKET else iova, size & ~_BIT_BUCKET) for iova, size in found)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


_TEXTS = 4  # of an Injection


def _join_texts(texts: tuple[str, ...]) -> bytes:
    return "\0".join(texts).encode()


def _split_texts(data: bytes) -> tuple[str, ...]:
    found = _text(data).split("\0", _TEXTS - 1)
    return (*found, *[""] * (_TEXTS - len(found)))


class _Codec:
    """The bytes of one kind of record. ``form`` is the struct of its fields after the header. Its last field may be a
    ``tail`` of any length, which ``pack`` and ``unpack`` turn into bytes and back."""

    def __init__(
        self,
        kind: int,
        record: Any,
        form: str,
        pack: Callable[[Any], bytes] | None = None,
        unpack: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.kind = kind
        self.record = record
        self.fixed = Struct(f"<QHBB{form}")
        self._fields = Struct(f"<QxxxB{form}")
        self._pack, self._unpack = pack, unpack

    def encode(self, record: Any) -> bytes:
        if self._pack is None:
            return self.fixed.pack(record[0], self.fixed.size, self.kind, *record[1:])
        tail = self._pack(record[-1])
        length = self.fixed.size + len(tail)
        if length > MOST:
            raise ValueError(f"a record of {length} bytes: at most {MOST}")
        return self.fixed.pack(record[0], length, self.kind, *record[1:-1]) + tail

    def decode(self, data: bytes, start: int, end: int) -> Any:
        """The record in ``data[start:end]``. Raises ValueError if it is too short for its kind."""
        if end - start < self.fixed.size:
            raise ValueError(f"a record of kind {self.kind} has {self.fixed.size} bytes or more, not {end - start}")
        fields = self._fields.unpack_from(data, start)
        if self._unpack is not None:
            fields += (self._unpack(data[start + self.fixed.size : end]),)
        return self.record._make(fields)


_CODECS = (
    _Codec(1, RegisterRead, "I", bytes, bytes),
    _Codec(2, RegisterWrite, "I", bytes, bytes),
    _Codec(3, Doorbell, "H??I"),
    _Codec(4, Fetch, "HH64s"),
    _Codec(5, Prp, "HH", _join_runs, _split_runs),
    _Codec(6, Digest, "HH?xxxII"),
    _Codec(7, Data, "HH?xxxI", bytes, bytes),
    _Codec(8, Completion, "HH16s"),
    _Codec(9, Interrupt, "HBx"),
    _Codec(10, InterruptMode, "?xxx"),
    _Codec(11, DmaMap, "QQ?xxx"),
    _Codec(12, DmaUnmap, "Q"),
    _Codec(13, Reset, ""),
    _Codec(14, ClientAttached, "", str.encode, _text),
    _Codec(15, ClientLeft, ""),
    _Codec(16, AsyncEvent, "BBBx"),
    _Codec(17, Note, "", str.encode, _text),
    _Codec(18, Lost, "Q"),
    _Codec(19, PciChange, "????B?xx"),
    _Codec(20, Injection, "IIHH?xxx", _join_texts, _split_texts),
    _Codec(21, Sgl, "HH?xxx", _join_sgl, _split_sgl),
    _Codec(22, MetadataDigest, "HH?xxxII"),
)
_BY_KIND = {codec.kind: codec for codec in _CODECS}
_BY_RECORD = {codec.record: codec for codec in _CODECS}
KINDS: dict[int, type[Any]] = {codec.kind: codec.record for codec in _CODECS}


def encode(record: Record) -> bytes:
    """The bytes of a record. Raises ValueError if it does not fit ``MOST`` bytes."""
    if isinstance(record, Unknown):
        return HEADER.pack(record.time, HEADER.size + len(record.data), record.kind, record.lane) + record.data
    return _BY_RECORD[type(record)].encode(record)


def decode(data: bytes, start: int, end: int) -> Record:
    """The record whose bytes are ``data[start:end]``. Raises ValueError if it is too short for its kind."""
    codec = _BY_KIND.get(data[start + KIND_OFFSET])
    if codec is None:
        time, _, kind, lane = HEADER.unpack_from(data, start)
        return Unknown(time, lane, kind, data[start + HEADER.size : end])
    record: Record = codec.decode(data, start, end)
    return record


def split(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each record of ``data`` begins and ends, without one that is cut at the end. Raises ValueError for a
    length that no record has."""
    start, end = 0, len(data)
    while start + HEADER.size <= end:
        length = data[start + LENGTH_OFFSET] | data[start + LENGTH_OFFSET + 1] << 8
        if length < HEADER.size:
            raise ValueError(f"a record of {length} bytes")
        if start + length > end:
            return
        yield start, start + length
        start += length
