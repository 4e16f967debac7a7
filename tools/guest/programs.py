"""Programs of the host that make disk images and look into them. They work on plain files, and need no root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from nvmeemu.guest.errors import GuestError


class ProgramFailed(GuestError):
    """A program ran, and ended with a status other than 0."""


def run(program: str | Path, *words: str | Path, input_: bytes = b"") -> bytes:
    """Run a program that must succeed; returns its output. Raises GuestError."""
    found = shutil.which(str(program), path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise GuestError(f"host: no {program}: run scripts/setup.sh base disk-tools")
    environment = os.environ | {"MTOOLS_SKIP_CHECK": "1", "TZ": "UTC", "LC_ALL": "C"}
    done = subprocess.run([found, *map(str, words)], input=input_, capture_output=True, env=environment)
    if done.returncode != 0:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise ProgramFailed(f"host: {Path(program).name} ended with status {done.returncode}: {last}")
    return done.stdout
