"""Values of the device that several faults may change at once. The faults may end in any order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any


class Layers:
    """Each value has a layer for each fault that changes it. Below them is the value without faults."""

    def __init__(self) -> None:
        self._stacks: dict[Hashable, _Stack] = {}

    def add(
        self,
        key: Hashable,
        value: Any,
        get: Callable[[], Any],
        put: Callable[[Any], None],
        combine: Callable[[Iterable[Any]], Any],
    ) -> Callable[[], None]:
        """Change the value called ``key``; returns how to take that back. ``combine`` gets what is below and all
        layers, the oldest first, and returns what ``put`` gets."""
        stack = self._stacks.get(key)
        if stack is None:
            stack = self._stacks[key] = _Stack(get, put, combine)
        layer = stack.add(value)

        def take_back() -> None:
            stack.remove(layer)
            if not stack.layers:
                self._stacks.pop(key, None)

        return take_back


class _Stack:
    def __init__(
        self, get: Callable[[], Any], put: Callable[[Any], None], combine: Callable[[Iterable[Any]], Any]
    ) -> None:
        self._get, self._put, self._combine = get, put, combine
        self._below = self._shown = get()
        self.layers: dict[object, Any] = {}

    def add(self, value: Any) -> object:
        layer = object()
        self.layers[layer] = value
        self._settle()
        return layer

    def remove(self, layer: object) -> None:
        del self.layers[layer]
        self._settle()

    def _settle(self) -> None:
        now = self._get()
        if now != self._shown:  # somebody else has changed it since: a user who resizes a namespace, ...
            self._below = now
        self._shown = self._combine([self._below, *self.layers.values()])
        if self._shown != now:
            self._put(self._shown)


def last(values: Iterable[Any]) -> Any:
    """``combine`` where the newest layer counts."""
    return list(values)[-1]
