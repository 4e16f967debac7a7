#!/bin/bash
# Fuzzes the controller from the corpus in fuzz/corpus: with Atheris, guided by coverage, wherever that can be installed.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
. "$CHECKOUT/scripts/lib/fuzz.sh"

help() {
    cat <<END
usage: scripts/fuzz.sh [--seconds N] [--corpus DIR] [--update] [-- LIBFUZZER OPTION...]

Sets up what is missing (Atheris too), then fuzzes the controller for N seconds (60). Exit status 1 if it finds
something: the program that shows it is in fuzz/found then. Atheris has packages for Python 3.11 to 3.14 on x86_64; where
it cannot be installed, fuzz/hunt.py runs instead, without coverage. The first line says which one it is.
  --corpus DIR  keep new programs of interest in DIR, and begin with those that are there (Atheris only, as what follows)
  --update      afterwards, put into fuzz/corpus what covers more than the corpus does
END
}

seconds=60 corpus="" update=""
while [ $# != 0 ]; do
    case $1 in
    -h | --help) help && exit ;;
    --seconds) seconds=${2:?} && shift 2 ;;
    --corpus) corpus=${2:?} && shift 2 ;;
    --update) update=1 && shift ;;
    --) shift && break ;;
    *) usage_error "no such option: $1" ;;
    esac
done
[[ $seconds =~ ^[0-9]+$ ]] || usage_error "--seconds takes a number"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
corpus=${corpus:-$work/corpus}
mkdir -p "$corpus"
corpus=$(realpath "$corpus")

cd "$CHECKOUT"
scripts/setup.sh base
python=.venv/bin/python
mkdir -p fuzz/found "$LOGS"
log=$work/log # others may be fuzzing, too
has_atheris() { $python -c "import atheris" 2>/dev/null; }

if ! has_atheris && ! { attempt atheris $python -m pip install --disable-pip-version-check atheris && has_atheris; }; then
    say "fuzz/hunt.py, without coverage: no Atheris for this Python (the log: $LOGS/atheris.log)"
    $python fuzz/hunt.py --seconds "$seconds" --out fuzz/found
    exit
fi

say "$($python -m pip list --format freeze | grep -i ^atheris=), guided by coverage"
fuzz=("$python" fuzz/fuzz_controller.py -max_len=1608 -timeout=60 -rss_limit_mb=2048 -artifact_prefix=fuzz/found/)
if ! libfuzzer "$log" "${fuzz[@]}" "-max_total_time=$seconds" "$@" "$corpus" fuzz/corpus; then
    tail -n 30 "$log" >&2
    cp "$log" "$LOGS/fuzz.log"
    die "found something; make it short with: $python fuzz/hunt.py --shorten fuzz/found/..."
fi
grep -E "^#[0-9]+\s+(INITED|DONE)|^Done" "$log"
if [ -n "$update" ]; then
    $python fuzz/distil.py "$corpus"
    say "$(find fuzz/corpus -type f | wc -l) programs in fuzz/corpus"
fi
