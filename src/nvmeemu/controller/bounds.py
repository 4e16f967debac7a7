"""The options that bound what a controller can do: of ``nvmeemu serve``, ``nvmeemu run`` and the pytest plugin. What
they mean to a controller is in ``limits``, which is not needed to print a help text."""

from __future__ import annotations

from typing import NamedTuple

MAX_IO_QUEUES = 64
MOST_NAMESPACES = 255  # SCSI, and so Windows, counts no further


class Option(NamedTuple):
    """How a limit is given: the name on the command line, its default, the numbers that it takes, and what it is."""

    name: str
    default: int
    least: int
    most: int
    about: str

    @property
    def keyword(self) -> str:
        """The name in Python."""
        return self.name.replace("-", "_")

    @property
    def values(self) -> str:
        """What it can be."""
        return f"{self.least} to {self.most}"

    @property
    def words(self) -> str:
        """The same in a sentence."""
        return f"a number from {self.values}"

    def admits(self, value: object) -> bool:
        """Whether it can be this."""
        return type(value) is int and self.least <= value <= self.most


class Choice(NamedTuple):
    """The same for a limit that is one of a few words."""

    name: str
    default: str
    choices: tuple[str, ...]
    about: str

    @property
    def keyword(self) -> str:
        """The name in Python."""
        return self.name.replace("-", "_")

    @property
    def values(self) -> str:
        """What it can be."""
        return ", ".join(self.choices)

    @property
    def words(self) -> str:
        """The same in a sentence."""
        return f"one of {self.values}"

    def admits(self, value: object) -> bool:
        """Whether it can be this."""
        return value in self.choices


OPTIONS = {
    "io_queues": Option("queues", MAX_IO_QUEUES, 1, MAX_IO_QUEUES, "I/O queue pairs"),
    "entries": Option("mqes", 1024, 2, 1 << 16, "CAP.MQES: entries in an I/O queue at most"),
    "mdts": Option("mdts", 9, 1, 9, "MDTS: a transfer is 2^N of the smallest pages at most, and 2 MiB"),
    "aerl": Option("aerl", 8, 1, 256, "AERL: Asynchronous Event Requests that may wait"),
    "timeout": Option("cap-to", 60, 1, 255, "CAP.TO: how long a host waits for CSTS.RDY, in 500 ms"),
    "min_page_shift": Option("mpsmin", 0, 0, 4, "CAP.MPSMIN: the smallest pages are 4 KiB * 2^N"),
    "max_page_shift": Option("mpsmax", 4, 0, 4, "CAP.MPSMAX: the largest pages are 4 KiB * 2^N"),
    "dstrd": Option("dstrd", 0, 0, 15, "CAP.DSTRD: from one doorbell to the next are 4 * 2^N bytes"),
    "namespaces": Option("max-namespaces", 16, 1, MOST_NAMESPACES, "NN: every NSID is from 1 to N"),
    "attached": Option(
        "max-attached", MOST_NAMESPACES, 1, MOST_NAMESPACES, "MAXCNA: namespaces that a guest may attach"
    ),
}
"""By the fields of ``limits.Limits``."""

CHOICES = {
    "version": Choice(
        "nvme-version", "2.0", ("1.2", "1.3", "1.4", "2.0"), "VS: the version of the specification that is stated"
    ),
    "sgls": Choice("sgls", "on", ("on", "off"), "SGLS: whether I/O commands may have SGLs in the place of PRPs"),
}
"""The same for those that are one of a few words."""
