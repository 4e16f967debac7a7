"""Runs guests under QEMU with an nvmeemu drive: the library behind scripts/run_qemu_guest.sh.

Uses the standard library only, and nothing of the controller: it starts `nvmeemu serve` as any user does.
"""
