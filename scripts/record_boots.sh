#!/bin/bash
# Records the boots in tests/trace/corpus anew: firmware and kernels use the drive, the trace is kept. See --help.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

# The options of run_qemu_guest.sh for each; a job with several servers leaves the trace of the last one.
declare -A OPTIONS=(
    [seabios]="--job grub --firmware seabios"
    [edk2]="--job uefi-shell --arch x86_64"
    [u-boot]="--job uboot"
    [linux-5.10]="--job reboot --linux bullseye"
    [linux-6.1]="--job reboot --linux bookworm"
    [linux-6.12]="--job reboot --linux trixie"
    [linux-7.2]="--job reboot --linux forky"
    [linux-7.3]="--job reboot --linux trixie-backports"
)
mapfile -t NAMES < <(printf '%s\n' "${!OPTIONS[@]}" | sort)

help() {
    cat <<END
usage: scripts/record_boots.sh [--help] [NAME...]

Boots each guest with scripts/run_qemu_guest.sh, records what it and the drive say, replays that, and writes
tests/trace/corpus/NAME.trace.xz. A minute or a few for each. NAMEs are, and by default all of these:

$(printf '  %s\n' "${NAMES[@]}")

Kernels are the newest of their suite: a name keeps its suite when its version moves on (rename it then).
END
}

record() {
    local name=$1 folder=$2 options
    read -ra options <<<"${OPTIONS[$name]}"
    "$CHECKOUT/scripts/run_qemu_guest.sh" "${options[@]}" "--nvme-arg=--trace" "--nvme-arg=$folder/$name.trace"
    "$CHECKOUT/.venv/bin/nvmeemu" replay "$folder/$name.trace"
    xz -9e <"$folder/$name.trace" >"$folder/$name.trace.xz"
    mv "$folder/$name.trace.xz" "$CHECKOUT/tests/trace/corpus/"
}

case ${1:-} in -h | --help) help && exit ;; esac
[[ $# -gt 0 ]] || set -- "${NAMES[@]}"
for name; do
    [[ -n ${OPTIONS[$name]:-} ]] || usage_error "no boot is called $name"
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for name; do
    record "$name" "$folder"
done
