// The inner loop of attention, included by kernels.cpp after TARGET.
//
// The same sums in the same order as ggml's flash attention for several tokens: positions one after
// the other, values added up in half precision. But several queries go through the cache
// together, and sums stay in registers.

constexpr int LANES = 16;  // floats of a vector
constexpr int SPAN = 16;   // positions at a time

TARGET inline __m512 load_halves(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
TARGET inline __m512 round_to_half(__m512 x) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// 2^(i/32) as bits, less what the exponent's last bits add: the table of the C library's expf.
struct ExpTable {
    alignas(64) uint64_t bits[32];
    ExpTable() {
        for (uint64_t i = 0; i < 32; i++) {
            const double power = exp2(i / 32.0);
            memcpy(&bits[i], &power, sizeof power);
            bits[i] -= i << 47;
        }
    }
};
inline const ExpTable EXP_TABLE;

// expf of 8 values that are not positive, NaN included, by the method of the GNU C library (Arm's
// optimized routines, math/expf.c): equal for every such float.
TARGET inline __m256 exp8(__m256 values) {
    const __m512d x = _mm512_cvtps_pd(_mm256_max_ps(_mm256_set1_ps(-104), values));
    const __m512d per_step = _mm512_set1_pd(0x1.71547652b82fep+0 * 32);
    const __m512d shift = _mm512_set1_pd(0x1.8p+52);
    const __m512d shifted = _mm512_fmadd_pd(per_step, x, shift);
    const __m512i steps = _mm512_castpd_si512(shifted);
    const __m512d r = _mm512_fmsub_pd(per_step, x, _mm512_sub_pd(shifted, shift));
    __m512i power = _mm512_and_si512(steps, _mm512_set1_epi64(31));
    power = _mm512_i64gather_epi64(power, EXP_TABLE.bits, 8);
    power = _mm512_add_epi64(power, _mm512_slli_epi64(steps, 47));
    const __m512d cubic = _mm512_fmadd_pd(_mm512_set1_pd(0x1.c6af84b912394p-5 / 32 / 32 / 32), r,
                                          _mm512_set1_pd(0x1.ebfce50fac4f3p-3 / 32 / 32));
    __m512d y = _mm512_fmadd_pd(_mm512_set1_pd(0x1.62e42ff0c52d6p-1 / 32), r, _mm512_set1_pd(1));
    y = _mm512_fmadd_pd(cubic, _mm512_mul_pd(r, r), y);
    return _mm512_cvtpd_ps(_mm512_mul_pd(y, _mm512_castsi512_pd(power)));
}

// The sums of four vectors, each in the order of _mm512_reduce_add_ps.
TARGET inline __m128 sum_each(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab =
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    const __m512 cd =
        _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    __m512 s =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4E));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xB1));
    return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, s));
}

// What one query has seen so far.
struct State {
    float largest = -INFINITY, total = 0;
};

// Turns scores of a span into weights: expf(score - largest so far) where a score is `seen`.
// Returns where a score is a new largest one; there the weight is 1, and `weights` has what all
// before shrinks by.
TARGET inline uint32_t weigh(float *weights, uint32_t seen, State &state) {
    __m512 scores = _mm512_load_ps(weights);
    uint32_t grows = 0;
    if (_mm512_mask_cmp_ps_mask(seen, scores, _mm512_set1_ps(state.largest), _CMP_GT_OQ)) {
        for (uint32_t left = seen; left; left &= left - 1) {
            const int i = __builtin_ctz(left);
            const float score = weights[i];
            if (score > state.largest) {
                grows |= 1u << i;
                weights[i] = state.largest - score;
                state.largest = score;
            } else {
                weights[i] = score - state.largest;
            }
        }
        scores = _mm512_load_ps(weights);
    } else {
        scores = _mm512_sub_ps(scores, _mm512_set1_ps(state.largest));
    }
    _mm256_store_ps(weights, exp8(_mm512_castps512_ps256(scores)));
    _mm256_store_ps(weights + 8, exp8(_mm512_extractf32x8_ps(scores, 1)));
    for (uint32_t left = seen; left; left &= left - 1) {
        const int i = __builtin_ctz(left);
        state.total = grows >> i & 1 ? fmaf(state.total, weights[i], 1) : state.total + weights[i];
    }
    return grows;
}

// Q queries with V vectors a head (V x LANES dimensions) to one head of the cache.
template <int Q, int V>
TARGET void attend(const Query *queries, const Cache &cache, float scale) {
    alignas(64) float query[Q][V * LANES], sums[Q][V * LANES];
    State states[Q];
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++) {
            __m512 x = _mm512_loadu_ps(queries[q].values + v * LANES);
            _mm512_store_ps(query[q] + v * LANES, round_to_half(x));
            _mm512_store_ps(sums[q] + v * LANES, _mm512_setzero_ps());
        }
    for (int64_t start = 0; start < cache.positions; start += SPAN) {
        const int n = cache.positions - start < SPAN ? cache.positions - start : SPAN;
        const __mmask16 some = (1u << n) - 1;
        uint32_t seen[Q], any = 0, all = 0xffff;
        alignas(64) float bias[Q][SPAN], weights[Q][SPAN];
        for (int q = 0; q < Q; q++) {
            __m512 m = _mm512_setzero_ps();
            if (queries[q].mask)
                m = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, queries[q].mask + start));
            _mm512_store_ps(bias[q], m);
            seen[q] = _mm512_mask_cmp_ps_mask(some, m, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
            any |= seen[q];
            all &= seen[q];
        }
        if (!any) continue;

        for (int i = 0; i < n; i += 4) {
            const char *keys[4];
            for (int j = 0; j < 4; j++)
                keys[j] = cache.keys + (start + (i + j < n ? i + j : n - 1)) * cache.key_stride;
            for (int q = 0; q < Q; q++) {
                __m512 dot[4];
                for (int j = 0; j < 4; j++) {
                    __m512 part[4] = {};
                    for (int v = 0; v < V; v++)
                        part[v % 4] =
                            _mm512_fmadd_ps(load_halves(keys[j] + v * LANES * 2),
                                            _mm512_load_ps(query[q] + v * LANES), part[v % 4]);
                    dot[j] = _mm512_add_ps(_mm512_add_ps(part[0], part[2]),
                                           _mm512_add_ps(part[1], part[3]));
                }
                _mm_store_ps(weights[q] + i, sum_each(dot[0], dot[1], dot[2], dot[3]));
            }
        }
        uint32_t grows[Q];
        for (int q = 0; q < Q; q++) {
            __m512 scores = _mm512_mul_ps(_mm512_load_ps(weights[q]), _mm512_set1_ps(scale));
            _mm512_store_ps(weights[q], _mm512_add_ps(scores, _mm512_load_ps(bias[q])));
            grows[q] = weigh(weights[q], seen[q], states[q]);
            all &= ~grows[q];
        }

        __m512 sum[Q][V];
        for (int q = 0; q < Q; q++)
            for (int v = 0; v < V; v++) sum[q][v] = _mm512_load_ps(sums[q] + v * LANES);
        for (uint32_t left = any; left; left &= left - 1) {
            const int i = __builtin_ctz(left);
            const char *value = cache.values + (start + i) * cache.value_stride;
            __m512 x[V];
            for (int v = 0; v < V; v++) x[v] = load_halves(value + v * LANES * 2);
            if (all >> i & 1) {
                for (int q = 0; q < Q; q++)
                    for (int v = 0; v < V; v++)
                        sum[q][v] = round_to_half(
                            _mm512_fmadd_ps(x[v], _mm512_set1_ps(weights[q][i]), sum[q][v]));
                continue;
            }
            for (int q = 0; q < Q; q++) {
                if (!(seen[q] >> i & 1)) continue;
                const bool first = grows[q] >> i & 1;
                const __m512 weight = _mm512_set1_ps(first ? 1 : weights[q][i]);
                for (int v = 0; v < V; v++) {
                    if (first)
                        sum[q][v] =
                            round_to_half(_mm512_mul_ps(sum[q][v], _mm512_set1_ps(weights[q][i])));
                    sum[q][v] = round_to_half(_mm512_fmadd_ps(x[v], weight, sum[q][v]));
                }
            }
        }
        for (int q = 0; q < Q; q++)
            for (int v = 0; v < V; v++) _mm512_store_ps(sums[q] + v * LANES, sum[q][v]);
    }
    for (int q = 0; q < Q; q++) {
        const __m512 share = _mm512_set1_ps(states[q].total == 0 ? 0 : 1 / states[q].total);
        for (int v = 0; v < V; v++)
            _mm512_storeu_ps(queries[q].out + v * LANES,
                             _mm512_mul_ps(_mm512_load_ps(sums[q] + v * LANES), share));
    }
}

// For heads of 64, 128 and 256 dimensions, by queries - 1; fewer queries where registers end.
constexpr Attend HEADS[3][4] = {
    {attend<1, 4>, attend<2, 4>, attend<3, 4>, attend<4, 4>},
    {attend<1, 8>, attend<2, 8>, nullptr, nullptr},
    {attend<1, 16>, nullptr, nullptr, nullptr},
};
