# What the cache holds: for each kind of component one function that tells whether it is there, and one that makes it.
# shellcheck shell=bash

TOOLS_SUITE=trixie
QEMU_SUITE=trixie-backports
SUITES_SUITE=forky # their newest that has entered testing
LIBVFIO_USER_SUITES="trixie bookworm forky"
TOOLS_PACKAGES="busybox-static e2fsprogs fdisk util-linux nvme-cli kmod"
HOST_PACKAGES="gcc libc6-dev pkg-config libjson-c-dev liburing-dev libisal-dev ca-certificates xz-utils e2fsprogs cpio kmod mmdebstrap mount patch"

# --- libvfio-user: its source, of LIBVFIO_USER_SRC or the copy in Debian's QEMU source package

have_libvfio_user() { [ -n "${LIBVFIO_USER_SRC:-}" ] || [ -e "$CACHE/libvfio-user/lib/libvfio-user.c" ]; }

make_libvfio_user() {
    local suite
    for suite in $LIBVFIO_USER_SUITES; do
        say "fetching libvfio-user from the QEMU source package of $suite"
        scratch
        if attempt libvfio-user fetch_libvfio_user "$suite" "$SCRATCH" &&
            attempt libvfio-user compile_libvfio_user "$SCRATCH/libvfio-user" "$SCRATCH"; then
            publish "$SCRATCH/libvfio-user" "$CACHE/libvfio-user"
            return
        fi
    done
    die "no suite gave a libvfio-user that compiles; the log: $LOGS/libvfio-user.log (or set LIBVFIO_USER_SRC=DIR)"
}

# fetch_libvfio_user SUITE DIR: to DIR/libvfio-user.
fetch_libvfio_user() { fetch_source "$1" qemu "$2" subprojects/libvfio-user; }

# fetch_source SUITE PACKAGE DIR FOLDER: a folder of a Debian source package, to DIR under its last name.
fetch_source() {
    local depth=${4//[^\/]/}
    # In a root without any package, for its apt.
    of_suite "$1" "$(dpkg --print-architecture)" - "$(source_line "$1" deb-src)" --variant=custom --format=null \
        --customize-hook="cd '$3' && APT_CONFIG=\$MMDEBSTRAP_APT_CONFIG apt-get source --download-only --tar-only $2" &&
        # The archive's first folder carries the version.
        tar -x -C "$3" --wildcards --strip-components=$((${#depth} + 1)) -f "$(echo "$3/$2"_*.orig.tar.*z)" "*/$4"
}

compile_libvfio_user() {
    local source
    for source in "$1"/lib/*.c; do
        # shellcheck disable=SC2046  # a list of flags
        gcc -std=gnu99 -D_GNU_SOURCE -fsyntax-only -I"$1/include" -I"$1/lib" $(pkg-config --cflags json-c) \
            "$source" || return
    done
}

# --- venv: the checkout's .venv with nvmeemu in it, built anew when what it is built from changes

python_is_complete() {
    "$1" -c 'import ensurepip, os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(sys.version_info < (3, 11) or not os.path.exists(header))' 2>/dev/null
}

# host_packages: what the host needs; Debian's Python only if no other complete one comes first on PATH.
host_packages() {
    echo "$HOST_PACKAGES"
    [ -x "$CHECKOUT/.venv/bin/nvmeemu" ] || python_is_complete python3 || echo python3 python3-venv python3-dev
}

# installed_library: what pkg-config knows of an installed libvfio-user, and the library itself: any update of it may
# change its ABI.
installed_library() {
    local name
    for name in libvfio-user vfio-user; do
        pkg-config --cflags --libs --modversion "$name" && sha256sum "$(pkg-config --variable=libdir "$name")/libvfio-user.so"
    done
}

# has_fitting_library: whether the build will use an installed libvfio-user; says why not if there is one.
has_fitting_library() { PYTHONPATH=$CHECKOUT/src python3 -m nvmeemu.vfio.library; }

# build_inputs: a hash over all that the editable install is made from.
build_inputs() {
    local lib=${LIBVFIO_USER_SRC:-$CACHE/libvfio-user}
    {
        echo "$lib" "$CHECKOUT"
        installed_library
        sha256sum "$CHECKOUT"/{pyproject.toml,setup.py} "$CHECKOUT"/src/nvmeemu/{spec/*,engine/native/generate,vfio/library}.py \
            "$CHECKOUT"/src/nvmeemu/vfio/patches/*/*.patch
        find "$lib/lib" "$lib/include" "$CHECKOUT/src" -name '*.[ch]' -print0 | sort -z | xargs -0r sha256sum
    } 2>/dev/null | sha256sum || true # absent files count as absent
}

have_venv() {
    local venv=$CHECKOUT/.venv
    [ -x "$venv/bin/python" ] && [ -x "$venv/bin/nvmeemu" ] &&
        [ "$(cat "$venv/built-from" 2>/dev/null)" = "$(build_inputs)" ]
}

make_venv() {
    local python=python3 venv=$CHECKOUT/.venv
    [ -e "$CHECKOUT/pyproject.toml" ] || die "no pyproject.toml in $CHECKOUT"
    python_is_complete python3 || python=/usr/bin/python3
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making .venv"
        logged venv "$python" -m venv --clear "$venv"
    fi
    rm -f "$venv/built-from"
    say "building and installing nvmeemu into .venv"
    # setup.py finds libvfio-user as make_base did.
    logged venv "$venv/bin/python" -m pip install --disable-pip-version-check -e "${CHECKOUT}[dev]"
    logged venv "$venv/bin/python" -c "from nvmeemu.vfio import binding; binding.require()"
    build_inputs >"$venv/built-from"
}

# --- base: all that `nvmeemu serve` and the tests without guests need

have_base() {
    # shellcheck disable=SC2086,SC2046  # lists of words
    [ -z "$(missing_packages $(host_packages))" ] && have_venv
}

make_base() {
    have_libvfio_user || has_fitting_library || make_libvfio_user
    have_venv || make_venv
}

# --- qemu:NAME: a QEMU with vfio-user-pci, as commands in bin/; NAME as in Debian's qemu-system-NAME

qemu_command() {
    case $1 in
    x86) echo qemu-system-x86_64 ;;
    arm) echo qemu-system-aarch64 ;;
    riscv) echo qemu-system-riscv64 ;;
    s390x) echo qemu-system-s390x ;;
    misc) echo qemu-system-loongarch64 ;;
    *) usage_error "no such component: qemu:$1" ;;
    esac
}

# No pipe: grep -q ends at its find, and QEMU would die of SIGPIPE with the rest of its list.
has_vfio_user() { [[ $("$1" -device help 2>/dev/null) == *vfio-user-pci* ]]; }

have_qemu() { [ -x "$CACHE/bin/$(qemu_command "$1")" ] && [ -x "$CACHE/bin/qemu-img" ]; }

make_qemu() {
    local command root=$CACHE/qemu-root-$1 found
    command=$(qemu_command "$1")
    mkdir -p "$CACHE/bin"
    found=$(command -v "$command" || true)
    if [ -n "$found" ] && has_vfio_user "$found" && command -v qemu-img >/dev/null; then
        ln -sfn "$(command -v qemu-img)" "$CACHE/bin/qemu-img"
        ln -sfn "$found" "$CACHE/bin/$command"
        return
    fi
    [ -d "$root" ] || fetch_qemu "$1" "$root"
    wrap_program "$root" qemu-img
    wrap_program "$root" "$command" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu"
    has_vfio_user "$CACHE/bin/$command" && return
    mv "$CACHE/bin/$command" "$CACHE/bin/$command.bad" # for a look; the next set-up makes it anew
    die "$command does not run or has no vfio-user-pci: see $CACHE/bin/$command.bad -device help"
}

fetch_qemu() {
    say "fetching QEMU for $1 guests from $QEMU_SUITE (no QEMU >= 10.1 on PATH)"
    scratch
    # Its default network cards need the boot ROMs.
    logged "qemu-$1" unpack "$SCRATCH/root" "$QEMU_SUITE" "$(dpkg --print-architecture)" \
        "qemu-system-$1" qemu-utils ipxe-qemu
    publish "$SCRATCH/root" "$2"
}

# wrap_program ROOT NAME ARGUMENT...: bin/NAME runs ROOT's program with ROOT's own loader and libraries. No chroot: the
# caller's paths hold. exec: the caller's pid is the program's.
wrap_program() {
    local root=$1 name=$2 loader libraries
    shift 2
    loader=$(echo "$root"/usr/lib*/ld-linux*.so.?)
    # The folder of QEMU's own libc: firmware for other architectures may have folders of theirs beside it.
    libraries=$(dirname "$root"/usr/lib/*/libc.so.6)
    scratch
    cat >"$SCRATCH/$name" <<END
#!/bin/sh
# Made by scripts/setup.sh.
QEMU_MODULE_DIR='$libraries/qemu'
export QEMU_MODULE_DIR
exec '$loader' --library-path '$libraries' '$root/usr/bin/$name'$([ $# = 0 ] || printf " '%s'" "$@") "\$@"
END
    chmod +x "$SCRATCH/$name"
    publish "$SCRATCH/$name" "$CACHE/bin/$name"
}

# --- linux:SUITE:ARCH: a kernel of Debian's, the cloud flavour where there is one

have_linux() { [ -e "$CACHE/linux/$1-$2/vmlinuz" ]; }

make_linux() {
    local suite=$1 arch=$2 package=linux-image-$2
    [[ $arch != a*64 ]] || package=linux-image-cloud-$arch # amd64 and arm64 have it
    say "fetching the Linux kernel of $suite for $arch"
    scratch
    logged "linux-$suite-$arch" unpack "$SCRATCH/root" "$suite" "$arch" "$package"
    logged "linux-$suite-$arch" arrange_kernel "$SCRATCH/root" "$SCRATCH/kernel"
    publish "$SCRATCH/kernel" "$CACHE/linux/$suite-$arch"
}

# arrange_kernel ROOT DIR: from 7.x on all is in /usr/lib/modules, before that partly in /boot.
arrange_kernel() {
    local version
    version=$(ls "$1/usr/lib/modules") &&
        mkdir "$2" &&
        depmod -b "$1" "$version" &&
        mv "$(ls -d "$1"/{boot,usr/lib/modules/"$version"}/vmlinu[xz]* 2>/dev/null)" "$2/vmlinuz" &&
        mv "$(ls -d "$1"/{boot,usr/lib/modules/"$version"}/config* 2>/dev/null)" "$2/config" &&
        mv "$1/usr/lib/modules" "$2/modules" &&
        echo "$version" >"$2/version"
}

# --- tools:ARCH, tools-fio:ARCH, tools-python:ARCH: programs for the guests' initramfs, with their libraries

have_tools() { [ -d "$CACHE/tools/$1" ]; }
# shellcheck disable=SC2086  # a list of words
make_tools() { make_tools_root "tools/$1" "$1" $TOOLS_PACKAGES; }
have_tools_fio() { [ -d "$CACHE/tools-fio/$1" ]; }
make_tools_fio() { make_tools_root "tools-fio/$1" "$1" fio; }
have_tools_python() { [ -d "$CACHE/tools-python/$1" ]; }
make_tools_python() { make_tools_root "tools-python/$1" "$1" libpython3-stdlib python3-minimal; }

# --- suites:ARCH: the tests that nvme-cli and fio have of their own, and the newest programs for them and for storage

have_suites() { [ -d "$CACHE/suites/$1" ]; }

make_suites() {
    say "fetching the tests of nvme-cli and fio, and their newest programs for $1"
    scratch
    mkdir -p "$SCRATCH"/suites/{nvme-cli,fio}
    logged suites fetch_source "$SUITES_SUITE" nvme-cli "$SCRATCH/suites/nvme-cli" tests
    logged suites fetch_source "$SUITES_SUITE" fio "$SCRATCH/suites/fio" t
    rm -f "$SCRATCH"/suites/*/*.tar.*
    # shellcheck disable=SC2086  # a list of words
    logged suites unpack "$SCRATCH/suites/root" "$SUITES_SUITE" "$1" \
        $TOOLS_PACKAGES fio python3-minimal libpython3-stdlib mdadm xfsprogs
    publish "$SCRATCH/suites" "$CACHE/suites/$1"
}

make_tools_root() {
    local place=$1 arch=$2 log=${1//\//-}
    shift 2
    say "fetching guest programs for $arch: $*"
    scratch
    logged "$log" unpack "$SCRATCH/root" "$TOOLS_SUITE" "$arch" "$@"
    publish "$SCRATCH/root" "$CACHE/$place"
}

# --- ovmf, u-boot: firmware

have_ovmf() { [ -e "$CACHE/firmware/OVMF_CODE.fd" ]; }

make_ovmf() {
    fetch_firmware ovmf
    publish "$SCRATCH/root/usr/share/OVMF/OVMF_VARS_4M.fd" "$CACHE/firmware/OVMF_VARS.fd"
    publish "$SCRATCH/root/usr/share/OVMF/OVMF_CODE_4M.fd" "$CACHE/firmware/OVMF_CODE.fd"
}

have_u_boot() { [ -e "$CACHE/firmware/u-boot-x86_64" ]; }

make_u_boot() {
    local name
    fetch_firmware u-boot-qemu
    for name in arm64 riscv64 x86_64; do
        publish "$SCRATCH/root/usr/lib/u-boot"/qemu[-_]"$name" "$CACHE/firmware/u-boot-$name"
    done
}

fetch_firmware() {
    say "fetching firmware: $1"
    scratch
    logged "$1" unpack "$SCRATCH/root" "$TOOLS_SUITE" "$(dpkg --print-architecture)" "$1"
}
