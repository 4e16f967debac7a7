"""Faults that the guest arms itself: Error Injection, feature C0h of the OCP Datacenter NVMe SSD Specification.

``nvme ocp set-error-injection`` of nvme-cli 2.13 sends it. There are no saved values; a reset of the function (not one
of the controller) ends all injections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from nvmeemu.faults import Fault, Faults
from nvmeemu.plugin import CommandFailed, ControllerState, Feature, Plugin, Record, Request, bit, uint
from nvmeemu.spec import ADMIN_COMMANDS, AsyncEventRequest, GetFeatures, Select, SetFeatures, Status

plugin = Plugin("ocp")
FID = 0xC0
OCP = UUID("c194d55b-e094-4794-a21d-29998f56be6f")
MOST = 127  # entries


class Entry(Record, size=32):
    """Error Injection Data Structure Entry. ``reads``: Number of Reads to Trigger Device Panic."""

    enable = bit(0, 0, size=1)
    single = bit(0, 1, size=1)
    type = uint(2, 2)
    reads = uint(4, 2)


READ: dict[str, Any] = {"opcode": "read"}
IO: dict[str, Any] = {"queue": "io"}
_KEPT = (AsyncEventRequest, SetFeatures, GetFeatures)  # to end it again
ADMIN: dict[str, Any] = {
    "queue": "admin",
    "opcode": [number for number in range(256) if ADMIN_COMMANDS.of(number) not in _KEPT],
}


@dataclass(frozen=True)
class Kind:
    """What an error of OCP's is here."""

    name: str
    match: dict[str, Any]
    at: str
    do: Any


def _at_io(name: str, do: Any) -> Kind:
    """At an I/O command: the command that arms it can still be completed."""
    return Kind(name, IO, "execute", do)


KINDS: dict[int, Kind] = {
    1: _at_io("CPU/controller hang", "hang"),
    2: Kind("NAND hang", IO, "backend", "drop"),
    3: _at_io("PLP defect", {"smart": {"degraded": True}}),
    4: _at_io("logical firmware error", "cfs"),
    5: _at_io("DRAM corruption, critical", "cfs"),
    6: _at_io("DRAM corruption, not critical", {"status": "internal_error", "dnr": False}),
    7: Kind("NAND corruption", READ, "backend", {"error": "EIO"}),
    8: _at_io("SRAM corruption", {"status": "internal_error", "dnr": True}),
    9: _at_io("hardware malfunction", "cfs"),
    10: _at_io("no more NAND spares", [{"smart": {"spare": 0}}, {"read_only": 1}]),
    11: _at_io("incomplete shutdown", "endless_shutdown"),
    14: Kind("latency spike", IO, "backend", {"delay": 1.0}),
    15: _at_io("I/O command failure", {"status": "internal_error", "dnr": True}),
    16: _at_io("I/O command timeout", "drop"),
    17: Kind("admin command failure", ADMIN, "execute", {"status": "internal_error", "dnr": True}),
    18: Kind("admin command timeout", ADMIN, "execute", "drop"),
    19: Kind("thermal throttling", IO, "backend", {"delay": "20ms"}),
    21: _at_io("critical temperature", {"smart": {"temperature": 360}}),
}
"""By OCP's numbers; those from 12 on came after OCP 2.0. The ones that are missing mean nothing for a drive without
flash, or end another one."""


class ErrorInjection(Feature):
    """A set of ``Entry``, each a fault of ``faults``."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(FID)
        self._faults = faults
        self._armed: dict[int, tuple[Entry, Fault]] = {}  # by type

    def admit(self, request: Request[GetFeatures] | Request[SetFeatures]) -> None:
        """UUID Index: none, or OCP's."""
        if request.command.cdw14 & 0x7F > 1:
            raise CommandFailed(Status.INVALID_FIELD, location=(56, 0))

    def get(self, request: Request[GetFeatures], select: int) -> int:
        """DW0: the number of entries. The buffer gets so many: nvme-cli's has no room for a whole page, and nvme-cli
        2.13 gives none at all."""
        entries = [bytes(entry) for entry, _ in self._armed.values()] if select == Select.CURRENT else []
        if entries and request.command.prp1:
            request.send(b"".join(entries))
        return len(entries)

    def set(self, request: Request[SetFeatures]) -> int:
        """CDW11 bits 6:0: the number of entries in the buffer; 0 ends all. An entry that is not enabled ends its
        type."""
        number = request.command.cdw11 & 0x7F
        data = request.receive(number * Entry.SIZE) if number else b""
        entries = [Entry(data[start : start + Entry.SIZE]) for start in range(0, len(data), Entry.SIZE)]
        for entry in entries:
            if entry.enable and entry.type not in KINDS:
                raise CommandFailed(Status.INVALID_FIELD, location=(24, 0))
        if not entries:
            self.clear()
        for entry in entries:
            self._disarm(entry.type)
            if entry.enable:
                self._arm(entry)
        return 0

    def _arm(self, entry: Entry) -> None:
        kind = KINDS[entry.type]
        when = {"after": entry.reads - 1} if entry.reads > 1 else {}
        if entry.single:
            when["times"] = 1
        fault = Fault(READ if entry.reads else kind.match, kind.at, kind.do, when, f"OCP: {kind.name}")
        self._armed[entry.type] = entry, self._faults.add(fault)

    def _disarm(self, kind: int) -> None:
        if kind in self._armed:
            _, fault = self._armed.pop(kind)
            if fault in self._faults:
                self._faults.remove(fault)

    def clear(self) -> None:
        """End all injections."""
        for kind in tuple(self._armed):
            self._disarm(kind)


@plugin.for_each_controller
def offer(controller: ControllerState, faults: Faults) -> None:
    """Have the guest find and arm it: the feature, and OCP's entry in the UUID list."""
    injection = ErrorInjection(faults)
    plugin.give_feature(controller, injection)
    plugin.give_uuid(controller, OCP)
    faults.on_reset = injection.clear
