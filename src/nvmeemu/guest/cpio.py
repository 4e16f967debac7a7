"""Writes the cpio archive ("newc") that Linux unpacks as its first root file system.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat

MAGIC = b"070701"
TRAILER = "TRAILER!!!"


class Archive:
    """A cpio archive in memory. Parent folders are made as needed; everything belongs to root, dated 0."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0
        self._seen: set[str] = set()

    def folder(self, path: str) -> None:
        """Add a folder, and the folders above it."""
        path = path.strip("/")
        if path and path not in self._seen:
            self._parent(path)
            self._entry(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._parent(path)
        self._entry(path.strip("/"), stat.S_IFREG | mode, content)

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._parent(path)
        self._entry(path.strip("/"), stat.S_IFCHR | 0o600, b"", (major, minor))

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._seen

    def finish(self) -> bytes:
        """The whole archive, with its trailer."""
        self._entry(TRAILER, 0, b"")
        return bytes(self._data)

    def _parent(self, path: str) -> None:
        self.folder(path.strip("/").rpartition("/")[0])

    def _entry(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._seen.add(name)
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, links, mtime, size, device of the file (2), device of the node (2), name size, check
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._data += MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)
