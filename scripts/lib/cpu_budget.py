"""A pytest plugin for scripts/test.sh: the CPU time of the run and its child processes, and a warning above a budget.

The budget is NVMEEMU_CPU_BUDGET, in seconds. It warns and never fails: CPU time still varies with the machine.
"""

import os
from typing import Protocol


class Terminal(Protocol):
    """What this plugin uses of pytest's terminal reporter."""

    def write_line(self, line: str, **markup: bool) -> None: ...


def pytest_terminal_summary(terminalreporter: Terminal) -> None:
    used = sum(os.times()[:4])
    budget = float(os.environ["NVMEEMU_CPU_BUDGET"])
    terminalreporter.write_line(f"CPU time {used:.0f} s of a budget of {budget:.0f} s")
    if used > budget:
        terminalreporter.write_line("WARNING: the tests take more CPU time than they should", yellow=True)
