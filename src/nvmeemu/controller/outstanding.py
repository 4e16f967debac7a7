"""What queues and events know of a command that has not been completed."""

from __future__ import annotations

from typing import Protocol


class Outstanding(Protocol):
    """A fetched command that waits: a ``Request``."""

    @property
    def live(self) -> bool:
        """Whether it can still be completed."""
        ...

    @property
    def cid(self) -> int:
        """Command Identifier."""
        ...

    @property
    def nsid(self) -> int:
        """The namespace that it addresses."""
        ...

    def complete(self, dw0: int = 0, field: int = 0) -> None:
        """Post its completion with this DW0 and Status Field, unless it has ended."""
        ...

    def drop(self) -> bool:
        """End it without a completion. False if it had ended."""
        ...

    def abort(self, status: int) -> bool:
        """Complete it with this Status Field now, if that is safe; returns whether it was."""
        ...
