// The decode mathematics, once, for host and device.
//
// Everything is a template over a lane type V: `float` (scalar code, and a CUDA thread) or a SIMD wrapper with the same
// operations (simd.h). Each function is written with add/sub/mul/div, which round once and are never fused, in a fixed
// order; so every SIMD level and the GPU give the same bits, and NMS takes the same decisions everywhere.
//
// On the host, a source file that is compiled for a particular instruction set defines DHEAD_ISA (an identifier) before
// it includes this header: its copies of these functions then live in a namespace of their own and can not be merged by
// the linker with those of another instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DHEAD_HD __host__ __device__ __forceinline__
#else
#define DHEAD_HD __attribute__((always_inline)) inline
#endif

#if defined(__CUDA_ARCH__)
#define DHEAD_UNROLL(n) _Pragma("unroll")
#elif defined(__CUDACC__)
#define DHEAD_UNROLL(n)
#else
#define DHEAD_PRAGMA(text) _Pragma(#text)
#define DHEAD_UNROLL(n) DHEAD_PRAGMA(GCC unroll n)
#endif

#ifndef DHEAD_ISA
#define DHEAD_ISA portable
#endif

namespace dhead {
inline namespace DHEAD_ISA {

// ---------------------------------------------------------------------------------------------------------------------
// Operations on one lane. A SIMD wrapper overloads all of these for itself; argument-dependent lookup finds them.

DHEAD_HD uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    uint32_t u;
    std::memcpy(&u, &x, sizeof(u));
    return u;
#endif
}

DHEAD_HD float bits_float(uint32_t u) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(u);
#else
    float x;
    std::memcpy(&x, &u, sizeof(x));
    return x;
#endif
}

#if defined(__CUDA_ARCH__)
DHEAD_HD float add(float a, float b) { return __fadd_rn(a, b); }
DHEAD_HD float sub(float a, float b) { return __fsub_rn(a, b); }
DHEAD_HD float mul(float a, float b) { return __fmul_rn(a, b); }
DHEAD_HD float div(float a, float b) { return __fdiv_rn(a, b); }
#else
DHEAD_HD float add(float a, float b) { return a + b; }
DHEAD_HD float sub(float a, float b) { return a - b; }
DHEAD_HD float mul(float a, float b) { return a * b; }
DHEAD_HD float div(float a, float b) { return a / b; }
#endif
// Where either is NaN, or both are zero, the second argument. (SSE's maxps; not fmaxf.)
DHEAD_HD float max_of(float a, float b) { return a > b ? a : b; }
DHEAD_HD float min_of(float a, float b) { return a < b ? a : b; }
DHEAD_HD bool greater(float a, float b) { return a > b; }
// The low bits of x, moved to where the exponent is: 2^n for x = kExpMagic + n, n from -126; 0 for -127, inf for 128.
DHEAD_HD float exponent_from_low_bits(float x) { return bits_float(float_bits(x) << 23); }

// ---------------------------------------------------------------------------------------------------------------------
// exp and what is made of it.

constexpr float kLog2E = 1.44269504088896341F;
constexpr float kExpMagic = 12582912.F + 127.F;  // 1.5 * 2^23 + bias: adding it rounds to an integer and biases it
constexpr float kExpLow = -127.F;                // its power of two is 0
constexpr float kExpHigh = 128.F;                // its power of two is inf
constexpr float kExpC1 = 0.693147004F;           // minimax of relative error 9.4e-8 on ±1/2, with C0 = 1
constexpr float kExpC2 = 0.240222469F;
constexpr float kExpC3 = 0.0555071086F;
constexpr float kExpC4 = 0.00967129227F;
constexpr float kExpC5 = 0.00132695353F;

// y[k] = 2^y[k] for each of N values <= 128 or NaN: within 2 ulp where the result is a normal number, exactly 0 below
// -126.5, inf above 127.5. The values advance side by side, so that a processor always has independent work at hand.
template <int N, class V>
DHEAD_HD void exp2_each(V* y) {
    V t[N];
    V f[N];
    V square[N];
    V high[N];
    V middle[N];
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) y[k] = max_of(V(kExpLow), y[k]);  // NaN stays
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) t[k] = add(y[k], V(kExpMagic));
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) f[k] = sub(y[k], sub(t[k], V(kExpMagic)));
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) square[k] = mul(f[k], f[k]);
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) high[k] = add(mul(V(kExpC5), f[k]), V(kExpC4));
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) middle[k] = add(mul(V(kExpC3), f[k]), V(kExpC2));
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) middle[k] = add(mul(high[k], square[k]), middle[k]);
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) f[k] = add(mul(V(kExpC1), f[k]), V(1.F));
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) f[k] = add(mul(middle[k], square[k]), f[k]);
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) y[k] = mul(f[k], exponent_from_low_bits(t[k]));
}

template <class V>
DHEAD_HD V exp2_bounded(V y) {
    exp2_each<1>(&y);
    return y;
}

// z[k] = 1 / (1 + exp(-z[k])) for each of N values: within 1e-7; exactly 0 for -inf (and below -88.4), 1 for inf, NaN
// for NaN.
template <int N, class V>
DHEAD_HD void sigmoid_each(V* z) {
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) z[k] = min_of(V(kExpHigh), mul(z[k], V(-kLog2E)));
    exp2_each<N>(z);
    DHEAD_UNROLL(16) for (int k = 0; k < N; ++k) z[k] = div(V(1.F), add(V(1.F), z[k]));
}

template <class V>
DHEAD_HD V sigmoid(V z) {
    sigmoid_each<1>(&z);
    return z;
}

// The sums of dfl_expectation. Bin j is added to partial sum j mod 4: it is the rounding of long sums, not that of exp,
// that limits the precision.
template <class V>
struct DflSums {
    V total[4];
    V weighted[4];
};

// Adds the bins j .. j + M - 1; j is a multiple of 4, `weight` is j. Where it is `first`, the sums are still 0 (0 + e
// is e).
//
// exp(x) is 2^(x log2 e) here: its relative error grows with |x|, by 6e-8 |x|, which adds at most 3e-8 to a sum that
// holds an exp(0).
template <int M, class V, class Load>
DHEAD_HD void add_bins(DflSums<V>& sums, int j, V weight, V top, bool first, const Load& load) {
    V e[M];
    DHEAD_UNROLL(4) for (int k = 0; k < M; ++k) e[k] = mul(sub(load(j + k), top), V(kLog2E));
    exp2_each<M>(e);
    DHEAD_UNROLL(4) for (int k = 0; k < M; ++k) {
        const V we = mul(add(weight, V(static_cast<float>(k))), e[k]);
        sums.total[k] = first ? e[k] : add(sums.total[k], e[k]);
        sums.weighted[k] = first ? we : add(sums.weighted[k], we);
    }
}

// The expected bin of softmax(z_0 .. z_{bins-1}), or z_0 itself where bins is 1. `load(j)` gives z_j as a V; it is
// called twice per bin. Any NaN (or inf) among them gives NaN. kBins: `bins`, where that is known to the compiler, or
// 0.
template <class V, int kBins = 0, class Load>
DHEAD_HD V dfl_expectation(int bins, const Load& load) {
    if (bins == 1) return load(0);
    V top = load(0);
    DflSums<V> sums = {{V(0.F), V(0.F), V(0.F), V(0.F)}, {V(0.F), V(0.F), V(0.F), V(0.F)}};
    if constexpr (kBins > 0) {
        constexpr int kRest = kBins % 4;
        DHEAD_UNROLL(64) for (int j = 1; j < kBins; ++j) top = max_of(top, load(j));
        DHEAD_UNROLL(16) for (int j = 0; j + 4 <= kBins; j += 4) {
            add_bins<4>(sums, j, V(static_cast<float>(j)), top, j == 0, load);
        }
        if constexpr (kRest > 0) {
            add_bins<kRest>(sums, kBins - kRest, V(static_cast<float>(kBins - kRest)), top, kBins < 4, load);
        }
    } else {
        for (int j = 1; j < bins; ++j) top = max_of(top, load(j));
        V weight = V(0.F);
        int j = 0;
        for (; j + 4 <= bins; j += 4) {
            add_bins<4>(sums, j, weight, top, false, load);
            weight = add(weight, V(4.F));
        }
        switch (bins - j) {
            case 1:
                add_bins<1>(sums, j, weight, top, false, load);
                break;
            case 2:
                add_bins<2>(sums, j, weight, top, false, load);
                break;
            case 3:
                add_bins<3>(sums, j, weight, top, false, load);
                break;
            default:
                break;
        }
    }
    return div(add(add(sums.weighted[0], sums.weighted[1]), add(sums.weighted[2], sums.weighted[3])),
               add(add(sums.total[0], sums.total[1]), add(sums.total[2], sums.total[3])));
}

// Centre of cell x (or y) of a level, in pixels of the network input.
DHEAD_HD float anchor_centre(int cell, float stride) { return mul(add(static_cast<float>(cell), 0.5F), stride); }

// A box of pixels, xyxy.
template <class V>
struct BoxOf {
    V x1, y1, x2, y2;
};
using Box = BoxOf<float>;

// Box from the distances to its four sides; `unit` is the pixels per unit of distance (the stride, or 1).
template <class V>
DHEAD_HD BoxOf<V> box_from_distances(V cx, V cy, V left, V top, V right, V bottom, V unit) {
    return {sub(cx, mul(left, unit)), sub(cy, mul(top, unit)), add(cx, mul(right, unit)), add(cy, mul(bottom, unit))};
}

DHEAD_HD bool is_finite(float x) { return (float_bits(x) & 0x7f800000U) != 0x7f800000U; }
DHEAD_HD bool is_finite(const Box& b) {
    return is_finite(b.x1) && is_finite(b.y1) && is_finite(b.x2) && is_finite(b.y2);
}

// ---------------------------------------------------------------------------------------------------------------------
// Which anchors pass.

// Largest float that is not above `value`: for every float z, z > floor_to_float(value) iff (double)z > value.
DHEAD_HD float floor_to_float(double value) {
    float f = static_cast<float>(value);  // to nearest
    if (static_cast<double>(f) > value) {
        const uint32_t u = float_bits(f);
        if (f == 0.F) {
            f = bits_float(0x80000001U);  // the first below zero
        } else {
            f = bits_float(f > 0.F ? u - 1U : u + 1U);
        }
    }
    return f;
}

// The logit above which sigmoid(logit) > conf: keep iff logit > logit_threshold(conf). -inf for conf <= 0 (everything
// but -inf and NaN passes), inf for conf >= 1 or NaN (nothing does).
DHEAD_HD float logit_threshold(double conf) {
    if (conf <= 0.0) return bits_float(0xff800000U);
    if (!(conf < 1.0)) return bits_float(0x7f800000U);
    return floor_to_float(log(conf / (1.0 - conf)));
}

// With objectness: keep iff score > score_threshold(conf), where score = sigmoid(cls) * sigmoid(obj) in float.
DHEAD_HD float score_threshold(double conf) { return conf == conf ? floor_to_float(conf) : bits_float(0x7f800000U); }

// Best class so far: the highest logit, the lowest index on ties; NaN is never better.
struct BestClass {
    float logit;
    int32_t index;
};
DHEAD_HD BestClass no_class() { return {bits_float(0xff800000U), 0}; }
DHEAD_HD BestClass better_class(BestClass best, float logit, int32_t index) {
    return logit > best.logit ? BestClass{logit, index} : best;
}

// ---------------------------------------------------------------------------------------------------------------------
// Order of candidates: value descending, then anchor, then class, both ascending. -0 equals 0; values are never NaN.

// Rises with the float's value.
DHEAD_HD uint32_t ordered_bits(float value) {
    const uint32_t u = float_bits(add(value, 0.F));  // -0 becomes 0
    return (u & 0x80000000U) != 0U ? ~u : u | 0x80000000U;
}
DHEAD_HD float ordered_value(uint32_t ordered) {
    return bits_float((ordered & 0x80000000U) != 0U ? ordered & 0x7fffffffU : ~ordered);
}

// A candidate as one integer: ascending order is the order of candidates. `position` = anchor * num_classes + class (or
// the anchor alone where there is one candidate per anchor) must fit 32 bits.
DHEAD_HD uint64_t candidate_key(float value, uint32_t position) {
    return static_cast<uint64_t>(~ordered_bits(value)) << 32 | position;
}
DHEAD_HD float candidate_value(uint64_t key) { return ordered_value(~static_cast<uint32_t>(key >> 32)); }
DHEAD_HD uint32_t candidate_position(uint64_t key) { return static_cast<uint32_t>(key); }

// ---------------------------------------------------------------------------------------------------------------------
// Suppression.

template <class V>
DHEAD_HD V area_of(const BoxOf<V>& b) {
    return mul(max_of(sub(b.x2, b.x1), V(0.F)), max_of(sub(b.y2, b.y1), V(0.F)));
}

// inter > iou * (area_a + area_b - inter), `a` being the box already kept (the earlier one in the order), `b` the one
// tested. bool for float, a mask type for SIMD lanes.
template <class V>
DHEAD_HD auto suppresses(const BoxOf<V>& a, V area_a, const BoxOf<V>& b, V area_b, V iou) {
    const V w = max_of(sub(min_of(a.x2, b.x2), max_of(a.x1, b.x1)), V(0.F));
    const V h = max_of(sub(min_of(a.y2, b.y2), max_of(a.y1, b.y1)), V(0.F));
    const V inter = mul(w, h);
    return greater(inter, mul(iou, sub(add(area_a, area_b), inter)));
}

// ---------------------------------------------------------------------------------------------------------------------
// IEEE half to float, exactly: subnormals, inf and NaN too. (A device may use its own conversion: it gives the same.)
DHEAD_HD float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
    uint32_t u = static_cast<uint32_t>(half & 0x7fffU) << 13;
    const uint32_t exponent = u & 0x0f800000U;
    u += 112U << 23;
    if (exponent == 0x0f800000U) {
        u += 112U << 23;  // inf, NaN
    } else if (exponent == 0U) {
        u = float_bits(sub(bits_float(u + (1U << 23)), bits_float(113U << 23)));  // subnormal: 2^-14 (1 + f) - 2^-14
    }
    return bits_float(u | sign);
}

}  // namespace DHEAD_ISA
}  // namespace dhead
