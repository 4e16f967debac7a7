"""The Atheris target: coverage-guided programs for ``machine``. Started by ``scripts/fuzz.sh``.

usage: fuzz_controller.py [libFuzzer options] CORPUS...
"""

from __future__ import annotations

import sys

import atheris

# The machine first, so that only the controller is instrumented: its ways are to be explored, not the host's.
with atheris.instrument_imports(include=["nvmeemu"], exclude=["nvmeemu.testing", "nvmeemu.layout"]):
    import machine


def main() -> None:
    atheris.Setup(sys.argv, machine.run_program)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
