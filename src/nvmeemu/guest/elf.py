"""Which shared libraries a program needs, of any architecture. The library pyelftools reads its ELF headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Needs:
    """The dynamic linker (None for a static program) and the names of the libraries."""

    interpreter: str | None
    libraries: tuple[str, ...]


def needs(path: Path) -> Needs:
    """Read one ELF file; anything else (a script, say) needs nothing."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    interpreter: str | None = None
    libraries: tuple[str, ...] = ()
    with path.open("rb") as file:
        try:
            for segment in ELFFile(file).iter_segments():
                if isinstance(segment, InterpSegment):
                    interpreter = segment.get_interp_name()
                elif isinstance(segment, DynamicSegment):
                    libraries = tuple(tag.needed for tag in segment.iter_tags("DT_NEEDED"))  # type: ignore[attr-defined]
        except ELFError:
            return Needs(None, ())
    return Needs(interpreter, libraries)
