#!/usr/bin/env bash
# Compiles the CUDA kernels for every architecture with all warnings as errors, and prints what each kernel takes:
# registers and barriers per thread, spilled bytes. Fails where a kernel spills. Needs nvcc, no GPU. `make kernels`.
#
#   scripts/kernels.sh [architecture…]     default: 75 80 86 87 89 90 100 120, and PTX of 75 and 120
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=${NVCC:-${CUDACXX:-nvcc}}
command -v "$nvcc" >/dev/null || { echo "kernels.sh: no nvcc ($nvcc); set NVCC" >&2; exit 3; }
architectures=("$@")
ptx=()
if [ ${#architectures[@]} -eq 0 ]; then
    architectures=(75 80 86 87 89 90 100 120)
    ptx=(75 120)
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # source, -gencode, name
    "$nvcc" -std=c++17 -O3 -Icsrc/include -Icsrc -gencode "$2" --resource-usage \
        -Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off -Werror=all-warnings \
        -c "csrc/$1" -o "$3.o" >"$3.log" 2>&1 || { echo "FAILED: $1 $2" >&2; cat "$3.log" >&2; return 1; }
}
export -f compile
export nvcc

jobs=()
for source in decode_cuda.cu detect_cuda.cu filter_cuda.cu nms_cuda.cu letterbox_cuda.cu; do
    for a in "${architectures[@]}"; do
        jobs+=("$source" "arch=compute_$a,code=sm_$a" "$work/$source.sm_$a")
    done
    for a in "${ptx[@]}"; do
        jobs+=("$source" "arch=compute_$a,code=compute_$a" "$work/$source.ptx_$a")
    done
done
printf '%s\0' "${jobs[@]}" | xargs -0 -n 3 -P "${JOBS:-2}" bash -c 'compile "$@"' _

printf '%-44s %-7s %9s %12s %12s %7s\n' kernel arch registers 'spill store' 'spill load' stack
cat "$work"/*.sm_*.log | awk '
    /Compiling entry function/ { split($0, q, "\047"); name = q[2]; arch = q[4] }
    /bytes stack frame/ { stack = $1; store = $5; load = $9 }
    /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
        print name, arch, registers, store, load, stack
    }' | while read -r name arch rest; do
    echo "$(c++filt "$name" | sed -E 's/^(void )?dhead::\(anonymous namespace\)::([a-z_]+)(<[^(]*>)?\(.*/\2\3/; s/unsigned short/half/; s/ //g') $arch $rest"
done | sort | tee "$work/table" | awk '{ printf "%-44s %-7s %9s %12s %12s %7s\n", $1, $2, $3, $4, $5, $6 }'
kernels=$(wc -l <"$work/table")
[ "$kernels" -gt 0 ] || { echo "kernels.sh: no kernel was found in the compiler's output" >&2; exit 1; }
if awk '$4 + $5 > 0' "$work/table" | grep -q .; then
    echo "kernels.sh: a kernel spills registers" >&2
    exit 1
fi
echo "$kernels kernels for ${#architectures[@]} architectures, ${#ptx[@]} PTX versions: no spills"
echo "shared memory is dynamic: see the launchers (decode at most 38 KiB, filter 13, select 47, letterbox 2)"
