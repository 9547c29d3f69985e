#!/usr/bin/env bash
# compute-sanitizer over every kernel and the case table: memcheck (with leaks), racecheck, synccheck, initcheck.
# Needs a GPU, compute-sanitizer, and the package importable (PYTHON, PYTHONPATH). scripts/gpu_check.sh calls it.
#
#   scripts/sanitize.sh [most anchors of a case, default 2500]
set -uo pipefail
cd "$(dirname "$0")/.."

sanitizer=${COMPUTE_SANITIZER:-compute-sanitizer}
command -v "$sanitizer" >/dev/null || { echo "sanitize.sh: NOT RUN, no compute-sanitizer" >&2; exit 3; }
python=${PYTHON:-python3}
most=${1:-2500}
status=0
run() { # name, options…
    echo "== $1"
    "$sanitizer" --error-exitcode 9 "${@:2}" "$python" tests/gpu/run_cases.py "$most" || {
        echo "FAILED: $1"
        status=1
    }
}
run memcheck --tool memcheck --leak-check full
run racecheck --tool racecheck --racecheck-report all
run synccheck --tool synccheck
run initcheck --tool initcheck
exit $status
