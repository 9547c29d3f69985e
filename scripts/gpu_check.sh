#!/usr/bin/env bash
# Everything that only a GPU can show, on a machine with nvcc, CMake, a C++ compiler and PyTorch, and nothing else: builds
# the package's modules, runs tests/gpu, the sanitizer and bench/gpu.py, and writes one results file. tests/gpu needs
# pytest and hypothesis; where they are neither there nor to be had from pip, the case table alone is run.
#
#   scripts/gpu_check.sh [RESULTS]            default: out/gpu_check.txt; the benchmark's JSON lies beside it
#
# PYTHON=…                  the interpreter with PyTorch (python3)
# DHEAD_TENSORRT_HEADERS=…  a folder of TensorRT headers for the plugin tests; fetched where it is not given
# Exit status: 0 when all that could run passed. What could not run is named in the results.
set -uo pipefail
cd "$(dirname "$0")/.."

results=${1:-out/gpu_check.txt}
python=${PYTHON:-python3}
build=${DHEAD_GPU_BUILD:-build/gpu}
mkdir -p "$(dirname "$results")" "$build"
: >"$results"
status=0
say() { echo "$@" | tee -a "$results"; }
step() { # title, command…
    say "" && say "== $1"
    if "${@:2}" >"$build/step.log" 2>&1; then
        tail -n "${LINES_KEPT:-25}" "$build/step.log" | tee -a "$results"
        say "-- passed: $1"
    else
        local code=$?
        tail -n 60 "$build/step.log" | tee -a "$results"
        if [ $code -eq 3 ]; then say "-- NOT RUN: $1"; else say "-- FAILED ($code): $1" && status=1; fi
    fi
}

say "dhead_trt $(git rev-parse --short HEAD 2>/dev/null || echo '(no git)'), $(date -u +%F)"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv,noheader 2>&1 | tee -a "$results"
nvcc --version 2>&1 | tail -2 | tee -a "$results"
"$python" -c 'import torch, platform; print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)' 2>&1 | tee -a "$results"
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { say "NOT RUN: PyTorch finds no GPU"; exit 2; }

# Where pybind11 is not installed, or is too old, PyTorch's copy of its headers serves.
if ! "$python" -c 'import pybind11, sys; sys.exit(pybind11.version_info[:2] < (2, 13))' 2>/dev/null; then
    mkdir -p "$build/pybind11"
    include=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "include"))')
    cat >"$build/pybind11/pybind11Config.cmake" <<CMAKE
set(pybind11_FOUND TRUE)
function(pybind11_add_module name type)
  Python_add_library(\${name} \${type} WITH_SOABI \${ARGN})
  target_include_directories(\${name} SYSTEM PRIVATE "$include")
endfunction()
CMAKE
    printf 'set(PACKAGE_VERSION 2.13)\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n' >"$build/pybind11/pybind11ConfigVersion.cmake"
    pybind=(-Dpybind11_DIR="$PWD/$build/pybind11")
else
    pybind=()
fi
headers=${DHEAD_TENSORRT_HEADERS:-$("$python" scripts/fetch_tensorrt_headers.py 2>>"$results")}
capability=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
configure() {
    cmake -S . -B "$build/cmake" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
        -DDHEAD_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$capability" -DDHEAD_TESTS=ON -DDHEAD_WERROR=ON \
        -DDHEAD_TENSORRT="$([ -n "$headers" ] && echo ON || echo OFF)" -DDHEAD_TENSORRT_HEADERS="$headers" "${pybind[@]}"
}
step "configure" configure
targets=(_core _cuda)
if [ -n "$headers" ]; then
    major=$(grep -hoE '(NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +[0-9]+' "$headers/NvInferVersion.h" | grep -oE '[0-9]+' | head -1)
    targets+=("dhead_trt_plugins$major" "dhead_trt_plugins${major}_contract_gpu")
else
    say "NOT RUN: the plugins, there are no TensorRT headers"
fi
step "build" cmake --build "$build/cmake" -j "$(nproc)" --target "${targets[@]}"
package=$PWD/$build/package
install_package() {
    rm -rf "$package" && mkdir -p "$package" && cp -r python/dhead_trt "$package/" && rm -f "$package"/dhead_trt/*.so &&
        find "$build/cmake" -name '_c*.so' -exec cp {} "$package/dhead_trt/" \;
}
step "install" install_package
export PYTHONPATH=$package:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}
library=$(find "$build/cmake/plugins" -name 'libdhead_trt_plugins.so' 2>/dev/null | head -1)
program=$(find "$build/cmake" -name '*_contract_gpu' -type f 2>/dev/null | head -1)
export DHEAD_PLUGIN_LIBRARY=${library:+$PWD/$library} DHEAD_PLUGIN_CONTRACT=${program:+$PWD/$program}

if ! "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
    "$python" -m pip install -q --target "$build/site" pytest hypothesis pytest-timeout >"$build/pip.log" 2>&1 &&
        export PYTHONPATH=$PYTHONPATH:$PWD/$build/site
fi
step "case table" "$python" tests/gpu/run_cases.py
if "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
    LINES_KEPT=40 step "tests/gpu" env DHEAD_REQUIRE_GPU=1 "$python" -m pytest -q -rs -p no:cacheprovider tests/gpu
else
    say "NOT RUN: tests/gpu, there is no pytest or hypothesis"
fi
if [ $status -eq 0 ]; then
    step "sanitizer" env PYTHON="$python" scripts/sanitize.sh
else
    say "NOT RUN: sanitizer, because of the failures above"
fi
LINES_KEPT=60 step "benchmark" "$python" bench/gpu.py --json "${results%.*}.json"
say "" && say "$([ $status -eq 0 ] && echo "all that could run passed" || echo "FAILURES above")"
exit $status
