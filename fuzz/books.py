"""What a host knows: its queues, and the commands that the controller has taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nvmeemu.controller.executor import Executor
from nvmeemu.queues import SubmissionQueue
from nvmeemu.spec import ReadWrite


@dataclass(eq=False)
class Cq:
    """A completion queue, as the host knows it."""

    qid: int
    iova: int
    entries: int
    vector: int
    ien: bool
    head: int = 0
    tail: int = 0
    phase: int = 1
    news: int = 0  # completions of this step
    is_trusted: bool = True  # False: the host wrote a head that the queue cannot have


@dataclass(eq=False)
class Sq:
    """A submission queue, as the host knows it. ``fetched`` counts its commands since it was made."""

    qid: int
    iova: int
    entries: int
    cq: Cq
    head: int = 0
    tail: int = 0
    fetched: int = 0
    is_trusted: bool = True
    outstanding: list[Fetched] = field(default_factory=list)


@dataclass(eq=False)
class Fetched:
    """A command that the controller has taken and not completed."""

    sq: Sq
    entry: bytes
    number: int  # of its queue's commands, itself included
    step: int
    version: int  # of the disk, when it was fetched
    block: int  # bytes that move for each block, with its metadata if they are in the same buffer
    beside: int  # bytes of metadata of each block in a buffer of their own
    data: bytes | None = None  # what a Write found in memory
    metadata_places: list[tuple[int, int]] | None = None  # if an SGL says where its separate metadata go
    places: list[tuple[int, int]] | None = None  # where its data may go: as its pointer said in the first step

    @property
    def opcode(self) -> int:
        return self.entry[0]

    @property
    def cid(self) -> int:
        return int.from_bytes(self.entry[2:4], "little")

    @property
    def io(self) -> ReadWrite:
        return ReadWrite(self.entry)


@contextmanager
def watch_fetches(tell: Callable[[SubmissionQueue, bytes], None]) -> Iterator[None]:
    """Call ``tell`` with each entry that any submission queue gives out."""
    original = Executor._fetched

    def fetched(executor: Executor, sq: SubmissionQueue, entry: bytes, is_next: bool) -> None:
        tell(sq, entry)
        original(executor, sq, entry, is_next)

    Executor._fetched = fetched  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Executor._fetched = original  # type: ignore[method-assign]
