"""Text of others, for a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """A text out of a file or a path, for a terminal and in one line: what could command it is escaped."""
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
