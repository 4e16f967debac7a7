"""The maintainers' guest jobs: the program behind scripts/run_qemu_guest.sh, and the matrix of docs/guests.md.

No user's wheel contains it. What it shares with the pytest plugin is `nvmeemu.guest`. Before set-up, `--help` and the
options work with the standard library alone.
"""
