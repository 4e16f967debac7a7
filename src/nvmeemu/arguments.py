"""What all commands' argument parsers share: errors of one line, options of one name, checked numbers."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose options have one name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._negative_number_matcher = re.compile(r"-\d")  # --size -5G: no option, but a size, and not a good one

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Number:
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
