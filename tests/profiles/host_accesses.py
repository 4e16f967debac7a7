"""What a host did between its I/O, in words that are the same at each run: for comparing a profile with a recording."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from nvmeemu import regs, spec
from nvmeemu.profiles.learning import Learning
from nvmeemu.spec import words
from nvmeemu.trace import (
    ClientLeft,
    Completion,
    Fetch,
    InterruptMode,
    PciChange,
    Record,
    RegisterRead,
    RegisterWrite,
    Reset,
)
from nvmeemu.trace.commands import by_fetch, written_configuration

ADDRESSES = (regs.ASQ, regs.ACQ)


def register(record: RegisterRead | RegisterWrite) -> str:
    """Addresses are others at each run."""
    text = words.register(record.offset, record.data)
    is_address = any(one.offset <= record.offset < one.offset + one.size for one in ADDRESSES)
    return text.partition(" = ")[0] if is_address else text


def accesses(records: list[Record]) -> Iterator[tuple[int, str]]:
    """(number of the record, what), without interrupt handlers, doorbells and I/O; reads of CSTS in one."""
    handlers = Learning(records).handlers
    fetched = by_fetch(records)
    found: list[tuple[int, str]] = []
    is_disabled = False
    for number, record in enumerate(records):
        is_disabled &= not isinstance(record, Reset)
        if isinstance(record, RegisterRead):
            is_poll = record.offset == regs.CSTS.offset
            found.append((number, "read CSTS" if is_poll else f"read {register(record)}"))
        elif isinstance(record, RegisterWrite) and number not in handlers:
            found.append((number, f"write {register(record)}"))
        elif isinstance(record, PciChange) and record.bus_master and record.interrupt_disable != is_disabled:
            is_disabled = record.interrupt_disable
            found.append((number, f"Interrupt Disable = {int(is_disabled)}"))
        elif isinstance(record, InterruptMode):
            found.append((number, f"MSI-X {'on' if record.msix else 'off'}"))
        elif isinstance(record, Fetch) and not record.sqid:
            done = fetched[number].completion
            entry = spec.Command(record.sqe)
            place = f" at {entry.prp1 % 4096:#x}" if entry.prp1 % 4096 else ""
            answer = "" if done is None or not done.status else f" -> {words.status(done.status)}"
            found.append((number, f"{words.command(0, record.sqe)}{place}{answer}"))
    for what, group in groupby(found, key=lambda one: one[1]):
        same = list(group)
        yield from same[:1] if what == "read CSTS" else same


def starts(records: list[Record]) -> Iterator[list[str]]:
    """For each time that commands are given after CC.EN was set: what the host did from its last command before that
    to its first I/O command, or to the end of its machine."""
    enables = [
        number
        for number, record in enumerate(records)
        if isinstance(record, RegisterWrite) and (cc := written_configuration(record)) and cc.en and not cc.shn
    ]
    all_accesses = list(accesses(records))
    commands = [number for number, record in enumerate(records) if isinstance(record, Fetch | Completion)]
    ends = [
        number
        for number, record in enumerate(records)
        if isinstance(record, Reset | ClientLeft) or (isinstance(record, Fetch) and record.sqid)
    ]
    done = -2
    for enable in enables:
        first = max((one for one in commands if one < enable), default=-1)
        if first == done:
            continue
        done = first
        last = min((one for one in ends if one > enable), default=len(records))
        found = [what for number, what in all_accesses if first < number < last]
        yield found[:-1] if found[-1] == "read CSTS" else found  # looked at from time to time


def between(records: list[Record]) -> list[list[str]]:
    """What it did between two I/O commands, each time that it did something; without reads of CSTS."""
    all_accesses = dict(accesses(records))
    found: list[list[str]] = [[]]
    for number, record in enumerate(records):
        if isinstance(record, Fetch) and record.sqid:
            found.append([])
        elif number in all_accesses and all_accesses[number] != "read CSTS":
            found[-1].append(all_accesses[number])
    return [one for one in found[1:-1] if one]


def ending(records: list[Record]) -> list[str]:
    """What it did after its last I/O command, up to the end of its machine."""
    last = max(number for number, record in enumerate(records) if isinstance(record, Fetch) and record.sqid)
    end = next(
        (at for at, one in enumerate(records) if at > last and isinstance(one, Reset | ClientLeft)), len(records)
    )
    return [what for number, what in accesses(records) if last < number < end]
