"""Driver profiles: what a driver does that cannot run here, what it must see, and what must never happen to it.

outcome = run(load("freebsd-15"))
assert not outcome.findings
"""

from nvmeemu.profiles.host import run
from nvmeemu.profiles.items import Break, Finding, Item, Outcome, breaks
from nvmeemu.profiles.profile import Profile, ProfileError, built_in, load, parse

__all__ = [
    "Break",
    "Finding",
    "Item",
    "Outcome",
    "Profile",
    "ProfileError",
    "breaks",
    "built_in",
    "load",
    "parse",
    "run",
]
