"""docs/first-fault-test.md: what it tells its readers to type works, in its order, as it stands."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TUTORIAL = CHECKOUT / "docs" / "first-fault-test.md"
BLOCK = re.compile(r"^```(\w+)( fails)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"`([\w.]+\.(?:py|toml))`:\n\n\Z")
NUMBER_OF_BLOCKS = 10


def script(text: str) -> tuple[str, list[str]]:
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
    assert len(BLOCK.findall(text)) == NUMBER_OF_BLOCKS == text.count("```") // 2
    return "\n".join(steps), printed


@pytest.mark.guest
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, printed = script(TUTORIAL.read_text())
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    ended = subprocess.run(
        ["bash", "-c", program], cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=850
    )
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0
    assert ended.stdout.count(" passed in ") == 2
    lines = iter(ended.stdout.splitlines())
    for pattern in printed:
        assert any(fnmatch(line, pattern) for line in lines), pattern
