// Vectors of one column with 8 lanes. Included by kernels.cpp before product_tile.h.

struct Simd {
    using Float = __m256;
    using Int = __m256i;
    static constexpr int COLUMNS = 1;
    static constexpr int64_t MOST_Q8_0 = 16;
    static constexpr uint8_t FLIP = 0;

    TARGET static Float zero() { return _mm256_setzero_ps(); }
    TARGET static Float load(const void *p) { return _mm256_load_ps((const float *)p); }
    TARGET static Int load_bytes(const void *p) { return _mm256_load_si256((const Int *)p); }
    TARGET static Float scaled_add(Float a, Float b, Int sums, Float c) {
        return _mm256_fmadd_ps(_mm256_mul_ps(a, b), _mm256_cvtepi32_ps(sums), c);
    }

    TARGET static Int nibbles(const uint8_t *p) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)p);
        Int both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
        return _mm256_and_si256(both, _mm256_set1_epi8(15));
    }
    // Two products of 8 bits are at most 2 x 128 x 127: no sum is cut off at 16 bits.
    TARGET static Int dot(Int weights, Int values) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(weights, values), _mm256_set1_epi16(1));
    }

    struct Signed {
        Int weights, sizes;
    };
    TARGET static Signed signed_bytes(const int8_t *p) {
        Int weights = _mm256_loadu_si256((const Int *)p);
        return {weights, _mm256_sign_epi8(weights, weights)};
    }
    TARGET static Int dot(Signed row, Int values) {
        return dot(row.sizes, _mm256_sign_epi8(values, row.weights));
    }

    TARGET static Float half(uint16_t h) { return _mm256_cvtph_ps(_mm_set1_epi16(h)); }
    TARGET static void half_pair(const uint16_t *p, Float &first, __m256 &second) {
        uint32_t both;
        memcpy(&both, p, sizeof both);
        Float x = _mm256_cvtph_ps(_mm_set1_epi32(both));
        first = _mm256_moveldup_ps(x);
        second = _mm256_movehdup_ps(x);
    }

    TARGET static void sum_lanes(Float x, float *columns) { columns[0] = sum8(x); }
};
