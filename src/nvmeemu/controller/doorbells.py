"""Shadow doorbells: the host writes its tails and heads into memory, and rings only where EventIdx asks for it. Base
1.4, 5.7 and B.5.

The admin queue stays with its real doorbells, because Linux and SPDK never use shadows for it. Its EventIdx always
asks for the next doorbell, which serves hosts that do use them.
"""

from __future__ import annotations

from nvmeemu.ports import Host

_WIDTH = 4


class Slot:
    """A doorbell of a queue in the two buffers: the value of the host, and the value that we wait for."""

    def __init__(self, host: Host, shadow: int, event: int) -> None:
        self._host = host
        self.shadow = shadow  # guest addresses
        self.event = event

    @property
    def value(self) -> int:
        """The value that the host wrote last. Raises HostMemoryError."""
        return int(self._host.view(self.shadow, _WIDTH).cast("I")[0])

    def clear(self, value: int) -> None:
        """Set both sides to ``value``; nobody else writes yet. Raises HostMemoryError."""
        self._host.view(self.shadow, _WIDTH).cast("I")[0] = value
        self._host.view(self.event, _WIDTH).cast("I")[0] = value

    def await_change(self, value: int) -> int:
        """Ask the host to ring when it goes beyond ``value``; returns the value that it has written by then.

        The host may have written just before it could see the question. So this asks, then looks again, with a barrier
        between. Raises HostMemoryError.
        """
        self._host.view(self.event, _WIDTH).cast("I")[0] = value
        self._host.barrier()
        return self.value


class ShadowDoorbells:
    """The Shadow Doorbell and EventIdx buffers of Doorbell Buffer Config."""

    def __init__(self, host: Host, shadow: int, event: int, stride: int = _WIDTH) -> None:
        self._host = host
        self._shadow = shadow
        self._event = event
        self._stride = stride  # bytes from one to the next, as that of the real ones

    def _slot(self, index: int) -> Slot:
        return Slot(self._host, self._shadow + index * self._stride, self._event + index * self._stride)

    def tail(self, sqid: int) -> Slot:
        return self._slot(2 * sqid)

    def head(self, cqid: int) -> Slot:
        return self._slot(2 * cqid + 1)
