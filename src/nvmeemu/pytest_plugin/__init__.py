"""The pytest plugin: fixtures for tests of NVMe drivers. docs/pytest.md is its reference.

pytest finds it by its entry point. It must cost nothing where it is not used, so the fixtures import what they need,
and this module does not.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from importlib import import_module
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nvmeemu.pytest_plugin.armed import NvmeFaults
    from nvmeemu.pytest_plugin.bench import NvmeBench
    from nvmeemu.pytest_plugin.commands import Expect, HostCommand, Trace
    from nvmeemu.pytest_plugin.guests import NvmeGuest
    from nvmeemu.pytest_plugin.live import Boot, Live, Serve
    from nvmeemu.pytest_plugin.servers import NvmeServer

__all__ = ["Boot", "Expect", "HostCommand", "NvmeBench", "NvmeFaults", "NvmeGuest", "NvmeServer", "Serve", "Trace"]

_HOMES = {  # of what users name in their annotations: imported when they do
    "bench": ["NvmeBench"],
    "commands": ["Expect", "HostCommand", "Trace"],
    "armed": ["NvmeFaults"],
    "guests": ["NvmeGuest"],
    "live": ["Boot", "Serve"],
    "servers": ["NvmeServer"],
}
DRIVES = ("nvme_guest", "nvme_server", "nvme")  # the fixtures that `faults`, `trace` and `expect` can be about
NOT_THE_TESTS = {"nvmeemu", "contextlib", "_pytest", "pluggy"}  # whose functions stand in a traceback, too
PATHS = {
    "qemu": "the QEMU for guests: 10.1 or newer, with vfio-user-pci",
    "kernel": "the guests' Linux, with NVMe and ext4 built in",
    "initrd": "the guests' initramfs, with nvmeemu's shell agent in it",
}
_live = pytest.StashKey["Live"]()
_running = pytest.StashKey[str]()  # the id of the test that is running


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nvmeemu", "nvmeemu: NVMe drives and guests")
    for name, what in PATHS.items():
        group.addoption(f"--nvmeemu-{name}", metavar="FILE", help=what)
        parser.addini(f"nvmeemu_{name}", f"{what} (from the ini file's folder)", default="")
    group.addoption("--nvmeemu-accel", choices=("auto", "kvm", "tcg"), default="auto", help="of QEMU (auto)")
    group.addoption(
        "--nvmeemu-require-guest",
        action="store_true",
        help="a test whose guest or server cannot be made on this machine fails, instead of being skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "nvmeemu(**options): what the test's NVMe drive and guest shall be like")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_running] = item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    live = item.config.stash.get(_live, None)
    if live is not None and call.excinfo is not None and not item.config.getoption("fulltrace"):
        _end_in_the_test(call.excinfo)
    report = yield
    if live is not None and call.excinfo is not None and report.failed:
        report.sections += live.sections(item.nodeid, getattr(item, "funcargs", {}).values(), call.excinfo.value)
    return report


def _end_in_the_test(found: pytest.ExceptionInfo[BaseException]) -> None:
    """Hide our own functions from a traceback of an error that is meant for the test, as ``__tracebackhide__`` would
    in each of them.

    Any other error is a mistake of ours. Its traceback stays whole.
    """
    if not (type(found.value).__module__.startswith("nvmeemu.") or isinstance(found.value, TimeoutError)):
        return
    shown = list(walk_tb(found.tb))
    while shown and _is_hidden(shown[-1][0]):
        shown.pop()
    traceback: TracebackType | None = None
    for frame, line in reversed(shown):
        traceback = TracebackType(traceback, frame, frame.f_lasti, line)
    if traceback is not None:
        found.traceback = type(found.traceback)(traceback)


def _is_hidden(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in NOT_THE_TESTS


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The keywords of the markers of a test, the nearest one's last."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("nvmeemu"))):
        if marker.args:
            text = (
                f"@pytest.mark.nvmeemu takes keywords, not {', '.join(map(repr, marker.args))}: docs/pytest.md has them"
            )
            pytest.fail(text, pytrace=False)
        options |= marker.kwargs
    return options


@pytest.fixture(scope="session")
def _nvmeemu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Live:
    """All drives and guests of this process."""
    from nvmeemu.pytest_plugin.live import Live

    live = Live(request.config, lambda: request.config.stash[_running], lambda: tmp_path_factory.mktemp("nvmeemu"))
    request.config.stash[_live] = live
    return live


@pytest.fixture
def nvme(request: pytest.FixtureRequest, _nvmeemu: Live) -> Iterator[NvmeBench]:
    """A controller, a disk in memory and a driver, all in this process. A test takes milliseconds.

    ``nvme.driver`` is enabled and has one pair of I/O queues. ``nvme.clock.advance(seconds)`` lets time pass.
    """
    with _nvmeemu.bench(**_options(request)) as bench:
        yield bench


@pytest.fixture
def nvme_server(request: pytest.FixtureRequest, _nvmeemu: Live) -> Iterator[NvmeServer]:
    """``nvmeemu serve`` in a process of its own, on a socket: for any vfio-user client, or ``nvme_server.driver``."""
    with _nvmeemu.serve(**_options(request)) as server:
        yield server


@pytest.fixture
def nvme_guest(request: pytest.FixtureRequest, _nvmeemu: Live) -> Iterator[NvmeGuest]:
    """Linux under QEMU with the drive ``/dev/nvme0n1``: ``nvme_guest.run("mkfs.ext4 /dev/nvme0n1").status == 0``.

    Without QEMU, kernel or initramfs the test is skipped. With ``--nvmeemu-require-guest`` it fails.
    """
    with _nvmeemu.boot(**_options(request)) as guest:
        guest.is_shared = False
        yield guest


@pytest.fixture(scope="session")
def nvme_serve(_nvmeemu: Live) -> Serve:
    """A function that makes servers, with the options of the marker as keywords: ``with nvme_serve(size="1G") as s``.

    For a server that several tests share, override the fixture ``nvme_server`` with one of a wider scope.
    """
    return _nvmeemu.serve


@pytest.fixture(scope="session")
def nvme_boot(_nvmeemu: Live) -> Boot:
    """A function that boots guests, with the options of the marker as keywords: ``with nvme_boot(smp=2) as guest``.

    For a guest that several tests share, override the fixture ``nvme_guest`` with one of a wider scope.
    """
    return _nvmeemu.boot


def _drive(request: pytest.FixtureRequest) -> Any:
    used = [name for name in DRIVES if name in request.fixturenames]
    if len(used) > 1:
        pytest.fail(
            f"{request.fixturename} of which drive? The test has {', '.join(used)}: write for example"
            f" {used[0]}.{request.fixturename}",
            pytrace=False,
        )
    return request.getfixturevalue(used[0] if used else "nvme")


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Iterator[NvmeFaults]:
    """The faults of the test's drive: ``faults.add(Fault(match={"opcode": "write"}, do={"status": "write_fault"}))``.

    All are removed when the test has ended.
    """
    found: NvmeFaults = _drive(request).faults
    yield found
    with suppress(OSError):  # the server has gone: how it ended is told
        found.clear()


@pytest.fixture
def trace(request: pytest.FixtureRequest) -> Trace:
    """The commands that the host has sent to the test's drive since the test began, also while its guest booted.

    A guest that several tests share has booted before.
    """
    drive = _drive(request)
    found: Trace = drive.trace
    if getattr(drive, "is_shared", True):
        found.restart()
    return found


@pytest.fixture
def expect(trace: Trace) -> Expect:
    """``expect(op="write", nsid=1, timeout=5)``: the host has sent such a command, or sends it within that time."""
    return trace.expect
