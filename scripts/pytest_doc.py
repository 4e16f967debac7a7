"""Make the reference in docs/pytest.md of the plugin's docstrings and signatures.

.venv/bin/python scripts/pytest_doc.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from nvmeemu import pytest_plugin
from nvmeemu.pytest_plugin import armed, bench, commands, guests, options, servers
from nvmeemu.testing import Driver, VfioBus

TARGET = Path(__file__).parents[1] / "docs" / "pytest.md"
BEGIN, END = "<!-- made by scripts/pytest_doc.py: -->", "<!-- until here -->"

FIXTURES = ("nvme", "nvme_server", "nvme_guest", "faults", "trace", "expect", "nvme_serve", "nvme_boot")
CLASSES: dict[type, tuple[str, ...]] = {
    bench.NvmeBench: ("driver", "clock", "faults", "trace", "controller", "ram", "unmap", "map", "settle"),
    servers.NvmeServer: ("driver", "faults", "trace", "socket", "disk", "connect", "control", "process", "log"),
    guests.NvmeGuest: (
        *(
            "run",
            "check",
            "put",
            "get",
            "expect",
            "console",
            "kernel_messages",
            "faults",
            "trace",
            "disk",
            "control",
            "send",
        ),
        *("power_off", "wait_for_end", "reboot", "stop", "kill_qemu", "qemu", "monitor"),
    ),
    armed.NvmeFaults: ("add", "remove", "clear"),
    armed.Armed: ("seen", "hits"),
    commands.Trace: ("expect", "commands", "words", "restart"),
    commands.HostCommand: ("command", "sqid", "time", "completion", "status", "latency", "faults"),
}
ATTRIBUTES = {  # set when an object is made: they have no docstrings
    "driver": "The host's side: a [Driver](#driver).",
    "clock": "The controller's time, which stands still: `advance(seconds)` lets it pass, `now()` says how much has.",
    "faults": "As the fixture.",
    "trace": "As the fixture.",
    "controller": "The device, a `nvmeemu` `Controller`: `set_health(temperature=360)`, `fail(why)`, `reset()`, ...",
    "ram": "Guest memory: `read(iova, size)`, `write(iova, data)`, and `interrupts`, the vectors that have fired.",
    "socket": "The vfio-user socket's path.",
    "disk": "The image's path.",
    "command": "The submission queue entry, of its class in `nvmeemu.spec`.",
}
PARTS = (Driver, VfioBus)
"""Of ``nvmeemu.testing``: shown with all that is public, a line each."""
OPTIONS = (options.DriveOptions, options.ServerOptions, options.GuestOptions)


def reference() -> str:
    """All of it."""
    parts = ["## Fixtures", *map(_fixture, FIXTURES), *_marker(), *_classes(), *_parts()]
    return "\n\n".join(parts)


def _fixture(name: str) -> str:
    function = getattr(pytest_plugin, name)._get_wrapped_function()
    return f"### {name}\n\n{_text(function)}"


def _marker() -> Iterator[str]:
    yield "## Options of drives and guests"
    yield (
        "Keywords of `@pytest.mark.nvmeemu(...)`, for a test, a class or a module (`pytestmark = ...`), the nearest\n"
        "one's value counts; and of `nvme_serve(...)` and `nvme_boot(...)`."
    )
    for kind in OPTIONS:
        yield _text(kind)
        own = [field for field in fields(kind) if field.name in vars(kind)["__annotations__"]]
        lines = [f"| `{field.name}` | `{field.default!r}` | {field.metadata['about']} |" for field in own]
        yield "\n".join(["| option | default | |", "|---|---|---|", *lines])


def _classes() -> Iterator[str]:
    for kind, names in CLASSES.items():
        yield f"## {kind.__name__}"
        yield _text(kind)
        yield "\n".join(_member(kind, name) for name in names)


def _parts() -> Iterator[str]:
    for kind in PARTS:
        yield f"## {kind.__name__}"
        yield _text(kind)
        found = {name: one for name, one in vars(kind).items() if not name.startswith("_")}
        yield "\n".join(
            f"- `{name}{_signature(one) if callable(one) else ''}`: {_beginning(one)}"
            for name, one in found.items()
            if callable(one) or isinstance(one, property)
        )


def _beginning(documented: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(_text(documented).split("\n\n")[0].split())


def _member(kind: type, name: str) -> str:
    found = inspect.getattr_static(kind, name, None)
    if found is None:
        return f"- `{name}`: {ATTRIBUTES[name]}"
    if callable(found):
        return f"- `{name}{_signature(found)}`: {_text(found, indent='  ')}"
    return f"- `{name}`: {_text(found, indent='  ')}"


def _signature(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    rest = [one for one in signature.parameters.values() if one.name != "self"]
    text = str(signature.replace(parameters=rest)).replace(" -> 'None'", "")
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are texts


def _text(documented: Any, indent: str = "") -> str:
    """A docstring as Markdown."""
    text = inspect.getdoc(documented)
    if not text:
        raise SystemExit(f"{documented} has no docstring")
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    return text.replace("\n", f"\n{indent}").replace(f"\n{indent}\n", "\n\n")


def page(before: str) -> str:
    """The page with the reference made anew."""
    head, rest = before.split(BEGIN)
    return f"{head}{BEGIN}\n\n{reference()}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    before = TARGET.read_text()
    after = page(before)
    if parser.parse_args().check:
        if after != before:
            print("docs/pytest.md is out of date: run scripts/pytest_doc.py", file=sys.stderr)
        return int(after != before)
    TARGET.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
