"""What else can go wrong in a run of a job, beside `nvmeemu.guest.errors`."""

from nvmeemu.guest.errors import GuestError


class UsageError(GuestError):
    """The run was asked for in a way that cannot work; nothing was started."""
