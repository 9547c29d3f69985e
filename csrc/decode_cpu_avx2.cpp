// The CPU kernels, compiled for the level "avx2".
#define DHEAD_ISA avx2
#include "simd/avx2.h"
// The lane type comes first.
#include "cpu_kernels.inl.h"

namespace dhead {
namespace cpu {

const Kernels& kernels_avx2() {
    static constexpr Kernels kTable = table("avx2");
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
