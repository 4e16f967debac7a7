"""JSON-RPC 2.0 as lines of text: what a request is, and what is answered to a bad one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

PROTOCOL = 1
"""Changes when a client of before would no longer be served as it expects; what is only added does not count."""

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR = -32603
FAILED = 1  # what was asked for could not be done
LONGEST = 1 << 20  # bytes of a line
MOST_IN_A_BATCH = 1000

Method = Callable[..., Any]


class RpcError(Exception):
    """The answer is this error; the message is one line for the user."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def answer(line: bytes, methods: Mapping[str, Method]) -> bytes:
    """The answer to one line; empty for notifications. A ``Method`` gets its parameters by name. It may raise
    RpcError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return _line(_error(None, RpcError(PARSE_ERROR, "that is no JSON")))
    if not isinstance(message, list):
        answered = _answer_one(message, methods)
        return b"" if answered is None else _line(answered)
    if not 1 <= len(message) <= MOST_IN_A_BATCH:
        return _line(_error(None, RpcError(INVALID_REQUEST, f"a batch of {len(message)} requests")))
    answers = [found for one in message if (found := _answer_one(one, methods)) is not None]
    return _line(answers) if answers else b""


def _answer_one(request: object, methods: Mapping[str, Method]) -> dict[str, Any] | None:
    number = request.get("id") if isinstance(request, dict) else None
    try:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float | str)):
            number = None
            raise RpcError(INVALID_REQUEST, "the id is neither a text nor a number")
        result = _call(request, methods)
    except RpcError as error:
        return _error(number, error) if not _is_notification(request) else None
    return {"jsonrpc": "2.0", "result": result, "id": number} if not _is_notification(request) else None


def _is_notification(request: object) -> bool:
    return isinstance(request, dict) and "id" not in request and isinstance(request.get("method"), str)


def _call(request: object, methods: Mapping[str, Method]) -> Any:
    if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or not isinstance(request.get("method"), str):
        raise RpcError(INVALID_REQUEST, "no JSON-RPC 2.0 request")
    method = methods.get(request["method"])
    if method is None:
        raise RpcError(METHOD_NOT_FOUND, f"no method {request['method']!r}: there are {', '.join(methods)}")
    parameters = request.get("params", {})
    if not isinstance(parameters, dict):
        raise RpcError(INVALID_PARAMS, "parameters are given by name")
    return method(**parameters)


def _error(number: object, error: RpcError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": error.code, "message": str(error)}, "id": number}


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
