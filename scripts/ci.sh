#!/usr/bin/env bash
# Everything a change must pass: lint, then every test. Needs Python 3.10 or newer, a C++ compiler and make.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
export CI="${CI:-true}" PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off PYTHONUNBUFFERED=1

note() { printf '\n==== %s (%s s)\n' "$*" "$SECONDS"; }

note "machine"
uname -srm
echo "cores: $(nproc 2>/dev/null || sysctl -n hw.ncpu)"
for tool in python3 "${CXX:-c++}" make cmake nvcc; do
    if command -v "$tool" >/dev/null; then
        echo "$tool: $("$tool" --version 2>&1 | grep -v '^$' | tail -n +1 | grep -m1 -E '[0-9]+\.[0-9]+')"
    else
        echo "$tool: not here"
    fi
done
git log -1 --format='commit: %h %s' 2>/dev/null || true

# The NEON code is tested under emulation; where these cannot be had, tests/test_aarch64.py is skipped and says so.
arm=(g++-aarch64-linux-gnu qemu-user)
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] &&
    ! { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } >/dev/null; then
    note "apt-get install ${arm[*]}"
    { timeout 120 apt-get -qq update && DEBIAN_FRONTEND=noninteractive timeout 300 \
        apt-get -qq install -y --no-install-recommends "${arm[@]}"; } >/dev/null ||
        echo "not installed: the tests of the NEON code will be skipped"
fi

# The page of `dhead-trt view` is tested in Chromium; where it cannot be had, those tests are skipped and say so.
browser=(chromium chromium-driver)
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] && ! { command -v chromium && command -v chromedriver; } >/dev/null
then
    note "apt-get install ${browser[*]}"
    { timeout 120 apt-get -qq update && DEBIAN_FRONTEND=noninteractive timeout 420 \
        apt-get -qq install -y --no-install-recommends "${browser[@]}"; } >/dev/null ||
        echo "not installed: the tests of the page in a browser will be skipped"
fi

lint=0 test=0 serving=0
note "make lint"
make lint || lint=$?
note "make test"
make test || test=$?
note "make test-serving"
make test-serving || serving=$?

if ((lint || test || serving)); then
    failed="$( ((lint)) && echo ' lint')$( ((test)) && echo ' test')$( ((serving)) && echo ' test-serving')"
    echo "FAILED:$failed after $SECONDS s" >&2
    exit 1
fi
