"""The judge of the fuzzer follows what the host has the controller do: it blames no controller that is right."""

from __future__ import annotations

from collections.abc import Callable

from machine import Machine, watched
from nvmeemu.spec import (
    Command,
    ControllerList,
    FormatNvm,
    HostNamespace,
    NamespaceAttachment,
    NamespaceManagement,
    Read,
    Write,
)

FORMAT_NVM = 0x80
PAGE, SECOND = 0x420000, 0x42C000


def runner(machine: Machine) -> Callable[[int, Command], None]:
    def run(queue: int, command: Command) -> None:
        command.cid += 5000
        device_sq, sq = machine.sqs[queue]
        machine.ring_tail(device_sq, sq, machine.place(sq, bytes(command)))
        machine.settle()
        while machine.worker.tasks:
            machine.worker.tasks[0].run()
            machine.worker.tasks[0].finish()
            machine.settle()

    return run


def test_a_namespace_may_be_formatted_to_other_blocks() -> None:
    """CI found it: a Read of what a guest had formatted from 512 to 4096 bytes a block wrote more than was expected."""
    machine = Machine(bytes(8))
    with watched(machine):
        machine.start(2)
        run, page = runner(machine), machine.guest.data[0].iova
        machine.guest.write(page, bytes(HostNamespace(nsze=64, ncap=64)))
        run(0, NamespaceManagement(prp1=page, cid=1))
        machine.guest.write(page, bytes(ControllerList(number=1, ids=(1).to_bytes(2, "little"))))
        run(0, NamespaceAttachment(nsid=2, prp1=page, cid=2))
        run(0, Command(opcode=FORMAT_NVM, nsid=2, cdw10=4, cid=3))
        machine.guest.write(page, bytes(range(256)) * 32)
        run(1, Write(nsid=2, prp1=page, prp2=page + 4096, nlb=2, cid=4))
        run(1, Read(nsid=2, prp1=PAGE, prp2=SECOND, nlb=2, cid=5))
        assert machine.guest.read(SECOND, 4096) == bytes(range(256)) * 16


def test_metadata_go_where_the_metadata_pointer_says() -> None:
    """In a buffer of their own, behind the data, or nowhere (PRACT): the host knows by the format. The namespace begins
    with metadata, and is formatted to others."""
    machine = Machine(bytes((0, 0, 0, 0, 1, 0, 0, 0)))  # 512 + 8, with protection information of type 1
    with watched(machine):
        machine.start(2)
        run, data = runner(machine), bytes(range(256)) * 4
        machine.guest.write(page := machine.guest.data[0].iova, data)
        run(1, Write(nsid=3, prp1=page, nlb=2, pract=True, cid=1))
        run(1, Read(nsid=3, prp1=PAGE, mptr=SECOND, nlb=2, check_guard=True, check_reference=True, cid=2))
        assert (machine.guest.read(PAGE, 1024), machine.guest.read(SECOND + 15, 1)) == (data, b"\x01")
        run(1, Read(nsid=3, prp1=PAGE + 1024, nlb=2, pract=True, cid=3))
        assert machine.guest.read(PAGE + 1024, 1024) == data
        run(0, FormatNvm(nsid=3, lbafl=1, mset=True, cid=4))  # without protection, and in the same buffer
        run(1, Write(nsid=3, prp1=page, nlb=1, cid=5))
        run(1, Read(nsid=3, prp1=PAGE + 2048, nlb=1, cid=6))
        assert machine.guest.read(PAGE + 2048, 520) == data[:520]
