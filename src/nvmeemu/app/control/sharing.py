"""One control socket for several drives: each request says which one it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvmeemu.app.control.messages import INVALID_PARAMS, Method, RpcError


def together(drives: Mapping[str, Mapping[str, Method]]) -> dict[str, Method]:
    """The methods of all drives, by the drives' names. They take one parameter more, ``drive``, which can be left out
    where there is one drive only."""
    return {method: _choosing(method, drives) for table in drives.values() for method in table}


def _choosing(method: str, drives: Mapping[str, Mapping[str, Method]]) -> Method:
    def call(drive: object = None, **parameters: Any) -> Any:
        if drive is None and len(drives) == 1:
            drive = next(iter(drives))
        if not isinstance(drive, str) or drive not in drives:
            said = "is missing" if drive is None else f"{drive!r} is none of them"
            raise RpcError(INVALID_PARAMS, f"drive: {said}: there are {', '.join(drives)}")
        return drives[drive][method](**parameters)

    return call
