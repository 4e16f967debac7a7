"""The plugins that drive files name. What they add is in the whole process, so all its drives have the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence, Set

from nvmeemu.app.drive.source import Failure, Source


class ProcessPlugins:
    """The plugins of this process. Those ``given`` on the command line are there already, for all drives."""

    def __init__(self, given: Iterable[str] = ()) -> None:
        self._given = frozenset(map(os.path.realpath, given))
        self._first: tuple[Source, Set[str]] | None = None  # the first drive file, and what it names

    def install(self, paths: Sequence[str], source: Source) -> None:
        """Have what the next drive file names. Raises Failure if the one before it names others."""
        by_file = {os.path.realpath(path): path for path in paths}
        if len(by_file) != len(paths):
            raise source.failure("plugins: one is given twice", "plugins")
        named = by_file.keys() - self._given
        if self._first is None:
            self._first = source, named
            for file, path in by_file.items():
                if file in named:
                    _install(path, source)
        elif named != self._first[1]:
            raise self._others(source, self._first[0], is_named=bool(named))

    @staticmethod
    def _others(source: Source, first: Source, *, is_named: bool) -> Failure:
        blamed, other = (source, first) if is_named else (first, source)
        text = f"plugins: all drives of a process have them, and {other.file} does not name the same"
        return blamed.failure(f"{text}: name them in both, or serve each drive by a process of its own", "plugins")


def _install(path: str, source: Source) -> None:
    from nvmeemu.plugin import PluginError, load  # start-up: most drives have none

    try:
        load(path).install()
    except PluginError as error:
        raise source.failure(f"plugins: {error}", "plugins") from None
