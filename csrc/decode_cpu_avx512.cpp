// The CPU kernels, compiled for the level "avx512".
#define DHEAD_ISA avx512
#include "simd/avx512.h"
// The lane type comes first.
#include "cpu_kernels.inl.h"

namespace dhead {
namespace cpu {

const Kernels& kernels_avx512() {
    static constexpr Kernels kTable = table("avx512");
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
