// Vectors of attention with 16 lanes. Included by kernels.cpp before attention_tile.h.

struct Lanes {
    using Float = __m512;
    using Narrow = __m256;   // half as many floats
    using Double = __m512d;  // as many as those
    static constexpr int COUNT = 16;
    static constexpr int KEYS = 2;  // in Q8_0, that share a vector

    TARGET static Float zero() { return _mm512_setzero_ps(); }
    TARGET static Float all(float x) { return _mm512_set1_ps(x); }
    TARGET static Float load(const float *p) { return _mm512_loadu_ps(p); }
    TARGET static void store(float *p, Float x) { _mm512_storeu_ps(p, x); }
    TARGET static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    TARGET static Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
    TARGET static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
    TARGET static Float fused(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

    // A bit for each lane.
    TARGET static uint32_t greater(Float a, Float b) {
        return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
    }
    TARGET static uint32_t unequal(Float a, Float b) {
        return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ);
    }

    TARGET static Float load_halves(const void *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
    }
    TARGET static Float round_to_half(Float x) {
        return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
    TARGET static Float load_bytes(const int8_t *p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
    }
    // The sums of four vectors, each in the order in which ggml adds products of halves: that of
    // _mm512_reduce_add_ps.
    TARGET static __m128 sum_each(const Float *x) {
        const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x44),
                                        _mm512_shuffle_f32x4(x[0], x[1], 0xEE));
        const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(x[2], x[3], 0x44),
                                        _mm512_shuffle_f32x4(x[2], x[3], 0xEE));
        __m512 s =
            _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
        s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4E));
        s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xB1));
        return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, s));
    }

    // Of one block of two keys.
    struct Bytes {
        __m512i sizes;
        __mmask64 negative;
    };
    TARGET static Bytes bytes(const Q8_0::Block *const *key, int block) {
        const __m256i first = _mm256_loadu_si256((const __m256i *)key[0][block].values);
        const __m256i second = _mm256_loadu_si256((const __m256i *)key[1][block].values);
        const __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
        return {_mm512_abs_epi8(x), _mm512_movepi8_mask(x)};
    }
    TARGET static Float scales(const Q8_0::Block *const *key, int block) {
        const __m128i first = _mm_set1_epi16(key[0][block].scale);
        return _mm512_cvtph_ps(_mm256_set_m128i(_mm_set1_epi16(key[1][block].scale), first));
    }
    TARGET static Float dot(const Bytes &key, const int8_t *query) {
        const __m512i zero = _mm512_setzero_si512();
        __m512i x = _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i *)query));
        x = _mm512_mask_sub_epi8(x, key.negative, zero, x);
        return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(zero, key.sizes, x));
    }
    TARGET static __m128 sum_each_key(const Float *x) {
        return sum_each8(fold(low(x[0])), fold(high(x[0])), fold(low(x[1])), fold(high(x[1])));
    }

    TARGET static Narrow low(Float x) { return _mm512_castps512_ps256(x); }
    TARGET static Narrow high(Float x) { return _mm512_extractf32x8_ps(x, 1); }
    TARGET static Float join(Narrow low, Narrow high) {
        return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
    }
    TARGET static Narrow at_least(float least, Narrow x) {  // x where it is not a number
        return _mm256_max_ps(_mm256_set1_ps(least), x);
    }
    TARGET static Double widen(Narrow x) { return _mm512_cvtps_pd(x); }
    TARGET static Narrow narrow(Double x) { return _mm512_cvtpd_ps(x); }
    TARGET static Double all_wide(double x) { return _mm512_set1_pd(x); }
    TARGET static Double multiply(Double a, Double b) { return _mm512_mul_pd(a, b); }
    TARGET static Double subtract(Double a, Double b) { return _mm512_sub_pd(a, b); }
    TARGET static Double fused(Double a, Double b, Double c) { return _mm512_fmadd_pd(a, b, c); }
    // What the last bits choose in a table of 32, with the others added to its exponent.
    TARGET static Double power(Double steps, const uint64_t *table) {
        const __m512i bits = _mm512_castpd_si512(steps);
        const __m512i last = _mm512_and_si512(bits, _mm512_set1_epi64(31));
        const __m512i found = _mm512_i64gather_epi64(last, table, 8);
        return _mm512_castsi512_pd(_mm512_add_epi64(found, _mm512_slli_epi64(bits, 47)));
    }

  private:
    TARGET static __m128 fold(__m256 x) {
        return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    }
};
