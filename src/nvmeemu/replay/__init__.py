"""Replay: does to a controller, without any guest, what the host of a trace did, and says what is different.

with open_trace("boot.trace") as reader:
    result = replay(reader)
assert not result.differences
"""

from nvmeemu.replay.player import Difference, Result, replay

__all__ = ["Difference", "Result", "replay"]
