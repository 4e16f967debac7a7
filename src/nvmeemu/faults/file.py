"""Faults from a TOML file, or a scenario by its name.

seed = 7

[[fault]]
name = "a bad block"
match = { opcode = "read", lba = "100-107" }
do = { status = "unrecovered_read_error" }
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvmeemu.faults.fault import Fault
from nvmeemu.faults.scenarios import SCENARIOS
from nvmeemu.faults.words import FaultError, number
from nvmeemu.spec import names

SCENARIO = "scenario:"


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
        raise FaultError(f"{spec}: is not text: {error.reason} at byte {error.start}") from None


def scenario(name: str) -> list[Fault]:
    """Fresh faults of a scenario. Raises FaultError."""
    found = names.choice(SCENARIOS, name)
    if found is None:
        raise FaultError(f"no scenario {name!r}: there are {', '.join(SCENARIOS)}")
    return SCENARIOS[found]()


def parse(text: str, where: str = "faults") -> FaultSet:
    """The faults that TOML text describes; ``where`` is what errors call it. Raises FaultError."""
    from nvmeemu import toml  # start-up, as below: most drives have no faults

    try:
        tables, lines = toml.parse(text)
    except toml.TomlError as error:
        raise FaultError(f"{where}:{error.line}: {error}") from None

    def refused(reason: object, *place: str | int) -> FaultError:
        return FaultError(f"{where}:{toml.line_of(lines, place)}: {reason}")

    for key in tables:
        if key not in ("seed", "fault"):
            raise refused(f"{key}: there are seed and [[fault]]", key)
    try:
        seed = number(tables["seed"], "seed") if "seed" in tables else None
    except FaultError as error:
        raise refused(error, "seed") from None
    written = tables.get("fault", [])
    if not isinstance(written, list) or not all(isinstance(one, Mapping) for one in written):
        raise refused("begin each fault with [[fault]]", "fault")
    faults = []
    for index, one in enumerate(written):
        try:
            faults.append(Fault.of(one))
        except FaultError as error:
            key = str(error).partition(":")[0]  # most reasons begin with it
            raise refused(error, "fault", index, *key.split(".")) from None
    return FaultSet(faults, seed)


def of_words(words: list[str]) -> dict[str, Any]:
    """The table of a fault from words like ``match.opcode=write do.status=write_fault when.nth=3``: TOML, whose texts
    need no quotes. Raises FaultError."""
    from nvmeemu import toml

    try:
        return toml.of_words(words, "match.opcode=write do.status=write_fault")
    except ValueError as error:
        raise FaultError(str(error)) from None
