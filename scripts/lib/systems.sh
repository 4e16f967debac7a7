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
    say "fetching GRUB for $1"
    scratch
    logged "grub-$1" unpack "$SCRATCH/root" "$TOOLS_SUITE" "$1" "$packages"
    publish "$SCRATCH/root/usr/lib/grub" "$CACHE/grub/$1"
    [ -x "$CACHE/bin/grub-mkimage" ] || make_grub_mkimage
}

make_grub_mkimage() {
    scratch
    logged grub-mkimage unpack "$SCRATCH/root" "$TOOLS_SUITE" "$(dpkg --print-architecture)" grub-common
    publish "$SCRATCH/root" "$CACHE/grub-tools"
    wrap_program "$CACHE/grub-tools" grub-mkimage
}

# --- debian: a whole Debian system for x86_64 on a bootable disk: systemd, ext4, GRUB for BIOS and for UEFI

DEBIAN_SUITE=trixie
DEBIAN_PACKAGES=systemd-sysv,udev,dbus,libpam-systemd,login,passwd,kmod,util-linux,procps,e2fsprogs
DEBIAN_PASSWORD=nvmeemu # root's; the runner types it
DEBIAN_ROOT_SIZE=768M

have_debian() { [ -e "$CACHE/debian/disk.img" ]; }

make_debian() {
    local component
    for component in disk-tools grub:amd64 "linux:$DEBIAN_SUITE:amd64"; do
        component have "$component" || component make "$component"
    done
    [ "$(id -u)" = 0 ] || install_packages uidmap # with it mmdebstrap needs no root
    say "building a Debian system (a minute)"
    scratch
    mkdir "$SCRATCH/debian"
    write_debian_config "$SCRATCH"
    logged debian of_suite "$DEBIAN_SUITE" amd64 "$SCRATCH/root.tar" --mode=auto --variant=minbase --include="$DEBIAN_PACKAGES" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --skip=cleanup/reproducible \
        --customize-hook="copy-in '$SCRATCH/etc' /" \
        --customize-hook="copy-in '$CACHE/linux/$DEBIAN_SUITE-amd64/vmlinuz' /boot" \
        --customize-hook="copy-in '$CACHE/linux/$DEBIAN_SUITE-amd64/modules' /usr/lib" \
        --customize-hook="$CONFIGURE_DEBIAN"
    logged debian fill_image "$SCRATCH/root.tar" "$SCRATCH/root.img"
    logged debian env PYTHONPATH="$CHECKOUT:$CHECKOUT/src" python3 -m tools.guest.bootdisk "$SCRATCH/debian/disk.img" \
        --config "$SCRATCH/grub.cfg" --root "$SCRATCH/root.img"
    publish "$SCRATCH/debian" "$CACHE/debian"
}

# CONFIGURE_DEBIAN: a hook, so it runs as that system's root.
# shellcheck disable=SC2016  # expanded there
CONFIGURE_DEBIAN='set -e
    cd "$1"
    chown -R 0:0 etc/systemd/system.conf.d etc/hostname etc/fstab boot/vmlinuz usr/lib/modules
    mkdir boot/efi
    echo "root:'$DEBIAN_PASSWORD'" | chroot . chpasswd
    rm -f etc/machine-id
    chroot . systemd-machine-id-setup
    chroot . systemctl mask e2scrub_reap.service # a minute under emulation, and only of use with LVM
    sed -i "s/^LOGIN_TIMEOUT.*/LOGIN_TIMEOUT 900/" etc/login.defs'

# fill_image TAR IMAGE: a file system with what is in the archive, as its owners have it: made where we are root, or seem
# to be. That one may not read our folders, so it gets the archive and gives the image by pipes.
fill_image() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(mmdebstrap --unshare-helper)
    # shellcheck disable=SC2016  # expanded there
    "${as_root[@]}" bash -c 'set -e
        place=$(mktemp -d -p /var/tmp)
        trap "rm -rf $place" EXIT
        mkdir "$place/root"
        tar -x --numeric-owner --exclude="./dev/*" -C "$place/root" # only a real root makes nodes; the kernel has its own
        mkfs.ext4 -q -L root -d "$place/root" "$place/image" "$1" >&2
        cat "$place/image"' fill "$DEBIAN_ROOT_SIZE" <"$1" |
        dd of="$2" bs=1M iflag=fullblock conv=sparse status=none
}

# write_debian_config DIR: grub.cfg, and etc/ for the system. No initrd: NVMe and ext4 are built into the cloud kernel.
write_debian_config() {
    mkdir -p "$1/etc/systemd/system.conf.d"
    cat >"$1/grub.cfg" <<'END'
if [ $grub_platform = pc ]; then
    serial --unit=0 --speed=115200
    terminal_input serial console
    terminal_output serial console
fi
set timeout=1
search --label root --set=root
menuentry "Debian" {
    echo "loading Linux"
    linux /boot/vmlinuz root=PARTLABEL=root ro console=tty0 console=ttyS0 loglevel=5
}
END
    echo nvmeemu >"$1/etc/hostname"
    printf '%s\n' "LABEL=root / ext4 errors=remount-ro 0 1" "LABEL=ESP /boot/efi vfat umask=0077 0 2" >"$1/etc/fstab"
    # Under emulation on a busy machine, systemd's usual patience does not last.
    printf '%s\n' "[Manager]" "DefaultTimeoutStartSec=900" "DefaultDeviceTimeoutSec=900" \
        >"$1/etc/systemd/system.conf.d/patience.conf"
}

# --- xen: the hypervisor, and the Linux for its first domain (the cloud flavour cannot be that)

have_xen() { [ -e "$CACHE/xen/xen" ]; }

make_xen() {
    say "fetching Xen and a Linux for it"
    scratch
    logged xen unpack "$SCRATCH/root" "$TOOLS_SUITE" amd64 linux-image-amd64 '?name(^xen-hypervisor-[0-9.]+-amd64$)'
    logged xen arrange_kernel "$SCRATCH/root" "$SCRATCH/kernel"
    gunzip -c "$SCRATCH"/root/boot/xen-*.gz >"$SCRATCH/kernel/xen"
    publish "$SCRATCH/kernel" "$CACHE/xen"
}
