# Shared by the scripts: places, progress, logs, finished-or-absent folders. Only defines; runs nothing.
# shellcheck shell=bash disable=SC2034

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${XDG_CACHE_HOME:-${HOME:?}/.cache}/nvmeemu
LOGS=$CACHE/logs
PROGRAM=$(basename "$0" .sh)
PATH=$PATH:/usr/sbin:/sbin # mkfs and depmod, for users, too

say() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

usage_error() {
    say "$* (see --help)"
    exit 2
}

# attempt LOG COMMAND...: the command with its output in LOGS/LOG.log; its status. (A function called by it runs without
# set -e, so it chains its steps by && or || return.)
attempt() {
    local log=$LOGS/$1.log
    shift
    mkdir -p "$LOGS"
    printf '+ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null
}

# logged LOG COMMAND...: like attempt, but a failure shows the log's end and stops the script.
logged() {
    attempt "$@" && return
    local log=$LOGS/$1.log
    tail -n 15 "$log" | sed 's/^/    /' >&2
    die "failed; the whole log: $log"
}

# scratch: sets SCRATCH to a new folder beside the final places, so that publishing is one rename.
# Runs that were killed leave theirs behind; the next holder of the lock removes it.
scratch() {
    mkdir -p "$CACHE/tmp"
    SCRATCH=$(mktemp -d "$CACHE/tmp/XXXXXX")
}

# publish FROM TO: a folder or file appears at TO whole or not at all.
publish() {
    mkdir -p "$(dirname "$2")"
    rm -rf "$2"
    mv -T "$1" "$2"
}

# lock_cache: one set-up at a time; the lock goes with the process.
lock_cache() {
    mkdir -p "$CACHE"
    exec 9>"$CACHE/lock"
    if ! flock -n 9; then
        say "waiting for another set-up to end"
        flock 9
    fi
    rm -rf "$CACHE/tmp"
}
