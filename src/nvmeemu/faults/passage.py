"""What passes one of the places where faults happen."""

from __future__ import annotations

from dataclasses import dataclass

from nvmeemu.faults.places import At
from nvmeemu.spec import Command, EventType, words
from nvmeemu.subsystem.formats import Format

PIN = -1  # the vector of INTA#


@dataclass
class Passage:
    """What does not belong to its place is at its default."""

    at: At
    qid: int | None = None
    command: Command | None = None
    status: int | None = None  # of a completion
    offset: int = 0
    size: int = 0
    is_write: bool = False
    value: int | None = None  # of a doorbell, or what is written to a register
    is_cq: bool = False
    vector: int | None = None
    event: int | None = None
    format: Format | None = None  # at the disk: of the command's blocks

    def __str__(self) -> str:
        """For the user: ``SQ 1 #0003 Write nsid=1 slba=0 nlb=8``, ``write CC = 0x460001 (...)``, ..."""
        if self.command is not None:
            said = words.command(self.qid or 0, bytes(self.command))
            return f"SQ {self.qid} #{self.command.cid:04x} {said}"
        if self.at == At.REGISTER:
            data = (self.value or 0).to_bytes(self.size, "little")
            said = words.register(self.offset, data)
            return f"write {said}" if self.is_write else f"read {said.partition(' = ')[0]}"
        if self.at == At.DOORBELL:
            return f"{'CQ' if self.is_cq else 'SQ'} {self.qid} {'head' if self.is_cq else 'tail'} {self.value}"
        if self.at == At.INTERRUPT:
            return "pin" if self.vector == PIN else f"vector {self.vector}"
        if self.event is not None:
            known = frozenset(EventType)
            return f"event {words.words(EventType(self.event)) if self.event in known else self.event}"
        return f"SQ {self.qid}" if self.qid is not None else "the device"
