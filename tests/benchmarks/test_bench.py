"""The benchmarks measure what they say: the right data moves, disturbed rounds are dropped, all numbers come out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import cpu, protection, quick, rounds, service_time, starts, tables
from bench.cpu import Times
from bench.polled import PAGE, Load
from bench.rounds import Case, Chosen, measure
from bench.target import MIB, BenchError, FloorTarget, Result, ServedTarget, Target, fill
from nvmeemu.spec import NvmOpcode

pytestmark = pytest.mark.long

DISK = 4 * MIB
PAGES = DISK // PAGE
KINDS = {
    "native-shadow": (["--engine", "native"], "shadow"),
    "native-socket": (["--engine", "native"], "socket"),
    "native-mapped": (["--engine", "native", "--doorbells", "mapped"], "mapped"),
    "python-shadow": (["--engine", "python"], "shadow"),
    "python-socket": (["--engine", "python"], "socket"),
}


@pytest.fixture(params=["floor", *KINDS])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    if request.param == "floor":
        yield FloorTarget(DISK, 2)
        return
    arguments, doorbells = KINDS[request.param]
    with ServedTarget("served", tmp_path, f"mem:{DISK}", arguments, doorbells=doorbells, queues=2) as served:
        yield served


def reads(**options: int) -> Load:
    return Load(**{"disk_pages": PAGES, "opcode": NvmOpcode.READ, "pages": 1, "depth": 32, "check": 1, **options})


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the host needs a processor beside the server's")
def test_a_server_with_one_of_several_processors_is_as_quick_as_one_that_may_use_all(tmp_path: Path) -> None:
    """``taskset -c 0``: the polling host is on another one, so that there is nothing to be gained by a nap. What others
    want the processors for is in few of the latencies, so not in the median."""
    processors = os.sched_getaffinity(0)

    def median_with(usable: set[int]) -> int:
        os.sched_setaffinity(0, usable)  # what is started has these
        try:
            target = ServedTarget("served", tmp_path, f"mem:{DISK}", KINDS["native-mapped"][0], doorbells="mapped")
        finally:
            os.sched_setaffinity(0, processors)
        load = {"depth": 1, "check": 0, "commands": 10_000, "room": 10_000}
        with target:
            return min(target.run(reads(**load)).p50 for _ in range(5))

    assert median_with({min(processors)}) < 2 * median_with(processors)


@pytest.mark.parametrize("pages", [1, 2, 3, 32])
def test_what_was_written_is_read(target: Target, pages: int) -> None:
    """Two queues, and all ways to describe the data."""
    fill(target, PAGES)
    for seed in (0, 12345):
        load = reads(seed=seed, pages=pages, commands=500, room=1000)
        result = target.run(load, 2)
        assert 500 <= load.done < 500 + 2 * 32
        assert 0 < result.p50 <= result.p99
        assert 0 < result.engine <= result.process
    target.run(reads(opcode=NvmOpcode.WRITE, seed=3, pages=pages, commands=100))
    target.run(reads(seed=4, commands=500))


def test_other_data_is_noticed(target: Target) -> None:
    """Nothing was written to the disk."""
    with pytest.raises(BenchError, match="read other data"):
        target.run(reads(seed=1, commands=100))


def test_a_failed_command_is_noticed(tmp_path: Path) -> None:
    with (
        ServedTarget("served", tmp_path, f"mem:{DISK}", doorbells="shadow") as served,
        pytest.raises(BenchError, match="1 failed"),
    ):
        served.run(reads(cursor=PAGES, commands=1, depth=1))


def test_doorbells_that_go_to_the_socket_are_counted(tmp_path: Path) -> None:
    messages = {}
    for kind in ("native-socket", "native-shadow", "native-mapped"):
        arguments, doorbells = KINDS[kind]
        with ServedTarget(kind, tmp_path, f"mem:{DISK}", arguments, doorbells=doorbells) as served:
            fill(served, PAGES)
            load = reads(seed=9, depth=1, commands=1000)
            served.run(load)
            messages[doorbells] = load.messages / load.done
    assert messages["socket"] == 2  # a tail and a head for each command
    assert messages["shadow"] < messages["socket"]
    assert messages["mapped"] == 0


class Scripted:
    """A target whose rounds are disturbed as told."""

    name = "scripted"
    queues = 1

    def __init__(self, disturbances: list[float]) -> None:
        self._disturbances = iter([0.0, *disturbances])  # the first one only warms

    def run(self, load: Load, count: int = 1) -> Result:
        share = next(self._disturbances)
        load.done, load.elapsed = 1000, 1_000_000
        return Result(load, 10, 20, 5000, 6000, int(share * load.elapsed))


def test_disturbed_rounds_are_dropped_and_counted() -> None:
    [found] = measure([Case(Scripted([0.5, 0, 0.01, 0.9, 0]), 1)], PAGES, rounds=3, tries=3)
    assert (found.kept, found.dropped, found.disturbed) == (3, 2, 0)
    assert (found.iops, found.engine_ns, found.process_ns, found.p50_us) == (1_000_000, 5, 6, 0.01)


def test_where_most_are_disturbed_the_least_are_taken() -> None:
    [found] = measure([Case(Scripted([0.5, 0.01, 0.3, 0.2, 0.9, 0.6]), 1)], PAGES, rounds=2, tries=3)
    assert (found.kept, found.dropped, found.disturbed) == (2, 4, 1)


def test_where_all_are_disturbed_it_does_not_try_for_long() -> None:
    [found] = measure([Case(Scripted([0.5, 0.1]), 1)], PAGES, rounds=2, tries=3)
    assert (found.kept, found.dropped, found.disturbed) == (2, 0, 2)


def test_of_the_disturbed_rounds_the_least_are_taken_in_this_order() -> None:
    chosen: Chosen[str] = Chosen(3, most=0.1)
    for disturbance, name in ((0.2, "b"), (0.05, "good"), (0.9, "d"), (0.1, "a"), (0.3, "c")):
        assert not chosen.is_done
        chosen.add(disturbance, name)
    assert chosen.kept == ["good", "a", "b"]
    assert chosen.counts() == {"kept": 3, "dropped": 2, "disturbed": 2}


def test_threads_that_wait_for_each_other_are_no_disturbance() -> None:
    assert cpu.disturbance({1: Times(run=100, waited=50), 2: Times(run=50, waited=90)}) == 0
    assert cpu.disturbance({1: Times(run=100, waited=80), 2: Times(run=50, waited=90)}) == 30


def test_what_others_take_of_the_cpus_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 s on two CPUs: 12 s of work in all, 1 s of it taken by the hypervisor, 7 s ours."""
    now, files = 100.0, tmp_path
    ticks = os.sysconf("SC_CLK_TCK")

    def look(busy: float, steal: float, *ours: float) -> None:
        half = round(busy * ticks) // 2
        lines = f"cpu  {half} 0 {half} 777 88 0 0 {round(steal * ticks)} 0 0\ncpu0 1 2 3\n"
        (files / "proc" / "stat").write_text(lines)
        for pid, one in enumerate(ours):
            (files / "proc" / str(pid)).mkdir(exist_ok=True)
            half = round(one * ticks) // 2
            (files / "proc" / str(pid) / "stat").write_text(f"{pid} (a ) b) S {'0 ' * 10}{half} {half} 0 0\n")

    (files / "proc").mkdir()
    monkeypatch.setattr(cpu, "Path", lambda name: files / str(name).lstrip("/"))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    look(50, 5, 20, 10)
    others = cpu.Others([0, 1])
    now += 10
    look(61, 6, 22, 15)
    assert others.share() == pytest.approx((12 - 7) / 10 / 2)
    now += 10
    assert others.share() == 0


def test_this_machine_tells_what_others_take() -> None:
    others = cpu.Others([os.getpid()])
    time.sleep(0.1)
    assert 0 <= others.share() < 1.5  # ticks are coarse


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything, with little time for each."""
    for module, name, value in (
        (quick, "STARTS", 2),
        (starts, "ROUNDS", 1),
        (quick, "IDLE_SECONDS", 0.2),
        (quick, "SETTLE_SECONDS", 0.1),
        (quick, "DISK", DISK),
        (tables, "DISK", DISK),
        (rounds, "ROUNDS", 1),
        (rounds, "TRIES", 1),
        (rounds, "SECONDS", 0.005),
        (tables, "DEPTHS", (1, 32)),
        (tables, "FEW_DEPTHS", (1, 32)),
        (tables, "QUEUES", (1, 2)),
        (tables, "WORKLOADS", (tables.WORKLOADS[0], tables.WORKLOADS[-1])),
        (tables, "WAKES", 2),
        (tables, "REST_SECONDS", 0.01),
        (service_time, "COMMANDS", 512),
    ):
        monkeypatch.setattr(module, name, value)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["bench", *words])
    return command.main()


@pytest.mark.usefixtures("small")
def test_quick_gives_the_numbers_that_have_marks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert run(monkeypatch, "--quick", "--json", str(file)) == 0
    found = json.loads(file.read_text())
    cases = found.pop("quick")
    assert set(cases) == {
        "floor qd1",
        "mapped qd1",
        *(f"{name} qd32" for name in ("native", "python", "floor", "mapped")),
    }
    assert all(one["kept"] + one["dropped"] == 1 for one in cases.values())  # of the one round that there was
    assert set(found) == {
        *("native_cpu_over_floor", "native_over_floor_qd1_p50", "native_over_python_qd32"),
        *("idle_cpu_percent", "idle_cpu_percent_mapped", "startup_seconds", "startup_cpu_seconds"),
        "rss_mib",
    }
    assert all(isinstance(value, float) for value in found.values())
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in found)
    assert " met" in printed


@pytest.mark.long
@pytest.mark.timeout(240)  # threads that poll get on slowly on a busy machine
@pytest.mark.usefixtures("small")
def test_the_tables_have_all_cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of two kinds of servers, to save time."""
    some = [kind for kind in tables.kinds() if kind.name in ("native", "python-socket")]
    monkeypatch.setattr(tables, "kinds", lambda: some)
    file = tmp_path / "found.json"
    assert run(monkeypatch, "--soak", "2k", "--json", str(file)) == 0
    found = json.loads(file.read_text())
    assert set(found["depths"]) == {f"{name} qd{depth}" for name in ("floor", "native") for depth in (1, 32)}
    for disk in ("mem", "file"):
        assert "native 128k sequential write qd32" in found[disk]
        assert "python-socket 4k random read qd1" in found[disk]
    assert set(found["queues"]) == {f"{n}-thread {m} queues" for n in (1, 2) for m in (1, 2)}
    assert found["idle"]["native"]["first_us"] > 0
    assert found["soak_commands"] == 2000


@pytest.mark.parametrize("words", [["--fast"], ["--soak", "0"], ["--soak", "many"], ["--json"]])
def test_bad_use_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_protection_information_is_measured_for_each_guard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(protection, "BLOCKS", 32)
    file = tmp_path / "found.json"
    monkeypatch.setattr("sys.argv", ["protection", "--rounds", "1", "--json", str(file)])
    assert protection.main() == 0
    ways = ("generate", "check", "copy")
    found = json.loads(file.read_text())
    assert set(found) == {
        f"{guard} {count} {way}" for guard in ("CRC16", "CRC32", "CRC64") for count in (1, 32) for way in ways
    }
    assert len(capsys.readouterr().out.splitlines()) == 7
