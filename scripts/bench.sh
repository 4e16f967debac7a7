#!/bin/bash
# Measures the server: without a VM against the least that serving takes, and in a guest against QEMU's own drives.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

help() {
    cat <<END
usage: scripts/bench.sh [--quick] [--guest] [--soak N] [--json FILE]
       scripts/bench.sh --document FILE...

Sets up what is missing, then measures and prints; ratios are of one run, numbers are medians of short rounds (10 at
least; those in which somebody else took a CPU away are dropped and counted).
  --quick          only the numbers that have marks, in less than a minute; without it, the tables, too
  --guest          fio in a Linux guest under QEMU, too: our drives, QEMU's nvme, AHCI and virtio-blk in turns
  --soak N         N commands, too: does the server grow?
  --json FILE      the numbers, for programs
  --document FILE  measure nothing: bring docs/performance.md and its plots up to date from such files (matplotlib)
The exit status is 1 if something does not work; that a number misses its mark is no failure. On a busy machine, as
root: nice -n -5 scripts/bench.sh ...
END
}

components=(base)
extra=""
for word; do
    case $word in
    -h | --help) help && exit ;;
    --guest) components+=(qemu:x86 linux:trixie:amd64 tools:amd64 tools-fio:amd64) ;;
    --document) extra=matplotlib ;;
    esac
done
cd "$CHECKOUT"
scripts/setup.sh "${components[@]}"
python=.venv/bin/python
if [ -n "$extra" ] && ! $python -c "import $extra" 2>/dev/null; then
    logged bench $python -m pip install --disable-pip-version-check -e ".[bench]"
fi
exec $python -m bench "$@"
