"""Profiles as files: TOML, with the steps as lines of text. Errors are one line with file, line and reason."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nvmeemu import spec
from nvmeemu.controller.bounds import CHOICES
from nvmeemu.controller.limits import Limits
from nvmeemu.faults.fault import Fault
from nvmeemu.faults.words import FaultError, choice, flag, number, seconds
from nvmeemu.faults.words import table as of_table
from nvmeemu.profiles.steps import Step, StepError, parse_steps

FOLDER = Path(__file__).parent
STANDINGS = ("observed", "source", "reconstruction", "recorded")
NEVER = {
    "late_answer": "a command is answered after the driver's deadline, or not at all",
    "lost_interrupt": "a completion without an interrupt",
    "masked_interrupt": "the pin is asserted while INTMS masks it",
    "spurious_interrupt": "an interrupt without a completion",
    "unknown_completion": "a completion of no command, or a second one of the same",
    "rejected_aer": "an Asynchronous Event Request completes with an error",
    "admin_storm": "more admin commands in a second than the driver can mean",
    "unreadable_register": "a register does not read as the driver wrote it",
    "fatal_status": "CSTS.CFS, or a device that is gone",
    "wrong_data": "blocks read are not those written",
    "too_many_vectors": "more MSI-X vectors than the driver can use",
    "small_bar0": "BAR0 is smaller than what the driver takes its address to be a multiple of",
}
"""What must never happen, whatever the driver: the items' names, and what they are."""

_LIMITS = {one.name for one in fields(Limits)}
_MOST_BYTES = 1 << 40


class ProfileError(Exception):
    """This profile is not valid; the text is one line for the user."""


@dataclass(frozen=True)
class Fact:
    """What is known of the driver, and from where."""

    text: str
    at: str


@dataclass(frozen=True)
class Never:
    """Something that must not happen to this driver, what would follow, and how a device is broken to make it happen:
    by a fault as in docs/faults.md, or by ``device`` limits."""

    item: str
    why: str
    at: str
    fault: Mapping[str, Any] | None = None
    device: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ProfileNamespace:
    """A namespace of the device. ``write_cache``: it says that it has a volatile one (VWC)."""

    nsid: int = 1
    blocks: int = 65536
    block_size: int = 512
    write_cache: bool = False


@dataclass(frozen=True)
class Profile:
    """A driver, as steps.

    The driver waits ``deadline`` seconds for a command and ``ready`` seconds for CSTS. It gives at most ``most_admin``
    admin commands in a second, can use up to ``most_vectors`` MSI-X vectors, and needs ``least_bar0`` bytes of BAR0.
    ``device`` has the limits of its device, and ``namespaces`` what the device has.
    """

    name: str
    title: str
    standing: str
    steps: tuple[Step, ...]
    about: str = ""
    deadline: float = 30.0
    ready: float = 30.0
    most_admin: int = 100
    most_vectors: int = 2048
    least_bar0: int = 0
    device: Mapping[str, Any] = field(default_factory=dict)
    namespaces: tuple[ProfileNamespace, ...] = (ProfileNamespace(),)
    facts: tuple[Fact, ...] = ()
    nevers: tuple[Never, ...] = ()


def built_in() -> list[str]:
    """Names of the profiles that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Profile:
    """A built-in profile by its name, or that of a file. Raises ProfileError, and OSError."""
    if name in built_in():
        path = FOLDER / f"{name}.toml"
    elif "/" in name or name.endswith(".toml"):
        path = Path(name)
    else:
        raise ProfileError(f"no profile {name!r}: there are {', '.join(built_in())}; a file ends in .toml")
    try:
        return parse(path.read_bytes().decode(), path.stem, where=name)
    except UnicodeDecodeError as error:
        raise ProfileError(f"{name}: is not text: {error.reason} at byte {error.start}") from None


def parse(text: str, name: str, where: str = "profile") -> Profile:
    """The profile that TOML text describes; ``where`` is what errors call it. Raises ProfileError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{where}: {error}") from None
    known = {one.name for one in fields(Profile)} - {"name", "facts", "nevers", "namespaces"}
    known |= {"fact", "never", "namespace"}
    for key in table:
        if key not in known:
            raise ProfileError(f"{where}: {key}: a profile has {', '.join(sorted(known))}")
    try:
        return _profile(table, text, name)
    except StepError as error:
        raise ProfileError(f"{where}:{error}") from None
    except (FaultError, ValueError) as error:
        raise ProfileError(f"{where}: {error}") from None


def _profile(table: dict[str, Any], text: str, name: str) -> Profile:
    found = re.search(r"^steps\s*=\s*('''|\"\"\")\n?", text, re.MULTILINE)
    first = text[: found.end()].count("\n") + 1 if found else 1
    values: dict[str, Any] = {key: _text(table, key) for key in ("title", "standing")}
    choice(values["standing"], "standing", STANDINGS)
    values["about"] = _text(table, "about", "")
    for key in ("deadline", "ready"):
        if key in table:
            values[key] = seconds(table[key], key)
    for key in ("most_admin", "most_vectors", "least_bar0"):
        if key in table:
            values[key] = number(table[key], key, 1, 1 << 20)
    return Profile(
        name=name,
        steps=tuple(parse_steps(_text(table, "steps"), first)),
        device=_device(table.get("device", {})),
        namespaces=tuple(_disk(one) for one in _tables(table, "namespace")) or (ProfileNamespace(),),
        facts=tuple(Fact(_text(one, "text"), _text(one, "at")) for one in _tables(table, "fact")),
        nevers=tuple(_never(one) for one in _tables(table, "never")),
        **values,
    )


def _never(table: dict[str, Any]) -> Never:
    item = choice(_text(table, "item"), "never.item", list(NEVER))
    unknown = set(table) - {"item", "why", "at", "fault", "device"}
    if unknown or ("fault" in table) == ("device" in table):
        raise ValueError(f"never {item}: it has item, why, at, and either fault or device")
    if "fault" in table:
        fault = of_table(table["fault"], "never.fault")
        Fault.of(fault)  # so that a bad one is told now
        return Never(item, _text(table, "why"), _text(table, "at"), fault=fault)
    return Never(item, _text(table, "why"), _text(table, "at"), device=_device(table["device"]))


def _device(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"device: {value!r} is no table")
    for key in value:
        if key in ("blocks", "block_size"):
            raise ValueError(f"device.{key}: it is a namespace's: give it in a [[namespace]]")
        if key not in _LIMITS:
            raise ValueError(f"device: {key}: there are {', '.join(sorted(_LIMITS))}")
    return {
        key: choice(one, "device.version", CHOICES["version"].choices)
        if key == "version"
        else number(one, f"device.{key}", 0, 1 << 20)
        for key, one in value.items()
    }


def _disk(table: dict[str, Any]) -> ProfileNamespace:
    known = {one.name for one in fields(ProfileNamespace)}
    for key in table:
        if key not in known:
            raise ValueError(f"namespace: {key}: there are {', '.join(sorted(known))}")
    made = ProfileNamespace(
        number(table.get("nsid", 1), "namespace.nsid", 1, spec.BROADCAST - 1),
        number(table.get("blocks", ProfileNamespace.blocks), "namespace.blocks", 1, 1 << 48),
        number(table.get("block_size", ProfileNamespace.block_size), "namespace.block_size"),
        flag(table.get("write_cache", ProfileNamespace.write_cache), "namespace.write_cache"),
    )
    if made.block_size not in (512, 4096):
        raise ValueError("namespace.block_size: 512 or 4096")
    if made.blocks * made.block_size > _MOST_BYTES:
        raise ValueError("namespace: a disk of more than 1 TiB")
    return made


def _tables(table: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{key}: begin each with [[{key}]]")
    return found


def _text(table: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key}: a text is missing")
    return value
