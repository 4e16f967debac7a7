"""A disk that gets another format: wherever the process ends, it has the old one with its data, or the new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.backend.companion import Companion
from nvmeemu.backend.raw import RawBackend
from nvmeemu.subsystem.disk_media import DiskMedia
from nvmeemu.subsystem.formats import Format, Protection
from nvmeemu.subsystem.formatter import Formatter, complete
from nvmeemu.subsystem.paired_media import PairedMedia
from nvmeemu.testing import ManualWorker

SIZE = 1 << 20
OLD, NEW = Format(512, 16), Format(4096, 8, protection=Protection(1))
DATA = b"x" * SIZE


def _media(path: Path, is_plain: bool) -> DiskMedia:
    path.write_bytes(DATA)
    backend = RawBackend(str(path), any_content=True)
    if is_plain:
        return DiskMedia(backend, Format(512), ManualWorker())
    return PairedMedia(backend, Companion.make(f"{path}.nvme", OLD, SIZE, [(0, SIZE // 512)]), ManualWorker())


@pytest.mark.kills("erased-before-it-is-noted", "the-new-format-before-the-map-is-gone", "interrupted-is-forgotten")
@pytest.mark.parametrize("is_plain", [True, False])
def test_wherever_the_process_ends(tmp_path: Path, is_plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files are copied around each change of either, as a kill would leave them."""
    path, beside = tmp_path / "a.img", tmp_path / "a.img.nvme"
    media = _media(path, is_plain)
    worker = media.worker
    assert isinstance(worker, ManualWorker)
    copies: dict[tuple[bytes, bytes | None], None] = {}

    def copying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            copies[path.read_bytes(), beside.read_bytes() if beside.exists() else None] = None
            return function(*arguments, **named)

        return call

    for name in ("ftruncate", "fsync", "fdatasync", "rename", "pwrite"):
        monkeypatch.setattr(os, name, copying(getattr(os, name)))
    ends: list[BaseException | None] = []
    make = lambda now, wanted: Companion.make(str(beside), now, SIZE, intention=wanted)  # noqa: E731
    Formatter(media, make).start(NEW, False, lambda left: None, lambda _, error: ends.append(error))
    worker.finish_all()
    assert ends == [None]
    monkeypatch.undo()
    formats = set()
    for number, (data, companion) in enumerate(copies):
        formats.add(_looked_at(tmp_path / f"{number}.img", data, companion))
    assert formats == {None if is_plain else OLD, NEW}


def _looked_at(path: Path, data: bytes, companion: bytes | None) -> Format | None:
    """Serve a copy again; its format, after a look at what it holds."""
    path.write_bytes(data)
    if companion is None:
        assert data == DATA
        return None
    Path(f"{path}.nvme").write_bytes(companion)
    backend, found = RawBackend(str(path), any_content=True), Companion.open(f"{path}.nvme")
    complete(backend, found)
    if found.format == NEW:
        assert not any(path.read_bytes())
        assert (found.contents.intention, found.written) == (None, 0)
    else:
        assert (found.format, data, found.written) == (OLD, DATA, SIZE // 512)
    found.close()
    backend.close()
    return found.format
