"""What an instruction can do: each operation takes the machine and seven operands."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from memory import Violation
from nvmeemu.spec import DOORBELLS, SQE_SIZE
from nvmeemu.testing import ACQ, AQA, ASQ, CC, INTMC, INTMS

if TYPE_CHECKING:
    from machine import Machine

ENTRIES = 64  # in an I/O queue at most
ERRNOS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.ETIMEDOUT)
Operation = Callable[["Machine", bytes], None]


def submit(machine: Machine, args: bytes) -> None:
    """Place a command, mostly a good one, and mostly ring."""
    if not machine.sqs:
        restart(machine, args)
        return
    device_sq, sq = machine.sqs[args[0] % len(machine.sqs)]
    if (machine.builder.tails.get(sq, sq.tail) + 1) % sq.entries != sq.head:
        machine.place(sq, machine.builder.build(sq, args[1:]))
    if args[0] < 0xC0:
        machine.ring_tail(device_sq, sq, machine.builder.tails.get(sq, sq.tail))


def delete(machine: Machine, args: bytes) -> None:
    """Delete a queue, whatever is under way."""
    for device_sq, sq in machine.sqs[:1]:
        if (machine.builder.tails.get(sq, sq.tail) + 1) % sq.entries != sq.head:
            machine.ring_tail(device_sq, sq, machine.place(sq, machine.builder.delete(args)))


def ring(machine: Machine, args: bytes) -> None:
    """Write any value to any doorbell."""
    value = int.from_bytes(args[2:6], "little") if args[6] & 1 else args[2] % (2 * ENTRIES)
    pairs: list[tuple[int, int]] = [(sq.qid * 2, sq.tail) for _, sq in machine.sqs]
    pairs += [(cq.qid * 2 + 1, cq.head) for _, cq in machine.cqs]
    if args[1] & 0x80 or not pairs:
        machine.write(DOORBELLS + args[0] * (4 if args[1] & 1 else 1), value.to_bytes(4, "little")[: 1 + args[1] % 4])
    else:
        index, current = pairs[args[0] % len(pairs)]
        machine.set_reg(DOORBELLS + 4 * index, current if args[1] & 1 else value)


def consume(machine: Machine, args: bytes) -> None:
    if machine.cqs:
        machine.consume(*machine.cqs[args[0] % len(machine.cqs)], args[1] % ENTRIES + 1)


def shadow(machine: Machine, args: bytes) -> None:
    """Write any value to a shadow doorbell, with or without the real one."""
    pairs = [(device_sq, sq) for device_sq, sq in machine.sqs if device_sq.shadow]
    if not pairs:
        return
    device_sq, sq = pairs[args[0] % len(pairs)]
    if args[1] & 1:
        machine.ring_tail(device_sq, sq, args[2], keep_quiet=bool(args[1] & 2))
    else:
        sq.cq.is_trusted = False
        machine.ring_shadow(2 * sq.cq.qid + 1, args[2], 0)
        machine.set_reg(DOORBELLS + 8 * sq.cq.qid + 4, 0)


def register(machine: Machine, args: bytes) -> None:
    """Any access to any register, except that the mask of interrupts is mostly left alone."""
    offset = (CC, CC + 4, AQA, ASQ, ASQ + 4, ACQ, ACQ + 4, INTMS, INTMC, 0x1C, 0x20, 0, 8)[args[0] % 13]
    if args[1] & 0x80:
        offset = int.from_bytes(args[0:2], "little") % machine.controller.bar0_size
    size = (1, 2, 4, 8)[args[1] >> 2 & 3]
    size = min(size, machine.controller.bar0_size - offset)
    if args[1] & 1:
        if len(machine.controller.read(offset, size)) != size:
            raise Violation(f"a read of {size} bytes at {offset:#x} gave another number")
    else:
        machine.write(offset, (args[2:7] * 2)[:size])


def mask(machine: Machine, args: bytes) -> None:
    machine.set_reg(INTMS if args[0] & 1 else INTMC, 1 << args[1] % 4)


def control(machine: Machine, args: bytes) -> None:
    """CC, a reset of the function, health."""
    cc = int.from_bytes(machine.controller.read(CC, 4), "little")
    kind = args[0] % 7
    if kind < 2:
        machine.set_reg(CC, cc ^ 1)
    elif kind == 2:
        machine.set_reg(CC, cc & ~0xC000 | (args[1] % 3 + 1) << 14)
    elif kind == 3:
        machine.set_reg(CC, cc & ~0xC001 | args[1] % 4 << 14)
    elif kind == 4:
        machine.judge.reset()
        machine.controller.reset()
    elif kind == 5:
        machine.set_reg(CC, 0)
        machine.settle()
        machine.set_reg(CC, int.from_bytes(args[1:4], "little") | 1)
    else:
        machine.controller.set_health(temperature=250 + args[1], spare=args[2] % 101, is_degraded=bool(args[3] & 1))


def restart(machine: Machine, args: bytes) -> None:
    """What a driver does after a reset."""
    for area in machine.guest.areas:
        if not area.is_mapped or area.is_writable is area.is_rom:
            machine.remap(area, 1, True)
    machine.settle()
    machine.start(args[0] % 3 + 1, shadow=bool(args[1] & 1))


def work(machine: Machine, args: bytes) -> None:
    """A worker begins or finishes something, in any order."""
    kind, tasks = args[0] % 4, machine.worker.tasks
    if not tasks:
        return
    task = tasks[args[1] % len(tasks)]
    if kind < 2:
        if not task.has_begun:
            task.run()
    elif kind == 2 and args[2] & 1:
        machine.judge.worked = True
        machine.worker.finish_all()
    else:
        machine.judge.worked = True
        task.finish()


def memory(machine: Machine, args: bytes) -> None:
    """The VMM changes its map."""
    areas = machine.guest.areas
    area = areas[args[0] % len(areas)]
    machine.remap(area, args[1] % 6, not args[2] & 3)


def time(machine: Machine, args: bytes) -> None:
    machine.clock.advance((0.05, 0.1, 0.15, 1.1, 3600.0)[args[0] % 5])


def disk_fails(machine: Machine, args: bytes) -> None:
    operations = ("read", "write", "flush", "zero", "deallocate")
    if args[1] & 1:
        machine.disk.failures[operations[args[0] % 5]] = ERRNOS[args[1] >> 1 & 3]
    else:
        machine.disk.failures.clear()


def interrupts(machine: Machine, args: bytes) -> None:
    if args[0] & 1:
        machine.controller.pin_unmasked()
    elif machine.limits.vectors:
        machine.ram.msix_enabled = not machine.ram.msix_enabled


def scribble(machine: Machine, args: bytes) -> None:
    """The host changes a PRP list or an entry of a submission queue under the controller's eyes."""
    value = args[3:7] * 2
    if args[0] & 1 or not machine.sqs:
        machine.guest.write(machine.guest.lists.iova + int.from_bytes(args[1:3], "little") % 0xFFF8, value)
    else:
        _, sq = machine.sqs[args[1] % len(machine.sqs)]
        machine.guest.write(sq.iova + args[2] % sq.entries * SQE_SIZE, value)


OPERATIONS: tuple[Operation, ...] = (
    *(submit,) * 10,
    *(work,) * 4,
    *(consume,) * 4,
    *(memory,) * 3,
    delete,
    delete,
    ring,
    register,
    mask,
    control,
    restart,
    time,
    time,
    disk_fails,
    interrupts,
    shadow,
    scribble,
)
