"""QEMU as a client: whether a given QEMU can be one, and where scripts/setup.sh leaves one that can."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

OLDEST = "10.1"


def cache() -> Path:
    """Where scripts/setup.sh leaves what it makes: $XDG_CACHE_HOME/nvmeemu, ~/.cache/nvmeemu by default."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nvmeemu"


def obstacle(qemu: Path) -> str:
    """Why this QEMU cannot be a vfio-user client; "" if it can."""
    if "vfio-user-pci options" in (_output(qemu, "-device", "vfio-user-pci,help") or ""):
        return ""
    version = re.search(r"version (\S+)", _output(qemu, "--version") or "")
    if version is None:
        return f"{qemu} does not run as QEMU"
    return f"{qemu} is version {version[1]} without vfio-user-pci: QEMU {OLDEST} or newer is needed"


def _output(qemu: Path, *words: str) -> str | None:
    try:
        result = subprocess.run([qemu, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None
