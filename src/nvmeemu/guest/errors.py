"""What can go wrong in a guest run. Each message is one line, meant for the person who started the run."""


class GuestError(Exception):
    """The run failed: the guest, the drive or the host side did not do what they should."""


class GuestTimeout(GuestError):
    """Something awaited did not come in time."""


class GuestEnded(GuestError):
    """The guest was gone before it did what was awaited."""
