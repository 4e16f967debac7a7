"""Disks of namespaces that are removed: when they are closed, and that the end of the server finds them open."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from nvmeemu.app.disks import LOOK_AGAIN, Disks
from nvmeemu.app.drive.description import Drive, Tables
from nvmeemu.app.drive.source import Source
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.testing import ManualWorker, VirtualClock
from nvmeemu.vfio import Loop


class Timed(ManualWorker):
    """What ``Disks`` uses of a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.call_later = self.clock.call_later


class Rig:
    """A drive with one disk, which is removed."""

    def __init__(self, folder: Path) -> None:
        (folder / "disk").write_bytes(bytes(1 << 20))
        self.loop = Timed()
        drive = Drive.of(Tables(namespaces=[{"disk": str(folder / "disk")}], controllers=[{"socket": "s"}]), Source())
        self.disks = Disks(drive, cast(Loop, self.loop))
        (namespace,) = self.disks.open_all()
        assert isinstance(namespace.media, DiskMedia)
        self.media = namespace.media
        self.is_busy = False

    def remove(self) -> None:
        self.disks.remove(self.media, lambda: self.is_busy)

    @property
    def is_open(self) -> bool:
        """It can be flushed, and is among those that the end will flush."""
        try:
            self.media.backend.flush()
        except OSError:
            return False
        return list(self.disks.media.values()) == [self.media]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_it_is_closed_when_it_has_been_flushed(rig: Rig) -> None:
    rig.remove()
    assert rig.is_open
    rig.loop.finish_all()
    assert not rig.is_open
    assert not rig.disks.media


def test_it_is_flushed_when_nothing_is_under_way_any_more(rig: Rig) -> None:
    rig.is_busy = True
    rig.remove()
    for is_busy in (True, False):
        rig.is_busy = is_busy
        rig.loop.clock.advance(LOOK_AGAIN)
        assert len(rig.loop.tasks) == (not is_busy)
    rig.loop.finish_all()
    assert not rig.is_open


@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.kills("a-removed-disk-is-closed-while-the-end-syncs-it")
def test_at_the_end_it_stays_open(is_busy: bool, rig: Rig) -> None:
    """The end syncs all that is open: one that is closed in the middle of that would be called lost."""
    rig.is_busy = is_busy
    rig.remove()
    rig.disks.keep_open()
    rig.is_busy = False
    rig.loop.clock.advance(LOOK_AGAIN)
    assert len(rig.loop.tasks) == (not is_busy)  # what had begun
    rig.loop.finish_all()
    assert rig.is_open
