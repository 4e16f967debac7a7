"""Faults from a TOML file, or a scenario by its name.

seed = 7

[[fault]]
name = "a bad block"
match = { opcode = "read", lba = "100-107" }
do = { status = "unrecovered_read_error" }
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvmeemu.faults.fault import Fault
from nvmeemu.faults.scenarios import SCENARIOS
from nvmeemu.faults.words import FaultError, number
from nvmeemu.spec import names

SCENARIO = "scenario:"
_HEADER = re.compile(r"\s*\[\[\s*fault\s*\]\]")


@dataclass
class FaultSet:
    """What a file holds; without a seed it does not say."""

    faults: list[Fault]
    seed: int | None = None


def load(spec: str) -> FaultSet:
    """The faults of ``scenario:NAME``, or of a file. Raises FaultError with file, line and reason, and OSError."""
    if spec.startswith(SCENARIO):
        return FaultSet(scenario(spec.removeprefix(SCENARIO)))
    with open(spec, "rb") as file:
        content = file.read()
    try:
        return parse(content.decode(), spec)
    except UnicodeDecodeError as error:
        raise FaultError(f"{spec}: no text: {error.reason} at byte {error.start}") from None


def scenario(name: str) -> list[Fault]:
    """Fresh faults of a scenario. Raises FaultError."""
    found = names.choice(SCENARIOS, name)
    if found is None:
        raise FaultError(f"no scenario {name!r}: there are {', '.join(SCENARIOS)}")
    return SCENARIOS[found]()


def parse(text: str, where: str = "faults") -> FaultSet:
    """The faults that TOML text describes; ``where`` is what errors call it. Raises FaultError."""
    lines = ["" if line.lstrip().startswith("#") else line for line in text.split("\n")]  # as TOML counts them
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise FaultError(f"{where}:1: tables or lists within each other, too deep") from None
    except ValueError as error:  # TOMLDecodeError; or a number too long for Python
        reason, line = str(error).partition(";")[0], len(text.splitlines())
        if found := re.search(r" \(at line (\d+), column \d+\)", reason):
            reason, line = reason.replace(found[0], ""), int(found[1])
        raise FaultError(f"{where}:{line}: {reason}") from None
    for key in tables:
        if key not in ("seed", "fault"):
            raise FaultError(f"{where}:{_line_of(lines, 0, key)}: {key}: there are seed and [[fault]]")
    try:
        seed = number(tables["seed"], "seed") if "seed" in tables else None
    except FaultError as error:
        raise FaultError(f"{where}:{_line_of(lines, 0, 'seed')}: {error}") from None
    written = tables.get("fault", [])
    if not isinstance(written, list) or not all(isinstance(one, Mapping) for one in written):
        raise FaultError(f"{where}:{_line_of(lines, 0, 'fault')}: begin each fault with [[fault]]")
    faults = []
    for index, one in enumerate(written):
        try:
            faults.append(Fault.of(one))
        except FaultError as error:
            raise FaultError(f"{where}:{_place_of_error(lines, index, str(error))}: {error}") from None
    return FaultSet(faults, seed)


def of_words(words: list[str]) -> dict[str, Any]:
    """The table of a fault from words like ``match.opcode=write do.status=write_fault when.nth=3``: TOML, whose texts
    need no quotes. Raises FaultError."""
    lines = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise FaultError(f"{word!r}: write KEY=VALUE, for example match.opcode=write do.status=write_fault")
        try:
            tomllib.loads(f"x={value}")
        except (ValueError, RecursionError):
            value = '"' + value.strip().replace("\\", "\\\\").replace('"', '\\"') + '"'
        lines.append(f"{key}={value}")
    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as error:
        raise FaultError(f"{' '.join(words)}: {error}") from None


def _place_of_error(lines: list[str], index: int, reason: str) -> str:
    """The line in the fault with this index where the key stands that the reason begins with, or else the fault's."""
    headers = [place for place, line in enumerate(lines) if _HEADER.match(line)]
    if index >= len(headers):  # fault = [{...}, {...}]
        return f"{_line_of(lines, 0, 'fault')}: fault {index + 1} of the list"
    key = re.match(r"[\w.]*", reason)
    names = key[0].split(".") if key else []
    end = headers[index + 1] if index + 1 < len(headers) else len(lines)
    for name in reversed([name for name in names if name]):
        found = _line_of(lines[:end], headers[index] + 1, name, 0)
        if found:
            return str(found)
    return str(headers[index] + 1)


def _line_of(lines: list[str], start: int, key: str, default: int = 1) -> int:
    pattern = re.compile(rf"""(^|[\s{{,.\["']){re.escape(key)}["']?\s*(=|\.|\])""")
    return next((place + 1 for place in range(start, len(lines)) if pattern.search(lines[place])), default)
