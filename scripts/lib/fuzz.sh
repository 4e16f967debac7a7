# Shared by the fuzzing scripts. Only defines; runs nothing.
# shellcheck shell=bash

# libfuzzer LOG COMMAND...: fails if it finds something. One that is stopped has found nothing, and is no success either.
# Says how much of the CPU it has had: how long it took tells nothing on a busy machine.
libfuzzer() {
    local log=$1 status=0 TIMEFORMAT="$PROGRAM: %lR, CPU time %lU + %lS"
    shift
    time "$@" >"$log" 2>&1 || status=$?
    [ $status != 72 ] || die "stopped before its time; it had found nothing"
    return $status
}
