// One lane: plain float. The level that every machine has.
#pragma once

#include <cstddef>

#include "dhead/decode.h"

namespace dhead {
inline namespace DHEAD_ISA {

using F = float;
constexpr int kLanes = 1;

DHEAD_HD F load(const float* p) { return *p; }
DHEAD_HD F load(const uint16_t* p) { return half_to_float(*p); }
DHEAD_HD void store(float* p, F a) { *p = a; }
DHEAD_HD void store_interleaved4(float* out, F a, F b, F c, F d) {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}
// rows[k] holds class k of kLanes anchors; out gets one run of 16 classes per anchor, `stride` floats apart.
DHEAD_HD void store_tile16(const F* rows, float* out, size_t stride, bool /*stream*/) {
    (void)stride;
    for (int k = 0; k < 16; ++k) out[k] = rows[k];
}
DHEAD_HD void stream_fence() {}

}  // namespace DHEAD_ISA
}  // namespace dhead
