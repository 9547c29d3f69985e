// The CPU kernels, compiled for the level "sse2".
#define DHEAD_ISA sse2
#include "simd/sse2.h"
// The lane type comes first.
#include "cpu_kernels.inl.h"

namespace dhead {
namespace cpu {

const Kernels& kernels_sse2() {
    static constexpr Kernels kTable = table("sse2");
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
