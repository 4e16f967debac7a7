"""Commands in numbers, for loads."""

from __future__ import annotations

from collections.abc import Iterable

from nvmeemu.spec import Command, Completion, NvmOpcode, ReadWrite
from nvmeemu.testing import PAGE, Driver

BLOCK = 512


def transfer(opcode: NvmOpcode, place: int, slba: int, size: int = PAGE, *, fua: bool = False) -> ReadWrite:
    """A command that transfers up to two pages between page-aligned memory and the disk."""
    prp2 = place + PAGE if size > PAGE else 0
    return ReadWrite(opcode=opcode, nsid=1, prp1=place, prp2=prp2, slba=slba, nlb=size // BLOCK, fua=fua)


def run_batch(driver: Driver, commands: Iterable[Command], qid: int = 1) -> list[Completion]:
    """Submit all with one doorbell write, wait for all; their completions in the order of their arrival."""
    queue = driver.queues[qid]
    waiting = {driver.submit(queue, command, ring=False) for command in commands}
    driver.ring_sq(queue)
    found: list[Completion] = []
    for _ in range(driver.patience):
        while (completion := driver.poll(queue, ring=False)) is not None:
            waiting.remove(completion.cid)
            found.append(completion)
        if not waiting:
            driver.ring_cq(queue)
            return found
        driver.bus.settle()
    raise TimeoutError(f"{len(waiting)} commands are not completed")
