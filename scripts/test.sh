#!/bin/bash
# Sets up, then lint, types and tests. The last line is pytest's.
set -euo pipefail
trap 'exit 130' INT # pytest ends well when it is interrupted, and bash would go on

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

help() {
    cat <<END
usage: scripts/test.sh [--fast | --all | --help] [PYTEST ARGUMENT...]

Sets up what is missing, then runs ruff, mypy and the tests. Without PYTEST ARGUMENTs, the examples and the tests that
boot guests run at the same time as the others; what they said is printed when both have ended.
  --fast   without the tests that boot guests, without the mutants, without those that take CPU time (marked long: many
           processes started, plots, fuzzing)
  --all    with the tests marked slow
END
}

# tests BUDGET PYTEST ARGUMENT...: the plugin says what CPU time they took, and warns above the budget: wall time on
# shared machines says little.
tests() {
    NVMEEMU_CPU_BUDGET=$1 PYTHONPATH=$CHECKOUT/scripts/lib .venv/bin/python -m pytest -p cpu_budget "${@:2}"
}

# guests MARKS: the examples, alone, as their readers have them; then the tests that boot guests.
guests() {
    local status=0
    .venv/bin/pytest --nvmeemu-require-guest examples || status=$?
    tests "$guest_budget" -m "guest$1" || status=$?
    return "$status"
}

components=()
marks=" and not slow"
budget=900 guest_budget=900
is_fast=false
case ${1:-} in
-h | --help) help && exit ;;
--fast) shift && components=(base) is_fast=true budget=120 marks=" and not slow and not mutants and not long" ;;
--all) shift && marks="" budget=3600 guest_budget=3600 ;;
esac

unset PYTHONDONTWRITEBYTECODE # with it each server that a test starts compiles the whole package: twice the CPU time
unset CI BUILD_NUMBER # with them pytest explains in full how bytes differ: minutes for some kilobytes
cd "$CHECKOUT"
scripts/setup.sh "${components[@]}"
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy

if $is_fast; then
    tests "$budget" -m "not guest$marks" "$@"
elif [ $# != 0 ]; then
    tests "$budget" -m "${marks# and }" "$@"
else
    log=$LOGS/test-guests.log
    mkdir -p "$LOGS"
    set -m # a process group of its own: an interrupt reaches it once, from here
    guests "$marks" >"$log" 2>&1 </dev/null &
    set +m
    beside=$!
    trap 'kill -INT -- -$beside 2>/dev/null && wait $beside' EXIT
    say "guests boot beside these tests: $log"
    status=0
    tests "$budget" -m "not guest$marks" || status=$?
    wait $beside || status=$?
    trap - EXIT
    cat "$log"
    exit "$status"
fi
