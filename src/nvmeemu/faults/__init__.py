"""Faults: break the device on purpose, from Python, from a file, or while the guest runs. See docs/faults.md.

faults = Faults(bench.controller, seed=1)
fault = faults.add(Fault(match={"opcode": "write"}, do={"status": "write_fault"}, when={"nth": 3}))
"""

from nvmeemu.faults.fault import Fault
from nvmeemu.faults.faults import Faults
from nvmeemu.faults.file import FaultSet, load, scenario
from nvmeemu.faults.words import FaultError

__all__ = ["Fault", "FaultError", "FaultSet", "Faults", "load", "scenario"]
