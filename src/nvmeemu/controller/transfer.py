"""Where the data and metadata of a command lie in guest memory: the seam between commands and data pointers. Base 1.4,
4.3 and 4.4."""

from __future__ import annotations

from collections.abc import Sequence

from nvmeemu.controller import prp, sgl
from nvmeemu.controller.prp import Run
from nvmeemu.ports import Host, HostMemoryError
from nvmeemu.spec import Command, SglDescriptor, Status
from nvmeemu.spec.errors import CommandFailed


class Transfer:
    """``runs`` are the places that a pointer of the command describes, (iova, bytes) in order. The pointer is walked
    once for each way that data goes. So the host cannot change later where it goes, nor what a trace says of it. Of a
    bit bucket, bytes that the host does not want, the iova is None.

    ``is_sgl``: the pointer is an SGL.
    """

    __slots__ = ("_host", "_to_host", "length", "runs")
    is_sgl = False

    def __init__(self, host: Host) -> None:
        self.length = 0
        self.runs: Sequence[Run] = []
        self._host = host
        self._to_host = False

    def views(self, length: int, to_host: bool) -> list[memoryview]:
        """Views of its ``length`` bytes, in order. They die with the memory map. Raises CommandFailed for a bad
        pointer, and HostMemoryError where memory is missing."""
        if length != self.length or to_host != self._to_host:
            self.runs = self._walk(length, to_host)
            self.length, self._to_host = length, to_host
        if len(self.runs) == 1:
            iova, size = self.runs[0]
            try:
                return [self._host.view(iova, size)] if iova is not None else [_bucket(size)]
            except HostMemoryError:
                return self._host.views(iova or 0, size, to_host)
        found: list[memoryview] = []
        for iova, size in self.runs:
            found += [_bucket(size)] if iova is None else self._host.views(iova, size, to_host)
        return found

    def _walk(self, length: int, to_host: bool) -> Sequence[Run]:
        """The runs of so many bytes."""
        raise NotImplementedError

    @property
    def has_list(self) -> bool:
        """Whether a list in guest memory says where the data lies, so that the command alone does not."""
        raise NotImplementedError


class PrpTransfer(Transfer):
    """Data by PRP1 and PRP2."""

    __slots__ = ("_page_size", "_prp1", "_prp2")

    def __init__(self, host: Host, prp1: int, prp2: int, page_size: int) -> None:
        super().__init__(host)
        self._prp1 = prp1
        self._prp2 = prp2
        self._page_size = page_size

    def _walk(self, length: int, to_host: bool) -> Sequence[Run]:
        return prp.runs(self._host, self._prp1, self._prp2, length, self._page_size)

    @property
    def has_list(self) -> bool:
        return self.length > 2 * self._page_size - (self._prp1 & self._page_size - 1)


class SglTransfer(Transfer):
    """Data by an SGL, whose first ``descriptor`` stands in the command."""

    __slots__ = ("_descriptor",)
    is_sgl = True

    def __init__(self, host: Host, descriptor: bytes) -> None:
        super().__init__(host)
        self._descriptor = descriptor

    def _walk(self, length: int, to_host: bool) -> list[Run]:
        return sgl.runs(self._host, self._descriptor, length, to_host)

    @property
    def has_list(self) -> bool:
        return sgl.is_list(self._descriptor)


class ContiguousMetadata(Transfer):
    """Metadata at MPTR, in one piece. It begins at a dword, and in a command whose data is an SGL at any byte (SGLS bit
    17)."""

    __slots__ = ("_alignment", "_mptr")

    def __init__(self, host: Host, mptr: int, alignment: int) -> None:
        super().__init__(host)
        self._mptr = mptr
        self._alignment = alignment

    def _walk(self, length: int, to_host: bool) -> list[Run]:
        if self._mptr % self._alignment:
            _refuse_mptr(f"no multiple of {self._alignment}")
        return [(self._mptr, length)]

    @property
    def has_list(self) -> bool:
        return False


class SglMetadata(Transfer):
    """Metadata by an SGL, whose first descriptor lies at MPTR."""

    __slots__ = ("_mptr",)
    is_sgl = True

    def __init__(self, host: Host, mptr: int) -> None:
        super().__init__(host)
        self._mptr = mptr

    def _walk(self, length: int, to_host: bool) -> list[Run]:
        if self._mptr & 7:
            _refuse_mptr("the address of an SGL descriptor: no multiple of 8")
        first = b"".join(self._host.views(self._mptr, SglDescriptor.SIZE, False))
        return sgl.runs(self._host, first, length, to_host, sgl.METADATA)

    @property
    def has_list(self) -> bool:
        return True


def _refuse_mptr(why: str) -> None:
    raise CommandFailed(Status.INVALID_FIELD, location=(16, 0), why=why)


def _bucket(size: int) -> memoryview:
    """Memory that takes what the host does not want."""
    return memoryview(bytearray(size))


def transfer_of(host: Host, entry: bytes, page_size: int) -> Transfer:
    """Where the data of the command with this entry lies: PSDT says how to read its data pointer."""
    if entry[1] & _PSDT:
        return SglTransfer(host, entry[24:40])
    prp1, prp2 = _prps(entry)
    return PrpTransfer(host, prp1, prp2, page_size)


_PSDT = Command(psdt=0b11).flags
_prps = Command.unpacker("prp1", "prp2")


def scatter(places: list[memoryview], data: bytes | bytearray | memoryview) -> None:
    """Copy ``data`` into ``places``, in order."""
    source = memoryview(data)
    start = 0
    for place in places:
        place[:] = source[start : start + len(place)]
        start += len(place)
