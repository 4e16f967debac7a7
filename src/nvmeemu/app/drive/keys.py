"""The keys of a drive file, declared once: the drive file, its schema and documentation, the options of the command
line and the words of ``nvmeemu ctl namespace add`` are made of these tables.

The classes have no methods but the constructor: start-up, where each method of a dataclass is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from nvmeemu.app.arguments import MOST_IO_THREADS
from nvmeemu.app.drive.kinds import (
    ChoiceValue,
    DiskValue,
    FaultsValue,
    FilesValue,
    FlagValue,
    HexValue,
    NumberValue,
    OffValue,
    PathValue,
    PoolValue,
    SizeValue,
    TextValue,
    ValueKind,
)
from nvmeemu.controller.bounds import CHOICES, MAX_IO_QUEUES, MOST_NAMESPACES, OPTIONS

_FROM_DISK = "made from the disk's path"


@dataclass(eq=False, repr=False)
class Key:
    """One key of a table. ``otherwise`` says in words what holds without it."""

    name: str
    kind: ValueKind
    about: str
    otherwise: str
    group: str
    """Of options in --help; none: it is no option."""
    option: str
    """The option's name."""
    is_each: bool
    """Given once for each disk, in their order; other options of namespaces hold for all of them."""
    is_required: bool

    @property
    def help(self) -> str:
        """For --help."""
        about = f"{self.about}; the first one for the first --disk, ..." if self.is_each else self.about
        return f"{about} ({self.otherwise})".replace("%", "%%") if self.otherwise else about


def _key(
    default: Any,
    kind: ValueKind,
    about: str,
    otherwise: str | None = None,
    group: str = "",
    option: str = "",
    **more: bool,
) -> Any:
    if otherwise is None:
        otherwise = "" if default is False or default in (None, ()) else str(default)
    return field(
        default=default,
        metadata={"kind": kind, "about": about, "otherwise": otherwise, "group": group, "option": option, **more},
    )


@dataclass(eq=False, repr=False)
class DriveTable:
    """A drive: a subsystem, its namespaces and its controllers."""

    name: str | None = _key(
        None, TextValue("NAME", 40), "what tells it from others in the same process", "the file's name"
    )
    state: str | None = _key(
        None,
        PathValue("FILE"),
        "keep there what the drive remembers without power (docs/state.md)",
        "it is new at each start; in the `pool`, if that is a folder",
        "device",
    )
    pool: str | None = _key(
        None, PoolValue(), "where namespaces lie that guests create (docs/namespaces.md)", "they cannot", "disk"
    )
    capacity: int | None = _key(None, SizeValue(), "with `pool`: how much guests may create there", group="disk")
    plugins: Sequence[str] = _key(
        (), FilesValue(), "Python files that add commands, log pages, ... as `--plugin` does (docs/extend.md)"
    )


@dataclass(eq=False, repr=False)
class IdentityTable:
    """Who the drive says it is."""

    serial: str | None = _key(None, TextValue("S", 20), "serial number", "made from the first disk's path", "device")
    model: str = _key("nvmeemu NVMe Controller", TextValue("M", 40), "model number", group="device")
    firmware: str = _key("1.0", TextValue("F", 8), "firmware revision, 8 characters", group="device")
    subnqn: str | None = _key(
        None, TextValue("NQN", 223, "nqn."), "NVM subsystem", "made from serial and model number", "device"
    )
    vendor_id: int | None = _key(
        None, NumberValue(0, 0xFFFF, "ID"), "PCI vendor id, for example 0x1234", "one of ours", "device"
    )
    device_id: int | None = _key(None, NumberValue(0, 0xFFFF, "ID"), "PCI device id", "one of ours", "device")


@dataclass(eq=False, repr=False)
class NamespaceTable:
    """A namespace, and the disk that it lies on."""

    disk: str = _key(
        "", DiskValue(), "a raw file, a block device, or mem:SIZE; each is a namespace", "", "disk", is_required=True
    )
    nsid: int | None = _key(None, NumberValue(1, MOST_NAMESPACES), "the namespace's number", "the first free one")
    size: int | None = _key(None, SizeValue(), "with `create`: size of the disk, for example 10G", group="disk")
    create: bool = _key(False, FlagValue(), "make the file if it does not exist", group="disk")
    read_only: bool = _key(False, FlagValue(), "never write; others may read the disk too", group="disk")
    overlay: bool = _key(False, FlagValue(), "throw away at exit what is written; never copies", group="disk")
    direct: bool = _key(False, FlagValue(), "no page cache (O_DIRECT), as QEMU's cache.direct=on", group="disk")
    block_size: int = _key(512, ChoiceValue(512, 4096), "bytes of a block", group="disk")
    metadata: int = _key(0, ChoiceValue(0, 8, 16, 64), "bytes of metadata of a block", group="disk")
    extended: bool = _key(False, FlagValue(), "metadata follow the data of each block in one buffer", group="disk")
    protection: int = _key(0, ChoiceValue(0, 1, 2, 3), "type of protection information; 0: none", group="disk")
    protection_first: bool = _key(False, FlagValue(), "it is first in the metadata, not last", group="disk")
    guard: int = _key(16, ChoiceValue(16, 32, 64), "bits of its guard", group="disk")
    storage_tag: int = _key(0, NumberValue(0, 64), "bits of its storage tag", group="disk")
    block_map: bool = _key(False, FlagValue(), "know which blocks are deallocated (docs/companion.md)", group="disk")
    atomic: str | None = _key(
        None,
        ChoiceValue("4K", "8K", "16K", "32K", "64K", "128K", "256K", "512K", "1M"),
        "so long a write happens wholly or not at all, whoever reads and whoever is killed (docs/atomic.md)",
        "one block",
        "disk",
    )
    companion: str | None = _key(
        None, PathValue("FILE"), "the file of the metadata and of the block map", "the disk's path and .nvme"
    )
    format: str | None = _key(
        None,
        ChoiceValue("allow", "refuse"),
        "whether a host may erase the disk by Format NVM",
        "allowed for `mem:` and with `overlay`",
        "disk",
    )
    delete: str = _key(
        "refuse",
        ChoiceValue("allow", "refuse"),
        "with `pool`: whether a guest may delete the namespace; the disk itself stays as it is",
        group="disk",
    )
    nguid: bytes | None = _key(None, HexValue(16), "NGUID, 16 bytes", _FROM_DISK, "device", is_each=True)
    uuid: bytes | None = _key(None, HexValue(16, "UUID"), "UUID, 16 bytes", _FROM_DISK, "device", is_each=True)
    eui64: bytes | None = _key(None, HexValue(8), "EUI-64, 8 bytes", "none", "device", is_each=True)

    @property
    def is_shareable(self) -> bool:
        """Whether the disk is not written to, so that others may use it, too."""
        return self.read_only or self.overlay

    @property
    def may_be_formatted(self) -> bool:
        """Whether a host may erase it."""
        begins_anew = self.overlay or self.disk.startswith("mem:")
        return not self.read_only and (begins_anew if self.format is None else self.format == "allow")


@dataclass(eq=False, repr=False)
class ControllerTable:
    """A controller, and how it is served."""

    socket: str | None = _key(None, PathValue(), "where to listen; made with mode 0600", group="socket")
    cntlid: int = _key(1, NumberValue(0, 0xFFEF), "controller id", group="device")
    queues: int | None = _key(None, NumberValue(1, MAX_IO_QUEUES), "I/O queue pairs of this one", "as in [limits]")
    msix: bool = _key(
        True,
        OffValue("no MSI-X capability: the interrupt pin only"),
        "an MSI-X capability; without it, there is the interrupt pin only",
        "true",
        "device",
        "no-msix",
    )
    engine: str = _key(
        "auto",
        ChoiceValue("auto", "native", "python"),
        "who serves reads and writes: native (C, fast), python, or auto: native if it was built",
        group="process",
    )
    doorbells: str = _key(
        "auto",
        ChoiceValue("auto", "trapped", "mapped"),
        "trapped: messages, asleep when idle; mapped: memory, polled by the native engine; auto: trapped",
        group="process",
    )
    io_threads: int | None = _key(
        None,
        NumberValue(1, MOST_IO_THREADS),
        "of the native engine",
        f"half of the CPUs that it may use, {MOST_IO_THREADS} at most",
        "process",
    )
    trace: str | None = _key(
        None, PathValue("FILE"), "record all that host and device say; see nvmeemu trace --help", group="trace"
    )
    trace_payload: bool = _key(False, FlagValue(), "with the data itself, not only its digests", group="trace")
    faults: Sequence[str] = _key(
        (), FaultsValue(), "break it on purpose (docs/faults.md): files, or scenario:NAME", group="faults and control"
    )
    control: str | None = _key(
        None, PathValue(), "listen there for nvmeemu ctl; made with mode 0600", group="faults and control"
    )
    ocp: bool = _key(
        False, FlagValue(), "let the guest arm faults: nvme ocp set-error-injection", group="faults and control"
    )


def _declared(table: type) -> Mapping[str, Key]:
    found = {}
    for one in fields(table):
        data = dict(one.metadata)
        option = data.pop("option") or one.name.replace("_", "-")
        found[one.name] = Key(one.name, option=option, **(dict[str, Any](is_each=False, is_required=False) | data))
    return found


def _limits() -> Iterator[Key]:
    for option in OPTIONS.values():
        kind = NumberValue(option.least, option.most)
        otherwise = f"{option.default} less mpsmin" if option.name == "mdts" else str(option.default)
        yield Key(option.keyword, kind, option.about, otherwise, "limits", option.name, False, False)
    for choice in CHOICES.values():
        words = ChoiceValue(*choice.choices)
        yield Key(choice.keyword, words, choice.about, choice.default, "limits", choice.name, False, False)


TOP = ""
TABLES: dict[str, Mapping[str, Key]] = {
    TOP: _declared(DriveTable),
    "identity": _declared(IdentityTable),
    "limits": {key.name: key for key in _limits()},
    "namespace": _declared(NamespaceTable),
    "controller": _declared(ControllerTable),
}
"""The keys of each table by their names; those of TOP stand above all tables."""
LISTS = ("namespace", "controller")
"""There can be several of them: [[namespace]]."""
ABOUT = {
    TOP: DriveTable.__doc__,
    "identity": IdentityTable.__doc__,
    "limits": "What the controller can do at most.",
    "namespace": NamespaceTable.__doc__,
    "controller": ControllerTable.__doc__,
}
