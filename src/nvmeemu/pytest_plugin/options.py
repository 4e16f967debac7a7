"""What a test may ask of its drive and guest: the keywords of ``@pytest.mark.nvmeemu`` and of the factories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from nvmeemu.app.drive.file import Written, read
from nvmeemu.app.drive.source import Failure
from nvmeemu.backend import BackendError, parse_size
from nvmeemu.controller.bounds import CHOICES, OPTIONS, Choice, Option
from nvmeemu.controller.limits import Limits
from nvmeemu.faults import Fault, FaultError


class BadOptions(Exception):
    """This fixture has no such keyword, or the keyword cannot have that value; one line for the user."""


_OPTIONS: list[Option | Choice] = [*OPTIONS.values(), *CHOICES.values()]
_LIMITS = {option.keyword: option for option in _OPTIONS}


def _limit(keyword: str) -> Any:
    option = _LIMITS[keyword]
    default = None if keyword == "mdts" else option.default  # which follows mpsmin
    return _option(default, f"{option.about} ({option.values})")


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class DriveOptions:
    """All drives have these options."""

    size: str = _option("64M", "of the disk, as for `nvmeemu serve --size`")
    block_size: int = _option(512, "512 or 4096")
    faults: Sequence[Fault | Mapping[str, Any]] = _option((), "faults that are there before the host is")
    queues: int = _limit("queues")
    mqes: int = _limit("mqes")
    mdts: int | None = _limit("mdts")
    aerl: int = _limit("aerl")
    cap_to: int = _limit("cap_to")
    mpsmin: int = _limit("mpsmin")
    mpsmax: int = _limit("mpsmax")
    dstrd: int = _limit("dstrd")
    max_namespaces: int = _limit("max_namespaces")
    max_attached: int = _limit("max_attached")
    nvme_version: str = _limit("nvme_version")
    sgls: str = _limit("sgls")
    plugins: Sequence[str | Path] = _option((), "files that add commands, log pages, ... (docs/extend.md)")

    @classmethod
    def of(cls, values: Mapping[str, Any], what: str) -> Self:
        """Raises BadOptions."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise BadOptions(f"{what} takes no {name}=: there is {', '.join(known)}")
        return cls(**values)

    def __post_init__(self) -> None:
        if not isinstance(self.size, str):
            raise BadOptions(f'size={self.size!r} is not text: write size="64M"')
        try:
            parse_size(self.size)
        except BackendError as error:
            raise BadOptions(f"size: {error}") from None
        if self.block_size not in (512, 4096):
            raise BadOptions(f"block_size={self.block_size!r} is neither 512 nor 4096")
        if isinstance(self.faults, (str, Mapping, Fault)):
            raise BadOptions(f"faults={self.faults!r}: give a list of faults")
        if isinstance(self.plugins, (str, Path)):
            raise BadOptions(f"plugins={self.plugins!r}: give a list of files")
        self._check_limits()

    def new_faults(self) -> list[Fault]:
        """The faults, made anew: each drive has its own, and several drives may share these options."""
        try:
            return [Fault.of(fault.as_table() if isinstance(fault, Fault) else fault) for fault in self.faults]
        except FaultError as error:
            raise BadOptions(f"faults: {error}") from None

    def _check_limits(self) -> None:
        for keyword, option in _LIMITS.items():
            value = getattr(self, keyword)
            if not option.admits(value) and not (keyword == "mdts" and value is None):
                raise BadOptions(f"{keyword}={value!r} is not {option.words}")
        try:
            _ = self.limits
        except ValueError as error:
            raise BadOptions(f"there is no such controller: {error}") from None

    @property
    def limits(self) -> Limits:
        """Of its controller."""
        return Limits.of({keyword: getattr(self, keyword) for keyword in _LIMITS})

    @property
    def limit_words(self) -> list[str]:
        """The same for ``nvmeemu serve``."""
        given = [(option, getattr(self, keyword)) for keyword, option in _LIMITS.items()]
        return [
            word
            for option, value in given
            if value not in (None, option.default)
            for word in (f"--{option.name}", str(value))
        ]

    @property
    def known_plugins(self) -> Sequence[str | Path]:
        """All that its drive has."""
        return self.plugins

    @property
    def plugin_words(self) -> list[str]:
        """The plugins for ``nvmeemu serve``."""
        return [word for path in self.plugins for word in ("--plugin", str(path))]


@dataclass(frozen=True)
class ServerOptions(DriveOptions):
    """``nvme_server`` and ``nvme_guest``, whose drive is in a process of its own, have these, too."""

    disk: Path | None = _option(None, "an image, which is kept; otherwise a new one of `size`")  # noqa: RUF009  # a field, as its neighbours
    drive: Path | None = _option(  # noqa: RUF009  # a field, as its neighbours
        None,
        "a [drive file](drive-file.md) instead of `disk`, `size` and `block_size`; `trace` and `control` are ours",
    )
    serve: Sequence[str] = _option((), "more options for `nvmeemu serve`")

    @classmethod
    def of(cls, values: Mapping[str, Any], what: str) -> Self:
        """Raises BadOptions."""
        for name in ("disk", "size", "block_size"):
            if name in values and values.get("drive") is not None:
                raise BadOptions(f"drive= and {name}=: the drive file says what its disks are")
        return super().of(values, what)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_words("serve", self.serve)
        _ = self.drive_file

    @property
    def drive_file(self) -> Written | None:
        """What its drive file says."""
        if self.drive is None:
            return None
        try:
            return read(str(self.drive))
        except Failure as error:
            raise BadOptions(f"drive: {error}") from None

    @property
    def known_plugins(self) -> Sequence[str | Path]:
        file = self.drive_file
        return [*self.plugins, *(file.tables.top.get("plugins", ()) if file else ())]

    def disk_words(self, disk: Path) -> list[str]:
        """The disks for ``nvmeemu serve``, where ``disk`` is the one without a drive file."""
        if self.drive is not None:
            return ["--drive", str(self.drive)]
        return ["--disk", str(disk), "--block-size", str(self.block_size)]


@dataclass(frozen=True)
class GuestOptions(ServerOptions):
    """``nvme_guest`` also has these."""

    size: str = _option("256M", "of the disk")
    append: str = _option("", "added to the kernel's command line")
    smp: int = _option(1, "CPUs")
    mem: str = _option("512M", "memory")
    qemu: Sequence[str] = _option((), "more options for QEMU")
    patience: float = _option(
        300.0, "seconds for each step (a boot, a command, a text awaited) without a time of its own"
    )
    wait: bool = _option(True, "wait until the guest's kernel shows the drive")
    reboots: bool = _option(False, "the guest may reboot; otherwise QEMU ends then")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_words("qemu", self.qemu)


def _check_words(name: str, words: Sequence[str]) -> None:
    if isinstance(words, str):
        raise BadOptions(f"{name}={words!r} is one text: give a list of words")
