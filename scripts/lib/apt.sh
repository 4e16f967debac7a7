# Debian packages: installed ones for the host, and unpacked ones of any suite and architecture for the cache.
# The system's apt sources are read (for the mirror), never written: mmdebstrap has an apt of its own for each root.
# shellcheck shell=bash

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# debian_mirror: the URI of the Debian archive in the system's own configuration (either format of sources).
debian_mirror() {
    local codename uri
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-sid}")
    # shellcheck disable=SC2016  # the words are apt's
    uri=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' | awk -v codename="$codename" '
        $1 == codename || $1 ~ /^(oldstable|stable|testing|unstable|sid)$/ { print $2; exit }')
    [ -n "$uri" ] || die "no Debian mirror in the system's apt sources"
    echo "$uri"
}

# missing_packages PACKAGE...: those not installed, on one line.
missing_packages() {
    local installed package
    installed=" $(dpkg-query -W -f '${db:Status-Status}=${Package} ' "$@" 2>/dev/null || true)"
    for package; do
        [[ $installed == *" installed=$package "* ]] || printf '%s ' "$package"
    done
}

# install_packages PACKAGE...: into the host, as root or by sudo; without either, names them and stops.
install_packages() {
    local missing sudo=()
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
            sudo=(sudo)
            sudo -v || die "missing Debian packages: $missing"
        else
            die "missing Debian packages (install them as root): ${missing% }"
        fi
    fi
    say "installing Debian packages: ${missing% }"
    # What an interrupted run has left half done; apt refuses to do anything before that.
    attempt packages "${sudo[@]}" dpkg --configure -a || true
    # A third-party source that cannot be reached must not stop us: the install tells whether it mattered.
    attempt packages "${sudo[@]}" apt-get update || true
    # shellcheck disable=SC2086  # a list of words
    logged packages "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 $missing
}

# source_line SUITE [deb-src]: as sources.list has it.
source_line() {
    local mirror
    mirror=$(debian_mirror) && echo "${2:-deb} [signed-by=$KEYRING] $mirror $1 main"
}

# of_suite SUITE ARCH TARGET ARGUMENT...: mmdebstrap, with more options and sources, for any suite and architecture; as no
# one special: "chrootless", so nothing of the target runs (unless an option chooses another mode).
of_suite() {
    local suite=$1 arch=$2 target=$3 sources
    shift 3
    sources=("$(source_line "$suite")") || return
    # Backports are an addition to their suite, not a suite.
    [[ $suite != *-backports ]] || sources+=("$(source_line "${suite%-backports}")")
    apt-config dump | grep '^Acquire::' >"$SCRATCH/apt.conf" || true # proxies and the like
    mmdebstrap --mode=chrootless --skip=check/chrootless --architectures="$arch" --aptopt="$SCRATCH/apt.conf" \
        --aptopt="APT::Default-Release \"$suite\"" --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
        "$suite" "$target" "${sources[@]}" "$@"
}

# MERGED_USR: for packages from before the time when all had their files in /usr.
# shellcheck disable=SC2016  # expanded by the hook
MERGED_USR='for name in bin sbin lib lib64; do mkdir -p "$1/usr/$name" && ln -s "usr/$name" "$1/$name"; done'

# unpack DIR SUITE ARCH PACKAGE...: a new DIR with the packages and all they depend on; no maintainer script runs, no
# setuid bit stays.
unpack() {
    local dir=$1 suite=$2 arch=$3
    shift 3
    of_suite "$suite" "$arch" "$dir" --variant=extract --include="$*" --setup-hook="$MERGED_USR" &&
        rm -rf "$dir"/{dev,usr/share/man,usr/share/locale} &&
        chmod -R u+rwX,u-s,g-s "$dir"
}
