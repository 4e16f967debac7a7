"""For commands that need other packages (the extra ``trace`` of this one), and for the files that they write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from nvmeemu.trace.file import BadUse, TraceError


def require(module: str, purpose: str) -> Any:
    """A module of the extra. Raises TraceError if it is not there."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise TraceError(f"{purpose} needs {package}: pip install 'nvmeemu[trace]'") from None


def check_output(source: str, output: str) -> None:
    """Raises BadUse if writing ``output`` would overwrite the trace."""
    if Path(source).exists() and Path(output).exists() and Path(source).samefile(output):
        raise BadUse(f"{output}: this is the trace itself")


@contextmanager
def writing(output: str) -> Iterator[None]:
    """Turns an OSError into a TraceError that names the file."""
    try:
        yield
    except OSError as error:
        raise TraceError(f"{output}: {error.strerror or error}") from None
