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
    install_packages mmdebstrap
    say "building a Debian system (a minute)"
    scratch
    mkdir "$SCRATCH/debian"
    write_debian_config "$SCRATCH"
    logged debian as_root mmdebstrap --variant=minbase --include="$DEBIAN_PACKAGES" --architectures=amd64 \
        --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$DEBIAN_SUITE" "$SCRATCH/root" "deb $(debian_mirror) $DEBIAN_SUITE main"
    logged debian as_root bash -c "$(declare -f configure_debian); configure_debian \"\$@\"" configure \
        "$SCRATCH" "$CACHE/linux/$DEBIAN_SUITE-amd64" "$DEBIAN_PASSWORD"
    logged debian as_root mkfs.ext4 -q -L root -d "$SCRATCH/root" "$SCRATCH/root.img" "$DEBIAN_ROOT_SIZE"
    as_root rm -rf "$SCRATCH/root"
    logged debian env PYTHONPATH="$CHECKOUT:$CHECKOUT/src" python3 -m tools.guest.bootdisk "$SCRATCH/debian/disk.img" \
        --config "$SCRATCH/grub.cfg" --root "$SCRATCH/root.img"
    publish "$SCRATCH/debian" "$CACHE/debian"
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

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

# configure_debian DIR KERNEL PASSWORD: run as root, in a shell of its own.
configure_debian() {
    set -e
    local root=$1/root kernel=$2
    cp -r "$1/etc/." "$root/etc/"
    chown -R 0:0 "$root/etc/systemd/system.conf.d" "$root/etc/hostname" "$root/etc/fstab"
    mkdir -p "$root/boot/efi" "$root/usr/lib/modules"
    cp "$kernel/vmlinuz" "$root/boot/vmlinuz"
    cp -r --no-preserve=ownership "$kernel/modules/." "$root/usr/lib/modules/"
    chroot "$root" chpasswd <<<"root:$3"
    rm -f "$root/etc/machine-id"
    chroot "$root" systemd-machine-id-setup
    # A minute under emulation, and only of use with LVM.
    chroot "$root" systemctl mask e2scrub_reap.service
    sed -i 's/^LOGIN_TIMEOUT.*/LOGIN_TIMEOUT 900/' "$root/etc/login.defs"
}

# --- xen: the hypervisor, and the Linux for its first domain (the cloud flavour cannot be that)

have_xen() { [ -e "$CACHE/xen/xen" ]; }

make_xen() {
    local hypervisor packages
    use_suite "$TOOLS_SUITE" amd64
    hypervisor=$(private_apt apt-cache depends xen-system-amd64 2>/dev/null | grep -oE 'xen-hypervisor-[0-9.]+-amd64') &&
        packages=$(kernel_packages linux-image-amd64) || die "$TOOLS_SUITE has no Xen"
    say "fetching Xen and a Linux for it"
    scratch
    # shellcheck disable=SC2086  # a list of words
    fetch_alone xen "$SCRATCH/debs" $packages "$hypervisor"
    logged xen unpack "$SCRATCH/linux" "$SCRATCH"/debs/linux-*.deb
    logged xen unpack "$SCRATCH/root" "$SCRATCH"/debs/xen-*.deb
    logged xen arrange_kernel "$SCRATCH/linux" "$SCRATCH/kernel"
    gunzip -c "$SCRATCH"/root/boot/xen-*.gz >"$SCRATCH/kernel/xen"
    publish "$SCRATCH/kernel" "$CACHE/xen"
}
