"""The tutorials in docs/: what they tell a reader to type works, in its order, without a change."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from guest import boot_sector
from nvmeemu.guest import cache

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
BLOCK = re.compile(r"^```(\w+)( fails)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"`([\w.]+\.(?:py|toml))`:\n\n\Z")


def script(text: str, blocks: int) -> tuple[str, list[str]]:
    """The page as a program for bash, and the patterns of lines that it must print in this order."""
    steps = ["set -eu"]
    printed: list[str] = []
    for block in BLOCK.finditer(text):
        kind, fails, content = block.groups()
        if kind == "text":
            printed += content.splitlines()
        elif kind == "sh":
            steps.append(f"if ( {content} ); then echo 'this should fail'; exit 1; fi" if fails else content)
        else:
            name = FILE_NAME.search(text[: block.start()])
            assert name is not None, f"no file name before {content}"
            steps.append(f"cat >{name[1]} <<'END OF FILE'\n{content}END OF FILE\n")
    assert len(BLOCK.findall(text)) == blocks == text.count("```") // 2
    return "\n".join(steps), printed


def follow(page: str, blocks: int, folder: Path, cwd: Path) -> str:
    """Do what the page says, see that it has the effect that it says; what was printed."""
    program, printed = script((DOCS / page).read_text(), blocks)
    dropped = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | {"TMPDIR": str(folder)}
    ended = subprocess.run(
        ["bash", "-c", program],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=850,
    )
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0
    lines = iter(ended.stdout.splitlines())
    for pattern in printed:
        assert any(fnmatch(line, pattern) for line in lines), pattern
    return ended.stdout


def test_every_command_of_the_tutorial_works(tmp_path: Path) -> None:
    assert follow("first-fault-test.md", 10, tmp_path, CHECKOUT).count(" passed in ") == 2


def test_every_command_for_an_own_os_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is set-up's Linux, the CD the smallest system there is."""
    (tmp_path / "my-kernel").symlink_to(cache.kernel("amd64"))
    boot_sector.write_cd(tmp_path / "my.iso")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # nvmeemu is installed
    said = follow("your-own-os.md", 8, tmp_path, tmp_path)
    assert boot_sector.GREETING in said
    assert "write CC = 0x460000 (iosqes=6 iocqes=4)" in said, "the kernel's own driver has not been seen"
    assert (tmp_path / "disk.img").stat().st_size == 64 << 20
