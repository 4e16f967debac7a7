"""The libraries of the extra `guest`. They are imported late: the rest of the pytest plugin works without them."""

from __future__ import annotations

from importlib import import_module

from nvmeemu.guest.errors import GuestError

WANTED = {"elftools": "pyelftools", "qemu.qmp": "qemu.qmp"}  # modules, and the packages that they are in


def require() -> None:
    """Raise GuestError if one is not installed."""
    for module, package in WANTED.items():
        try:
            import_module(module)
        except ImportError:
            raise GuestError(f"the Python package {package} is missing: pip install 'nvmeemu[guest]'") from None
