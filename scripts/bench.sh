#!/bin/bash
# Measures the server: without a VM against the least that serving takes, and in a guest against QEMU's own drives.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

help() {
    cat <<END
usage: scripts/bench.sh [--quick] [--guest] [--soak N] [--json FILE]

Sets up what is missing, then measures and prints tables; ratios are of one run, numbers are medians of short rounds
(at least 10; those in which the machine took a CPU away are dropped and counted).
  --quick      only the six numbers with marks (less than a minute); with --guest, these and the guest's
  --guest      fio in a Linux guest under QEMU: ours, QEMU's nvme, AHCI and virtio-blk in turns (many minutes)
  --soak N     N commands (100M, 5M, ...): does the server grow?
  --json FILE  the numbers, for programs
Without any: the tables over queue depth, engines and doorbells, for docs/performance.md (minutes), and its plots if
there is matplotlib. As root, 'nice -n -5' in front steadies it. Exit status 1: something does not work; a number that
misses its mark is no failure.
END
}

components=(base)
for word; do
    case $word in
    -h | --help) help && exit ;;
    --guest) components+=(qemu:x86 linux:trixie:amd64 tools:amd64 tools-fio:amd64) ;;
    esac
done
cd "$CHECKOUT"
scripts/setup.sh "${components[@]}"
exec .venv/bin/python -m bench "$@"
