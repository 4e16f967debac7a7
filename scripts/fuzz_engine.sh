#!/bin/bash
# Fuzzes the native engine's C with libFuzzer, guided by coverage, under ASan and UBSan, from fuzz/native/corpus
# and what fuzz/native/seeds.py makes.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
. "$CHECKOUT/scripts/lib/apt.sh"
. "$CHECKOUT/scripts/lib/fuzz.sh"

PACKAGES="clang libclang-rt-dev llvm liburing-dev libisal-dev pkg-config"
ENGINE=src/nvmeemu/engine/native
PARSING="command.c doorbells.c media.c memory.c op.c prp.c queue.c sgl.c" # what interprets the guest's bytes
LEAST_COVERAGE=90

help() {
    cat <<END
usage: scripts/fuzz_engine.sh [--seconds N] [--source DIR] [--corpus DIR] [--update] [--coverage] [-- LIBFUZZER OPTION...]

Installs clang if it is missing, builds fuzz/native, and fuzzes for N seconds (60). Exit status 1 if it finds something:
the input that shows it is in fuzz/found then.
  --source DIR  of an engine with a planted fault, instead of $ENGINE
  --corpus DIR  keep new inputs of interest in DIR, and begin with those that are there
  --update      afterwards, make fuzz/native/corpus anew: the smallest set of inputs that covers as much
  --coverage    instead of fuzzing, say which lines of the engine the corpus reaches; 1 if less than $LEAST_COVERAGE % of
                $PARSING
END
}

seconds=60 source=$CHECKOUT/$ENGINE corpus="" update="" coverage=""
while [ $# != 0 ]; do
    case $1 in
    -h | --help) help && exit ;;
    --seconds) seconds=${2:?} && shift 2 ;;
    --source) source=$(realpath "${2:?}") && shift 2 ;;
    --corpus) corpus=${2:?} && shift 2 ;;
    --update) update=1 && shift ;;
    --coverage) coverage=1 && shift ;;
    --) shift && break ;;
    *) usage_error "no such option: $1" ;;
    esac
done
[[ $seconds =~ ^[0-9]+$ ]] || usage_error "--seconds takes a number"

cd "$CHECKOUT"
scripts/setup.sh base
# shellcheck disable=SC2086  # a list of words
install_packages $PACKAGES
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
corpus=${corpus:-$work/corpus}
mkdir -p "$corpus" "$work/seeds" fuzz/found "$LOGS"
corpus=$(realpath "$corpus")
.venv/bin/python fuzz/native/seeds.py "$work/seeds"
inputs=("$corpus" fuzz/native/corpus "$work/seeds") # new ones go into the first
.venv/bin/python -m nvmeemu.engine.native.generate >"$work/nvme_spec.h"

# build NAME FLAG...: with slow writes all the time, as sanitize.sh has them
build() {
    local name=$1
    shift
    # shellcheck disable=SC2046  # a list of flags
    clang -g -O1 -std=gnu11 -D_FILE_OFFSET_BITS=64 -DHAVE_LIBURING -DHAVE_LIBISAL \
        -DSLOW_WRITE=10000 -DSLOW_TIME=0 -pthread -Wall -Wextra -Werror "$@" \
        -I"$work" -iquote "$source" -iquote fuzz/native "$source"/*.c fuzz/native/*.c $(pkg-config --libs liburing libisal) -o "$work/$name"
}

if [ -n "$coverage" ]; then
    build covered -fsanitize=fuzzer -fprofile-instr-generate -fcoverage-mapping
    LLVM_PROFILE_FILE=$work/raw "$work/covered" -runs=0 "${inputs[@]}" >"$work/log" 2>&1 || die "$(tail -n 15 "$work/log")"
    llvm-profdata merge "$work/raw" -o "$work/profile"
    llvm-cov export -summary-only -instr-profile="$work/profile" "$work/covered" "$source" >"$work/coverage.json"
    # shellcheck disable=SC2086
    .venv/bin/python fuzz/native/coverage.py "$work/coverage.json" $LEAST_COVERAGE $PARSING
    exit
fi

build fuzzer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined
log=$work/log # others may be fuzzing, too
fuzz=("$work/fuzzer" -max_len=1025 -len_control=20 -timeout=300 -rss_limit_mb=2048 -artifact_prefix=fuzz/found/engine-)
if ! libfuzzer "$log" "${fuzz[@]}" "-max_total_time=$seconds" -print_final_stats=1 "$@" "${inputs[@]}"; then
    grep -E "^(FAULT|SUMMARY|==[0-9]+==ERROR|Test unit)|runtime error|fuzz/found" "$log" >&2
    cp "$log" "$LOGS/fuzz-engine.log"
    die "found something; the whole log: $LOGS/fuzz-engine.log"
fi
grep -E "^#[0-9]+\s+(INITED|DONE)|^Done|number_of_executed" "$log"
if [ -n "$update" ]; then
    mkdir "$work/new"
    "$work/fuzzer" -merge=1 "$work/new" "${inputs[@]}" >>"$log" 2>&1
    rm -rf fuzz/native/corpus
    mv "$work/new" fuzz/native/corpus
    say "$(find fuzz/native/corpus -type f | wc -l) inputs in fuzz/native/corpus"
fi
