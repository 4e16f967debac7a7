"""``profile add``: how a host learns of completions, and what device it had, are in the profile of its trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmeemu.profiles import parse, run
from nvmeemu.profiles.from_trace import profile_text
from nvmeemu.profiles.steps import ModeStep, WriteStep
from nvmeemu.regs import INTMC, INTMS
from nvmeemu.trace import (
    Completion,
    Doorbell,
    Fetch,
    Interrupt,
    InterruptMode,
    PciChange,
    Record,
    RegisterWrite,
    Signal,
    open_trace,
)
from nvmeemu.trace.file import Description
from nvmeemu.trace.records import encode
from nvmeemu.trace.sink import Memory

CORPUS = Path(__file__).parents[1] / "trace/corpus"
INTERRUPTS = {
    "freebsd-12-intx": (["polling", "pin masking"], 0),
    "freebsd-12-nvd": (["polling", "msix"], 0),
    "freebsd-15-intx": (["polling", "pin masking"], 0),
    "freebsd-15-nvd": (["polling", "msix"], 0),
    "linux-7.3": (["polling", "msix", "polling", "msix"], 0),
    "nvme2k": (["polling", "pin"] * 3 + ["polling"], 11),
    "nvmewin-learn": (["msix"], 0),
    "openbsd-msix": (["msix"], 5),
    "openbsd-intx": (["polling", "pin masking"] * 7 + ["polling", "pin masking", "polling"], 5),
}
"""How each host learns, as a person reads it in the recording (polling first: the firmware's driver), and how often it
writes INTMS or INTMC outside of its interrupt handler."""


def profile_of(records: list[Record], **description: object) -> str:
    memory = Memory(Description(**description))  # type: ignore[arg-type]
    for record in records:
        memory.put(encode(record))
    return profile_text(memory.reader())


@pytest.mark.parametrize("name", INTERRUPTS)
def test_how_a_recorded_host_learns(name: str) -> None:
    modes, masks = INTERRUPTS[name]
    with open_trace(CORPUS / f"{name}.trace.xz") as reader:
        steps = parse(profile_text(reader), "x").steps
    found = [step.text for step in steps if isinstance(step, ModeStep)]
    if name == "openbsd-intx":  # it polls some single commands of its I/O
        assert set(found) == set(modes)
        assert found[0] == found[-1] == "polling"
    else:
        assert found == modes
    written = [step for step in steps if isinstance(step, WriteStep) and step.offset in (INTMS.offset, INTMC.offset)]
    assert len(written) == masks


def command(cid: int, time: int = 0) -> Fetch:
    return Fetch(time, 0, 0, cid % 64, bytes([6, 0, cid, 0]) + bytes(60))


def answer(cid: int) -> Completion:
    return Completion(0, 0, 0, cid % 64, bytes(12) + bytes([cid, 0, 0, 0]))


def test_another_processor_submits_while_a_handler_masks() -> None:
    """INTMS is up when the command is fetched, and when its completion is taken: the handler of the one before."""
    mask, unmask = (RegisterWrite(0, 0, one.offset, b"\1\0\0\0") for one in (INTMS, INTMC))
    up, down = (Interrupt(0, 0, 0, signal) for signal in (Signal.PIN_UP, Signal.PIN_DOWN))
    records: list[Record] = [
        *(RegisterWrite(0, 0, 0x14, b"\1\0\x46\0"), command(1), answer(1), up, mask, down),
        *(command(2), answer(2), Doorbell(0, 0, 0, True, False, 3), unmask),
        *(command(3), answer(3), up, mask, down, Doorbell(0, 0, 0, True, False, 4), unmask, mask, unmask),
    ]
    text = profile_of(records)
    assert text.count("pin masking") == 1
    assert "polling" not in text
    assert "INTM" not in text


def test_a_message_may_be_recorded_behind_the_doorbell_that_answers_it() -> None:
    pci = PciChange(0, 0, True, True, False, False, 0, False)
    records: list[Record] = [pci, InterruptMode(0, 0, True), RegisterWrite(0, 0, 0x14, b"\1\0\x46\0")]
    for cid in range(1, 9):
        records += [command(cid), answer(cid)]
        pair: list[Record] = [Interrupt(0, 0, 0, Signal.MSIX), Doorbell(0, 0, 0, True, False, cid + 1)]
        records += pair if cid % 3 else pair[::-1]
    assert [line for line in profile_of(records).splitlines() if line in ("polling", "msix")] == ["msix"]


def test_the_device_of_the_trace_is_that_of_the_profile() -> None:
    """Namespaces with their block sizes and caches, and the page size that CC.MPS has set."""
    text = """
title = "x"
standing = "source"
steps = '''
write CC = 0
write AQA = 0x1f001f
write ASQ = memory
write ACQ = memory
write CC = 0x460201
wait rdy = 1
msix
admin identify nsid=3 cns=namespace -> nsze=1000
admin get_features fid=volatile_write_cache -> dw0=1
admin create_cq qid=1 qsize=8 pc=1 ien=1
admin create_cq qid=2 qsize=8 pc=1
admin create_sq qid=1 qsize=8 pc=1 cqid=1
admin create_sq qid=2 qsize=8 pc=1 cqid=2
q1 write nsid=1 slba=8 nlb=300 at=0x1200 list_at=0x2800
q1 read nsid=1 slba=8 nlb=300 at=0x3ffc
q1 write nsid=3 slba=8 nlb=20 at=0x800
q2 read nsid=3 slba=8 nlb=20 at=0x800
q2 read nsid=1 slba=8 nlb=300
q2 flush nsid=3
'''
[device]
io_queues = 2
[[namespace]]
blocks = 2000
[[namespace]]
nsid = 3
blocks = 1000
block_size = 4096
write_cache = true
"""
    first = parse(text, "x")
    outcome = run(first)
    assert [str(one) for one in outcome.findings] == []
    again = parse(profile_text(outcome.trace), "again")
    assert again.namespaces == first.namespaces
    assert again.device["io_queues"] == 2
    assert {"at=0x1200", "list_at=0x2800", "at=0x3ffc"} <= {word for step in again.steps for word in step.text.split()}
    assert [str(one) for one in run(again).findings] == []


def test_a_queue_without_interrupts_is_looked_at() -> None:
    """Also where the driver waits for messages: IEN of its completion queue is 0."""
    text = (CORPUS.parents[2] / "docs/profiles.md").read_text().split("```toml\n")[1].split("```")[0]
    text = text.replace("ien=1 iv=1", "ien=0")
    assert [str(one) for one in run(parse(text, "x")).findings] == []


def test_what_was_not_as_it_must_be_names_its_line_once() -> None:
    (finding,) = run(parse('title = "x"\nstanding = "source"\nsteps = """\nread CC = 1\n"""', "x")).findings
    assert str(finding) == "line 4: read CC = 1: reads as 0x0, not 0x1"
