"""The client is ``nvmeemu.testing.client``; this name stays for the tests that are being moved to it."""

from nvmeemu.testing.client import *  # noqa: F403
from nvmeemu.testing.client import VfioClient as Client  # noqa: F401
