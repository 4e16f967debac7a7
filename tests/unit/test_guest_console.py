"""The console's text is the same however it is cut, and kernel messages never spoil a program's output."""

import socket
from pathlib import Path

import pytest

from nvmeemu.guest.console import Console, Transcript
from nvmeemu.guest.deadline import Deadline
from nvmeemu.guest.errors import GuestEnded, GuestTimeout

STREAM = (
    b"\x1b[2J\x1b[0mSeaBIOS\r\n"
    b"@@begin 1\nhal[    3.141592] nvme nvme0: I/O tag 1 QID 1 timeout\r\nf a line\n"
    b"[    0.000001] printed by dmesg, which ends its lines with LF\n"
    b"[   12.500000][    T7] caller\r\n"
    b"na\xc3\xafve [x]\n@@end 1 0\n"
)


def fed(*pieces: bytes) -> Transcript:
    transcript = Transcript()
    for piece in pieces:
        transcript.feed(piece)
    return transcript


def test_kernel_messages_are_taken_out_of_the_middle_of_a_line() -> None:
    transcript = fed(STREAM)
    assert transcript.kernel == ["nvme nvme0: I/O tag 1 QID 1 timeout", "caller"]
    assert (
        "half a line\n[    0.000001] printed by dmesg, which ends its lines with LF\nnaïve [x]\n" in transcript.output
    )
    assert "timeout" in transcript.text


def test_control_sequences_and_carriage_returns_are_left_out() -> None:
    assert fed(STREAM).text.startswith("SeaBIOS\n")


def test_the_text_is_the_same_wherever_it_is_cut() -> None:
    whole = fed(STREAM)
    for cut in range(len(STREAM)):
        parts = fed(STREAM[:cut], STREAM[cut:])
        assert (parts.text, parts.output, parts.kernel) == (whole.text, whole.output, whole.kernel), f"cut at {cut}"
    bytewise = fed(*(STREAM[i : i + 1] for i in range(len(STREAM))))
    assert (bytewise.text, bytewise.output, bytewise.kernel) == (whole.text, whole.output, whole.kernel)


@pytest.fixture
def line(tmp_path: Path) -> tuple[Console, socket.socket]:
    ours, theirs = socket.socketpair()
    return Console(ours, tmp_path / "console.log"), theirs


def test_expect_goes_forward_only(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    guest.sendall(b"one\r\ntwo\r\none\r\n")
    assert console.expect("^one$", Deadline(5)).start() == 0
    assert console.expect("^one$", Deadline(5)).start() == 8
    with pytest.raises(GuestTimeout, match=r"^timeout: 'two' did not come in 0\.05 s$"):
        console.expect("two", Deadline(0.05))


def test_the_end_of_the_guest_ends_the_waiting(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    guest.sendall(b"bye")
    guest.close()
    console.expect("bye", Deadline(5))
    with pytest.raises(GuestEnded, match="the guest ended before it printed 'more'"):
        console.expect("more", Deadline(5))


def test_all_that_came_is_in_the_log(line: tuple[Console, socket.socket], tmp_path: Path) -> None:
    console, guest = line
    guest.sendall(STREAM)
    guest.close()
    console.wait_for_end(Deadline(5))
    assert (tmp_path / "console.log").read_bytes() == STREAM
