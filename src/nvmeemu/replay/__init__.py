"""Replay: what a host did, by its trace, done again to a controller without any guest; and what is different.

with open_trace("boot.trace") as reader:
    result = replay(reader)
assert not result.differences
"""

from nvmeemu.replay.player import Difference, Result, replay

__all__ = ["Difference", "Result", "replay"]
