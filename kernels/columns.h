// Columns of activations, quantized to 8 bits as ggml does it for the same weights, and packed
// for the inner loop: for each step four values of every column side by side.
//
// Included by kernels.cpp after TARGET, which has AVX2 at least.

// Up to N columns of one block.
template <class Format, int N>
struct Packed {
    using F = Traits<Format>;
    static constexpr bool HAS_STARTS = F::OFFSET != 0;
    static constexpr bool HAS_PAIRS = F::HAS_SCALES && (F::HAS_MINIMA || F::OFFSET != 0);

    int32_t values[F::VALUES / 4][N];
    float scales[N];
    float sums[F::HAS_MINIMA && !F::HAS_SCALES ? N : 0];  // of the values, times the scale
    int32_t starts[HAS_STARTS ? F::SHARES : 0][N];        // what the offset takes off a share
    int16_t pairs[HAS_PAIRS ? F::SHARES / 2 : 0][N][2];   // sums of the values of each share
};

struct Quantized {
    alignas(32) int8_t values[256];
    float scale, sum;
};

TARGET inline __m256 largest_of(__m256 a, __m256 b) {
    return _mm256_max_ps(a, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), b));
}

TARGET inline float largest_lane(__m256 x) {
    __m128 m = _mm_max_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// 32 floats, times `factor`, as signed bytes.
TARGET inline void to_bytes(const float *from, float factor, int8_t *to) {
    __m256i whole[4];
    for (int i = 0; i < 4; i++)
        whole[i] = _mm256_cvtps_epi32(
            _mm256_mul_ps(_mm256_loadu_ps(from + 8 * i), _mm256_set1_ps(factor)));
    const __m256i low = _mm256_packs_epi32(whole[0], whole[1]);
    const __m256i high = _mm256_packs_epi32(whole[2], whole[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_store_si256((__m256i *)to,
                       _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
}

// The sum of N bytes, 16 or 32.
template <int N>
TARGET inline int sum_of(const int8_t *values) {
    const __m128i ones = _mm_set1_epi8(1), words = _mm_set1_epi16(1);
    __m128i sum = _mm_madd_epi16(_mm_maddubs_epi16(ones, *(const __m128i *)values), words);
    if (N == 32)
        sum = _mm_add_epi32(
            sum, _mm_madd_epi16(_mm_maddubs_epi16(ones, *(const __m128i *)(values + 16)), words));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}

// 256 values, as ggml's Q8_K: the one that is largest becomes -127.
TARGET inline void quantize_256(const float *from, Quantized &to) {
    __m256 most = _mm256_setzero_ps();
    for (int i = 0; i < 256; i += 8) most = largest_of(most, _mm256_loadu_ps(from + i));
    const float size = largest_lane(most);
    if (!(size > 0)) {
        memset(&to, 0, sizeof to);
        return;
    }
    int first = 0;  // of this size: its sign decides
    while (first < 255 && fabsf(from[first]) != size) first++;
    const float factor = -127.f / from[first];
    for (int i = 0; i < 256; i += 32) to_bytes(from + i, factor, to.values + i);
    to.scale = 1 / factor;
}

// 32 values, as ggml's Q8_0 and Q8_1.
TARGET inline void quantize_32(const float *from, Quantized &to) {
    __m256 most = _mm256_setzero_ps();
    for (int i = 0; i < 32; i += 8) most = largest_of(most, _mm256_loadu_ps(from + i));
    const float size = largest_lane(most), scale = size / 127.f;
    to_bytes(from, size != 0 ? 127.f / size : 0, to.values);
    to.scale = through_half(scale);
    to.sum = through_half(scale * sum_of<32>(to.values));
}

// Packs block `index` of up to N columns that begin at `from`.
template <class Format, int N>
TARGET void pack(const float *const *from, int columns, int64_t index, char *to) {
    using F = Traits<Format>;
    auto &packed = *(Packed<Format, N> *)to;
    memset(to, 0, sizeof packed);
    for (int c = 0; c < columns; c++) {
        Quantized column;
        const float *block = from[c] + index * F::VALUES;
        F::HAS_SCALES ? quantize_256(block, column) : quantize_32(block, column);
        for (int k = 0; k < F::VALUES / 4; k++)
            memcpy(&packed.values[k][c], column.values + 4 * k, 4);
        packed.scales[c] = column.scale;
        if constexpr (F::HAS_MINIMA && !F::HAS_SCALES) packed.sums[c] = column.sum;
        for (int s = 0; s < F::SHARES; s++) {
            const int sum = sum_of<F::SHARE>(column.values + s * F::SHARE);
            if constexpr (Packed<Format, N>::HAS_STARTS) packed.starts[s][c] = -F::OFFSET * sum;
            if constexpr (Packed<Format, N>::HAS_PAIRS) packed.pairs[s / 2][c][s % 2] = sum;
        }
    }
}
