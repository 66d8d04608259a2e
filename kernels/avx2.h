// 8 rows a vector, AVX2. Included by kernels.cpp before unpack.h, with DOT256 defined to dpbusd
// where the processor has it for 256 bits.

struct Simd {
    using Int = __m256i;
    using Float = __m256;
    static constexpr int LANES = 8, COLUMNS = 4;
#ifdef DOT256
    TARGET static Int dot(Int c, Int weights, const int32_t &values) {
        return DOT256(c, weights, each(values));
    }
#endif

    TARGET static Int load(const void *p) { return _mm256_loadu_si256((const Int *)p); }
    TARGET static Int each(int32_t x) { return _mm256_set1_epi32(x); }
    TARGET static Int zero() { return _mm256_setzero_si256(); }
    TARGET static Int low4(Int x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
    TARGET static Int high4(Int x) { return low4(_mm256_srli_epi16(x, 4)); }
    // Bits of each byte, shifted right (left if `by` is negative), that `mask` has.
    TARGET static Int bits(Int x, int by, int mask) {
        x = by < 0 ? _mm256_slli_epi16(x, -by) : _mm256_srli_epi16(x, by);
        return _mm256_and_si256(x, _mm256_set1_epi8(mask));
    }
    TARGET static Int either(Int a, Int b) { return _mm256_or_si256(a, b); }
    TARGET static Int lookup(__m128i table, Int x) {
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), x);
    }

    TARGET static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
    TARGET static Int times(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
    TARGET static Int pairs(Int c, Int a, Int b) { return add(c, _mm256_madd_epi16(a, b)); }
    // Sums of two unsigned times signed bytes.
    TARGET static Int words(Int weights, Int values) {
        return _mm256_maddubs_epi16(weights, values);
    }
    // The same of weights less 128.
    TARGET static Int signed_words(Int weights, Int values) {
        const Int w = _mm256_xor_si256(weights, each(0x80808080));
        return words(_mm256_sign_epi8(w, w), _mm256_sign_epi8(values, w));
    }
    TARGET static Int add_words(Int a, Int b) { return _mm256_add_epi16(a, b); }
    TARGET static Int widen_signed(const void *p) {
        return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    }
    // The low words of both.
    TARGET static Int join(Int a, Int b) {
        return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA);
    }
    TARGET static Int widen_pairs(const void *p) {
        return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    }

    TARGET static Float halves(const void *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
    }
    TARGET static Float eachf(float x) { return _mm256_set1_ps(x); }
    TARGET static Float zerof() { return _mm256_setzero_ps(); }
    TARGET static Float to_float(Int x) { return _mm256_cvtepi32_ps(x); }
    TARGET static Float product(Float a, Float b) { return _mm256_mul_ps(a, b); }
    TARGET static Float fused(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    TARGET static Float sum(Float a, Float b) { return _mm256_add_ps(a, b); }
    TARGET static Float difference(Float a, Float b) { return _mm256_sub_ps(a, b); }
    TARGET static void store(float *p, Float x, int n) {
        if (n >= LANES) return _mm256_storeu_ps(p, x);
        const Int lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(each(n), lanes), x);
    }
};
