"""What a file of a user's adds to drives: commands, log pages, features, actions of faults, disks. docs/extend.md.

A file makes one ``Plugin`` and registers what it has with it. ``nvmeemu serve --plugin FILE.py`` loads it: from then on
the host is offered what is new (Identify, the effects log, the list of log pages), and faults, traces and messages know
it by its name. Names that such a file needs are here: it imports from this module only.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from uuid import UUID

from nvmeemu import admin, io, spec
from nvmeemu.backend import BACKENDS, Backend, BackendKind
from nvmeemu.commands.feature import DataFeature, Feature, Scope
from nvmeemu.commands.features import FEATURES, VendorFeatures
from nvmeemu.commands.log_pages import PAGES, LogPage
from nvmeemu.controller.request import CommandEntry, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.faults.action import Action
from nvmeemu.faults.actions import ACTIONS
from nvmeemu.faults.faults import Faults
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import At
from nvmeemu.plugins import INSTALLED
from nvmeemu.spec import CDW10, CDW11, CDW12, CDW13, CDW14, CDW15, Command, Effect, GetLogPage, Status, words
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.spec.layout import Record, bit, bits, count, raw, uint
from nvmeemu.tables import Extensible

__all__ = [
    "CDW10",
    "CDW11",
    "CDW12",
    "CDW13",
    "CDW14",
    "CDW15",
    "Action",
    "At",
    "Backend",
    "Command",
    "CommandFailed",
    "ControllerState",
    "DataFeature",
    "Effect",
    "Feature",
    "Passage",
    "Plugin",
    "PluginError",
    "Record",
    "Request",
    "Result",
    "Scope",
    "Status",
    "bit",
    "bits",
    "count",
    "load",
    "raw",
    "uint",
]

C = TypeVar("C", bound=Command)
Register = Callable[[Callable[[Request[C]], Result]], Callable[[Request[C]], Result]]
_NO_EFFECT = Effect(0)
_MOST = 0xFF  # opcodes and identifiers are bytes
_VENDORS = 0xC0  # the first that is a vendor's
_VENDORS_IO = 0x80  # the same for commands of I/O queues
_NUMBERS = itertools.count(1)  # of modules: two files may have the same name


class PluginError(Exception):
    """The file cannot be used as a plugin; the text is one line for the user and says what to do."""


class Plugin:
    """All that a file adds. Nothing is changed until it is installed, and ``installed`` takes all of it back.

    What cannot be added is refused where the file says it: its methods raise PluginError."""

    def __init__(self, name: str) -> None:
        self.name = _text("Plugin", name)
        self._rows: list[tuple[Extensible[Any], Any]] = []
        self._said: list[str] = []  # what it adds, in words
        self._begins: list[Callable[[ControllerState, Faults], None]] = []

    # --- for the file

    def admin_command(self, kind: type[C], *, changes: Effect = _NO_EFFECT) -> Register[C]:
        """The function below runs this admin command. ``kind.OPCODE`` is its opcode, C0h to FFh, whose bits 1:0 say
        which way its data goes (Base 1.4, Figure 139); ``changes``: what it changes, for the effects log."""
        _check_command("admin_command", kind, changes, _VENDORS)
        return self._command("admin", spec.ADMIN_COMMANDS, admin.COMMANDS, kind, changes)

    def io_command(self, kind: type[C], *, changes: Effect = _NO_EFFECT) -> Register[C]:
        """The same for a command of I/O queues: 80h to FFh (Base 1.4, Figure 346)."""
        _check_command("io_command", kind, changes, _VENDORS_IO)
        return self._command("I/O", spec.NVM_COMMANDS, io.COMMANDS, kind, changes)

    def _command(self, where: str, known: Any, served: Any, kind: type[C], changes: Effect) -> Register[C]:
        def register(run: Callable[[Request[C]], Result]) -> Callable[[Request[C]], Result]:
            _check_function(run)
            self._rows += [(known, kind), (served, CommandEntry(kind, run, changes))]
            self._said.append(f"{where} command {words.words(kind.OPCODE)} ({kind.OPCODE:02X}h)")
            return run

        return register

    def log_page(self, lid: int, name: str) -> Callable[[Callable[[Request[GetLogPage]], bytes]], Any]:
        """The function below returns all of this log page; Get Log Page takes out what was asked for. C0h to FFh are
        vendors' (Base 1.4, Figure 191)."""
        named = _named("log_page", name, lid)

        def register(build: Callable[[Request[GetLogPage]], bytes]) -> Callable[[Request[GetLogPage]], bytes]:
            _check_function(build)
            self._rows += [(spec.LOG_NAMES, named), (PAGES, LogPage(lid, build))]
            self._said.append(f"log page {name} ({lid:02X}h)")
            return build

        return register

    def feature(self, feature: Feature, name: str) -> None:
        """A feature; C0h to FFh are vendors' (Base 1.4, Figure 271)."""
        if not isinstance(feature, Feature):
            raise PluginError(f"feature({feature!r}): give a Feature, for example feature(Feature(0xD7), 'mood')")
        self._rows += [(spec.FEATURE_NAMES, _named("feature", name, feature.fid)), (FEATURES, feature)]
        self._said.append(f"feature {name} ({feature.fid:02X}h)")

    def fault_action(self, kind: type[Action]) -> type[Action]:
        """The class below is what faults can do by ``kind.name``."""
        if not (isinstance(kind, type) and issubclass(kind, Action)):
            raise PluginError(f"fault_action({_shown(kind)}): give a class of Action")
        _text(f"fault_action({kind.__name__}): name", getattr(kind, "name", None))
        self._rows.append((ACTIONS, kind))
        self._said.append(f"fault action {kind.name}")
        return kind

    def backend(self, prefix: str) -> Callable[[Callable[[str], Backend]], Callable[[str], Backend]]:
        """The function below opens ``--disk PREFIX:TEXT``, and gets the text. It raises BackendError or OSError."""
        _text("backend", prefix)

        def register(make: Callable[[str], Backend]) -> Callable[[str], Backend]:
            _check_function(make)
            self._rows.append((BACKENDS, BackendKind(prefix, make)))
            self._said.append(f"disk {prefix}:...")
            return make

        return register

    def for_each_controller(
        self, begin: Callable[[ControllerState, Faults], None]
    ) -> Callable[[ControllerState, Faults], None]:
        """The function below is called when a controller begins, with its faults: for what each has of its own."""
        _check_function(begin)
        self._begins.append(begin)
        return begin

    @staticmethod
    def give_feature(controller: ControllerState, feature: Feature) -> None:
        """A feature that this controller alone has."""
        controller.part(VendorFeatures).add(feature)

    @staticmethod
    def give_uuid(controller: ControllerState, uuid: UUID) -> None:
        """One more in the UUID list (Identify, CNS 17h): of whoever has defined what the plugin adds."""
        controller.uuids.append(uuid.bytes)

    # --- for those who load it

    def begin(self, controller: ControllerState, faults: Faults) -> None:
        """A controller begins."""
        for begin in self._begins:
            begin(controller, faults)

    def install(self) -> None:
        """For as long as this process is. Raises PluginError, and then nothing of it is there."""
        self._add()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Until the block ends. Raises PluginError."""
        with self._add():
            yield

    def _add(self) -> ExitStack:
        """Closing it takes all of it back."""
        with ExitStack() as added:
            for table, row in self._rows:
                try:
                    table.add(row)
                except ValueError as error:
                    raise PluginError(f"plugin {self.name}: {error}") from None
                added.callback(table.remove, row)
            INSTALLED.append(self)
            added.callback(INSTALLED.remove, self)
            return added.pop_all()

    def describe(self) -> str:
        """What it adds, in one line."""
        return f"{self.name}: {', '.join(self._said) or 'nothing'}"


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9 _-]*", value):
        raise PluginError(f"{what}: {_shown(value)} is no name: give a text of letters, digits, spaces, - and _")
    return value


def _shown(value: object) -> str:
    """The value as the file may have written it."""
    return (
        value.__name__ if isinstance(value, type) or (callable(value) and hasattr(value, "__name__")) else repr(value)
    )


def _check_function(value: object) -> None:
    if not callable(value):
        raise PluginError(f"{_shown(value)} cannot be called: give a function")


def _check_command(method: str, kind: object, changes: object, least: int) -> None:
    if not (isinstance(kind, type) and issubclass(kind, Command)):
        raise PluginError(f"{method}({_shown(kind)}): give a class of Command: @plugin.{method}(Hello)")
    opcode = getattr(kind, "OPCODE", None)
    if not isinstance(opcode, IntEnum):
        said = f"OPCODE is {opcode!r}, which has no name"
        raise PluginError(f"{method}({kind.__name__}): {said}: make it a member of an IntEnum")
    _check_number(f"{method}({kind.__name__})", opcode.value, least)
    if not isinstance(changes, Effect):
        raise PluginError(f"{method}({kind.__name__}): changes={changes!r}: give members of Effect")


def _check_number(what: str, number: object, least: int = _VENDORS) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise PluginError(f"{what}: {number!r} is no number: give one from {least:02X}h to {_MOST:02X}h")
    if not least <= number <= _MOST:
        raise PluginError(f"{what}: {number:#x} is no vendor's: give a number from {least:02X}h to {_MOST:02X}h")
    return number


def _named(method: str, name: str, number: int) -> IntEnum:
    members: dict[str, int] = {
        re.sub("[ -]", "_", _text(method, name)).upper(): _check_number(f"{method}({name!r})", number)
    }
    added: Any = IntEnum("Added", members)  # type: ignore[misc]  # of a name that is not known before
    member: IntEnum = added(number)
    return member


def load(path: str | os.PathLike[str]) -> Plugin:
    """The plugin of a file; what it adds is not there yet. Raises PluginError, also for what its code raises."""
    file = Path(path)
    if not file.is_file():
        raise PluginError(f"plugin {file}: there is no such file")
    try:
        module = _run(file)
    except PluginError as error:  # what cannot be added
        raise PluginError(f"plugin {file}{_line(error, file)}: {error}") from None
    except SystemExit as error:
        raise PluginError(f"plugin {file}{_line(error, file)}: it would end the process: no sys.exit there") from error
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"plugin {file}{_line(error, file)}: {text}") from error
    found = [one for one in vars(module).values() if isinstance(one, Plugin)]
    if len(found) != 1:
        raise PluginError(f"plugin {file}: it has {len(found)} Plugin objects: make one, plugin = Plugin(NAME)")
    return found[0]


def _run(file: Path) -> ModuleType:
    name = f"nvmeemu_plugin_{next(_NUMBERS)}_{file.stem.replace('.', '_')}"
    loader = importlib.util.spec_from_file_location(name, _code_name(file))
    if loader is None or loader.loader is None:
        raise PluginError("its name does not end in .py")
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module  # dataclasses look there
    try:
        loader.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _code_name(file: Path) -> str:
    """What its code objects call it."""
    return os.path.abspath(file)


def _line(error: BaseException, file: Path) -> str:
    """``:12``: the last line of the file that the error came through."""
    if isinstance(error, SyntaxError) and error.filename == _code_name(file) and error.lineno:
        return f":{error.lineno}"
    at, found = error.__traceback__, ""
    while at is not None:
        if at.tb_frame.f_code.co_filename == _code_name(file):
            found = f":{at.tb_lineno}"
        at = at.tb_next
    return found or _line_of_nul(error, file)


def _line_of_nul(error: BaseException, file: Path) -> str:
    """Python does not say where it is."""
    if not isinstance(error, (SyntaxError, ValueError)):
        return ""
    before, nul, _ = file.read_bytes().partition(b"\0")
    return f":{before.count(bytes([10])) + 1}" if nul else ""
