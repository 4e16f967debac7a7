# Debian packages: installed ones for the host, and unpacked ones of any suite and architecture for the cache.
# The system's apt sources are read (for the mirror), never written: each suite and architecture has an apt of its own.
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

# write_private_apt DIR SUITE ARCH: the configuration of an apt that knows SUITE only and thinks nothing is installed.
write_private_apt() {
    local dir=$1 suite=$2 arch=$3 signed="" mirror
    mirror=$(debian_mirror)
    mkdir -p "$dir"/{state/lists/partial,cache/archives/partial,empty.d}
    : >"$dir/status"
    : >"$dir/empty"
    [ ! -r "$KEYRING" ] || signed="[signed-by=$KEYRING] "
    {
        echo "deb $signed$mirror $suite main"
        echo "deb-src $signed$mirror $suite main"
        # Backports are an addition to their suite, not a suite.
        [[ $suite != *-backports ]] || echo "deb $signed$mirror ${suite%-backports} main"
    } >"$dir/sources.list"
    {
        apt-config dump | grep '^Acquire::' # proxies and the like
        cat <<END
Dir::Etc::main "$dir/empty";
Dir::Etc::parts "$dir/empty.d";
Dir::Etc::preferences "$dir/empty";
Dir::Etc::preferencesparts "$dir/empty.d";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "$dir/empty.d";
Dir::State "$dir/state";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Log "$dir";
APT::Architecture "$arch";
APT::Architectures "$arch";
APT::Default-Release "$suite";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "3";
END
    } >"$dir/apt.conf"
}

# use_suite SUITE ARCH: sets APT_PRIVATE, the APT_CONFIG for the functions below; its lists are at most a day old.
use_suite() {
    local dir=$CACHE/apt/$1-$2
    write_private_apt "$dir" "$1" "$2"
    APT_PRIVATE=$dir/apt.conf
    if [ -z "$(find "$dir" -maxdepth 1 -name updated -mmin -1440)" ]; then
        say "reading the package lists of $1 for $2"
        logged "apt-$1-$2" private_apt apt-get update --error-on=any
        touch "$dir/updated"
    fi
}

# try_suite SUITE ARCH: the same, but only a status where the mirror does not have the suite.
try_suite() { (use_suite "$@") && APT_PRIVATE=$CACHE/apt/$1-$2/apt.conf; }

private_apt() { APT_CONFIG=$APT_PRIVATE "$@"; }

# fetch LOG COMMAND...: a download through the private apt. The mirror may have dropped what yesterday's lists name,
# so a failure reads the lists again, once.
fetch() {
    local log=$1
    shift
    attempt "$log" private_apt "$@" && return
    logged "$log" private_apt apt-get update
    logged "$log" private_apt "$@"
}

# fetch_with_dependencies LOG DIR PACKAGE...: the .debs of the packages and of all they depend on.
fetch_with_dependencies() {
    local log=$1 dir=$2
    shift 2
    mkdir -p "$dir/partial"
    fetch "$log" apt-get install -y --download-only -o Dir::Cache::archives="$dir" "$@"
}

# fetch_alone LOG DIR PACKAGE...: the .debs of just these packages.
fetch_alone() {
    local log=$1 dir=$2
    shift 2
    mkdir -p "$dir"
    fetch "$log" env -C "$dir" apt-get download "$@"
}

# unpack DIR DEB...: unpacked into one merged-/usr tree; no maintainer script runs, no setuid bit stays.
unpack() {
    local dir=$1 deb name
    shift
    for name in bin sbin lib lib64; do
        mkdir -p "$dir/usr/$name" && ln -sfn "usr/$name" "$dir/$name" || return
    done
    for deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$dir" --keep-directory-symlink --no-same-owner \
            --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' || return
    done
    chmod -R u+rwX,u-s,g-s "$dir"
}
