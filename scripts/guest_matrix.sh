#!/bin/bash
# Makes the matrix in docs/guests.md: runs the guest tests, on our drive and on QEMU's own, and records how each went.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

help() {
    cat <<END
usage: scripts/guest_matrix.sh [--help] [PYTEST ARGUMENT...]

Runs all guest tests that have a drive to choose, the slow ones too, one after another (an hour or more); or those that
the arguments choose, for example: -k "grub and nvmeemu". Newest results replace older ones of the same run in
docs/guests.jsonl, and the table in docs/guests.md is made from these, also if it is interrupted. Its exit status is the
tests'.
END
}

case ${1:-} in -h | --help) help && exit ;; esac
cd "$CHECKOUT"
scripts/setup.sh
records=$(mktemp)
# Also when it is interrupted: what has run is kept.
trap '.venv/bin/python -m tools.guest.matrix "$records" docs/guests.jsonl docs/guests.md; rm -f "$records"' EXIT
GUEST_RECORDS=$records .venv/bin/python -m pytest -n0 -m "" --deselect tests/guest/test_guest_failures.py "$@" tests/guest
