"""The polling host, the floor and plain calls in C (polled.c, calls.c), compiled into the cache when first used.

The set-up of a controller is Python's (``target``); what is here only submits, polls and counts.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from ctypes import POINTER, Structure, c_int32, c_uint8, c_uint32, c_uint64
from functools import cache
from pathlib import Path
from typing import ClassVar

from nvmeemu.engine.native.generate import header
from nvmeemu.guest import cache as guest_cache

HERE = Path(__file__).parent
OPTIONS = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
MAX_DEPTH = 1024
SAMPLES = 1 << 20
PAGE = 4096


class Queue(Structure):
    """``struct queue``."""

    _fields_: ClassVar = [
        ("sq", c_uint64),
        ("cq", c_uint64),
        ("data", c_uint64),
        ("lists", c_uint64),
        ("data_iova", c_uint64),
        ("lists_iova", c_uint64),
        ("tail_page", c_uint64),
        ("head_page", c_uint64),
        ("tail_shadow", c_uint64),
        ("tail_event", c_uint64),
        ("head_shadow", c_uint64),
        ("head_event", c_uint64),
        ("tail_register", c_uint64),
        ("head_register", c_uint64),
        ("socket", c_int32),
        ("qid", c_uint32),
        ("entries", c_uint32),
        ("tail", c_uint32),
        ("head", c_uint32),
        ("phase", c_uint32),
    ]


class Load(Structure):
    """``struct load``."""

    _fields_: ClassVar = [
        ("disk_pages", c_uint64),
        ("seed", c_uint64),
        ("cursor", c_uint64),
        ("time", c_uint64),
        ("commands", c_uint64),
        ("opcode", c_uint32),
        ("pages", c_uint32),
        ("depth", c_uint32),
        ("check", c_uint32),
        ("cdw12", c_uint32),
        ("block", c_uint32),
        ("has_metadata", c_uint32),
        ("has_sgl", c_uint32),
        ("every", c_uint32),
        ("done", c_uint64),
        ("failed", c_uint64),
        ("wrong", c_uint64),
        ("elapsed", c_uint64),
        ("messages", c_uint64),
        ("samples", POINTER(c_uint32)),
        ("room", c_uint64),
    ]


class Floor(Structure):
    """``struct floor``."""

    _fields_: ClassVar = [
        ("queues", POINTER(Queue)),
        ("guest", c_uint64),
        ("disk", c_uint64),
        ("stop", c_uint32),
        ("count", c_uint32),
        ("counts_idle", c_uint32),
        ("served", c_uint64),
        ("idle", c_uint64),
        ("cpu", c_uint64),
    ]


def address(memory: object) -> int:
    """Where a writable buffer lies."""
    return ctypes.addressof(c_uint8.from_buffer(memory))  # type: ignore[arg-type]


@cache
def library() -> ctypes.CDLL:
    """The compiled polled.c. Raises CalledProcessError, OSError."""
    sources = [HERE / "polled.h", HERE / "polled.c", HERE / "calls.c"]
    text = header().encode() + b"".join(source.read_bytes() for source in sources)
    name = f"polled-{hashlib.sha256(text + ' '.join(OPTIONS).encode()).hexdigest()[:16]}.so"
    built = guest_cache.root() / "bench" / name
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as work:
            Path(work, "nvme_spec.h").write_text(header())
            made = Path(work, name)
            compiler = shlex.split(os.environ.get("CC", "cc"))
            subprocess.run([*compiler, *OPTIONS, f"-I{work}", f"-I{HERE}", "-o", made, *sources[1:]], check=True)
            made.rename(built)
    loaded = ctypes.CDLL(str(built))
    loaded.run_load.argtypes = [POINTER(Queue), c_uint32, POINTER(Load)]
    loaded.run_calls.argtypes = [c_int32, POINTER(Load)]
    loaded.run_floor.argtypes = [POINTER(Floor)]
    loaded.run_floor.restype = None
    return loaded
