// The CPU kernels, compiled for the level "neon".
#define DHEAD_ISA neon
#include "simd/neon.h"
// The lane type comes first.
#include "cpu_kernels.inl.h"

namespace dhead {
namespace cpu {

const Kernels& kernels_neon() {
    static constexpr Kernels kTable = table("neon");
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
