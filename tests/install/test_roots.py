"""The Debian roots that scripts/setup.sh makes. A stand-in for mmdebstrap only records what it was asked for."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
MMDEBSTRAP = """\
#!/bin/sh
printf '%s\\n' "$@" >"$ASKED"
for word; do case $word in */root) root=$word ;; esac; done
[ -n "$root" ] || exit 3
mkdir -p "$root/dev" "$root/usr/bin" "$root/usr/share/man" "$root/usr/share/qemu"
touch "$root/usr/bin/su" && chmod 4511 "$root/usr/bin/su"
"""


@pytest.fixture
def mmdebstrap(tmp_path: Path) -> dict[str, str]:
    """The environment in which it is found."""
    program = tmp_path / "bin/mmdebstrap"
    program.parent.mkdir()
    program.write_text(MMDEBSTRAP)
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "ASKED": str(tmp_path / "asked"), "SCRATCH": str(tmp_path), "HOME": "/nowhere"}


def call(function: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One of the functions of scripts/lib/apt.sh."""
    script = f"set -euo pipefail; . scripts/lib/common.sh; . scripts/lib/apt.sh; {function}"
    return subprocess.run(
        ["bash", "-c", script, "setup.sh"], cwd=CHECKOUT, env=environment, capture_output=True, text=True
    )


def asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "asked").read_text().splitlines()


def test_a_root_needs_no_root_and_keeps_no_setuid_bit(tmp_path: Path, mmdebstrap: dict[str, str]) -> None:
    done = call(f"unpack {tmp_path}/root trixie riscv64 busybox-static nvme-cli", mmdebstrap)
    assert (done.returncode, done.stderr) == (0, "")
    words = asked(tmp_path)
    assert {"--mode=chrootless", "--variant=extract", "--architectures=riscv64"} < set(words)
    assert "--include=busybox-static nvme-cli" in words
    assert stat.S_IMODE((tmp_path / "root/usr/bin/su").stat().st_mode) == 0o711
    assert [path.name for path in (tmp_path / "root").glob("*")] == ["usr"]  # no nodes, which root would get
    assert [path.name for path in (tmp_path / "root/usr/share").iterdir()] == ["qemu"]


def test_backports_come_with_their_suite_and_before_it(tmp_path: Path, mmdebstrap: dict[str, str]) -> None:
    assert call(f"unpack {tmp_path}/root trixie-backports amd64 qemu-utils", mmdebstrap).returncode == 0
    words = asked(tmp_path)
    assert [word.split()[-2:] for word in words if word.startswith("deb ")] == [
        ["trixie-backports", "main"],
        ["trixie", "main"],
    ]
    assert '--aptopt=APT::Default-Release "trixie-backports"' in words


def test_without_a_mirror_nothing_is_asked(tmp_path: Path, mmdebstrap: dict[str, str]) -> None:
    done = call(f"apt-get() {{ :; }}; unpack {tmp_path}/root trixie-backports amd64 qemu-utils", mmdebstrap)
    assert (done.returncode, done.stderr) == (1, "setup: no Debian mirror in the system's apt sources\n")
    assert not (tmp_path / "asked").exists()


def test_a_root_that_fails_is_told(tmp_path: Path, mmdebstrap: dict[str, str]) -> None:
    assert call(f"unpack {tmp_path}/another trixie amd64 qemu-utils", mmdebstrap).returncode == 3
