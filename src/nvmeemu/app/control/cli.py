"""``nvmeemu ctl``: talk to a running ``nvmeemu serve --control PATH``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from nvmeemu import toml
from nvmeemu.app.arguments import complain, tell
from nvmeemu.app.control.client import Control, ControlError, Unreachable
from nvmeemu.backend import placed

INVALID_PARAMS = -32602  # bad use, as far as we are concerned


def ctl(arguments: argparse.Namespace) -> int:
    """The exit status: 1 for what failed, 2 for bad use."""
    try:
        result = _ask(arguments)
    except (Unreachable, ControlError) as error:
        is_bad_use = isinstance(error, ControlError) and error.code == INVALID_PARAMS
        return complain("nvmeemu ctl", error, 2 if is_bad_use else 1)
    except ValueError as error:  # a FaultError, or a bad key
        return complain("nvmeemu ctl", error, 2)
    except OSError as error:  # of a file of faults
        return complain("nvmeemu ctl", f"{error.filename or os.curdir}: {error.strerror}", 2)
    lines = [json.dumps(result, indent=2)] if arguments.json else _lines(result)
    return tell("nvmeemu ctl", "".join(f"{line}\n" for line in lines))


def _ask(arguments: argparse.Namespace) -> Any:
    calls = _calls(arguments)
    with Control(arguments.control) as control:
        which = {} if arguments.drive is None else {"drive": arguments.drive}
        results = [control.call(method, **which, **parameters) for method, parameters in calls]
    flat = [one for result in results for one in (result if isinstance(result, list) else [result])]
    return flat if len(results) > 1 else results[0] if results else None


def _calls(arguments: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    what = (arguments.what, getattr(arguments, "action", None))
    if what == ("fault", "add"):
        return _added(arguments.fault)
    if what == ("fault", "rm"):
        return [("fault.remove", {} if one == "all" else {"id": int(one)}) for one in arguments.id]
    if what == ("namespace", "add"):
        return [("namespace.add", _namespace(arguments.words, arguments.nsid))]
    if what == ("namespace", "rm"):
        return [("namespace.remove", {"nsid": arguments.nsid})]
    if what == ("namespace", "resize"):
        wanted = {"size": arguments.size} if arguments.size is not None else {}
        return [("namespace.resize", {"nsid": arguments.nsid, **wanted})]
    return [("fault.list" if arguments.what == "fault" else "status", {})]


def _namespace(words: list[str], nsid: int | None) -> dict[str, Any]:
    """The table of a namespace: a disk, and keys as KEY=VALUE words. Raises ValueError."""
    from nvmeemu.app.drive.check import checked
    from nvmeemu.app.drive.keys import TABLES

    keys = [word for word in words if word.partition("=")[0].strip() in TABLES["namespace"] or word is not words[0]]
    table: dict[str, Any] = {"disk": words[0]} if words[0] not in keys else {}
    for key, value in toml.of_words(keys, "disk=disk.img block_size=4096").items():
        if key in table:
            raise ValueError(f"{key}: {table[key]} and {value}: give one")
        table[key] = value
    checked("namespace", table)  # as the server does: but with its own words, and at once
    if nsid is not None:
        table.setdefault("nsid", nsid)
    return {**table, "disk": placed(table["disk"], os.getcwd())}  # the server may have another working folder


def _added(words: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """A scenario, a file, or one fault as KEY=VALUE words. Raises FaultError and OSError."""
    from nvmeemu.faults import Fault  # start-up: the other commands need none of it
    from nvmeemu.faults.file import SCENARIO, load, of_words

    if len(words) == 1 and words[0].startswith(SCENARIO):
        return [("scenario.add", {"name": words[0].removeprefix(SCENARIO)})]
    if len(words) == 1 and "=" not in words[0]:
        found = load(words[0])
        if found.seed is not None:
            complain("nvmeemu ctl", f"{words[0]}: the server has a seed: this file's is not used")
        return [("fault.add", fault.as_table()) for fault in found.faults]
    return [("fault.add", Fault.of(of_words(words)).as_table())]


def _lines(result: Any) -> Iterator[str]:
    """The answer, for a person."""
    if isinstance(result, list):
        for one in result:
            yield from _lines(one)
    elif isinstance(result, dict) and "id" in result and "at" in result:
        rest = {key: value for key, value in result.items() if key not in ("id", "seen", "hits") and value}
        yield f"fault {result['id']}: {result['hits']} of {result['seen']} times: {json.dumps(rest)}"
    elif isinstance(result, dict):
        for key, value in result.items():
            yield f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
    elif result is not None:
        yield str(result)
