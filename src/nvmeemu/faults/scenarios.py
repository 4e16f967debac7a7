"""Drives that go wrong in known ways, each a few lines to copy and change."""

from __future__ import annotations

from collections.abc import Callable

from nvmeemu.faults.fault import Fault

IO = {"queue": "io"}
READ = {"opcode": "read"}
WRITE = {"opcode": "write"}


def flaky() -> list[Fault]:
    """One I/O command in fifty fails, and the host may try again; one in two hundred takes a second."""
    return [
        Fault(IO, "execute", {"status": "internal_error", "dnr": False}, {"probability": 0.02}),
        Fault(IO, "execute", {"delay": 1.0}, {"probability": 0.005}),
    ]


def dying() -> list[Fault]:
    """The spare blocks run out; more and more reads fail for good, then writes do, at last nothing can be written."""
    return [
        Fault(at="now", do={"smart": {"spare": 5, "degraded": True}}),
        Fault(READ, "backend", {"error": "EIO"}, {"after": 100, "probability": 0.05}),
        Fault(READ, "backend", {"error": "EIO"}, {"after": 1000, "probability": 0.2}),
        Fault(WRITE, "backend", {"error": "EIO"}, {"after": 1000, "probability": 0.1}),
        Fault(WRITE, "execute", {"read_only": 1}, {"nth": 2000}),
    ]


def slow() -> list[Fault]:
    """The disk takes 50 to 150 ms for whatever it is asked."""
    return [Fault(IO, "backend", {"delay": "50ms", "jitter": "100ms"})]


def hung() -> list[Fault]:
    """After a hundred I/O commands the controller answers nothing any more, until it is reset."""
    return [Fault(IO, "execute", {"hang": True}, {"nth": 100})]


def throttling() -> list[Fault]:
    """Too hot: the host is warned, and for ten seconds all I/O takes 20 ms; then the drive has cooled down."""
    return [
        Fault(IO, "execute", {"smart": {"temperature": 355}, "seconds": 10}, {"nth": 100}),
        Fault(IO, "backend", {"delay": "20ms"}, {"after": 100, "seconds": 10}),
    ]


def removal() -> list[Fault]:
    """After a hundred I/O commands the drive is pulled out, and does not come back."""
    return [Fault(IO, "execute", "remove", {"nth": 100})]


def stuck_reset() -> list[Fault]:
    """After a hundred I/O commands the controller hangs, and CSTS.RDY stays 1 when the host resets it."""
    return [Fault(IO, "execute", ["hang", {"rdy": 1}], {"nth": 100})]


SCENARIOS: dict[str, Callable[[], list[Fault]]] = {
    "flaky": flaky,
    "dying": dying,
    "slow": slow,
    "hung": hung,
    "throttling": throttling,
    "removal": removal,
    "stuck-reset": stuck_reset,
}
