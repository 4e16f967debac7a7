#!/bin/bash
# Sets up, then lint, types and tests. The last line is pytest's.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

help() {
    cat <<END
usage: scripts/test.sh [--fast | --all | --help] [PYTEST ARGUMENT...]

Sets up what is missing, then runs ruff, mypy, the examples (unless there are arguments) and the tests.
  --fast   without the tests that boot guests, without the mutants, without those that take CPU time (marked long: many
           processes started, plots, fuzzing); fewer rounds where a test repeats itself
  --all    with the tests marked slow
END
}

components=()
examples=true
marks="not slow"
budget=900
rounds=100
case ${1:-} in
-h | --help) help && exit ;;
--fast) shift && components=(base) examples=false rounds=10 marks="not slow and not guest and not mutants and not long" budget=120 ;;
--all) shift && marks="" budget=3600 ;;
esac

unset CI BUILD_NUMBER # with them pytest explains in full how bytes differ: minutes for some kilobytes
cd "$CHECKOUT"
scripts/setup.sh "${components[@]}"
bin=.venv/bin
$bin/ruff check --quiet .
$bin/ruff format --check --quiet .
$bin/mypy
# Alone, as their readers have them.
if $examples && [ $# = 0 ]; then
    $bin/pytest --nvmeemu-require-guest examples
fi
# The plugin says what CPU time the tests took, and warns above the mode's budget: wall time on shared machines says little.
export NVMEEMU_ROUNDS=${NVMEEMU_ROUNDS:-$rounds}
NVMEEMU_CPU_BUDGET=$budget PYTHONPATH=$CHECKOUT/scripts/lib exec $bin/python -m pytest -p cpu_budget -m "$marks" "$@"
