// 16 rows a vector, AVX-512 with VNNI. Included by kernels.cpp before unpack.h.

struct Simd {
    using Int = __m512i;
    using Float = __m512;
    static constexpr int LANES = 16, COLUMNS = 8;  // of a group, at most

    TARGET static Int load(const void *p) { return _mm512_loadu_si512(p); }
    TARGET static Int each(int32_t x) { return _mm512_set1_epi32(x); }
    TARGET static Int zero() { return _mm512_setzero_si512(); }
    TARGET static Int low4(Int x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
    TARGET static Int high4(Int x) { return low4(_mm512_srli_epi16(x, 4)); }
    // Bits of each byte, shifted right (left if `by` is negative), that `mask` has.
    TARGET static Int bits(Int x, int by, int mask) {
        x = by < 0 ? _mm512_slli_epi16(x, -by) : _mm512_srli_epi16(x, by);
        return _mm512_and_si512(x, _mm512_set1_epi8(mask));
    }
    TARGET static Int either(Int a, Int b) { return _mm512_or_si512(a, b); }
    TARGET static Int lookup(__m128i table, Int x) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), x);
    }

    TARGET static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
    TARGET static Int times(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
    // c + the sums of four unsigned bytes times the same four signed ones. Compilers load these
    // first, which takes one more instruction.
    TARGET static Int dot(Int c, Int weights, const int32_t &values) {
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(c) : "v"(weights), "m"(values));
        return c;
    }
    // c + the sum of two products of 16 bits.
    TARGET static Int pairs(Int c, Int a, Int b) { return _mm512_dpwssd_epi32(c, a, b); }
    TARGET static Int widen_signed(const void *p) {
        return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
    }
    TARGET static Int widen_pairs(const void *p) {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p));
    }

    TARGET static Float halves(const void *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
    }
    TARGET static Float eachf(float x) { return _mm512_set1_ps(x); }
    TARGET static Float zerof() { return _mm512_setzero_ps(); }
    TARGET static Float to_float(Int x) { return _mm512_cvtepi32_ps(x); }
    TARGET static Float product(Float a, Float b) { return _mm512_mul_ps(a, b); }
    TARGET static Float fused(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    TARGET static Float sum(Float a, Float b) { return _mm512_add_ps(a, b); }
    TARGET static Float difference(Float a, Float b) { return _mm512_sub_ps(a, b); }
    TARGET static void store(float *p, Float x, int n) {
        if (n >= LANES) return _mm512_storeu_ps(p, x);
        _mm512_mask_storeu_ps(p, (1u << n) - 1, x);
    }
};
