// Rows of logits: the order of their values, and how likely each is; for all instructions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace rows {

// The beginning of an array of NumPy's: that of an object, then what is part of NumPy's ABI.
// core/rows.py compares it. Asking NumPy for the address takes longer than looking at a row.
struct Array {
    int64_t object[2];
    const float *values;
    int32_t n_dimensions;
    const int64_t *shape, *strides;  // in bytes
    const void *base, *type;

    // The values of a row of n, or of rows that lie one behind the other; null where it is none.
    const float *row(const void *float32, int64_t n) const {
        return n_dimensions == 1 && is_even(0, float32, n) ? values : nullptr;
    }
    const float *rows(const void *float32, int64_t n_rows, int64_t n) const {
        const bool is_whole = n_dimensions == 2 && is_even(1, float32, n) && shape[0] == n_rows &&
                              (n_rows == 1 || strides[0] == n * (int64_t)sizeof(float));
        return is_whole ? values : nullptr;
    }

  private:
    bool is_even(int last, const void *float32, int64_t n) const {
        return type == float32 && shape[last] == n && strides[last] == sizeof(float) &&
               (uintptr_t)values % alignof(float) == 0;
    }
};

// Memory that is used again for every row.
struct Scratch {
    std::vector<float> peaks;
    std::vector<int32_t> ranks;   // of the peaks
    std::vector<uint64_t> found;  // keys of logits
};

// A whole number for each float but NaN, in their order; -0 comes just before 0.
inline int32_t rank(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits ^ ((bits >> 31) & INT32_MAX);
}
inline float ranked(int32_t rank) {
    const int32_t bits = rank ^ ((rank >> 31) & INT32_MAX);
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

// Largest for what goes first: the larger logit, then the lower position. Zeros are equal.
inline uint64_t key(float x, int64_t position) {
    return (uint64_t)((uint32_t)rank(x + 0.0f) ^ 0x80000000u) << 32 |
           (UINT32_MAX - (uint32_t)position);
}
inline int32_t position(uint64_t key) { return (int32_t)(UINT32_MAX - (uint32_t)key); }

// exp(x) for x <= 0 in whole numbers of 2**-30: their sums are exact, in any order. core/rows.py
// does the same operations, one by one, so it has the same bits. The polynomial is 2**part for
// -0.5 to 0.5, the least squares whose largest error is small: 2**-23 of the value.
inline int32_t share(float x) {
    constexpr float LEAST = -30.0f;                                // of which nothing is left
    constexpr float LOG2_E = 1.44269504f, TO_WHOLE = 12582912.0f;  // 1.5 * 2**23
    x = x > LEAST ? x : LEAST;
    const float power = x * LOG2_E;
    const float whole = (power + TO_WHOLE) - TO_WHOLE, part = power - whole;
    float p = 0.0013264727f;
    p = p * part + 0.009671513f;
    p = p * part + 0.055507336f;
    p = p * part + 0.24022242f;
    p = p * part + 0.693147f;
    p = p * part + 1.0f;
    const int32_t bits = ((int32_t)whole + 30 + 127) << 23;  // 2**(whole + 30)
    float scale;
    memcpy(&scale, &bits, sizeof(scale));
    return (int32_t)(p * scale);
}

}  // namespace rows
