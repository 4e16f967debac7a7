"""How a command fails."""

from __future__ import annotations

from nvmeemu.spec import DNR, RETRYABLE, Status


class CommandFailed(Exception):
    """The command completes with this status. Only the controller turns it into a completion.

    ``dnr``: Do Not Retry; by default set for each status that another attempt would meet again.
    ``location``: Parameter Error Location of the Error Information log, (byte, bit) in the command.
    ``lba``: the first LBA that met the error. ``info``: Command Specific Information of that log. ``why``: the rest of
    the line in our log that names command and field.
    """

    def __init__(
        self,
        status: Status,
        *,
        dnr: bool | None = None,
        location: tuple[int, int] | None = None,
        lba: int | None = None,
        info: int = 0,
        why: str = "",
    ) -> None:
        super().__init__(status.name)
        self.status = status
        self.dnr = status not in RETRYABLE if dnr is None else dnr
        self.location = location
        self.lba = lba
        self.info = info
        self.why = why

    @property
    def field(self) -> int:
        """The 15-bit Status Field, More bit clear."""
        return self.status | (DNR if self.dnr else 0)
