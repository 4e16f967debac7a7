"""The output of the commands: styled on a terminal, plain in a pipe, with progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table

from nvmeemu.app.arguments import complain
from nvmeemu.text import plain
from nvmeemu.trace.file import Reader
from nvmeemu.trace.records import Record

T = TypeVar("T")

PATIENCE = 0.5  # seconds that a person waits without a bar
_EVERY = 4096  # records between two looks at the clock
_PIPE_WIDTH = 200  # columns of a table that nobody folds

_STYLES = {
    "SQ": "cyan",
    "CQ": "green",
    "BAR0": "yellow",
    "IRQ": "magenta",
    "DMA": "blue",
    "PCI": "blue",
    "title": "bold",
    "bad": "bold red",
    "dim": "dim",
}


class Output:
    """stdout for lines by the million and for rich's tables."""

    def __init__(self) -> None:
        self.console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
        has_styles = self.console.is_terminal and not self.console.no_color
        self._styles = {name: Style.parse(style) for name, style in _STYLES.items()} if has_styles else {}

    def styled(self, name: str, text: str) -> str:
        """``text``, in the style of that name if there are any."""
        style = self._styles.get(name)
        return text if style is None else style.render(text)

    def line(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")

    def tables(self, *tables: Table) -> None:
        """Print tables, one below the other. On a terminal, which may be narrow, columns that are empty are left out.
        In a pipe all columns stay, but not the spaces at the ends of lines."""
        if self.console.is_terminal:
            for one in tables:
                one.columns = [column for column in one.columns if any(column.cells)]
            self.console.print(*tables, sep="")
            return
        with self.console.capture() as captured:
            self.console.print(*tables, sep="")
        for line in captured.get().splitlines():
            self.line(line.rstrip())


def with_progress(reader: Reader, *, prints: bool = True) -> Iterator[Record]:
    """Its records, with a bar if a person waits for them; at the end a word on stderr if the trace was cut.

    ``prints``: lines go to stdout meanwhile, so no bar if that is the terminal, too.
    """
    size = reader.raw_size
    if prints and sys.stdout.isatty():
        yield from reader
    else:
        yield from with_bar(reader, plain(reader.name), size, lambda _: reader.raw_position if size else 0)
    tell_if_cut(reader)


def tell_if_cut(reader: Reader) -> None:
    """On stderr, when it has been read."""
    if reader.is_cut:
        complain("nvmeemu", f"{reader.name}: cut: it ends within a record")


def with_bar(items: Iterable[T], name: str, total: int, done: Callable[[int], int]) -> Iterator[T]:
    """The items, with a bar on stderr if that is a terminal and they take their time. ``done`` gets an item's number
    and returns how much of ``total`` has been done (0: unknown)."""
    console = Console(stderr=True)
    if not (sys.stderr.isatty() and console.is_interactive):
        yield from items
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(name, total=total or None)
    start = monotonic()
    try:
        for number, item in enumerate(items):
            if number % _EVERY == 0 and monotonic() - start > PATIENCE:
                progress.start()
                progress.update(task, completed=done(number))
            yield item
    finally:
        progress.stop()


def heading(reader: Reader) -> str:
    """A line about what was traced."""
    description = reader.description
    began = datetime.fromtimestamp(reader.started / 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    disks = ", ".join(
        f"nsid {one.get('nsid')}: {one.get('blocks')} blocks of {one.get('block_size')}"
        for one in description.namespaces
    )
    parts = (description.comment, description.program, f"began {began}" if reader.started else "", disks)
    return f"{reader.name}: {plain(', '.join(part for part in parts if part)) or 'nothing is said of it'}"


def at(time: int) -> str:
    """A time in seconds, in its column."""
    return f"{time // 1_000_000_000:5d}.{time % 1_000_000_000 // 1000:06d}"


def table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table with columns on the left and numbers on the right."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
    for name in left:
        made.add_column(name)
    for name in right:
        made.add_column(name, justify="right")
    return made
