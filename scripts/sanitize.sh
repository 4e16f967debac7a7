#!/bin/bash
# Runs tests on a build of our C code (the native engine, protection information, the binding with libvfio-user) that watches itself.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

TESTS="tests/native/test_engine.py tests/native/test_attacks.py tests/native/test_paired.py tests/native/test_protection.py tests/conformance/test_sgl.py tests/transport"

help() {
    cat <<END
usage: scripts/sanitize.sh asan|tsan [--rounds N] [--source DIR] [PYTEST ARGUMENT...]

Builds the four extension modules in a temporary folder and runs tests with them,
by default: $TESTS
  asan          AddressSanitizer and UndefinedBehaviorSanitizer
  tsan          ThreadSanitizer
  --rounds N    of each attack in tests/native (100)
  --source DIR  build what is below DIR instead of this checkout; the tests are the checkout's
Exit status 1 if a test fails or a sanitizer reports anything; the reports are printed.
END
}

kind=${1:-}
link_flags=
case $kind in
-h | --help) help && exit ;;
asan)
    flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    # A libubsan of its own for each module: the shared one gives its log_path to libasan, and writes to stderr.
    link_flags="-static-libubsan -Wl,-Bsymbolic"
    ;;
tsan) flags="-fsanitize=thread -Wno-tsan" ;; # it takes no notice of fences; there is no data that only they protect
*) usage_error "asan or tsan?" ;;
esac
shift
rounds=100
source=$CHECKOUT
while [[ ${1:-} == --rounds || ${1:-} == --source ]]; do
    [ $# -ge 2 ] || usage_error "$1 takes an argument"
    case $1 in
    --rounds) rounds=$2 ;;
    --source) source=$2 ;;
    esac
    shift 2
done
[[ $rounds =~ ^[0-9]+$ ]] || usage_error "--rounds takes a number"
[ -f "$source/setup.py" ] || usage_error "$source: no setup.py is there"
# shellcheck disable=SC2086  # a list of words
[ $# != 0 ] || set -- $TESTS

"$CHECKOUT/scripts/setup.sh" base libvfio-user
place=$(mktemp -d -t nvmeemu-sanitize-XXXXXX)
trap 'rm -rf "$place"' EXIT
mkdir "$place/reports"
say "building with $flags"
cd "$source"
logged "sanitize-$kind" env CFLAGS="-g -O1 -fno-omit-frame-pointer -DSLOW_WRITE=10000 -DSLOW_TIME=0 $flags" LDFLAGS="$flags $link_flags" \
    LIBVFIO_USER_SRC="${LIBVFIO_USER_SRC:-$CACHE/libvfio-user}" \
    "$CHECKOUT/.venv/bin/python" setup.py -q build --build-base "$place/build" --build-lib "$place/lib"
# each is optional for setup.py
for module in engine/native/_engine subsystem/_protection backend/_block_map backend/_atomicity vfio/_libvfio_user; do
    compgen -G "$place/lib/nvmeemu/$module.*.so" >/dev/null || die "$module does not compile: $LOGS/sanitize-$kind.log"
done
cd "$CHECKOUT"

# Python itself is not instrumented: the runtime has to be there before it, and what CPython does with its own memory at
# its end is not our business. Everything that the tests start inherits this.
reports=$place/reports/report
library=$(gcc -print-file-name="lib$kind.so")
status=0
env LD_PRELOAD="$library" PYTHONPATH="$place/lib" PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 \
    NVMEEMU_SANITIZER="$kind" NVMEEMU_ATTACKS="$rounds" \
    ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:quarantine_size_mb=16:log_path=$reports" \
    UBSAN_OPTIONS="print_stacktrace=1:log_path=$reports" \
    TSAN_OPTIONS="log_path=$reports:suppressions=$CHECKOUT/tests/native/tsan.supp" \
    .venv/bin/python -m pytest -n0 -p no:cacheprovider -o timeout=3600 "$@" || status=$?
if [ -n "$(ls "$place/reports")" ]; then
    cat "$place"/reports/* >&2
    die "$kind: $(find "$place/reports" -type f | wc -l) processes had something to report"
fi
[ $status = 0 ] || die "$kind: the tests failed"
say "$kind: nothing found"
