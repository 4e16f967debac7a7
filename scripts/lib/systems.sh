# Components for guests that boot from the drive: boot loaders, more firmware, whole systems. As in components.sh.
# shellcheck shell=bash

# --- disk-tools: what partitions and fills disk images on the host, as no one special

DISK_TOOLS="fdisk mtools"

# shellcheck disable=SC2086  # a list of words
have_disk_tools() { [ -z "$(missing_packages $DISK_TOOLS)" ]; }
# shellcheck disable=SC2086
make_disk_tools() { install_packages $DISK_TOOLS; }

# --- aavmf: EDK2 for arm64

have_aavmf() { [ -e "$CACHE/firmware/AAVMF_CODE.fd" ]; }

make_aavmf() {
    fetch_firmware qemu-efi-aarch64
    # QEMU's virt board wants both at the size of its flash chips; the package has them so.
    publish "$SCRATCH/root/usr/share/AAVMF/AAVMF_VARS.fd" "$CACHE/firmware/AAVMF_VARS.fd"
    publish "$(readlink -f "$SCRATCH/root/usr/share/AAVMF/AAVMF_CODE.fd")" "$CACHE/firmware/AAVMF_CODE.fd"
}

# --- grub:ARCH: GRUB's parts for guests, and grub-mkimage for the host

have_grub() { [ -d "$CACHE/grub/$1" ] && [ -x "$CACHE/bin/grub-mkimage" ]; }

make_grub() {
    local packages="grub-efi-$1-bin"
    [ "$1" != amd64 ] || packages+=" grub-pc-bin"
    use_suite "$TOOLS_SUITE" "$1"
    say "fetching GRUB for $1"
    scratch
    # shellcheck disable=SC2086  # a list of words
    fetch_alone "grub-$1" "$SCRATCH/debs" $packages
    logged "grub-$1" unpack "$SCRATCH/root" "$SCRATCH"/debs/*.deb
    publish "$SCRATCH/root/usr/lib/grub" "$CACHE/grub/$1"
    [ -x "$CACHE/bin/grub-mkimage" ] || make_grub_mkimage
}

make_grub_mkimage() {
    use_suite "$TOOLS_SUITE" "$(dpkg --print-architecture)"
    scratch
    fetch_with_dependencies grub-mkimage "$SCRATCH/debs" grub-common
    logged grub-mkimage unpack "$SCRATCH/root" "$SCRATCH"/debs/*.deb
    publish "$SCRATCH/root" "$CACHE/grub-tools"
    wrap_program "$CACHE/grub-tools" grub-mkimage
}
