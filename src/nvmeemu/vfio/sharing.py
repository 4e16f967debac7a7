"""Whether a VMM shares its guest's memory.

A VMM can map the file of its memory for itself alone (MAP_PRIVATE). The file looks like any other from here. But what
the guest writes never gets into it, and the guest may never see what we write. So we look at the VMM's mappings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple


class File(NamedTuple):
    """The identity of a file, ``st_dev`` and ``st_ino`` of fstat(2)."""

    device: int
    inode: int


class _Mapping(NamedTuple):
    start: int  # offsets in the file
    end: int
    is_private: bool  # and may be written


class Sharing:
    """The mappings of one client, the process ``pid``. 0: the process is not known, and so are its mappings."""

    def __init__(self, pid: int = 0) -> None:
        self._pid = pid
        self._shared: dict[File, list[_Mapping]] = {}

    def is_refused(self, file: File, start: int, end: int) -> bool:
        """Whether the client has this part of the file for itself alone. False also if we cannot know: it has not
        mapped it (yet), or its maps are not for us."""
        if any(one.start <= start and end <= one.end for one in self._shared.get(file, ())):
            return False
        found = list(_mappings(self._pid, file)) if self._pid else []
        self._shared[file] = [one for one in found if not one.is_private]
        overlapping = [one for one in found if one.start < end and start < one.end]
        return bool(overlapping) and all(one.is_private for one in overlapping)


def _mappings(pid: int, file: File) -> Iterator[_Mapping]:
    """The mappings that a process has of one file, from proc_pid_maps(5)."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            for line in maps:
                place, access, offset, device, inode, *_ = line.split(maxsplit=5)
                major, minor = (int(number, 16) for number in device.split(b":"))
                if int(inode) == file.inode and os.makedev(major, minor) == file.device:
                    first, last = (int(number, 16) for number in place.split(b"-"))
                    start = int(offset, 16)
                    yield _Mapping(start, start + last - first, access[1:2] == b"w" and access[3:4] == b"p")
    except OSError:  # it has gone, or is not ours to look into
        return
