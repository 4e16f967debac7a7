"""What the command lines of all commands share: errors of one line, options with one name, checked numbers, and an
ordinary end where the output is full or closed."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import Any, NoReturn

from nvmeemu.text import plain

MOST_IO_THREADS = 16  # of the native engine: what --io-threads takes


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose options have one name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._negative_number_matcher = re.compile(r"-\d")  # --size -5G: no option, but a size, and not a good one

    def error(self, message: str) -> NoReturn:
        self.exit(complain(self.prog, f"{message} (see {self.prog} --help)", 2))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(status or tell(self.prog, ""), message)  # --help and --version are not written yet


class BoundedNumber:
    """An argparse type: a decimal or 0x number within bounds."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def __call__(self, text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            value = -1
        if not self.least <= value <= self.most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {self.least} to {self.most}")
        return value


class Hex:
    """An argparse type: so many bytes in hexadecimal digits, not all 0; ``-``, ``:`` and ``.`` are left out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, text: str) -> bytes:
        digits = re.sub(r"[-:.]|^(0x|eui\.)", "", text)
        if not re.fullmatch(f"[0-9a-fA-F]{{{2 * self.size}}}", digits) or not int(digits, 16):
            raise argparse.ArgumentTypeError(f"{text!r} is not {2 * self.size} hexadecimal digits, and not all 0")
        return bytes.fromhex(digits)


def tell(program: str, text: str) -> int:
    """Print a text. Returns the exit status."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        return output_failed(program, error)
    return 0


def output_failed(program: str, error: OSError) -> int:
    """Handle an output that takes nothing: write a line on stderr. Returns the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still has shall not fail once more
    if isinstance(error, BrokenPipeError):  # the reader of our output has seen enough
        return 0
    return complain(program, f"standard output: {error.strerror or error}")


def complain(program: str, why: object, status: int = 1) -> int:
    """Say in one line on stderr why it fails, whatever paths are in that. Returns the exit status."""
    print(f"{program}: {plain(str(why))}", file=sys.stderr)
    return status
