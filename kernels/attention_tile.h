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

// Q queries with V vectors a head (V x LANES dimensions) to one head of the cache.
template <int Q, int V>
TARGET void attend(const Query *queries, const Cache &cache, float scale) {
    alignas(64) float query[Q][V * LANES], sums[Q][V * LANES];
    float largest[Q], total[Q];
    for (int q = 0; q < Q; q++) {
        largest[q] = -INFINITY;
        total[q] = 0;
        for (int v = 0; v < V; v++) {
            __m512 x = _mm512_loadu_ps(queries[q].values + v * LANES);
            _mm512_store_ps(query[q] + v * LANES, round_to_half(x));
            _mm512_store_ps(sums[q] + v * LANES, _mm512_setzero_ps());
        }
    }
    for (int64_t start = 0; start < cache.positions; start += SPAN) {
        const int n = cache.positions - start < SPAN ? cache.positions - start : SPAN;
        uint32_t seen[Q], any = 0, all = 0xffff;
        alignas(64) float bias[Q][SPAN], weight[Q][SPAN], shrink[Q][SPAN];
        for (int q = 0; q < Q; q++) {
            const __mmask16 some = (1u << n) - 1;
            __m512 m = _mm512_setzero_ps();
            if (queries[q].mask)
                m = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, queries[q].mask + start));
            _mm512_store_ps(bias[q], m);
            seen[q] = _mm512_mask_cmp_ps_mask(some, m, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
            any |= seen[q];
            all &= seen[q];
        }
        if (!any) continue;

        uint32_t grows[Q] = {};  // where a score is the largest so far
        for (uint32_t left = any; left; left &= left - 1) {
            const int i = __builtin_ctz(left);
            const char *key = cache.keys + (start + i) * cache.key_stride;
            __m512 k[V];
            for (int v = 0; v < V; v++) k[v] = load_halves(key + v * LANES * 2);
            for (int q = 0; q < Q; q++) {
                __m512 part[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                                  _mm512_setzero_ps()};
                for (int v = 0; v < V; v++)
                    part[v % 4] = _mm512_fmadd_ps(k[v], _mm512_load_ps(query[q] + v * LANES), part[v % 4]);
                __m512 x = _mm512_add_ps(_mm512_add_ps(part[0], part[2]), _mm512_add_ps(part[1], part[3]));
                weight[q][i] = _mm512_reduce_add_ps(x);
            }
        }
        for (int q = 0; q < Q; q++)
            for (uint32_t left = seen[q]; left; left &= left - 1) {
                const int i = __builtin_ctz(left);
                float score = weight[q][i] * scale;
                score += bias[q][i];
                if (score > largest[q]) {
                    shrink[q][i] = expf(largest[q] - score);
                    largest[q] = score;
                    weight[q][i] = 1;
                    grows[q] |= 1u << i;
                    total[q] = fmaf(total[q], shrink[q][i], 1);
                } else {
                    weight[q][i] = expf(score - largest[q]);
                    total[q] += weight[q][i];
                }
            }

        __m512 sum[Q][V];
        for (int q = 0; q < Q; q++) {
            all &= ~grows[q];
            for (int v = 0; v < V; v++) sum[q][v] = _mm512_load_ps(sums[q] + v * LANES);
        }
        for (uint32_t left = any; left; left &= left - 1) {
            const int i = __builtin_ctz(left);
            const char *value = cache.values + (start + i) * cache.value_stride;
            __m512 x[V];
            for (int v = 0; v < V; v++) x[v] = load_halves(value + v * LANES * 2);
            if (all >> i & 1) {
                for (int q = 0; q < Q; q++)
                    for (int v = 0; v < V; v++)
                        sum[q][v] = round_to_half(_mm512_fmadd_ps(x[v], _mm512_set1_ps(weight[q][i]), sum[q][v]));
                continue;
            }
            for (int q = 0; q < Q; q++) {
                if (!(seen[q] >> i & 1)) continue;
                if (grows[q] >> i & 1)
                    for (int v = 0; v < V; v++)
                        sum[q][v] = round_to_half(_mm512_mul_ps(sum[q][v], _mm512_set1_ps(shrink[q][i])));
                for (int v = 0; v < V; v++)
                    sum[q][v] = round_to_half(_mm512_fmadd_ps(x[v], _mm512_set1_ps(weight[q][i]), sum[q][v]));
            }
        }
        for (int q = 0; q < Q; q++)
            for (int v = 0; v < V; v++) _mm512_store_ps(sums[q] + v * LANES, sum[q][v]);
    }
    for (int q = 0; q < Q; q++) {
        const __m512 share = _mm512_set1_ps(total[q] == 0 ? 0 : 1 / total[q]);
        for (int v = 0; v < V; v++)
            _mm512_storeu_ps(queries[q].out + v * LANES, _mm512_mul_ps(_mm512_load_ps(sums[q] + v * LANES), share));
    }
}

// For heads of 64, 128 and 256 dimensions, by queries - 1; fewer queries where registers end.
constexpr Attend HEADS[3][4] = {
    {attend<1, 4>, attend<2, 4>, attend<3, 4>, attend<4, 4>},
    {attend<1, 8>, attend<2, 8>, nullptr, nullptr},
    {attend<1, 16>, nullptr, nullptr, nullptr},
};
