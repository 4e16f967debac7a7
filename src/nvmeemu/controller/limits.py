"""What a controller can do: the limits that its registers and Identify tell the host, and that it keeps.

``bounds`` has the options that give them to ``nvmeemu serve``, ``nvmeemu run`` and the pytest plugin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from nvmeemu.controller.bounds import CHOICES, MAX_IO_QUEUES, OPTIONS, Choice, Option
from nvmeemu.spec import BAR0_LEAST, DOORBELLS, PAGE_MIN, VERSIONS

MOST_TRANSFER = 2 << 20  # bytes
FUSED_BLOCKS = 128  # of a fused operation, at most: ACWU
_WIDTH = 4  # bytes of a doorbell


@dataclass(frozen=True)
class Limits:
    """The defaults suit every driver that we know; the conformance tests say which driver needs what. Raises
    ValueError for limits that no controller can have."""

    io_queues: int = OPTIONS["io_queues"].default
    vectors: int = MAX_IO_QUEUES + 1  # MSI-X messages; 0: no MSI-X, the pin only
    entries: int = OPTIONS["entries"].default
    mdts: int = OPTIONS["mdts"].default
    aerl: int = OPTIONS["aerl"].default
    acl: int = 4
    timeout: int = OPTIONS["timeout"].default
    min_page_shift: int = OPTIONS["min_page_shift"].default
    max_page_shift: int = OPTIONS["max_page_shift"].default
    dstrd: int = OPTIONS["dstrd"].default
    namespaces: int = OPTIONS["namespaces"].default
    attached: int = OPTIONS["attached"].default
    version: str = CHOICES["version"].default
    sgls: str = CHOICES["sgls"].default
    least_bar0: int = BAR0_LEAST  # bytes

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("queues", self.io_queues, 1, 0xFFFF),
            ("vectors", self.vectors, 0, 2048),
            ("mqes", self.entries, 2, 1 << 16),
            ("mdts", self.mdts, 1, 0xFF),
            ("aerl", self.aerl, 1, 256),
            ("acl", self.acl, 1, 256),
            ("cap-to", self.timeout, 0, 255),
            ("mpsmax", self.max_page_shift, 0, 15),
            ("dstrd", self.dstrd, 0, 15),
            ("max-namespaces", self.namespaces, 1, 0xFFFFFFFE),
            ("max-attached", self.attached, 1, 0xFFFFFFFE),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} {value} is not within {least} and {most}")
        if self.version not in VERSIONS:
            raise ValueError(f"nvme-version {self.version} is none of {', '.join(VERSIONS)}")
        if self.sgls not in CHOICES["sgls"].choices:
            raise ValueError(f"sgls {self.sgls} is none of {', '.join(CHOICES['sgls'].choices)}")
        if not 0 <= self.min_page_shift <= self.max_page_shift:
            raise ValueError(f"mpsmin {self.min_page_shift} is above mpsmax {self.max_page_shift}")
        if self.transfer > MOST_TRANSFER:
            page = PAGE_MIN << self.min_page_shift >> 10
            raise ValueError(f"mdts {self.mdts} is too large for pages of {page} KiB: a transfer is 2 MiB at most")

    @classmethod
    def of(cls, options: Mapping[str, Any], *, has_msix: bool = True) -> Self:
        """Limits from the keywords of options. An option that is missing or None has its default. There is a vector
        for each queue. Raises ValueError."""
        known: dict[str, Option | Choice] = {**OPTIONS, **CHOICES}
        given = {name: options[option.keyword] for name, option in known.items() if option.keyword in options}
        values = {name: value for name, value in given.items() if value is not None}
        if "mdts" not in values:
            values["mdts"] = cls.mdts - values.get("min_page_shift", 0)  # as many bytes
        queues = values.get("io_queues", cls.io_queues)
        return cls(**values, vectors=queues + 1 if has_msix else 0)

    @cached_property  # each read and write asks
    def transfer(self) -> int:
        """The largest transfer in bytes: MDTS counts pages of CAP.MPSMIN (Base 1.4, Figure 247)."""
        return PAGE_MIN << self.min_page_shift + self.mdts

    @property
    def vs(self) -> int:
        """The version that the controller states: VS."""
        return VERSIONS[self.version]

    @property
    def is_of_base_2(self) -> bool:
        """Whether Base 2.0 holds for the controller. It demands CAP.CRMS, CRTO and the scopes of the Commands Supported
        and Effects log, and before it these bits are reserved."""
        return self.vs >= VERSIONS["2.0"]

    @property
    def has_sgls(self) -> bool:
        """Whether I/O commands may have SGLs."""
        return self.sgls == "on"

    @property
    def stride(self) -> int:
        """Bytes from one doorbell to the next."""
        return _WIDTH << self.dstrd

    @property
    def bar0_size(self) -> int:
        """Bytes of BAR0: the registers and the doorbells of all queues in a power of two (Base 1.4, 3.1)."""
        end = DOORBELLS + 2 * (self.io_queues + 1) * self.stride
        return max(self.least_bar0, 1 << (end - 1).bit_length())
