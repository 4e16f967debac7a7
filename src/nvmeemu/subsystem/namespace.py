"""Namespaces: which there are, their sizes and names, and the one check of a range of blocks."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from nvmeemu.controller.limits import Limits
from nvmeemu.spec import BROADCAST, Status, WriteProtection
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.formatter import Formatter
from nvmeemu.subsystem.media import MOST_HELD, Media
from nvmeemu.subsystem.pairing import Pairer

MOST_HELD_OF_ALL = 1 << 30  # bytes that the commands at as many media as there can be may hold
_UUID_ROOT = uuid.UUID("8a2f60ac-02c0-5d3c-9f16-2f61a3a4c0de")  # names of ours live below this one (RFC 9562, v5)


@dataclass(frozen=True)
class Ids:
    """What a host knows a namespace by, whatever its NSID (Base 1.4, Figure 249); None: made from what identifies the
    disk. There is no EUI-64 but a given one, which is 8 bytes of a vendor's own (IEEE)."""

    nguid: bytes | None = None
    eui64: bytes | None = None
    uuid: uuid.UUID | None = None


class Namespace:
    """Blocks that the host knows by a number: those of ``media``, or the first of them. ``read_only``: its disk is not
    written to. ``write_protection`` is what a host has asked for (NVM 1.0, 5.12).

    ``controllers`` are those to which it is attached; None: all, also those to come. ``is_shared``: it may be attached
    to several (NMIC). ``pool_name``: a host has made it, and this is its name in the pool; None: the user has given it,
    and decides whether a host may delete it (``is_deletable``); ``has_told_of_delete``: he knows that one wanted to.
    ``formatter``: a host may format it, and erase all that it has. ``format_left``: percent of a Format that are left;
    0: there is none (FPI). ``pairer``: its disk can get a companion when one is needed; it ``is_being_paired`` then.
    """

    controllers: frozenset[int] | None = None
    is_shared = False
    pool_name: str | None = None
    allotted = 0  # bytes of the pool
    is_deletable = False
    has_told_of_delete = False
    formatter: Formatter | None = None
    pairer: Pairer | None = None
    is_being_paired = False
    format_left = 0

    def __init__(self, nsid: int, media: Media, identity: str | None = None, ids: Ids = Ids()) -> None:
        self.nsid = nsid
        self.write_protection = WriteProtection.NONE
        self.put(media)
        self.identity = identity or media.identity
        named = uuid.uuid5(_UUID_ROOT, f"{self.identity}#{nsid}")
        digest = hashlib.sha256(named.bytes).digest()
        # An EUI-64 based identifier with a locally administered OUI (bytes 8 to 10): ours alone, clashing with none.
        nguid = digest[:8] + bytes((digest[8] & 0xFC | 0x02, digest[9], digest[10])) + digest[11:16]
        self.uuid = ids.uuid or named
        self.nguid = ids.nguid or nguid
        self.eui64 = ids.eui64 or bytes(8)  # 0: none

    def put(self, media: Media) -> None:
        """Lie on this medium from now on, as a whole."""
        self.media = media
        self.format = media.format
        self._data_size = media.format.data_size
        self.has_metadata = media.format.metadata_size != 0
        self.blocks = media.blocks
        self.read_only = media.read_only

    def move(self, media: Media) -> None:
        """Lie on another medium of its disk. A namespace that had a part of the disk has as many bytes as before."""
        before, data_size = self.blocks, self._data_size
        was_whole = before == self.media.blocks
        self.put(media)
        if not was_whole:
            self.blocks = min(before * data_size // self._data_size, media.blocks)

    @property
    def is_being_formatted(self) -> bool:
        """A Format is under way."""
        return self.format_left != 0

    @property
    def can_be_uncorrectable(self) -> bool:
        """Whether blocks can be made uncorrectable: something remembers which are, or can be made for that."""
        return self.media.block_map is not None or self.pairer is not None

    @property
    def needs_extension(self) -> bool:
        """Whether a host has to know extended LBA formats (LBAFEE) before it may use the blocks."""
        return self.format.offered.needs_extension

    def length(self, slba: int, blocks: int) -> int:
        """Bytes of data in a range of blocks. Raises CommandFailed(LBA_OUT_OF_RANGE)."""
        if slba + blocks > self.blocks:
            why = f"up to block {slba + blocks - 1:#x} of {self.blocks:#x}"
            raise CommandFailed(Status.LBA_OUT_OF_RANGE, location=(40, 0), lba=slba, why=why)
        return blocks * self._data_size

    @property
    def capacity(self) -> int:
        """Bytes of data that it takes (NVMCAP). Another format does not change what it takes of the pool."""
        return self.allotted or self.blocks * self._data_size

    @property
    def is_write_protected(self) -> bool:
        """Whether the host is told that it is write protected (NSATTR)."""
        return self.read_only or self.write_protection != WriteProtection.NONE

    def check_writable(self) -> None:
        """Raises CommandFailed(NAMESPACE_WRITE_PROTECTED)."""
        if self.is_write_protected:
            why = "the disk is read-only" if self.read_only else "a host has write protected the namespace"
            raise CommandFailed(Status.NAMESPACE_WRITE_PROTECTED, why=why)


@dataclass
class Namespaces:
    """Namespaces by NSID: those that are active to a controller, or all of a subsystem. ``nn`` bounds every NSID and
    never changes (Base 1.4, Figure 247, NN)."""

    nn: int = Limits.namespaces
    by_nsid: dict[int, Namespace] = field(default_factory=dict)

    @property
    def most_held(self) -> int:
        """Bytes that the commands at each disk may hold while it works on them. While they hold less, another command
        may begin, so this is exceeded by at most one transfer."""
        return min(MOST_HELD, MOST_HELD_OF_ALL // self.nn)

    def __getitem__(self, nsid: int) -> Namespace:
        """The namespace. Raises CommandFailed: INVALID_NAMESPACE for 0, FFFFFFFFh and what is above NN, INVALID_FIELD
        for one that is not there (Base 1.4, 6.1.2 and Figure 126)."""
        namespace = self.by_nsid.get(nsid)
        if namespace is None:
            status = Status.INVALID_FIELD if self.is_valid(nsid) else Status.INVALID_NAMESPACE
            why = "no such namespace at this time" if self.is_valid(nsid) else f"outside of 1 to NN, {self.nn}"
            raise CommandFailed(status, location=(4, 0), why=why)
        return namespace

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self.by_nsid.values())

    @property
    def media(self) -> list[Media]:
        """What can be flushed: the media of all but those that are being formatted."""
        return [one.media for one in self if not one.is_being_formatted]

    def is_valid(self, nsid: int) -> bool:
        return 1 <= nsid <= self.nn

    def addressed(self, nsid: int) -> list[Namespace]:
        """All namespaces that a command addresses, if FFFFFFFFh means every namespace for it."""
        return list(self) if nsid == BROADCAST else [self[nsid]]
