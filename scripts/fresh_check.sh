#!/bin/bash
# Proves that scripts/run_qemu_guest.sh and scripts/test.sh work on a fresh Debian: each in a new root that has git and
# python3 only, with an empty cache, from a clone of this checkout's HEAD.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
. "$CHECKOUT/scripts/lib/apt.sh"

SUITES="bookworm trixie"
STEPS="noroot guest test"
KEEP=

help() {
    cat <<END
usage: scripts/fresh_check.sh [--suite bookworm|trixie] [--only noroot|guest|test] [--keep] [--help]

Needs root. Makes new Debian roots, and in each does one of:
  noroot   as a user without root and sudo, the scripts name the missing packages and stop with 1
  guest    scripts/run_qemu_guest.sh, interrupted twice at set-up, passes, and passes again without a set-up
  test     scripts/test.sh passes
After each, /etc/apt must be as before.
--keep leaves the roots in place. Logs: $LOGS/fresh-*.log
END
}

# choose WORD CHOICE...: WORD, if it is one of the choices.
choose() {
    local word=$1 choice
    shift
    for choice; do [ "$word" != "$choice" ] || { echo "$word" && return; }; done
    usage_error "not one of $*: '$word'"
}

# shellcheck disable=SC2086  # lists of words
parse_arguments() {
    while [ $# != 0 ]; do
        case $1 in
        -h | --help) help && exit ;;
        --keep) KEEP=yes ;;
        --suite) shift && SUITES=$(choose "${1:-}" $SUITES) ;;
        --only) shift && STEPS=$(choose "${1:-}" $STEPS) ;;
        *) usage_error "no such option: $1" ;;
        esac
        shift
    done
}

# make_root SUITE: its archive, $WORK/SUITE.tar. One suite has the classic format of apt sources, the other deb822.
make_root() {
    local suite=$1 mirror sources
    say "$suite: making a fresh root"
    mirror=$(debian_mirror)
    if [ "$suite" = bookworm ]; then
        sources=$WORK/$suite.list
        echo "deb $mirror $suite main" >"$sources"
    else
        sources=$WORK/$suite.sources
        printf '%s\n' "Types: deb" "URIs: $mirror" "Suites: $suite" "Components: main" "Signed-By: $KEYRING" >"$sources"
    fi
    logged "fresh-$suite-root" mmdebstrap --variant=apt --include=git,python3 --aptopt='Acquire::Languages "none"' \
        "$suite" "$WORK/$suite.tar" "$sources"
}

# fresh_root SUITE STEP: sets ROOT to a new root with a clone of HEAD, that reaches the network as the host does.
fresh_root() {
    ROOT=$WORK/$1-$2
    mkdir "$ROOT"
    tar -x -C "$ROOT" -f "$WORK/$1.tar"
    cp -a "$WORK/nvmeemu" "$ROOT/nvmeemu"
    cp -L /etc/resolv.conf /etc/hosts "$ROOT/etc/"
    # A site's own certificates are found there when set-up installs ca-certificates.
    mkdir -p "$ROOT/usr/local/share/ca-certificates"
    find /usr/local/share/ca-certificates -name '*.crt' -exec cp -t "$ROOT/usr/local/share/ca-certificates" {} +
}

# inside COMMAND...: in ROOT. Its mounts live in a mount namespace and its processes in a pid namespace, so both are
# gone when it ends, however it ends.
inside() {
    local passed=()
    # Proxies and pip's own settings are how this machine reaches the package index.
    mapfile -t passed < <(env | grep -iE '^(PIP_[A-Z_]*|https?_proxy|no_proxy)=' || true)
    # shellcheck disable=SC2016  # expanded in there
    unshare --mount --pid --fork --kill-child bash -c '
        root=$1 && shift &&
        mount --bind "$root" "$root" && # a root directory that is no mount point has no propagation to change
        mount -t proc proc "$root/proc" &&
        mount --rbind /dev "$root/dev" &&
        mount -t tmpfs tmpfs "$root/dev/shm" &&
        cd "$root" &&
        exec "$@"' inside "$ROOT" \
        env -i CI=true PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "${passed[@]}" \
        chroot "$ROOT" env -C /nvmeemu "$@"
}

# Each step: its output goes to the log, its result to RESULT; its status tells.

step_noroot() {
    local script output status
    chown -R 1000:1000 "$ROOT/nvmeemu"
    install -d -o 1000 -g 1000 "$ROOT/home/user"
    for script in setup.sh run_qemu_guest.sh test.sh; do
        status=0
        output=$(inside setpriv --reuid=1000 --regid=1000 --clear-groups env HOME=/home/user "scripts/$script" 2>&1) ||
            status=$?
        echo "$script: exit $status: $output" >>"$1"
        RESULT="scripts/$script: exit $status, $(wc -l <<<"$output") line(s)"
        [ $status = 1 ] && [ "$(wc -l <<<"$output")" = 1 ] && [[ $output == *missing*gcc*python3-venv* ]] || return
    done
    RESULT="all scripts stop with 1 and one line that names the missing packages"
}

# interrupt LOG FILE TEXT: the guest's command gets a Ctrl-C when set-up's log FILE has TEXT.
interrupt() {
    local status=0
    RESULT="not interrupted at '$3' in $2"
    # set -m: the job has a process group, for the signal, and does not ignore it as other background jobs do.
    # --default-signal: where we are a background job ourselves, all that we start would ignore it, and go on.
    # shellcheck disable=SC2016  # expanded in there
    inside env --default-signal=INT bash -c 'set -m
        scripts/run_qemu_guest.sh &
        until grep -qs "$2" "$1"; do kill -0 $! || break; sleep 0.1; done
        kill -INT -- -$! && wait $!' interrupt "/root/.cache/nvmeemu/logs/$2" "$3" >>"$1" 2>&1 || status=$?
    echo "interrupted at '$3' in $2: exit $status" >>"$1"
    [ $status = 130 ]
}

step_guest() {
    local start=$SECONDS first
    interrupt "$1" packages.log "^Unpacking" && interrupt "$1" venv.log "Collecting" || return
    RESULT="the first run failed"
    inside scripts/run_qemu_guest.sh >>"$1" 2>&1 || return
    tail -n 1 "$1" | grep -q '^guest: PASS' || return
    first=$((SECONDS - start))
    start=$SECONDS
    RESULT="the second run failed"
    inside scripts/run_qemu_guest.sh >"$1.second" 2>&1 || { cat "$1.second" >>"$1" && return 1; }
    cat "$1.second" >>"$1"
    RESULT="the second run set up something again"
    ! grep '^setup: ' "$1.second" || return
    rm "$1.second"
    RESULT="interrupted twice, first run $first s, second run $((SECONDS - start)) s: $(tail -n 1 "$1")"
    tail -n 1 "$1" | grep -q '^guest: PASS'
}

step_test() {
    inside scripts/test.sh >>"$1" 2>&1 || { RESULT="exit $?: $(grep . "$1" | tail -n 1)" && return 1; }
    RESULT=$(tail -n 1 "$1")
    [[ $RESULT =~ [0-9]+\ passed ]]
}

# apt_sources: a hash over all that is in /etc/apt.
apt_sources() { (cd "$ROOT/etc/apt" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum); }

has_sources() { [ "$(apt_sources)" = "$1" ] || { RESULT="/etc/apt has changed" && return 1; }; }

# check SUITE STEP: adds its line to SUMMARY.
check() {
    local log=$LOGS/fresh-$1-$2.log start=$SECONDS verdict=PASS sources
    say "$1: $2"
    : >"$log"
    fresh_root "$1" "$2"
    sources=$(apt_sources)
    if ! "step_$2" "$log" || ! has_sources "$sources"; then
        verdict=FAIL
        tail -n 25 "$log" | sed 's/^/    /' >&2
        say "the whole log: $log"
    fi
    SUMMARY+=("$1 $2: $verdict ($((SECONDS - start)) s) $RESULT")
    [ -n "$KEEP" ] || rm -rf "$ROOT"
}

main() {
    local suite step
    parse_arguments "$@"
    [ "$(id -u)" = 0 ] || die "needs root"
    install_packages mmdebstrap git
    [ -z "$(git -C "$CHECKOUT" status --porcelain)" ] || say "note: uncommitted changes are not checked"
    mkdir -p "$LOGS"
    WORK=$(mktemp -d /var/tmp/nvmeemu-fresh.XXXXXX)
    if [ -n "$KEEP" ]; then
        say "roots: $WORK"
    else
        trap 'rm -rf "$WORK"' EXIT
        trap 'exit 130' INT TERM
    fi
    # Once, so that all roots check the same commit whatever happens to the checkout meanwhile.
    git clone --quiet --no-hardlinks "$CHECKOUT" "$WORK/nvmeemu"
    say "checking commit $(git -C "$WORK/nvmeemu" rev-parse --short HEAD)"
    SUMMARY=()
    for suite in $SUITES; do
        make_root "$suite"
        for step in $STEPS; do check "$suite" "$step"; done
    done
    printf 'fresh_check: %s\n' "${SUMMARY[@]}"
    [[ "${SUMMARY[*]}" != *": FAIL ("* ]]
}

main "$@"
