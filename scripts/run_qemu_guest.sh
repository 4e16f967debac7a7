#!/bin/bash
# Boots a guest under QEMU with nvmeemu as its NVMe drive; sets up what is missing. See --help.
set -euo pipefail
trap 'exit 130' INT # also when Ctrl-C meets a child that ends well: bash would go on

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Before set-up: needs Python's standard library only.
unprepared() { PYTHONPATH=$CHECKOUT:$CHECKOUT/src python3 -m tools.guest "$@"; }

for word; do
    case $word in -h | --help) unprepared --help && exit ;; esac
done
components=$(unprepared --print-components "$@")
# shellcheck disable=SC2086  # a list of words
"$CHECKOUT/scripts/setup.sh" $components
PYTHONPATH=$CHECKOUT exec "$CHECKOUT/.venv/bin/python" -m tools.guest "$@"
