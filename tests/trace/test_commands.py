"""``nvmeemu trace``, ``replay`` and ``check`` as a user runs them."""

from __future__ import annotations

import io
import lzma
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeemu import trace
from nvmeemu.app.cli import main
from nvmeemu.controller.limits import Limits
from nvmeemu.ports import PciState
from nvmeemu.spec import BROADCAST, AdminOpcode, Command, GetFeatures, Identify, NvmOpcode, ReadWrite
from nvmeemu.testing import PAGE
from nvmeemu.trace.align import align
from nvmeemu.trace.commands import commands
from nvmeemu.trace.difference import Comparison
from nvmeemu.trace.filters import CommandFilter
from nvmeemu.trace.host_steps import Who, steps
from nvmeemu.trace.phases import Name, phases
from nvmeemu.trace.records import encode
from nvmeemu.trace.sink import TraceFile
from nvmeemu.trace.stats import percentile
from nvmeemu.trace.words import describe as words_of
from tracing import Traced, ready

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
NVMEEMU = str(Path(sys.executable).with_name("nvmeemu"))
U_BOOT = str(CORPUS / "u-boot.trace.xz")
Run = Callable[..., tuple[int, list[str], str]]
Save = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit status, the lines of stdout, and stderr."""

    def run(*words: str) -> tuple[int, list[str], str]:
        try:
            status = main(words)
        except SystemExit as end:
            status = int(str(end.code))
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    """Write what a bench has seen into a file."""

    def save(bench: Traced, name: str = "t") -> str:
        path = tmp_path / name
        reader = bench.memory.reader()
        with path.open("wb") as file:
            writer = trace.Writer(file, reader.description)
            for record in reader:
                writer.put(encode(record))
        return str(path)

    return save


def test_show_tells_every_record_in_words(run: Run) -> None:
    status, lines, err = run("trace", "show", U_BOOT)
    with trace.open_trace(U_BOOT) as reader:
        assert len(lines) == 1 + len(list(reader))
    assert (status, err) == (0, "")
    text = "\n".join(re.sub(r"^ *[\d.]+ +", "", line) for line in lines)
    for part in (
        "BAR0   write CC = 0x460001 (en iosqes=6 iocqes=4)\n",
        "BAR0   read CSTS = 0x1 (rdy)\n",
        "SQ 0   tail 1\n",
        "Set Features Number of Queues\n",
        "Create CQ qid=1 qsize=2 pc ien",
        "IRQ    pin asserted\n",
        "Read nsid=1 slba=0 nlb=1 ",
    ):
        assert part in text
    assert re.search(r"CQ 0   #0000 Set Features: Success, dw0=0x3f003f, [\d.]+ µs\n", text)


def test_show_tells_polls_once(run: Run, saved: Save) -> None:
    """The first and the last, and how many there were between them."""
    bench = Traced()
    for times, value in ((1, 0), (2, 1), (60, 0)):
        bench.controller.write(0x14, (0x460000 | value).to_bytes(4, "little"))
        for _ in range(times):
            bench.clock.advance(1)
            bench.read_bar(0x14, 4)
    path = saved(bench)

    def said(*words: str) -> list[str]:
        return [line.partition("BAR0   ")[2] for line in run("trace", "show", path, *words)[1] if "BAR0" in line]

    off, on = "read CC = 0x460000 (iosqes=6 iocqes=4)", "read CC = 0x460001 (en iosqes=6 iocqes=4)"
    reads = [line for line in said() if line.startswith("read")]
    assert reads == [off, on, on, off, f"{off}, and 58 more times in between"]
    assert sum(line.startswith("read") for line in said("-v")) == 63
    assert said("--no-registers") == []
    assert len(run("trace", "show", path, "--no-registers")[1]) > 1
    assert said("--from", "63")[-1] == off, "the last of them only"


@pytest.mark.kills("other-values-are-polls")
def test_show_tells_the_read_that_ends_a_wait(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t"
    with path.open("wb") as file:
        writer = trace.Writer(file, trace.Description())
        for time, value in enumerate((0, 0, 0, 1, 1, 0)):
            writer.write(trace.RegisterRead(time * 1_000_000_000, 0, 0x1C, bytes([value, 0, 0, 0])))
    lines = [" ".join(line.split()) for line in run("trace", "show", str(path))[1][1:]]
    assert lines == [
        "0.000000 BAR0 read CSTS = 0x0",
        "2.000000 BAR0 read CSTS = 0x0, and 1 more time in between",
        "3.000000 BAR0 read CSTS = 0x1 (rdy)",
        "4.000000 BAR0 read CSTS = 0x1 (rdy)",
        "5.000000 BAR0 read CSTS = 0x0",
    ]


def test_show_tells_lists_and_what_is_0_if_asked_to(run: Run, saved: Save) -> None:
    bench = ready()
    driver = bench.driver
    driver.write(slba=0, data=bytes(3 * PAGE))
    driver.set_feature(8, 0)
    path = saved(bench)

    def said(*words: str) -> str:
        return "\n".join(run("trace", "show", path, *words)[1])

    (prp,) = bench.of(trace.Prp)
    listed = f"PRP list: 12 KiB in 1 run: {prp.runs[0][0]:#x} 12 KiB"
    assert listed in said("-v")
    assert listed not in said()
    assert "Set Features Interrupt Coalescing nsid=0 cdw11=0x0 prp1=0x0 prp2=0x0" in said("-v")
    assert re.search(r"Create SQ nsid=0 qid=1 qsize=64 pc qprio=0 cqid=1 prp1=\w+ prp2=0x0", said("-v"))
    assert "cdw11" not in said()


@pytest.mark.kills("doorbells-move-nothing")
@pytest.mark.parametrize(
    ("offset", "value", "told"),
    [
        (0x1000 + 8 * 40, 7, "Invalid Doorbell Register, log Error Information: SQ 40 tail 7, there is no such queue"),
        (0x1008, 1000, "Invalid Doorbell Value, log Error Information: SQ 1 tail 1000, it has 64 entries"),
        (0x100C, 2, "Invalid Doorbell Value, log Error Information: CQ 1 head 2, nothing was posted"),
        (0x1008, 1, "Invalid Doorbell Value, log Error Information: SQ 1 tail 1, it was there before"),
        (0x1004, 30, "Invalid Doorbell Value, log Error Information: CQ 0 head 30, 1 were posted"),
    ],
)
def test_show_tells_why_a_doorbell_was_refused(run: Run, saved: Save, offset: int, value: int, told: str) -> None:
    bench = ready()
    driver = bench.driver
    driver.read(slba=0, blocks=1)
    driver.submit(driver.admin, GetFeatures(opcode=AdminOpcode.GET_FEATURES, fid=1))
    driver.set_reg(offset, value)
    (line,) = (line for line in run("trace", "show", saved(bench))[1] if " event " in line)
    assert line.partition("event  ")[2] == f"Error, {told}"


def test_events_have_names() -> None:
    def said(*fields: int) -> str:
        return words_of(trace.AsyncEvent(0, 0, *fields))[1]

    assert said(1, 1, 2) == "SMART, Temperature, log SMART"
    assert said(2, 0, 4) == "Notice, Namespace Attribute Changed, log Changed Namespace List"
    assert said(1, 9, 2) == "SMART, information 0x9, log SMART"
    assert said(6, 1, 0xC1) == "type 6, information 0x1, log lid=C1h"


def test_a_trace_may_come_from_stdin() -> None:
    with open(U_BOOT, "rb") as file:
        read = subprocess.run([NVMEEMU, "trace", "show", "-"], stdin=file, capture_output=True, text=True, check=True)
    command = f"xz -dc {U_BOOT} | {NVMEEMU} trace show - | tail -n +2"
    piped = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    whole = read.stdout.splitlines()
    assert whole[0].startswith("# stdin: ")
    assert whole[1:] == piped.stdout.splitlines()
    assert len(whole) > 100
    nothing = subprocess.run([NVMEEMU, "trace", "stats", "-"], input="", capture_output=True, text=True, check=False)
    assert (nothing.returncode, nothing.stderr) == (1, "nvmeemu trace: stdin: not a trace\n")


def test_show_follows_a_trace_until_its_writer_ends_it(tmp_path: Path) -> None:
    path = str(tmp_path / "t")
    writing = TraceFile(path, trace.Description(comment="being written")).open()
    command = [NVMEEMU, "trace", "show", path, "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reading:
        assert reading.stdout is not None
        assert "being written" in reading.stdout.readline()
        for number in range(3):
            writing.note(f"number {number}")
            assert reading.stdout.readline().endswith(f"note   number {number}\n")
        assert reading.poll() is None
        writing.note("the last one")
        writing.close()
        assert reading.stdout.read().endswith("note   the last one\n")
        assert reading.wait(60) == 0


def test_what_cannot_be_followed_is_told(run: Run, tmp_path: Path) -> None:
    status, _, err = run("trace", "show", U_BOOT, "--follow")
    assert (status, err) == (2, f"nvmeemu trace: {U_BOOT}: compressed: nobody goes on writing it\n")
    plain = tmp_path / "t"
    plain.write_bytes(lzma.decompress(Path(U_BOOT).read_bytes()))
    assert run("trace", "show", str(plain), "--follow")[1] == run("trace", "show", str(plain))[1]


def test_another_trace_that_is_begun_ends_following(tmp_path: Path) -> None:
    path = tmp_path / "t"
    first = TraceFile(str(path), trace.Description()).open()
    command = [NVMEEMU, "trace", "show", str(path), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reading:
        assert reading.stdout is not None
        first.note("x")
        assert "began" in reading.stdout.readline()
        assert reading.stdout.readline().endswith("note   x\n")
        os.truncate(path, 0)
        _, err = reading.communicate(timeout=60)
    assert (reading.returncode, err) == (1, f"nvmeemu trace: {path}: another trace was begun there\n")
    first.close()


def test_show_of_one_command_is_its_story(run: Run, saved: Save) -> None:
    bench = ready()
    bench.driver.write(slba=5, data=b"x" * 64 * 1024)
    _, lines, _ = run("trace", "show", saved(bench), "--opcode", "write")
    assert [re.sub(r"prp\d=\w+|crc \w+|#\w+ |, \d+ ns$|^ +[\d.]+ +", "", line).split() for line in lines[1:]] == [
        ["SQ", "1", "Write", "nsid=1", "slba=5", "nlb=128"],
        ["SQ", "1", "PRP", "list:", "64", "KiB", "in", "1", "run"],
        ["SQ", "1", "64", "KiB", "to", "the", "controller,"],
        ["CQ", "1", "Write:", "Success"],
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 8),
        (["--queue", "1"], 3),
        (["--queue", "0", "--queue", "1"], 8),
        (["--opcode", "Get Features"], 1),
        (["--opcode", "get-features", "--opcode", "IDENTIFY"], 2),
        (["--opcode", "0x2"], 2),
        (["--queue", "0", "--opcode", "2"], 0),
        (["--nsid", "1", "--opcode", "read"], 2),
        (["--nsid", "all"], 1),
        (["--status", "error"], 1),
        (["--status", "lba-out-of-range"], 1),
        (["--status", "0x080"], 1),
        (["--status", "ok"], 6),
        (["--status", "none"], 1),
        (["--from", "1.5"], 3),
        (["--from", "1500ms", "--to", "1.6s"], 1),
        (["identify|read"], 3),
        (["slba=8 .*out of range"], 0),
        (["slba=1099511627776 .*out of range"], 1),
    ],
    ids=str,
)
def test_grep_finds_commands(run: Run, saved: Save, words: list[str], expected: int) -> None:
    bench = ready()
    driver = bench.driver
    queue, place = driver.queues[1], driver.alloc(PAGE)
    driver.execute(driver.admin, Identify(opcode=AdminOpcode.IDENTIFY, prp1=place, cns=1))
    driver.execute(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, slba=8, nlb=1, prp1=place))
    driver.execute(queue, ReadWrite(opcode=NvmOpcode.READ, nsid=1, slba=1 << 40, nlb=1))
    bench.clock.advance(1.5)
    driver.execute(driver.admin, GetFeatures(opcode=AdminOpcode.GET_FEATURES, fid=1))
    bench.clock.advance(1)
    driver.submit(driver.admin, Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST))
    driver.execute(queue, Command(opcode=NvmOpcode.FLUSH, nsid=BROADCAST))
    _, lines, _ = run("trace", "grep", saved(bench), *words)
    assert len(lines) == expected
    assert all(re.search(r"SQ [01] +#[0-9a-f]{4} .* -> ", line) for line in lines)


def test_a_host_that_forgets_bus_master_enable_is_found_out(run: Run, saved: Save) -> None:
    """In words, in numbers, and by the difference to one that does not."""
    traces = []
    for name, state in (("good", PciState(True, True)), ("bad", PciState(False, True))):
        bench = Traced()
        bench.controller.pci_changed(state)
        bench.driver.enable()
        for _ in range(3):
            bench.driver.get_feature(1)
        traces.append(saved(bench, name))
    good, bad = traces
    _, lines, _ = run("trace", "show", bad)
    assert "    0.000000  PCI    bus master off, memory space on, D0" in lines
    told = "3 tail doorbells while Bus Master Enable was off, or not in D0: in vain"
    assert told in run("trace", "stats", bad)[1]
    assert not any("Bus Master" in line for line in run("trace", "stats", good)[1])
    status, lines, _ = run("trace", "diff", good, bad, "--context", "0")
    assert (status, lines[3:5]) == (
        1,
        ["- PCI   bus master on, memory space on, D0", "+ PCI   bus master off, memory space on, D0"],
    )
    again = f"{bad}.again"
    assert run("replay", bad, "--output", again)[0] == 0
    assert run("trace", "diff", bad, again)[0] == 0, "it is in the trace of the replay, too"


def test_grep_says_whether_it_found_anything(run: Run) -> None:
    assert run("trace", "grep", U_BOOT, "Identify Controller")[0] == 0
    assert run("trace", "grep", U_BOOT, "Format") == (1, [], "")


def row(lines: list[str], *words: str) -> list[str]:
    """The row of a table that begins with these words."""
    return next(line.split() for line in lines if line.split()[: len(words)] == list(words))


def columns(lines: list[str], *words: str) -> list[str]:
    """The columns that are not empty of the row that begins with these."""
    rows = ([part.strip() for part in line.split("  ") if part.strip()] for line in lines)
    return next(found for found in rows if found[: len(words)] == list(words))


def test_stats_count(run: Run, saved: Save) -> None:
    bench = Traced()
    driver = bench.driver
    driver.enable()
    driver.create_queues(vector=1)
    place = driver.alloc(PAGE)
    for milliseconds in range(1, 101):
        driver.submit(
            driver.queues[1], ReadWrite(opcode=NvmOpcode.WRITE, nsid=1, prp1=place, nlb=1, fua=True, slba=milliseconds)
        )
        driver.drain(driver.queues[1])
        bench.clock.advance(milliseconds / 1000)
    for _ in range(3):
        driver.submit(driver.queues[1], ReadWrite(opcode=NvmOpcode.READ, nsid=1, prp1=place, slba=1 << 40), ring=False)
    driver.ring_sq(driver.queues[1])
    driver.drain(driver.queues[1])
    _, lines, _ = run("trace", "stats", saved(bench))
    assert row(lines, "SQ", "1", "Read")[3:5] == ["3", "3"]
    assert row(lines, "SQ", "0", "Create", "CQ")[4] == "1"
    found = row(lines, "1")
    assert found[1] == "103"  # commands
    assert found[2:4] == ["101", "0.98"]  # tail doorbells
    assert found[-2:] == ["101", "0.98"]  # interrupts
    assert row(lines, "LBA", "Out", "of", "Range")[4] == "3"


def test_latencies_are_from_fetch_to_completion(run: Run, saved: Save) -> None:
    bench = ready(manual=True)
    driver = bench.driver
    for milliseconds in range(1, 11):
        driver.submit(driver.queues[1], ReadWrite(opcode=NvmOpcode.VERIFY, nsid=1, nlb=1))
        bench.clock.advance(milliseconds / 1000)
        bench.worker.finish_all()
        bench.settle()
        driver.drain(driver.queues[1])
    _, lines, _ = run("trace", "stats", saved(bench))
    assert columns(lines, "SQ 1", "Verify")[2:] == ["10", *("1 ms", "5 ms", "9 ms", "10 ms", "10 ms")]


@pytest.mark.kills("resets-end-nothing")
def test_a_reset_ends_commands() -> None:
    """Whatever their CIDs are used for after it."""
    bench = ready(manual=True)
    for _ in range(2):
        bench.driver.submit(bench.driver.queues[1], ReadWrite(opcode=NvmOpcode.VERIFY, nsid=1, nlb=1, cid=7))
        bench.driver.enable()
        bench.driver.create_queues()
    bench.driver.submit(bench.driver.queues[1], ReadWrite(opcode=NvmOpcode.VERIFY, nsid=1, nlb=1, cid=7))
    bench.worker.finish_all()
    bench.settle()
    answers = [one.completion is not None for one in commands(bench.records) if one.fetch.sqid]
    assert answers == [False, False, True]


def test_stats_of_a_time_know_what_came_before(run: Run, saved: Save) -> None:
    bench = Traced()
    bench.driver.enable()
    bench.driver.create_queues(vector=2)
    bench.clock.advance(1)
    bench.driver.read(slba=0, blocks=1)
    _, lines, _ = run("trace", "stats", saved(bench), "--from", "500ms", "--to", "2s")
    assert "in 500 ms;" in lines[1]
    assert row(lines, "1")[1] == "1"
    assert row(lines, "1")[-2:] == ["1", "1.00"]  # interrupts


def test_an_interrupt_is_for_the_queues_that_have_something(run: Run, saved: Save) -> None:
    """Both queues have vector 0."""
    bench = ready()
    for _ in range(5):
        bench.driver.read(slba=0, blocks=1)
    number = len(bench.of(trace.Interrupt))
    _, lines, _ = run("trace", "stats", saved(bench))
    assert f"interrupts {number}" in lines[1]
    assert row(lines, "1")[-2:] == ["5", "1.00"]
    assert row(lines, "0")[-2:] == [str(number - 5), "1.00"]


def test_diff_tells_what_one_host_did_and_the_other_did_not(run: Run, saved: Save) -> None:
    paths: list[str] = []
    for name in "ab":
        bench = Traced()
        driver = bench.driver
        driver.alloc(PAGE * (1 + (name == "b")))  # other addresses
        driver.enable(asqs=32 if name == "a" else 16)
        bench.clock.advance(len(paths))  # other times
        driver.create_queues()
        driver.get_feature(1)
        if name == "a":
            driver.get_feature(7)
        driver.execute(driver.admin, Identify(opcode=AdminOpcode.IDENTIFY, prp1=driver.alloc(PAGE), cns=1))
        paths.append(saved(bench, name))
    status, lines, _ = run("trace", "diff", *paths)
    assert status == 1
    assert [line for line in lines if line[0] in "+-!"] == [
        "- BAR0  write AQA = 0x1f001f (asqs=32 acqs=32)",
        "+ BAR0  write AQA = 0x1f000f (asqs=16 acqs=32)",
        "- admin Get Features Number of Queues -> Success, dw0=0x3f003f",
    ]
    assert "  admin Identify Controller -> Success" in lines
    assert lines[-3].endswith("0 answered differently, 2 only in A, 1 only in B")
    assert run("trace", "diff", paths[0], paths[0])[0] == 0


@pytest.mark.parametrize("name", ["freebsd-15-nvd", "freebsd-15-intx", "linux-6.12"])
def test_diff_takes_no_firmware_for_a_driver(run: Run, tmp_path: Path, name: str) -> None:
    """The same boot without its firmware: what that did is only in A, though the driver has said much of it, too."""
    path = CORPUS / f"{name}.trace.xz"
    with trace.open_trace(path) as reader:
        description, records = reader.description, list(reader)
    end = next(phase.end for phase in phases(records) if phase.name in (Name.FIRMWARE, Name.LOADER))
    first = next(number for number, one in enumerate(records) if isinstance(one, trace.RegisterRead))
    kept = [one for number, one in enumerate(records) if number < first or one.time > end]
    other = tmp_path / "other"
    with other.open("wb") as file:
        writer = trace.Writer(file, description)
        for record in kept:
            writer.write(record)
    status, lines, _ = run("trace", "diff", str(path), str(other), "--context", "0")
    assert status == 1
    marked = [line for line in lines if line.startswith(("-", "+", "!")) and "PCI" not in line]
    firmware = next(part.steps for part in steps("A", records, CommandFilter()).parts if part.who == Who.FIRMWARE)
    assert marked == [f"- {step.text}" for step in firmware]
    assert len(firmware) > 20


@pytest.mark.parametrize("other", ["openbsd-msix", "openbsd-intx", "nvmewin-learn"])
@pytest.mark.parametrize("name", ["freebsd-12-nvd", "linux-7.3"])
@pytest.mark.kills("drivers-are-firmware", "boots-are-not-cut")
def test_diff_takes_no_driver_for_the_firmware(name: str, other: str) -> None:
    """The other trace has no firmware; both its driver and SeaBIOS have asked for sixteen namespaces."""
    both = []
    for one in (name, other):
        with trace.open_trace(CORPUS / f"{one}.trace.xz") as reader:
            both.append(list(reader))
    a, b = (steps("", records, CommandFilter()).parts for records in both)
    firmware = {id(step) for part in a if part.who == Who.FIRMWARE for step in part.steps}
    pairs = Comparison.between(a, b).pairs
    assert len(firmware) > 20
    assert not [one for one, counterpart in pairs if id(one) in firmware and counterpart is not None]
    assert sum(one is not None and counterpart is not None for one, counterpart in pairs) > 10


def test_diff_of_some_commands(run: Run, saved: Save) -> None:
    paths = []
    for name, blocks in (("a", 1), ("b", 2)):
        bench = ready()
        bench.driver.get_feature(1)
        for at in range(4):
            bench.clock.advance(1)
            bench.driver.read(slba=8 * at, blocks=blocks if at == 2 else 1)
        bench.driver.identify(1) if blocks == 2 else None
        paths.append(saved(bench, name))

    def differences(*words: str) -> int:
        status, lines, _ = run("trace", "diff", *paths, *words)
        found = sum(line.startswith(("-", "+", "!")) for line in lines)
        assert status == (found > 0)
        assert all("I/O" in line or "admin" in line for line in lines if line.startswith(("-", "+", "!", " ")))
        return found

    assert differences("--queue", "1") == 2
    assert differences("--queue", "0") == 1
    assert differences("--opcode", "read") == 2
    assert differences("--opcode", "identify", "--opcode", "read", "--queue", "0") == 1
    assert differences("--opcode", "get-features") == 0
    assert differences("--nsid", "1", "--queue", "1") == 2
    assert differences("--queue", "1", "--to", "2.5") == 0
    assert differences("--queue", "1", "--from", "3.5") == 0
    assert differences("--queue", "1", "--from", "2500ms", "--to", "3500ms") == 2
    assert run("trace", "diff", *paths, "--from", "1000")[0] == 1
    assert "--status" in run("trace", "diff", *paths, "--status", "ok")[2]


@pytest.mark.kills("answers-are-all-the-same")
def test_diff_tells_what_was_answered_differently(run: Run, saved: Save) -> None:
    paths: list[str] = []
    for queues in (8, 16):
        bench = ready(limits=Limits(io_queues=queues))
        bench.driver.get_feature(7)
        paths.append(saved(bench, str(queues)))
    _, lines, _ = run("trace", "diff", *paths, "--context", "0")
    assert [line for line in lines if line[0] not in "#@"] == [
        "! admin Get Features Number of Queues -> A: Success, dw0=0x70007 -> B: Success, dw0=0xf000f"
    ]


def test_coverage_tells_what_was_used(run: Run) -> None:
    status, lines, _ = run("check", "--coverage", str(CORPUS / "linux-6.12.trace.xz"))
    assert status == 0
    text = "\n".join(lines)
    assert (
        "Set Features: 3 of 14\n  used      Number of Queues (2), Async Event Configuration (2), Timestamp (2)" in text
    )
    assert "not used  Flush, Write Uncorrectable, Compare" in text
    assert "Command Effects (2)" in text


def test_replay_says_that_all_is_as_recorded(run: Run, tmp_path: Path) -> None:
    status, lines, _ = run("replay", U_BOOT, "--output", str(tmp_path / "again"))
    assert status == 0
    assert re.fullmatch(r"27 commands in [\d.]+ s: all as recorded", lines[-1])
    assert run("trace", "diff", U_BOOT, str(tmp_path / "again"))[0] == 0


def test_replay_tells_differences(run: Run, saved: Save) -> None:
    bench = ready()
    bench.driver.get_feature(7)
    path = Path(saved(bench))
    path.write_bytes(path.read_bytes().replace(b'"io_queues":64', b'"io_queues":16'))
    status, lines, _ = run("replay", str(path))
    assert status == 1
    assert lines[1].endswith("Get Features Number of Queues: was Success, dw0=0x3f003f, is Success, dw0=0xf000f")
    assert lines[-1].endswith(": 1 difference")
    assert len(run("replay", str(path), "--most", "0")[1]) == 2


@pytest.mark.parametrize(
    "command",
    [("trace", "show"), ("trace", "grep"), ("trace", "stats"), ("check", "--coverage"), ("replay",)],
    ids=str,
)
def test_bad_files_are_one_line(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "f"
    good = io.BytesIO()
    trace.Writer(good, trace.Description())
    for content, message in (
        (None, "No such file or directory"),
        (b"#!/bin/sh\n", "not a trace\n"),
        (good.getvalue()[:20], "cut within its header"),
        (good.getvalue()[:8] + b"\7" + good.getvalue()[9:], "version 7.3"),
        (good.getvalue() + b"\1" * 8 + bytes(92), "damaged at byte"),
        (b"\x1f\x8b\x08 no gzip at all", "f: "),
        (b"\xfd7zXZ\0 no xz at all", "f: "),
    ):
        if content is not None:
            file.write_bytes(content)
        status, _, err = run(*command, str(file))
        assert status == 1
        assert err.count("\n") == 1
        assert message in err


@pytest.mark.parametrize("words", [("--from", "2"), ("--from", "1.3", "--to", "1.2")], ids=str)
def test_stats_of_a_time_that_is_not_there(run: Run, words: tuple[str, ...]) -> None:
    told = f"nvmeemu trace: {U_BOOT}: nothing at that time: it ends at 1.396777 s\n"
    assert run("trace", "stats", U_BOOT, *words) == (1, [], told)
    assert run("trace", "stats", U_BOOT, "--from", "1.39")[0] == 0


@pytest.mark.parametrize("name", ["/none/freebsd.toml", str(ROOT / "src/nvmeemu/profiles/freebsd.toml")])
def test_a_driver_profile_is_no_trace_and_it_says_what_to_do(run: Run, name: str) -> None:
    for command in (("replay",), ("trace", "show")):
        status, _, err = run(*command, name)
        assert (status, err.count("\n")) == (1, 1)
        assert err.endswith("; a driver profile is for 'nvmeemu profile run': --output makes a trace\n")


def test_a_cut_file_is_said_to_be_cut(run: Run, saved: Save) -> None:
    path = Path(saved(ready()))
    path.write_bytes(path.read_bytes()[:-3])
    status, lines, err = run("trace", "show", str(path))
    assert status == 0
    assert len(lines) > 10
    assert run("replay", str(path))[2] == err
    assert err == f"nvmeemu: {path}: cut: it ends within a record\n"


@pytest.mark.parametrize(
    "words",
    [
        ["trace"],
        ["trace", "dance"],
        ["trace", "show"],
        ["trace", "show", "f", "--opcode", "dance"],
        ["trace", "show", "f", "--status", "bad"],
        ["trace", "show", "f", "--from", "noon"],
        ["trace", "show", "f", "--from", "9" * 400],
        ["trace", "show", "f", "--nsid", "x"],
        ["trace", "show", "f", "--queue", "-1"],
        ["trace", "grep", "f", "("],
        ["trace", "diff", "f"],
        ["trace", "diff", "f", "f", "--context", "-1"],
        ["check"],
        ["replay"],
        ["replay", "f", "--most", "-1"],
        ["replay", U_BOOT, "--output", U_BOOT],
        ["replay", U_BOOT, "--disk", "mem:1X"],
        ["replay", U_BOOT, "--disk", "mem:256M", "--disk", "mem:1M"],
    ],
    ids=str,
)
def test_bad_use_is_one_line(run: Run, words: list[str]) -> None:
    status, lines, err = run(*words)
    assert (status, lines) == (2, [])
    assert err.startswith("nvmeemu ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [("trace",), ("trace", "show"), ("trace", "grep"), ("trace", "stats"), ("trace", "diff"), ("replay",), ("check",)],
    ids=str,
)
def test_help_is_complete(run: Run, command: tuple[str, ...]) -> None:
    status, lines, _ = run(*command, "--help")
    assert status == 0
    text = " ".join(" ".join(lines).split())
    assert f"usage: nvmeemu {' '.join(command)} " in text
    for option in re.findall(r"(?<=\[)--[a-z-]+", text):
        assert re.search(rf"{option}( [A-Z]+)? [a-zÀ-ž0-9]", text), option


def test_on_a_terminal_there_are_colours_and_in_a_pipe_none() -> None:
    command = [NVMEEMU, "trace", "grep", U_BOOT]
    assert (
        "\x1b[" not in subprocess.run([*command[:2], "show", U_BOOT], capture_output=True, text=True, check=True).stdout
    )
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    with subprocess.Popen([*command[:2], "show", U_BOOT], stdout=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        try:
            while piece := os.read(ours, 65536):
                text += piece
        except OSError:  # the terminal is gone
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[36mSQ 0" in text


def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        writer = trace.Writer(file, trace.Description())
        for number in range(20_000):
            writer.write(trace.Doorbell(number, 0, 1, False, False, number))
    command = f"{NVMEEMU} trace show {big}"
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert result.stderr == ""


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), max_size=40))
def test_alignment_is_one_of_equal_elements_in_order(a: list[int], b: list[int]) -> None:
    pairs = align(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    assert align(a, a) == [(number, number) for number in range(len(a))]


def test_alignment_of_long_sequences_is_found_by_what_is_unique() -> None:
    a = [f"read {number}" if number % 3 else "poll" for number in range(30_000)]
    b = [one for number, one in enumerate(a) if number % 100]
    assert align(a, b) == [(number, at) for at, number in enumerate(n for n in range(30_000) if n % 100)]


@pytest.mark.kills("percentiles-between")
def test_percentiles_are_those_of_the_nearest_rank() -> None:
    values = list(range(1, 101))
    assert [percentile(values, percent) for percent in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert [percentile([7, 8, 9], percent) for percent in (1, 50, 99)] == [7, 8, 9]
