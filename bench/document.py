"""docs/performance.md's tables and plots, from the JSON of runs of scripts/bench.sh.

    scripts/bench.sh --document docs/performance.json ...

replaces what is between the markers in the page, as far as the files have it, and draws docs/images/performance-*.svg.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.durable import CALLS, KINDS, PYTHONS
from bench.durable import MARKS as DURABLE_MARKS
from bench.guest import DEPTHS as GUEST_DEPTHS
from bench.guest import MARKS as GUEST_MARKS
from bench.marks import Mark
from bench.quick import MARKS
from bench.tables import DEPTHS, FEW_DEPTHS, QUEUES, WORKLOADS
from bench.trace import MARKS as TRACE_MARKS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
LABELS = {
    "floor": "the floor",
    "mapped": "native, mapped doorbells",
    "native": "native, shadow doorbells",
    "python": "Python, shadow doorbells",
}
TRACED = {
    "without": "an engine without the hooks",
    "off": "no trace",
    "again": "no trace, once more (A/A)",
    "on": "`--trace`",
}
COLOURS = {"floor": "#888888", "mapped": "#1b7837", "native": "#2166ac", "python": "#b2182b"}

Found = dict[str, Any]


def update(files: Sequence[Path]) -> None:
    """Bring the page and its pictures up to date. Raises OSError, ValueError."""
    found: Found = {}
    for file in files:
        found |= json.loads(file.read_text())
    text = PAGE.read_text()
    for name, (key, make) in SECTIONS.items():
        if key not in found:
            continue
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, marker, after = rest.partition(end)
        if not marker:
            raise ValueError(f"{PAGE}: no {begin.strip()} ... {end}")
        text = before + begin + "\n".join(make(found)) + "\n" + end + after
    PAGE.write_text(text)
    if "depths" in found:
        plot(found["depths"])


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table of Markdown; numbers stand to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _rate(case: dict[str, float]) -> str:
    """Thousand IOPS, counted."""
    return _three(case["iops"] / 1000)


def _three(value: float) -> str:
    """Three digits, more where they are before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def rounds(cases: Collection[Mapping[str, float]]) -> str:
    """How many rounds of these cases there were, and what became of them."""
    kept, dropped, disturbed = (sum(int(one[what]) for one in cases) for what in ("kept", "dropped", "disturbed"))
    return f"Rounds: {kept} kept ({disturbed} of them disturbed), {dropped} dropped."


def _marks(marks: Mapping[str, Mark]) -> Callable[[Found], list[str]]:
    def make(found: Found) -> list[str]:
        return table(
            ["number", "mark", "measured", ""],
            [
                [f"`{name}`", mark, found[name], "met" if mark.is_met(found[name]) else "**not met**"]
                for name, mark in marks.items()
                if name in found  # in the file of an older run
            ],
        )

    return make


def _quick(found: Found) -> list[str]:
    told = ["", rounds(found["quick"].values())] if "quick" in found else []  # not in the file of an older run
    return _marks(MARKS)(found) + told


def _names(cases: Iterable[str], suffix: str) -> list[str]:
    """The targets, in their order."""
    return [name.removesuffix(suffix) for name in cases if name.endswith(suffix)]


def _depths(found: Found) -> list[str]:
    cases = found["depths"]
    names = _names(cases, " qd1")
    rows = []
    for depth in DEPTHS:
        each = [cases[f"{name} qd{depth}"] for name in names]
        cells = (f"{_rate(one)} / {_three(one['p50_us'])} / {_three(one['p99_us'])}" for one in each)
        rows.append([depth, *cells])
    return [*table(["depth", *(LABELS[name] for name in names)], rows), "", rounds(cases.values())]


def _over_floor(found: Found) -> list[str]:
    """Each target's CPU time for a command over the floor's. At depth 1 the floor's includes its waiting."""
    cases = found["depths"]
    names = [name for name in _names(cases, " qd1") if name not in ("floor", "python")]
    rows = []
    for name in names:
        ratios = [cases[f"{name} qd{depth}"]["engine_ns"] / cases[f"floor qd{depth}"]["engine_ns"] for depth in DEPTHS]
        rows.append([LABELS[name], *(f"{ratio:.2f}" for ratio in ratios[1:])])
    return table(["depth", *(str(depth) for depth in DEPTHS[1:])], rows)


def _loads(disk: str) -> Callable[[Found], list[str]]:
    def make(found: Found) -> list[str]:
        cases = found[disk]
        names = _names(cases, f" {WORKLOADS[0].name} qd1")
        rows = []
        for work in WORKLOADS:
            for depth in FEW_DEPTHS:
                each = [cases[f"{name} {work.name} qd{depth}"] for name in names]
                cells = (f"{_rate(one)} / {_three(one['p99_us'])} / {one['process_ns'] / 1000:.1f}" for one in each)
                rows.append([f"{work.name}, {depth}", *cells])
        return [*table(["load, depth", *names], rows), "", rounds(cases.values())]

    return make


def _queues(found: Found) -> list[str]:
    cases = found["queues"]
    names = _names(cases, " 1 queues")
    rows = []
    for queues in QUEUES:
        each = [cases[f"{name} {queues} queues"] for name in names]
        rows.append([queues, *(f"{one['iops'] / 1000:.0f} / {one['engine_ns'] / 1000:.2f}" for one in each)])
    return [*table(["queues", *names], rows), "", rounds(cases.values())]


def _messages(found: Found) -> list[str]:
    cases = found["mem"]
    load = WORKLOADS[0].name
    names = _names(cases, f" {load} qd1")
    rows = [[name, *(f"{cases[f'{name} {load} qd{depth}']['messages']:.3f}" for depth in FEW_DEPTHS)] for name in names]
    return table(["", *(f"depth {depth}" for depth in FEW_DEPTHS)], rows)


def _idle(found: Found) -> list[str]:
    rows = [[name, one["cpu_percent"], one["first_us"]] for name, one in found["idle"].items()]
    return table(["", "CPU, per cent of one", "first command after 0.2 s, us"], rows)


def _guest(found: Found) -> list[str]:
    iops, accesses = found["guest_iops"], found["guest_register_accesses"]
    rows = []
    for name in dict.fromkeys(key.split()[0] for key in iops):
        row: list[object] = [name]
        for depth in GUEST_DEPTHS:
            row += [
                iops[f"{name} randread qd{depth}"],
                iops[f"{name} randwrite qd{depth}"],
                accesses[f"{name} qd{depth}"],
            ]
        rows.append(row)
    head = [""]
    for depth in GUEST_DEPTHS:
        head += [f"read, {depth}", f"write, {depth}", f"accesses per I/O, {depth}"]
    if "guest_rounds" in found:
        told = rounds([found["guest_rounds"]])
    else:  # the file of an older run
        told = "Rounds: none was dropped, because nothing told yet which were disturbed."
    waited = f"The guest's CPU waited for one of ours for {found['guest_disturbed_percent']} % of the time."
    return [*table(head, rows), "", f"{told} {waited}"]


def _ratios(found: Found) -> list[str]:
    modes = [mode for mode in ("default", "mapped") if f"guest_over_qemu_nvme_qd1_{mode}" in found]
    pattern = re.compile(r"guest_over_(\w+)_qd1_default")
    rivals = [match[1] for match in map(pattern.fullmatch, found) if match]
    rows = []
    for rival in rivals:
        values = [found[f"guest_over_{rival}_qd{depth}_{mode}"] for depth in GUEST_DEPTHS for mode in modes]
        rows.append([f"over {rival.replace('_', '-')}", *values])
    return table(["", *(f"{mode}, depth {depth}" for depth in GUEST_DEPTHS for mode in modes)], rows)


def _traced(found: Found) -> list[str]:
    rows = [[TRACED[arm], *one.values()] for arm, one in found["trace_arms"].items()]
    return [
        *table(["", "IOPS, counted", "median latency, us", "engine CPU, us", "process CPU, us"], rows),
        "",
        f"In the engine's CPU time: off over without {found['trace_off_cpu_over_without']} (two of the same differ by "
        f"{found['trace_aa_noise']}), on over off {found['trace_on_cpu_over_off']}. Records lost: "
        f"{found['trace_lost_records']}.",
    ]


def _soak(found: Found) -> list[str]:
    return [f"{found['soak_commands'] / 1e6:g} million commands: the server grew by {found['soak_growth_kib']} KiB."]


# What is between the markers of that name, and a number that is there if the rest of it is.
def _durable_memory(found: Found) -> list[str]:
    cases = found["durable_mem"]
    names = [name for name in ("native", "mapped") if f"{name} {PYTHONS.name} qd1" in cases]
    rows = []
    for kind in (*KINDS, PYTHONS):
        each = [cases[f"{name} {kind.name} qd{depth}"] for name in names for depth in (1, 32)]
        rows.append([kind.name, *(f"{_rate(one)} / {_three(one['p50_us'])} / {_three(one['p99_us'])}" for one in each)])
    return table(["", *(f"{name}, {depth}" for name in names for depth in (1, 32))], rows)


def _durable_file(found: Found) -> list[str]:
    cases = found["durable_file"]
    names = ("native", "again", *CALLS)
    rows = []
    for kind in KINDS:
        each = [cases[f"{name} {kind.name} qd1"] for name in names]
        rows.append([kind.name, *(f"{_three(one['p50_us'])} / {_three(one['process_ns'] / 1000)}" for one in each)])
    return table(["", "native", "native, again", "calls", "calls, again"], rows)


SECTIONS: dict[str, tuple[str, Callable[[Found], list[str]]]] = {
    "marks": ("rss_mib", _quick),
    "depths": ("depths", _depths),
    "over-floor": ("depths", _over_floor),
    "mem": ("mem", _loads("mem")),
    "file": ("file", _loads("file")),
    "queues": ("queues", _queues),
    "messages": ("mem", _messages),
    "idle": ("idle", _idle),
    "trace-marks": ("trace_arms", _marks(TRACE_MARKS)),
    "trace": ("trace_arms", _traced),
    "durable-marks": ("durable_mem", _marks(DURABLE_MARKS)),
    "durable-mem": ("durable_mem", _durable_memory),
    "durable-file": ("durable_file", _durable_file),
    "soak": ("soak_commands", _soak),
    "guest-marks": ("guest_iops", _marks(GUEST_MARKS)),
    "guest": ("guest_iops", _guest),
    "ratios": ("guest_iops", _ratios),
}


def plot(cases: dict[str, dict[str, float]]) -> None:
    """IOPS, and the median latency with the 99th percentile, over the queue depth. Raises ImportError without
    matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "nvmeemu"  # the same numbers give the same file
    from matplotlib import pyplot

    IMAGES.mkdir(exist_ok=True)
    for key, title in (("iops", "thousand IOPS"), ("p50", "latency, us: median, and 99th percentile (dotted)")):
        figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
        for name in _names(cases, " qd1"):
            each = [cases[f"{name} qd{depth}"] for depth in DEPTHS]
            values = [case["iops"] / 1000 if key == "iops" else case["p50_us"] for case in each]
            axes.plot(DEPTHS, values, marker="o", markersize=4, label=LABELS[name], color=COLOURS[name])
            if key == "p50":
                axes.plot(DEPTHS, [case["p99_us"] for case in each], linestyle=":", color=COLOURS[name])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("commands at once (queue depth)")
        axes.set_ylabel(title)
        axes.set_title("4 KiB random reads from memory")
        axes.grid(True, which="both", alpha=0.25)
        axes.legend()
        figure.savefig(IMAGES / f"performance-{key}.svg", metadata={"Date": None})
        pyplot.close(figure)
