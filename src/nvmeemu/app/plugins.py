"""``--plugin FILE.py``: what a user's file adds is there before the options behind it are read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any


def add_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup, owner: argparse.ArgumentParser) -> None:
    """Give a command the option ``--plugin``. The parser ``owner`` refuses a bad file, and shows in its help what the
    plugin adds."""
    about = "a file that adds commands, log pages, features, fault actions or disks (docs/extend.md); may be repeated"
    parser.add_argument("--plugin", metavar="FILE", action=_Load, owner=owner, default=[], help=about)


class _Load(argparse.Action):
    """Loads the plugin at its place in the command line, so that later options can use what it adds."""

    def __init__(self, *, owner: argparse.ArgumentParser, **options: Any) -> None:
        super().__init__(**options)
        self._owner = owner

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from nvmeemu.plugin import PluginError, load  # start-up: without one, none of it is needed

        path = str(values)
        given = getattr(namespace, self.dest)
        if os.path.realpath(path) in map(os.path.realpath, given):
            self._owner.error(f"--plugin {path}: it is given twice")
        try:
            plugin = load(path)
            plugin.install()
        except PluginError as error:
            self._owner.error(str(error))
        except KeyboardInterrupt:  # not of the terminal, which ends the process at once: the file raises it
            self._owner.error(f"plugin {path}: it was interrupted: no KeyboardInterrupt there")
        setattr(namespace, self.dest, [*given, path])
        shown = self._owner.epilog or "plugins:"
        self._owner.epilog = f"{shown}\n  {plugin.describe()}"
