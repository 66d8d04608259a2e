// Vectors of two columns, 8 lanes each. Included by kernels.cpp before product_tile.h.

struct Simd {
    using Float = __m512;
    using Int = __m512i;
    static constexpr int COLUMNS = 2;  // that share a vector
    static constexpr int64_t MOST_Q8_0 = INT64_MAX;
    static constexpr uint8_t FLIP = 0x80;  // activations are kept unsigned for signed weights

    TARGET static Float zero() { return _mm512_setzero_ps(); }
    TARGET static Float load(const void *p) { return _mm512_load_ps(p); }
    TARGET static Int load_bytes(const void *p) { return _mm512_load_si512(p); }
    TARGET static Float scaled_add(Float a, Float b, Int sums, Float c) {
        return _mm512_fmadd_ps(_mm512_mul_ps(a, b), _mm512_cvtepi32_ps(sums), c);
    }

    // 32 values of 4 bits, for both columns.
    TARGET static Int nibbles(const uint8_t *p) {
        Int bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p));
        Int shifts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
        return _mm512_and_si512(_mm512_srlv_epi64(bytes, shifts), _mm512_set1_epi8(15));
    }
    TARGET static Int dot(Int weights, Int values) {
        return _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, values);
    }

    // Signed weights: what 128 too much in each value adds to a lane is taken off beforehand.
    struct Signed {
        Int weights, start;
    };
    TARGET static Signed signed_bytes(const int8_t *p) {
        Int weights = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
        Int excess = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(-128), weights);
        return {weights, _mm512_sub_epi32(_mm512_setzero_si512(), excess)};
    }
    TARGET static Int dot(Signed row, Int values) {
        return _mm512_dpbusd_epi32(row.start, values, row.weights);
    }

    TARGET static Float half(uint16_t h) { return _mm512_cvtph_ps(_mm256_set1_epi16(h)); }
    TARGET static void half_pair(const uint16_t *p, Float &first, __m256 &second) {
        uint32_t both;
        memcpy(&both, p, sizeof both);
        Float x = _mm512_cvtph_ps(_mm256_set1_epi32(both));
        first = _mm512_moveldup_ps(x);
        second = _mm256_movehdup_ps(_mm512_castps512_ps256(x));
    }

    TARGET static void sum_lanes(Float x, float *columns) {
        columns[0] = sum8(_mm512_castps512_ps256(x));
        columns[1] = sum8(_mm512_extractf32x8_ps(x, 1));
    }
};
