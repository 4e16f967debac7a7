"""Faults of metadata: blocks that their protection information does not fit, and metadata that are wrong.

All of them change what the medium gives or gets, below the checks of protection information. So a host that asks for
the checks is told, and a host that does not gets the wrong bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from random import Random
from typing import Any, ClassVar

from nvmeemu.faults import data
from nvmeemu.faults.action import Action
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import At
from nvmeemu.faults.plan import Plan
from nvmeemu.faults.target import Target
from nvmeemu.faults.words import blocks, spoiling
from nvmeemu.spec import NVM_COMMANDS, ReadWrite, Verify
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.subsystem.media import Blocks

Block = tuple[bytes | bytearray, bytes | bytearray]
"""Data and metadata of one."""


class OfBlocks(Action):
    """Changes each block that a command reads or writes, or those of ``lba``; without it those of ``match.lba``."""

    places = (At.BACKEND,)
    options: ClassVar[tuple[str, ...]] = ("lba",)
    reasons: ClassVar = {
        At.DMA: "what the disk holds is wrong, so that the check finds it: leave out at, and corrupt what arrives"
    }

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        super().__init__(argument, options)
        self._take(options)

    def _take(self, options: Mapping[str, Any]) -> None:
        self.lba = blocks(options["lba"], "do.lba") if "lba" in options else None

    def check(self, at: At, matched: Mapping[str, Any]) -> None:
        if self.lba is None and "lba" in matched:
            self.lba = blocks(matched["lba"], "match.lba")

    def concerns(self, at: At, opcode: int) -> bool:
        kind = NVM_COMMANDS.of(opcode)
        return kind.MOVES_BLOCKS or kind is Verify

    def wanted(self, at: At) -> str:
        return "reads, writes or verifies a disk's blocks"

    def applies(self, passage: Passage) -> bool:
        command, format = passage.command, passage.format
        if format is None or not isinstance(command, ReadWrite) or not self.can_change(format):
            return False
        if isinstance(command, Verify) and (format.protection is None or not command.prinfo & 7 | command.stc):
            return False  # it looks at nothing
        return self.lba is None or self.lba.overlaps(command.slba, command.slba + command.nlb - 1)

    def plan(self, target: Target, plan: Plan) -> None:
        seed = target.random.getrandbits(32)  # now: the disk is read on another thread
        plan.disk.spoils.insert(0, partial(self._spoil, seed))

    def _spoil(self, seed: int, format: Format, slba: int, found: Blocks) -> Blocks:
        chance, content, metadata = data.random_of(seed), bytearray(found.data), bytearray(found.metadata)
        size, beside = format.data_size, format.metadata_size
        for index in range(len(content) // size):
            if self.lba is None or slba + index in self.lba:
                at, its = slice(index * size, (index + 1) * size), slice(index * beside, (index + 1) * beside)
                content[at], metadata[its] = self.changed(format, chance, content[at], metadata[its])
        return Blocks(content, metadata)

    def can_change(self, format: Format) -> bool:
        """Whether there is anything in blocks of this format that it can change."""
        raise NotImplementedError

    def changed(self, format: Format, chance: Random, data: bytearray, metadata: bytearray) -> Block:
        """A block as it is from now on."""
        raise NotImplementedError


class WrongMetadata(OfBlocks):
    """The metadata of each block are wrong, and its data are not. "flip" changes ``bits`` (1) of them; "zeros" and
    "ones" replace them."""

    name = "wrong_metadata"
    options = ("lba", "bits")

    def __init__(self, argument: Any, options: Mapping[str, Any]) -> None:
        self.kind, self.bits = spoiling("do.wrong_metadata", argument, options, ("flip", "zeros", "ones"))
        self._take(options)

    def can_change(self, format: Format) -> bool:
        return format.metadata_size > 0

    def changed(self, format: Format, chance: Random, content: bytearray, metadata: bytearray) -> Block:
        return content, data.spoil(self.kind, self.bits, chance, metadata)


class OfProtection(OfBlocks):
    """A check of protection information fails. Blocks that are not checked (the application tag is FFFFh, for example
    because nobody has written them) keep their tags."""

    def can_change(self, format: Format) -> bool:
        return format.protection is not None and self.is_in(format.protection)

    def is_in(self, protection: Protection) -> bool:
        """Whether blocks that are protected like this have what it changes."""
        return True


class GuardError(OfProtection):
    """A bit of the data of each block is wrong, so they do not fit their guard."""

    name = "guard_error"

    def changed(self, format: Format, chance: Random, content: bytearray, metadata: bytearray) -> Block:
        return data.spoil("flip", 1, chance, content), metadata


class TagError(OfProtection):
    """A tag of each block is wrong."""

    def changed(self, format: Format, chance: Random, content: bytearray, metadata: bytearray) -> Block:
        protection = format.protection
        assert protection is not None
        end = format.protection_offset + protection.size
        place = slice(end - 2 - protection.guard.tag_bits // 8, end)
        tags = int.from_bytes(metadata[place], "big")
        if not _is_escaped(protection, tags):
            metadata[place] = self.wrong(protection, tags).to_bytes(place.stop - place.start, "big")
        return content, metadata

    def wrong(self, protection: Protection, tags: int) -> int:
        """Others in place of ``tags``: the application tag, then storage and reference tag, as one number."""
        raise NotImplementedError


def _is_escaped(protection: Protection, tags: int) -> bool:
    """NVM 1.0, 5.2.1: whether a block with these tags is not checked."""
    others = (1 << protection.guard.tag_bits) - 1
    is_all_ones = tags & others == others
    return tags >> protection.guard.tag_bits == 0xFFFF and (protection.type != 3 or is_all_ones)


class ApplicationTagError(TagError):
    """The application tag of each block is wrong."""

    name = "application_tag_error"

    def wrong(self, protection: Protection, tags: int) -> int:
        shift = protection.guard.tag_bits
        other = ~(tags >> shift) & 0xFFFF
        if other == 0xFFFF:
            other = 0x7FFF  # or the block would not be checked
        return other << shift | tags & (1 << shift) - 1


class ReferenceTagError(TagError):
    """The reference tag of each block is wrong. With type 3 nobody checks it."""

    name = "reference_tag_error"

    def is_in(self, protection: Protection) -> bool:
        return protection.type != 3

    def wrong(self, protection: Protection, tags: int) -> int:
        return tags ^ (1 << protection.reference_bits) - 1


class StorageTagError(TagError):
    """The storage tag of each block is wrong."""

    name = "storage_tag_error"

    def is_in(self, protection: Protection) -> bool:
        return protection.storage_tag_size > 0

    def wrong(self, protection: Protection, tags: int) -> int:
        return tags ^ (1 << protection.storage_tag_size) - 1 << protection.reference_bits
