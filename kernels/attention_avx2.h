// Vectors of attention with 8 lanes. Included by kernels.cpp before attention_tile.h.

struct Lanes {
    using Float = __m256;
    using Narrow = __m128;   // half as many floats
    using Double = __m256d;  // as many as those
    static constexpr int COUNT = 8;
    static constexpr int KEYS = 1;  // in Q8_0, that share a vector

    TARGET static Float zero() { return _mm256_setzero_ps(); }
    TARGET static Float all(float x) { return _mm256_set1_ps(x); }
    TARGET static Float load(const float *p) { return _mm256_loadu_ps(p); }
    TARGET static void store(float *p, Float x) { _mm256_storeu_ps(p, x); }
    TARGET static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
    TARGET static Float subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
    TARGET static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
    TARGET static Float fused(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

    // A bit for each lane.
    TARGET static uint32_t greater(Float a, Float b) {
        return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
    }
    TARGET static uint32_t unequal(Float a, Float b) {
        return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ));
    }

    TARGET static Float load_halves(const void *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    }
    TARGET static Float round_to_half(Float x) {
        return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
    TARGET static Float load_bytes(const int8_t *p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
    }
    // The sums of four vectors, each in the order in which ggml adds products of halves.
    TARGET static __m128 sum_each(const Float *x) {
        return _mm_hadd_ps(_mm_hadd_ps(fold(x[0]), fold(x[1])),
                           _mm_hadd_ps(fold(x[2]), fold(x[3])));
    }

    // Of one block of one key.
    struct Bytes {
        __m256i values, sizes;
    };
    TARGET static Bytes bytes(const Q8_0::Block *const *key, int block) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)key[0][block].values);
        return {x, _mm256_sign_epi8(x, x)};
    }
    TARGET static Float scales(const Q8_0::Block *const *key, int block) {
        return _mm256_set1_ps(half_to_float(key[0][block].scale));
    }
    TARGET static Float dot(const Bytes &key, const int8_t *query) {
        const __m256i x = _mm256_sign_epi8(_mm256_load_si256((const __m256i *)query), key.values);
        const __m256i pairs = _mm256_maddubs_epi16(key.sizes, x);
        return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    TARGET static __m128 sum_each_key(const Float *x) {
        return sum_each8(fold(x[0]), fold(x[1]), fold(x[2]), fold(x[3]));
    }

    TARGET static Narrow low(Float x) { return _mm256_castps256_ps128(x); }
    TARGET static Narrow high(Float x) { return _mm256_extractf128_ps(x, 1); }
    TARGET static Float join(Narrow low, Narrow high) { return _mm256_set_m128(high, low); }
    TARGET static Narrow at_least(float least, Narrow x) {  // x where it is not a number
        return _mm_max_ps(_mm_set1_ps(least), x);
    }
    TARGET static Double widen(Narrow x) { return _mm256_cvtps_pd(x); }
    TARGET static Narrow narrow(Double x) { return _mm256_cvtpd_ps(x); }
    TARGET static Double all_wide(double x) { return _mm256_set1_pd(x); }
    TARGET static Double multiply(Double a, Double b) { return _mm256_mul_pd(a, b); }
    TARGET static Double subtract(Double a, Double b) { return _mm256_sub_pd(a, b); }
    TARGET static Double fused(Double a, Double b, Double c) { return _mm256_fmadd_pd(a, b, c); }
    // What the last bits choose in a table of 32, with the others added to its exponent.
    TARGET static Double power(Double steps, const uint64_t *table) {
        const __m256i bits = _mm256_castpd_si256(steps);
        const __m256i last = _mm256_and_si256(bits, _mm256_set1_epi64x(31));
        const __m256i found = _mm256_i64gather_epi64((const long long *)table, last, 8);
        return _mm256_castsi256_pd(_mm256_add_epi64(found, _mm256_slli_epi64(bits, 47)));
    }

  private:
    TARGET static __m128 fold(Float x) { return _mm_add_ps(low(x), high(x)); }
};
