"""Output and progress on a terminal, in a pipe, and where there is none."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nvmeemu.app.cli import main
from nvmeemu.trace import terminal
from nvmeemu.trace.terminal import with_bar

pytestmark = pytest.mark.long

CORPUS = Path(__file__).parent / "corpus"
SEABIOS = str(CORPUS / "seabios.trace.xz")
U_BOOT = str(CORPUS / "u-boot.trace.xz")
BAR = "━━━"
Screen = Callable[[], "Terminal"]


class Terminal:
    """What programs in this process write to it. A thread reads it, or they would wait for that."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.file = open(theirs, "w", encoding="utf-8")  # noqa: SIM115  # closed in ``text``
        self._found = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):  # so a terminal ends
            while piece := os.read(self._ours, 1 << 16):
                self._found += piece

    def text(self) -> str:
        """All of it; it ends here."""
        self.file.close()
        self._thread.join(10)
        os.close(self._ours)
        return self._found.decode()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes stderr a terminal; nobody has patience."""
    monkeypatch.setattr(terminal, "PATIENCE", 0)
    monkeypatch.setattr(terminal, "_EVERY", 1000)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def make() -> Terminal:
        made = Terminal()
        monkeypatch.setattr(sys, "stderr", made.file)
        return made

    return make


@pytest.mark.parametrize(
    "words",
    [
        ["trace", "stats", SEABIOS],
        ["trace", "diff", SEABIOS, U_BOOT],
        ["trace", "plot", SEABIOS, "-o"],
        ["trace", "export", "--perfetto", SEABIOS, "-o"],
        ["check", "--coverage", SEABIOS],
        ["replay", SEABIOS],
    ],
    ids=str,
)
def test_who_waits_for_a_result_sees_how_far_it_is(
    words: list[str], screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = screen()
    monkeypatch.setattr(sys, "stdout", here.file)
    main([*words, str(tmp_path / "out.png")] if words[-1] == "-o" else words)
    text = here.text()
    assert BAR in text
    assert "seabios" in text
    assert "\x1b[2K" in text[text.rindex(BAR) :]  # the bar goes when its work is done


def test_lines_on_the_same_terminal_are_progress_enough(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    here = screen()
    main(["trace", "grep", SEABIOS])  # stdout is no terminal
    assert BAR in here.text()
    here = screen()
    monkeypatch.setattr(sys, "stdout", here.file)
    main(["trace", "grep", SEABIOS, "flush"])
    text = here.text()
    assert "Flush" in text
    assert BAR not in text


def test_a_terminal_has_no_room_for_columns_that_are_empty(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    here = screen()
    monkeypatch.setattr(sys, "stdout", here.file)
    monkeypatch.setenv("COLUMNS", "100")
    main(["trace", "stats", SEABIOS])
    lines = re.sub(r"\x1b\[[\d;]*m", "", here.text()).splitlines()
    assert not any("errors" in line for line in lines)
    (read,) = (line for line in lines if " Read " in line)
    assert len(re.findall(r"\d [µm]?s", read)) == 5  # on one line: min, p50, p90, p99, max


def test_the_bar_comes_only_after_a_while_and_tells_how_far_it_is(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = screen()
    assert list(with_bar(range(4000), "name", 4000, lambda number: number)) == list(range(4000))
    assert "name" in (text := here.text())
    assert "75%" in text
    here = screen()
    monkeypatch.setattr(terminal, "PATIENCE", 60)
    assert list(with_bar(range(4000), "name", 4000, lambda number: number)) == list(range(4000))
    assert here.text() == ""


def test_nobody_sees_a_bar_in_a_pipe_or_on_a_dumb_terminal(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    here = screen()
    list(with_bar(range(4000), "name", 0, lambda number: number))
    assert here.text() == ""
    result = subprocess.run(
        [sys.executable, "-m", "nvmeemu", "trace", "stats", SEABIOS], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_started_with_a_stream_closed(closed: str) -> None:
    command = f"{sys.executable} -m nvmeemu trace stats {U_BOOT} {closed}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_output_that_is_full_is_one_line() -> None:
    command = f"{sys.executable} -m nvmeemu trace stats {U_BOOT} >/dev/full"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "nvmeemu trace: standard output: No space left on device\n")


def test_a_locale_without_our_letters_and_a_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.trace")
    Path(name).symlink_to(U_BOOT)
    for encoding, said in (("ascii", rb", 128 \xb5s"), ("utf-8:strict", rb"/\udcff.trace: nvmeemu ")):
        command = [sys.executable, "-m", "nvmeemu", "trace", "show", name]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        result = subprocess.run(command, capture_output=True, check=True, env=environment)
        assert said in result.stdout
        assert result.stderr == b""
