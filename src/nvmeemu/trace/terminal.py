"""Where the commands' output goes: styled on a terminal, plain in a pipe, with progress on stderr while it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table

from nvmeemu.trace.file import Reader
from nvmeemu.trace.records import Record
from nvmeemu.trace.words import plain

_WORTH_A_BAR = 4 << 20  # bytes of a file that takes a moment
_EVERY = 8192  # records
_PIPE_WIDTH = 200  # columns of a table that nobody folds

_STYLES = {
    "SQ": "cyan",
    "CQ": "green",
    "BAR0": "yellow",
    "IRQ": "magenta",
    "DMA": "blue",
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


def with_progress(reader: Reader, *, prints: bool = True) -> Iterator[Record]:
    """Its records, with a bar if a person waits for them; at the end a word on stderr if the trace was cut.

    ``prints``: lines go to stdout meanwhile, so no bar if that is the terminal, too.
    """
    size = reader.raw_size
    if sys.stderr.isatty() and not (prints and sys.stdout.isatty()) and size > _WORTH_A_BAR:
        yield from _with_bar(reader, size)
    else:
        yield from reader
    if reader.is_cut:
        print(f"nvmeemu trace: {reader.name}: cut: it ends within a record", file=sys.stderr)


def _with_bar(reader: Reader, size: int) -> Iterator[Record]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(reader.name, total=size)
        for number, record in enumerate(reader):
            if number % _EVERY == 0:
                progress.update(task, completed=reader.raw_position)
            yield record


def heading(reader: Reader) -> str:
    """What was traced, in a line."""
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
