// The CPU kernels, compiled for the level "scalar".
#define DHEAD_ISA scalar
#include "simd/scalar.h"
// The lane type comes first.
#include "cpu_kernels.inl.h"

namespace dhead {
namespace cpu {

const Kernels& kernels_scalar() {
    static constexpr Kernels kTable = table("scalar");
    return kTable;
}

}  // namespace cpu
}  // namespace dhead
