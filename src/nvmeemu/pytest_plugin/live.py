"""The drives and guests that live in this process, and what the report of a failed test says of them."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from nvmeemu.app.serving import ServerError
from nvmeemu.guest.errors import GuestError
from nvmeemu.guest.machine import Machine
from nvmeemu.pytest_plugin.bench import NvmeBench
from nvmeemu.pytest_plugin.commands import Trace
from nvmeemu.pytest_plugin.guests import NvmeGuest
from nvmeemu.pytest_plugin.options import BadOptions, DriveOptions, GuestOptions, ServerOptions
from nvmeemu.pytest_plugin.parts import Wanted, machine, require_server
from nvmeemu.pytest_plugin.servers import NvmeServer

KEPT = ("*.log", "*.trace", "qemu-command")  # of a drive's folder, when a test fails
HOW = "docs/pytest.md says what a guest needs"
Options = TypeVar("Options", bound=DriveOptions)

Section = tuple[str, str]
Serve = Callable[..., AbstractContextManager[NvmeServer]]
Boot = Callable[..., AbstractContextManager[NvmeGuest]]


class LiveDrive(Protocol):
    """A drive that lives here. ``close`` also follows a ``start`` or ``close`` that failed."""

    @property
    def trace(self) -> Trace: ...
    def start(self) -> None: ...
    def close(self) -> None: ...
    def sections(self) -> dict[str, str]: ...


D = TypeVar("D", bound=LiveDrive)


class Live:
    """Makes drives. ``test`` returns the test that is running; ``keep`` makes a folder for the files of a failure."""

    def __init__(self, config: pytest.Config, test: Callable[[], str], keep: Callable[[], Path]) -> None:
        self._config = config
        self._test = test
        self._keep = keep
        self._drives: list[tuple[str, Path, LiveDrive]] = []  # with the test that has made them
        self._loaded: dict[Path, AbstractContextManager[None]] = {}  # plugins
        self._users: Counter[Path] = Counter()  # drives that have them
        self._ended: list[tuple[str, list[Section]]] = []  # what was to be told of those that are gone

    # --- makers

    @contextmanager
    def bench(self, **options: Any) -> Iterator[NvmeBench]:
        """What the fixture ``nvme`` gives."""
        checked = _checked(DriveOptions, options, "nvme")
        with self._plugins(checked), self._living(lambda folder: NvmeBench(folder, checked)) as bench:
            yield bench

    @contextmanager
    def serve(self, **options: Any) -> Iterator[NvmeServer]:
        """What the fixture ``nvme_server`` gives."""
        checked = _checked(ServerOptions, options, "nvme_server")
        self._require(require_server)
        with self._plugins(checked), self._living(lambda folder: NvmeServer(folder, checked)) as server:
            yield server

    @contextmanager
    def boot(self, **options: Any) -> Iterator[NvmeGuest]:
        """What the fixture ``nvme_guest`` gives."""
        checked = _checked(GuestOptions, options, "nvme_guest")
        found = self._require(lambda: self._machine)
        with self._plugins(checked), self._living(lambda folder: NvmeGuest(found, folder, checked)) as guest:
            yield guest

    @contextmanager
    def _plugins(self, options: DriveOptions) -> Iterator[None]:
        """Have what they add also here: for drives in this process, and to know the commands of others by name. Drives
        may share a plugin."""
        with ExitStack() as stack:
            for path in dict.fromkeys(Path(path).resolve() for path in options.known_plugins):
                stack.enter_context(self._plugin(path))
            try:
                options.new_faults()
            except BadOptions as error:
                text = str(error)
            else:
                yield
                return
            pytest.fail(text, pytrace=False)

    @contextmanager
    def _plugin(self, path: Path) -> Iterator[None]:
        from nvmeemu.plugin import PluginError, load

        if not self._users[path]:
            try:
                self._loaded[path] = load(path).installed()
                self._loaded[path].__enter__()
            except PluginError as error:
                text = str(error)
            else:
                text = ""
            if text:
                pytest.fail(f"nvmeemu: {text}", pytrace=False)
        self._users[path] += 1
        try:
            yield
        finally:
            self._users[path] -= 1
            if not self._users[path]:
                self._loaded.pop(path).__exit__(None, None, None)

    @contextmanager
    def _living(self, make: Callable[[Path], D]) -> Iterator[D]:
        # Not pytest's tmp_path: a socket's path has 107 bytes at most.
        folder = Path(tempfile.mkdtemp(prefix="nvmeemu-"))
        try:
            drive = make(folder)
            entry = (self._test(), folder, drive)
            self._drives.append(entry)
            try:
                drive.start()
                yield drive
                drive.close()
            except BaseException as error:
                self._ended.append((self._test(), self._sections(drive, folder, error)))
                with suppress(GuestError, ServerError):  # the other error is the one to tell
                    drive.close()
                raise
            finally:
                self._drives.remove(entry)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # --- what there is

    @cached_property
    def _machine(self) -> Machine:
        require_server()
        option = self._config.getoption
        paths = {name: self._path(name) for name in ("qemu", "kernel", "initrd")}
        return machine(Wanted(**paths, accel=option("--nvmeemu-accel")), self._keep())

    def _path(self, name: str) -> Path | None:
        """A path from the command line or, if it is not there, from the ini file. The file must be there."""
        path = None
        if given := self._config.getoption(f"--nvmeemu-{name}"):
            path = Path(given).absolute()
        elif given := self._config.getini(f"nvmeemu_{name}"):
            path = (self._config.inipath.parent if self._config.inipath else self._config.rootpath) / str(given)
        if path is not None and not path.is_file():
            pytest.fail(f"nvmeemu: {name}: {path}: no such file", pytrace=False)
        return path

    def _require(self, make: Callable[[], Any]) -> Any:
        """Return what ``make`` makes, or skip the test."""
        try:
            return make()
        except GuestError as missing:
            text = f"nvmeemu: {missing} ({HOW})"
        if self._config.getoption("--nvmeemu-require-guest"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)

    # --- failures

    def sections(self, test: str, values: Iterable[object], error: BaseException) -> list[Section]:
        """What to report of the drives that a failed test has used: those that it has made, and those among
        ``values``. What ``error`` says already is left out."""
        used = {id(value) for value in values}
        found = [section for made_by, sections in self._ended if made_by == test for section in sections]
        self._ended = []
        for made_by, folder, drive in self._drives:
            if made_by == test or id(drive) in used:
                found += self._sections(drive, folder, error)
        return found

    def _sections(self, drive: LiveDrive, folder: Path, error: BaseException) -> list[Section]:
        try:
            told = drive.trace.sections(error) | drive.sections()
        except Exception as failure:  # a report that fails would hide what it is about
            told = {"no more to tell": f"{type(failure).__name__}: {failure}"}
        found = [(f"nvmeemu: {title}", text) for title, text in told.items() if text]
        files = [path for pattern in KEPT for path in folder.glob(pattern)]
        if files:
            kept = self._keep()
            for path in files:
                shutil.copy(path, kept)
            found.append(("nvmeemu: files", f"{kept}: {', '.join(sorted(path.name for path in files))}"))
        return found


def _checked(kind: type[Options], options: dict[str, Any], fixture: str) -> Options:
    try:
        return kind.of(options, fixture)
    except BadOptions as error:
        text = str(error)
    pytest.fail(text, pytrace=False)  # not while that error is handled: it would be told, too
