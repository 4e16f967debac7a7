"""What the value of a key can be: how it is written in a drive file and on the command line, and its JSON schema."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from argparse import ArgumentTypeError
from collections.abc import Sequence
from typing import Any

from nvmeemu.app import arguments


class ValueKind(ABC):
    """A kind of value. ``check`` returns what the code works with: bytes, a number of bytes, a whole path."""

    metavar = ""
    words: str
    """What it is, for the documentation."""

    @abstractmethod
    def check(self, value: object) -> Any:
        """Check a value of TOML or JSON. Raises ValueError, whose text is the reason."""

    @abstractmethod
    def schema(self) -> dict[str, object]:
        """The JSON schema of such values."""

    def option(self) -> dict[str, Any]:
        """The keywords for ``add_argument`` of ``argparse``."""
        return {"metavar": self.metavar}

    def placed(self, value: Any, folder: str) -> Any:
        """The checked value, as it is meant in a file in this folder."""
        return value


class TextValue(ValueKind):
    """A text of at most ``most`` characters, printable ASCII, neither empty nor with spaces at its ends."""

    def __init__(self, metavar: str, most: int, begins: str = "") -> None:
        self.metavar, self._most, self._begins = metavar, most, begins
        between = max(0, most - len(begins) - 2)
        self._pattern = rf"^{re.escape(begins)}[!-~]([ -~]{{0,{between}}}[!-~])?$"
        self.words = f"text of at most {most} characters" + (f", from `{begins}` on" if begins else "")

    def check(self, value: object) -> str:
        if not isinstance(value, str) or not re.search(self._pattern, value) or value.endswith("\n"):
            begins = f", that begin with {self._begins}" if self._begins else ""
            raise ValueError(f"{value!r}: give 1 to {self._most} printable ASCII characters{begins}")
        return value

    def schema(self) -> dict[str, object]:
        return {"type": "string", "pattern": self._pattern}


class NumberValue(ValueKind):
    metavar = "N"

    def __init__(self, least: int, most: int, metavar: str = "N") -> None:
        self.least, self.most, self.metavar = least, most, metavar
        self.words = f"{least} to {most}"

    def check(self, value: object) -> int:
        if type(value) is not int or not self.least <= value <= self.most:
            raise ValueError(f"{value!r} is not a number from {self.least} to {self.most}")
        return value

    def schema(self) -> dict[str, object]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def option(self) -> dict[str, Any]:
        return {"metavar": self.metavar, "type": arguments.BoundedNumber(self.least, self.most)}


class ChoiceValue(ValueKind):
    """One of these words or numbers."""

    def __init__(self, *choices: str | int) -> None:
        self._choices = choices
        self.words = ", ".join(f"`{json.dumps(choice)}`" for choice in choices)

    def check(self, value: object) -> Any:
        if value not in self._choices or type(value) is not type(self._choices[0]):
            known = ", ".join(map(str, self._choices))
            how = "neither {} nor {}".format(*self._choices) if len(self._choices) == 2 else f"none of {known}"
            raise ValueError(f"{value!r} is {how}")
        return value

    def schema(self) -> dict[str, object]:
        return {"enum": list(self._choices)}

    def option(self) -> dict[str, Any]:
        return {"choices": self._choices, "type": type(self._choices[0])}


class FlagValue(ValueKind):
    words = "`true`, `false`"

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is neither true nor false")
        return value

    def schema(self) -> dict[str, object]:
        return {"type": "boolean"}

    def option(self) -> dict[str, Any]:
        return {"action": "store_const", "const": True}


class OffValue(FlagValue):
    """A flag that is true by default. The option, which ``about`` describes, turns it off."""

    def __init__(self, about: str) -> None:
        self._about = about

    def option(self) -> dict[str, Any]:
        return {"action": "store_const", "const": False, "help": self._about}


class SizeValue(ValueKind):
    """Bytes; a text may have a unit."""

    metavar = "SIZE"
    words = "a size"

    def check(self, value: object) -> int:
        from nvmeemu.backend import BackendError, parse_size  # start-up: --help needs none of it

        if type(value) not in (str, int):
            raise ValueError(f"{value!r} is neither a number of bytes nor a text like 10G")
        try:
            return parse_size(str(value))
        except BackendError as error:
            raise ValueError(str(error)) from None

    def schema(self) -> dict[str, object]:
        text = {"type": "string", "pattern": r"^\s*\d{1,19}(\.\d{1,19})?\s*[KMGTPkmgtp]?([iI]?[bB])?\s*$"}
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": (1 << 63) - 1}, text]}

    def option(self) -> dict[str, Any]:
        return {"metavar": self.metavar, "type": self._of_text}

    def _of_text(self, text: str) -> int:
        try:
            return self.check(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None


class HexValue(ValueKind):
    """So many bytes; ``-``, ``:`` and ``.`` may stand between the digits."""

    def __init__(self, size: int, metavar: str = "HEX") -> None:
        self._size, self.metavar = size, metavar
        self.words = f"{size} bytes"

    def check(self, value: object) -> bytes:
        try:
            return arguments.Hex(self._size)(value if isinstance(value, str) else "")
        except ArgumentTypeError:
            raise ValueError(f"{value!r} is not {2 * self._size} hexadecimal digits, and not all 0") from None

    def schema(self) -> dict[str, object]:
        digits = rf"([-:.]*[0-9a-fA-F]){{{2 * self._size}}}[-:.]*"
        return {"type": "string", "pattern": rf"^(0x|eui\.)?{digits}$", "not": {"pattern": r"^(0x|eui\.)?[-:.0]*$"}}

    def option(self) -> dict[str, Any]:
        return {"metavar": self.metavar, "type": arguments.Hex(self._size)}


class PathValue(ValueKind):
    words = "a path"

    def __init__(self, metavar: str = "PATH") -> None:
        self.metavar = metavar

    def check(self, value: object) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"{value!r} is not a path")
        return value

    def schema(self) -> dict[str, object]:
        return {"type": "string", "pattern": r"^[^\u0000]+$"}

    def placed(self, value: str, folder: str) -> str:
        return os.path.join(folder, value)


class PoolValue(PathValue):
    """A folder, or memory."""

    words = "a folder, or `mem:SIZE`"

    def placed(self, value: str, folder: str) -> str:
        return value if value.startswith("mem:") else super().placed(value, folder)


class DiskValue(PathValue):
    """What ``backend.open_backend`` takes, and checks."""

    words = "a disk"

    def __init__(self) -> None:
        super().__init__("SPEC")

    def check(self, value: object) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"{value!r} is not text")
        return value

    def placed(self, value: str, folder: str) -> str:
        from nvmeemu.backend import placed  # start-up: --help needs none of it

        return placed(value, folder)


class FilesValue(ValueKind):
    """Several files."""

    metavar = "FILE"
    words = "a list of paths"
    _called = "files"

    def check(self, value: object) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(one, str) and one and "\0" not in one for one in value):
            raise ValueError(f"{value!r} is not a list of {self._called}")
        return list(value)

    def schema(self) -> dict[str, object]:
        return {"type": "array", "items": {"type": "string", "pattern": r"^[^\u0000]+$"}}

    def option(self) -> dict[str, Any]:
        return {"metavar": self.metavar, "action": "append"}

    def placed(self, value: Sequence[str], folder: str) -> list[str]:
        return [os.path.join(folder, one) for one in value]


class FaultsValue(FilesValue):
    """Files of faults, and names of scenarios."""

    words = "a list of texts"
    _called = "files and scenario:NAME"

    def placed(self, value: Sequence[str], folder: str) -> list[str]:
        from nvmeemu.faults.file import SCENARIO  # start-up: --help needs none of it

        return [one if one.startswith(SCENARIO) else os.path.join(folder, one) for one in value]
