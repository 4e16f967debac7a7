"""The picture of a trace: timeline, LBA map, latencies. Needs matplotlib; ``plot`` is the command."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nvmeemu.trace import words
from nvmeemu.trace.activity import Activity, CommandKind, CommandOutcome
from nvmeemu.trace.phases import Name, Phase

Array = Any  # numpy's, whose types say nothing that is of use here

_COLOURS = {
    CommandKind.READ: "#2166ac",
    CommandKind.WRITE: "#d9670b",
    CommandKind.OTHER: "#2a8a57",
    CommandKind.ADMIN: "#6f6f6f",
}
_LABELS = {
    CommandKind.READ: "Read",
    CommandKind.WRITE: "Write",
    CommandKind.OTHER: "other I/O",
    CommandKind.ADMIN: "admin",
}
_PHASE_COLOURS = {
    Name.FIRMWARE: "#d6c6e8",
    Name.LOADER: "#f7e0a8",
    Name.KERNEL: "#c3dff2",
    Name.SHUTDOWN: "#e3e3e3",
}
_BOTH = "#a0148c"  # cells of the map that were read and written
_FAILED = "#c8102e"
_DARK = "#444444"
_RESET: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (2, 3))}
_COLUMNS = 400  # cells of a row over the whole time; nothing is drawn narrower
_LINES = 80  # cells of a column
_QUEUES = 8  # rows for submission queues; the busiest
_WIDTH = 12.0  # inches
_PERCENTILES = (50, 90, 99)
_DOTS = 110  # per inch, in a PNG
_UNITS = ((1, "seconds"), (1e-3, "milliseconds"), (1e-6, "microseconds"), (1e-9, "nanoseconds"))
_BYTE_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))


def draw(
    activity: Activity,
    title: str,
    span: tuple[float, float],
    block_sizes: dict[int, int],
    nsid: int | None,
    output: str,
) -> None:
    """Write the picture of ``span`` (seconds) to a file in ``.png`` or ``.svg``. Raises OSError.

    ``block_sizes``: by NSID, as far as the trace tells; ``nsid``: whose blocks, None: those most used.
    """
    with matplotlib.rc_context({"svg.hashsalt": "nvmeemu", "font.size": 8.5, "axes.titlesize": 9.5}):
        made = Picture(activity, span)
        made.heading(title)
        made.timeline()
        made.blocks(block_sizes, nsid)
        made.latencies()
        made.scales()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a character in a comment that the font has not
            made.settle()
            metadata = {"Date": None} if output.lower().endswith(".svg") else None
            made.figure.savefig(output, dpi=_DOTS, metadata=metadata)


class Picture:
    """A figure of three rows: the timeline, the map of blocks, the latencies; time runs from left to right."""

    def __init__(self, activity: Activity, span: tuple[float, float]) -> None:
        self.activity = activity
        start, end = span
        self.unit, self.unit_name = next(((unit, name) for unit, name in _UNITS if end - start >= 2 * unit), _UNITS[-1])
        self.start, self.end = start / self.unit, max(end, start * (1 + 1e-9) + 1e-9) / self.unit
        self.begin = self._times(activity.start)
        self.until = self._times(activity.end)
        self.kind, self.outcome, self.sqid = (
            np.asarray(one) for one in (activity.kind, activity.outcome, activity.sqid)
        )
        self.answered = self.outcome != CommandOutcome.NO_ANSWER
        self.latency = np.maximum((self.until - self.begin)[self.answered] * self.unit, 1e-9)
        self._images: list[tuple[Any, str]] = []  # whose shades count commands, with what they are
        self._narrow: set[tuple[int, Name]] = set()  # by column: the phases less than one wide that are drawn
        counts = Counter(activity.sqid)
        self.queues = sorted(sqid for sqid, _ in counts.most_common(_QUEUES))
        self.hidden = len(counts) - len(self.queues)
        self.lanes = self._lanes()
        timeline = 0.9 + 0.27 * (len(self.queues) + 1 + len(self.lanes))
        self.figure = Figure(figsize=(_WIDTH, timeline + 5.2), layout="constrained")
        grid = self.figure.add_gridspec(3, 2, width_ratios=(5.2, 1), height_ratios=(timeline, 2.3, 2.3))
        self.top = self.figure.add_subplot(grid[0, 0])
        self.map = self.figure.add_subplot(grid[1, 0], sharex=self.top)
        self.scatter = self.figure.add_subplot(grid[2, 0], sharex=self.top)
        self.summary, self.legend = (self.figure.add_subplot(grid[row, 1]) for row in (0, 1))
        self.distribution = self.figure.add_subplot(grid[2, 1], sharey=self.scatter)
        for axes in (self.summary, self.legend):
            axes.axis("off")
        self.scatter.set_xlim(self.start, self.end)
        self.scatter.set_xlabel(f"{self.unit_name} since the trace began")
        for axes in (self.top, self.map):
            axes.tick_params(labelbottom=False)

    def _lanes(self) -> list[tuple[str, Array, Array, str]]:
        """The rows below the queues: name, from when to when, colour. What need not be has a row if it was."""
        activity = self.activity
        points = {name: self._times(getattr(activity, name)) for name in ("doorbells", "interrupts", "registers")}
        found = [(name, at, at, _DARK) for name, at in points.items()]
        for name, spans in (("CQ full", activity.held_up), ("no bus master", activity.barred)):
            seen = [(start, end) for start, end in spans if end / self.unit >= self.start]
            if seen:
                starts, ends = (self._times(each) for each in zip(*seen, strict=True))
                found.append((name, np.maximum(starts, self.start), ends, _FAILED))
        if activity.faults:
            at = self._times(activity.faults)
            found.append(("faults", at, at, _FAILED))
        return found

    def _times(self, seconds: Any) -> Array:
        return np.asarray(seconds, dtype=float) / self.unit

    def settle(self) -> None:
        """Where everything is, to a tenth of a thousandth: the layout's solver differs from run to run beyond that."""
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        for axes in self.figure.axes:
            x, y, width, height = axes.get_position().bounds
            axes.set_position((round(x, 4), round(y, 4), round(width, 4), round(height, 4)))

    def heading(self, title: str) -> None:
        """What was traced, and what it comes to."""
        self.figure.suptitle(title, fontsize=9.5, x=0.01, ha="left", parse_math=False)
        lines = [f"{len(self.begin)} commands"]
        for kind, label in _LABELS.items():
            if number := int(np.sum(self.kind == kind)):
                lines.append(f"  {number} {label}")
        for outcome, label in ((CommandOutcome.ERROR, "with an error"), (CommandOutcome.NO_ANSWER, "not completed")):
            lines.append(f"{int(np.sum(self.outcome == outcome))} {label}")
        lines.append(f"{len(self.activity.doorbells)} doorbells")
        lines.append(f"{len(self.activity.interrupts)} interrupts")
        for name, starts, ends, _ in self.lanes:
            if name in ("CQ full", "no bus master"):
                lines.append(f"{name}: {_duration(float(np.sum(ends - starts)) * self.unit)}")
        if self.activity.faults:
            lines.append(f"{len(self.activity.faults)} faults on purpose")
        if len(self.latency):
            lines.append("latency")
            values = [(f"p{percent}", _percentile(self.latency, percent)) for percent in _PERCENTILES]
            lines += [f"  {name} {_duration(value)}" for name, value in (*values, ("most", self.latency.max()))]
        self.summary.text(0, 1, "\n".join(lines), va="top", linespacing=1.35, transform=self.summary.transAxes)

    def timeline(self) -> None:
        """A row for the phases, each queue and each lane; resets are lines through all."""
        rows = ["phase", *(f"SQ {sqid}" for sqid in self.queues), *(lane[0] for lane in self.lanes)]
        axes = self.top
        axes.set_title(
            "Timeline" + (f" (without the {self.hidden} queues least used)" if self.hidden else ""), loc="left"
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", length=0)
        for number, sqid in enumerate(self.queues, 1):
            axes.axhline(number, color="#eeeeee", linewidth=0.6, zorder=0)
            self._queue(number, sqid)
        for row, (_, starts, ends, colour) in enumerate(self.lanes, len(self.queues) + 1):
            self._bars(row, 0.6, starts, ends, colour)
        seen = {phase.name for phase in self.activity.phases if self._phase(phase)}
        for axes in (self.top, self.map, self.scatter):
            for at in np.unique(self._columns(self._times(self.activity.resets))):
                axes.axvline(self.start + at * self._column, **_RESET)
        self._legend(seen)

    def _legend(self, phases: set[Name]) -> None:
        """Above the timeline: what is to be seen in it, with these phases."""
        has = [kind for kind in CommandKind if np.any(self.kind == kind)]
        handles: list[Artist] = [Patch(color=_COLOURS[kind], label=_LABELS[kind]) for kind in has]
        if np.any(self.outcome):
            handles.append(Patch(color=_FAILED, label="failed, or never completed"))
        handles += [Patch(color=colour, label=name) for name, colour in _PHASE_COLOURS.items() if name in phases]
        if len(self.activity.resets):
            handles.append(Line2D([], [], label="reset", **_RESET))
        if handles:
            self.top.legend(
                handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), frameon=False,
                borderaxespad=0.1, handlelength=1.2, columnspacing=1.2,
            )  # fmt: skip

    @property
    def _column(self) -> float:
        return (self.end - self.start) / _COLUMNS

    def _columns(self, times: Array) -> Array:
        """The numbers of the cells that these times are in."""
        return np.clip(((times - self.start) / self._column).astype(int), 0, _COLUMNS - 1)

    def _queue(self, row: int, sqid: int) -> None:
        """Reads above, writes in the middle, all else below. Of what failed a mark where it was fetched, and a line as
        long as it was under way: thin, as that may be up to the trace's end and must not hide what came after."""
        places = {CommandKind.READ: -0.24, CommandKind.WRITE: 0.0, CommandKind.OTHER: 0.24, CommandKind.ADMIN: 0.0}
        of_queue = self.sqid == sqid
        for kind, place in places.items():
            mine = of_queue & self.answered & (self.kind == kind)
            height = 0.72 if kind == CommandKind.ADMIN else 0.24
            self._bars(row + place, height, self.begin[mine], self.until[mine], _COLOURS[kind])
        failed = of_queue & (self.outcome != CommandOutcome.SUCCESS)
        self._bars(row, 0.72, self.begin[failed], self.begin[failed], _FAILED)
        self._bars(row + 0.42, 0.07, self.begin[failed], self.until[failed], _FAILED)

    def _bars(self, row: float, height: float, starts: Array, ends: Array, colour: str) -> None:
        """When at least one was under way; each at least a cell wide, so that it can be seen."""
        if not len(starts):
            return
        order = np.argsort(starts, kind="stable")
        starts = starts[order]
        ends = np.maximum.accumulate(np.maximum(ends[order], starts + self._column))
        first = np.concatenate(([True], starts[1:] > ends[:-1]))
        last = np.concatenate((first[1:], [True]))
        bars: Array = np.column_stack((starts[first], ends[last] - starts[first]))
        self.top.broken_barh(bars, (row - height / 2, height), color=colour, linewidth=0)

    def _phase(self, phase: Phase) -> bool:
        """Draw it if it is within the picture's time; whether it was."""
        start, end = (max(self.start, min(self.end, each / 1e9 / self.unit)) for each in (phase.start, phase.end))
        if end <= start:
            return False
        colour = _PHASE_COLOURS[phase.name]
        if end - start < self._column:
            place = int((start - self.start) / self._column), phase.name
            if place in self._narrow:  # a host that resets without end has more phases than can be seen
                return True
            self._narrow.add(place)
        self.top.broken_barh([(start, max(end - start, self._column))], (-0.4, 0.8), color=colour, linewidth=0)
        for axes in (self.top, self.map, self.scatter):
            axes.axvspan(start, end, color=colour, alpha=0.22, linewidth=0, zorder=0)
        if end - start > (self.end - self.start) * 0.013 * len(phase.name):
            self.top.text((start + end) / 2, 0, phase.name, ha="center", va="center")
        return True

    def blocks(self, block_sizes: dict[int, int], nsid: int | None) -> None:
        """Which blocks commands have touched, and when."""
        activity = self.activity
        if nsid is None and len(activity.nsid):
            nsid = Counter(activity.nsid).most_common(1)[0][0]
        mine = np.asarray(activity.nsid) == nsid
        times, kinds, first, count, outcome = (
            np.asarray(each)[mine]
            for each in (
                *(activity.block_time, activity.block_kind, activity.slba, activity.nlb),
                activity.block_outcome,
            )
        )
        size = 0 if nsid is None else block_sizes.get(nsid, 0)
        axes = self.map
        axes.set_title("Blocks read and written" + (f", namespace {nsid}" if nsid is not None else ""), loc="left")
        if not len(times):
            _nothing(axes, "no block was read or written")
            return
        scale, name = 1.0, "LBA"
        low, high = float(first.min()), float((first + count).max())
        if size:
            scale, name = next((unit / size, unit_name) for unit, unit_name in _BYTE_UNITS if high * size >= unit)
        axes.set_ylabel(f"place on the disk, {name}")
        step = max(1.0, (high - low) / _LINES)
        columns = self._columns(times / self.unit)
        extent = (self.start, self.end, low / scale, (low + step * _LINES) / scale)
        read, written = (
            _cells(columns[those], first[those], count[those], low, step)
            for those in (kinds == CommandKind.READ, kinds == CommandKind.WRITE)
        )
        every = read + written
        norm = LogNorm(1, max(2, every.max()))
        for cells, colour, label in (
            (every * (written == 0), _COLOURS[CommandKind.READ], _LABELS[CommandKind.READ]),
            (every * (read == 0), _COLOURS[CommandKind.WRITE], _LABELS[CommandKind.WRITE]),
            (every * (read > 0) * (written > 0), _BOTH, "both"),
        ):
            if not cells.any():
                continue
            image = axes.imshow(
                np.ma.masked_less(cells, 1), cmap=_shades(colour), norm=norm, extent=extent, origin="lower",
                aspect="auto", interpolation="nearest", zorder=2,
            )  # fmt: skip
            self._images.append((image, label))
        is_bad = outcome != CommandOutcome.SUCCESS
        if is_bad.any():  # larger than a cell: it must not be overlooked
            middle = (first + count / 2)[is_bad] / scale
            axes.scatter(times[is_bad] / self.unit, middle, s=22, c=_FAILED, marker="x", linewidths=1.2, zorder=3)
            axes.set_title(f"{axes.get_title(loc='left')} (x: failed, or never completed)", loc="left")
        margin = 0.03 * step * _LINES / scale
        axes.set_ylim(extent[2] - margin, extent[3] + margin)

    def scales(self) -> None:
        """What the shades of the images stand for."""
        if self._images:
            self.legend.set_title("commands in a cell", loc="left", fontsize=8.5)
        step = 0.34 if len(self._images) < 4 else 0.27
        for number, (image, title) in enumerate(self._images):
            bar = self.legend.inset_axes((0.02 + step * number, 0.05, 0.29 * step, 0.8))
            most = image.norm.vmax
            middle = [10.0**power for power in range(1, 20) if 10.0**power < most / 2]
            ticks = [1, *middle, most]
            self.figure.colorbar(image, cax=bar, ticks=ticks, format=FuncFormatter(lambda one, _: f"{one:g}"))
            bar.minorticks_off()
            bar.set_title(title, fontsize=8.5, loc="left")

    def latencies(self) -> None:
        """How long commands took, over the time, and how many took how long."""
        axes = self.scatter
        axes.set_title("Latency from fetch to completion", loc="left")
        latency = self.latency
        if not len(latency):
            _nothing(axes, "no command was completed")
            self.distribution.axis("off")
            return
        axes.set_yscale("log")
        low, high = np.log10(latency.min()) - 0.15, np.log10(latency.max()) + 0.15
        edges = np.logspace(low, high, max(20, min(_LINES, int((high - low) * 18))) + 1)
        cells, *_ = np.histogram2d(
            self.begin[self.answered], latency, bins=(np.linspace(self.start, self.end, _COLUMNS + 1), edges)
        )
        norm = LogNorm(1, max(2, cells.max()))
        image = axes.pcolormesh(
            np.linspace(self.start, self.end, _COLUMNS + 1), edges, np.ma.masked_less(cells.T, 1),
            cmap=_shades("#5e2b86"), norm=norm, rasterized=True, zorder=2,
        )  # fmt: skip
        self._images.append((image, "latency"))
        axes.set_ylim(edges[0], edges[-1])
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high - low < 2 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        self._distribution(latency, self.kind[self.answered], edges)

    def _distribution(self, latency: Array, kinds: Array, edges: Array) -> None:
        axes = self.distribution
        groups = [kind for kind in CommandKind if np.any(kinds == kind)]
        axes.hist(
            [latency[kinds == kind] for kind in groups],
            bins=edges, orientation="horizontal", stacked=True, color=[_COLOURS[kind] for kind in groups],
        )  # fmt: skip
        axes.set_title("Distribution", loc="left")
        axes.set_xlabel("commands")
        axes.tick_params(labelleft=False)
        for place, percent in zip((0.99, 0.8, 0.6), _PERCENTILES, strict=True):  # so that they are read when close
            axes.axhline(_percentile(latency, percent), color="black", linewidth=0.7, linestyle=(0, (4, 2)))
            axes.annotate(
                f"p{percent}", (place, _percentile(latency, percent)), (0, 1),
                xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha="right", va="bottom", fontsize=7.5,
                bbox={"color": "white", "alpha": 0.7, "pad": 0.3},
            )  # fmt: skip


def _percentile(values: Array, percent: float) -> float:
    """By nearest rank, as in ``stats``."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


def _cells(columns: Array, first: Array, count: Array, low: float, step: float) -> Array:
    """How many commands have touched each cell, as rows of lines: for each it counts one up where it begins and one
    down behind its end, and then sums over the lines."""
    changes = np.zeros((_LINES + 1, _COLUMNS))
    begin = np.clip((first - low) / step, 0, _LINES - 1).astype(int)
    end = np.clip((first + count - 1 - low) / step, 0, _LINES - 1).astype(int) + 1
    np.add.at(changes, (begin, columns), 1)
    np.add.at(changes, (end, columns), -1)
    return np.cumsum(changes, axis=0)[:_LINES]


def _shades(colour: str) -> LinearSegmentedColormap:
    """From a light shade, which is still seen on white, to a dark one of a colour."""
    red, green, blue = matplotlib.colors.to_rgb(colour)
    light = tuple(1 - 0.55 * (1 - each) for each in (red, green, blue))
    dark = tuple(0.45 * each for each in (red, green, blue))
    return LinearSegmentedColormap.from_list(colour, [light, (red, green, blue), dark])


def _duration(seconds: float) -> str:
    return words.duration(seconds * 1e9)


def _nothing(axes: Any, text: str) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#666666")
