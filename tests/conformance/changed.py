"""Imports one module from a changed text instead of its file, here and in Python processes that this one starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType


class _Finder(MetaPathFinder):
    def __init__(self, name: str, path: str, text: str) -> None:
        self._name = name
        self._path = path
        self._text = text.encode()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        loader = _Loader(fullname, self._path)
        loader.text = self._text
        return spec_from_file_location(fullname, self._path, loader=loader)


class _Loader(SourceFileLoader):
    text = b""

    def get_data(self, path: str) -> bytes:
        return self.text

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError  # so that no bytecode is read or written


def install(name: str, path: str, text: str) -> None:
    """In this process, which must not have imported the module."""
    sys.meta_path.insert(0, _Finder(name, path, text))


def hand_on(folder: Path, name: str, path: str, text: str) -> None:
    """To all Pythons that are started from here on; ``folder`` is empty, and theirs."""
    program = f"{Path(__file__).read_text()}\n\ninstall({name!r}, {path!r}, {text!r})\n"
    (folder / "sitecustomize.py").write_text(program)  # Python imports it at its start
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
