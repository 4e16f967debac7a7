"""What a test may ask of its drive and guest: the keywords of ``@pytest.mark.nvmeemu`` and of the factories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self


class BadOptions(Exception):
    """A keyword that there is not, for this fixture; one line for the user."""


@dataclass(frozen=True)
class _Options:
    @classmethod
    def of(cls, values: Mapping[str, Any], what: str) -> Self:
        """Raises BadOptions."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise BadOptions(f"{what} takes no {name}=: there is {', '.join(known)}")
        return cls(**values)


@dataclass(frozen=True)
class DriveOptions(_Options):
    """Of every drive. ``size`` as ``nvmeemu serve --size`` takes it."""

    size: str = "64M"
    block_size: int = 512


@dataclass(frozen=True)
class ServerOptions(DriveOptions):
    """Of a drive in a process of its own: ``disk`` is an image that is kept (a new one of ``size`` if None), ``serve``
    are more options for ``nvmeemu serve``."""

    disk: Path | None = None
    serve: Sequence[str] = ()


@dataclass(frozen=True)
class GuestOptions(ServerOptions):
    """Of a guest: ``append`` to the kernel's command line, CPUs, memory, more options for QEMU.

    ``patience``: seconds for each step, if the step is not given a time of its own. ``wait``: until the guest's kernel
    shows the drive. ``reboots``: QEMU stays when the guest reboots; otherwise it ends then.
    """

    size: str = "256M"
    append: str = ""
    smp: int = 1
    mem: str = "512M"
    qemu: Sequence[str] = ()
    patience: float = 300.0
    wait: bool = True
    reboots: bool = False
