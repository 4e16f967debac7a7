#!/bin/bash
# Sets up what nvmeemu, its guests and its tests need. Safe to interrupt and to repeat; quiet when nothing is to do.
set -euo pipefail
trap 'exit 130' INT # also when Ctrl-C meets a child that ends well: bash would go on

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
. "$CHECKOUT/scripts/lib/apt.sh"
. "$CHECKOUT/scripts/lib/components.sh"
. "$CHECKOUT/scripts/lib/systems.sh"

DEFAULT="base qemu:x86 linux:trixie:amd64 tools:amd64 u-boot ovmf"

help() {
    cat <<END
usage: scripts/setup.sh [--list | --help] [COMPONENT...]

Sets up the named components, by default: $DEFAULT

  base               Debian packages, .venv with nvmeemu, and libvfio-user for it: LIBVFIO_USER_SRC=DIR, or an installed
                     one that pkg-config finds and that fits, or the source that is in Debian's QEMU source package
  libvfio-user       that source, in any case
  qemu:NAME          QEMU with vfio-user-pci; NAME is x86, arm, riscv, s390x or misc
  linux:SUITE:ARCH   a guest kernel; bullseye, bookworm, trixie, trixie-backports, forky; amd64, arm64, riscv64, s390x
  tools:ARCH         busybox, e2fsprogs, fdisk, nvme-cli for guests
  tools-fio:ARCH     fio for guests
  tools-python:ARCH  Python for guests
  suites:ARCH        the tests of nvme-cli and fio, and newer nvme-cli, fio, Python, mdadm, xfsprogs for guests
  ovmf, aavmf, u-boot  firmware
  grub:ARCH          GRUB for guests; amd64, arm64
  debian             a whole Debian system on a disk image
  xen                the hypervisor and its first domain's Linux
  disk-tools         fdisk and mtools, to make disk images

Everything but the Debian packages and .venv goes to $CACHE;
delete a folder there to have it fetched anew, newest version. Logs: $LOGS.
END
}

# component VERB NAME: calls have_KIND or make_KIND with the rest of the name as arguments.
component() {
    local parts
    IFS=: read -ra parts <<<"$2"
    "$1_${parts[0]//-/_}" "${parts[@]:1}"
}

check_name() {
    case $1 in
    base | libvfio-user | ovmf | aavmf | u-boot | disk-tools | debian | xen) ;;
    grub:amd64 | grub:arm64) ;;
    qemu:*) qemu_command "${1#qemu:}" >/dev/null ;;
    linux:?*:?* | tools:?* | tools-fio:?* | tools-python:?* | suites:?*) [[ $1 =~ ^[a-z0-9:-]+$ ]] || usage_error "no such component: $1" ;;
    *) usage_error "no such component: $1" ;;
    esac
}

list() {
    local name place
    {
        for name in $DEFAULT; do echo "$name"; done
        cd "$CACHE" 2>/dev/null || return 0
        for place in libvfio-user qemu-root-* linux/* tools/* tools-fio/* tools-python/* suites/* grub/* debian xen; do
            case $place in
            *\**) ;;
            qemu-root-*) echo "qemu:${place#qemu-root-}" ;;
            linux/*) place=${place#linux/} && echo "linux:${place%-*}:${place##*-}" ;;
            *) echo "${place/\//:}" ;;
            esac
        done
    } | sort -u | while read -r name; do
        component have "$name" && echo "present  $name" || echo "absent   $name"
    done
}

main() {
    local name missing=()
    case ${1:-} in
    -h | --help) help && exit ;;
    --list)
        list
        exit
        ;;
    -*) usage_error "no such option: $1" ;;
    esac
    # shellcheck disable=SC2086  # a list of words
    [ $# != 0 ] || set -- $DEFAULT
    for name; do
        check_name "$name"
        component have "$name" || missing+=("$name")
    done
    [ ${#missing[@]} != 0 ] || return 0

    trap 'rm -rf "$CACHE/tmp"' EXIT
    lock_cache
    # shellcheck disable=SC2046  # a list of words
    install_packages $(host_packages)
    for name in "${missing[@]}"; do
        # Another run may have made it while this one waited.
        component have "$name" || component make "$name"
        rm -rf "$CACHE/tmp"
    done
}

main "$@"
