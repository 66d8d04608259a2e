// The inner loop of attention, written once and included for each instruction set after its Lanes.
//
// The same sums in the same order as ggml's flash attention for several tokens: positions one after
// the other, values in half precision added up in it, others in single precision. But several
// queries go through the cache together, and sums stay in registers.

using Float = Lanes::Float;
constexpr int LANES = Lanes::COUNT;
constexpr int SPAN = 16;    // positions at a time
constexpr int KEYS = 4;     // of these are multiplied at a time
constexpr int VECTORS = 4;  // of values are added at a time

// expf of values that are not positive, NaN included, by the method of the GNU C library (Arm's
// optimized routines, math/expf.c): equal for every such float.
TARGET inline Lanes::Narrow exp_narrow(Lanes::Narrow values) {
    using Double = Lanes::Double;
    const Double x = Lanes::widen(Lanes::at_least(-104, values));
    const Double per_step = Lanes::all_wide(0x1.71547652b82fep+0 * 32);
    const Double shift = Lanes::all_wide(0x1.8p+52);
    const Double steps = Lanes::fused(per_step, x, shift);
    const Double r = Lanes::fused(per_step, x, Lanes::subtract(shift, steps));
    const Double cubic = Lanes::fused(Lanes::all_wide(0x1.c6af84b912394p-5 / 32 / 32 / 32), r,
                                      Lanes::all_wide(0x1.ebfce50fac4f3p-3 / 32 / 32));
    Double y = Lanes::fused(Lanes::all_wide(0x1.62e42ff0c52d6p-1 / 32), r, Lanes::all_wide(1));
    y = Lanes::fused(cubic, Lanes::multiply(r, r), y);
    return Lanes::narrow(Lanes::multiply(y, Lanes::power(steps, EXP_TABLE.bits)));
}
TARGET inline Float exp_each(Float x) {
    return Lanes::join(exp_narrow(Lanes::low(x)), exp_narrow(Lanes::high(x)));
}

// Keys in half precision: queries are rounded to it, too.
struct HalfKeys {
    struct Ready {  // a query
        alignas(64) float values[LARGEST_HEAD];
    };
    TARGET static void prepare(const float *query, const Cache &cache, Ready &to) {
        for (int d = 0; d < cache.size; d += LANES)
            Lanes::store(to.values + d, Lanes::round_to_half(Lanes::load(query + d)));
    }

    // Products of KEYS keys with Q queries. As in ggml every fourth vector is summed by itself.
    template <int Q>
    TARGET static void multiply(const char *const *keys, const Ready *queries, int size,
                                __m128 *products) {
        if (size == 4 * LANES) return multiply_short<Q>(keys, queries, products);
        Float dots[Q][KEYS];
        for (int k = 0; k < KEYS; k++) {
            Float part[Q][4];
            for (int q = 0; q < Q; q++)
                for (int p = 0; p < 4; p++) part[q][p] = Lanes::zero();
            for (int d = 0; d < size; d += 4 * LANES)
                for (int p = 0; p < 4; p++) {
                    const int at = d + p * LANES;
                    const Float key = Lanes::load_halves(keys[k] + at * sizeof(uint16_t));
                    for (int q = 0; q < Q; q++)
                        part[q][p] =
                            Lanes::fused(key, Lanes::load(queries[q].values + at), part[q][p]);
                }
            for (int q = 0; q < Q; q++)
                dots[q][k] = Lanes::add(Lanes::add(part[q][0], part[q][2]),
                                        Lanes::add(part[q][1], part[q][3]));
        }
        for (int q = 0; q < Q; q++) products[q] = Lanes::sum_each(dots[q]);
    }

  private:
    // The same where a key is 4 vectors: those of all keys stay in registers.
    template <int Q>
    TARGET static void multiply_short(const char *const *keys, const Ready *queries,
                                      __m128 *products) {
        Float key[KEYS][4];
        for (int k = 0; k < KEYS; k++)
            for (int p = 0; p < 4; p++)
                key[k][p] = Lanes::load_halves(keys[k] + p * LANES * sizeof(uint16_t));
        for (int q = 0; q < Q; q++) {
            Float dots[KEYS];
            for (int k = 0; k < KEYS; k++) {
                Float part[4];
                for (int p = 0; p < 4; p++)
                    part[p] = Lanes::fused(key[k][p], Lanes::load(queries[q].values + p * LANES),
                                           Lanes::zero());
                dots[k] = Lanes::add(Lanes::add(part[0], part[2]), Lanes::add(part[1], part[3]));
            }
            products[q] = Lanes::sum_each(dots);
        }
    }
};

// Keys in Q8_0: queries are quantized, too. As in ggml a product is summed in 8 lanes, whatever the
// width of a vector.
struct ByteKeys {
    struct Ready {  // a query
        alignas(64) int8_t values[LARGEST_HEAD];
        float scales[LARGEST_HEAD / Q8_0::VALUES];
    };
    TARGET static void prepare(const float *query, const Cache &cache, Ready &to) {
        Q8_0::Block blocks[LARGEST_HEAD / Q8_0::VALUES];
        cache.quantize(query, blocks, cache.size);
        for (int b = 0; b < cache.size / Q8_0::VALUES; b++) {
            memcpy(to.values + b * Q8_0::VALUES, blocks[b].values, Q8_0::VALUES);
            to.scales[b] = half_to_float(blocks[b].scale);
        }
    }

    template <int Q>
    TARGET static void multiply(const char *const *keys, const Ready *queries, int size,
                                __m128 *products) {
        Float dots[Q][KEYS / Lanes::KEYS];
        for (int k = 0; k < KEYS; k += Lanes::KEYS) {
            const Q8_0::Block *key[Lanes::KEYS];
            for (int i = 0; i < Lanes::KEYS; i++) key[i] = (const Q8_0::Block *)keys[k + i];
            Float sum[Q];
            for (int q = 0; q < Q; q++) sum[q] = Lanes::zero();
            for (int b = 0; b < size / Q8_0::VALUES; b++) {
                const auto bytes = Lanes::bytes(key, b);
                const Float scales = Lanes::scales(key, b);
                for (int q = 0; q < Q; q++) {
                    const Float scale = Lanes::multiply(scales, Lanes::all(queries[q].scales[b]));
                    const Float dot = Lanes::dot(bytes, queries[q].values + b * Q8_0::VALUES);
                    sum[q] = Lanes::fused(scale, dot, sum[q]);
                }
            }
            for (int q = 0; q < Q; q++) dots[q][k / Lanes::KEYS] = sum[q];
        }
        for (int q = 0; q < Q; q++) products[q] = Lanes::sum_each_key(dots[q]);
    }
};

struct HalfValues {
    // From dimension d on.
    TARGET static Float load(const char *value, int d) {
        return Lanes::load_halves(value + d * sizeof(uint16_t));
    }
    TARGET static Float rounded(Float sum) { return Lanes::round_to_half(sum); }
};

struct ByteValues {
    TARGET static Float load(const char *value, int d) {
        const Q8_0::Block &block = ((const Q8_0::Block *)value)[d / Q8_0::VALUES];
        return Lanes::multiply(Lanes::load_bytes((const int8_t *)block.values + d % Q8_0::VALUES),
                               Lanes::all(half_to_float(block.scale)));
    }
    TARGET static Float rounded(Float sum) { return sum; }
};

// What one query has seen so far.
struct State {
    float largest = -INFINITY, total = 0;
};

// What some queries see of up to SPAN positions. Sets of positions are bits.
struct Span {
    int64_t start;
    int n;
    uint32_t any, plain;  // that some query sees; that all see, none with a new largest score
    uint32_t seen[MOST_QUERIES], grows[MOST_QUERIES];
    alignas(64) float bias[MOST_QUERIES][SPAN], weights[MOST_QUERIES][SPAN];
};

// Which of n positions a mask leaves to be seen; `bias` gets what it adds to their scores.
TARGET inline uint32_t look(const uint16_t *mask, int n, float *bias) {
    uint16_t halves[SPAN] = {};
    if (mask && n == SPAN) memcpy(halves, mask, sizeof halves);
    if (mask && n < SPAN) memcpy(halves, mask, n * sizeof *mask);
    uint32_t seen = 0;
    for (int i = 0; i < SPAN; i += LANES) {
        const Float x = Lanes::load_halves(halves + i);
        Lanes::store(bias + i, x);
        seen |= Lanes::unequal(x, Lanes::all(-INFINITY)) << i;
    }
    return seen & ((1u << n) - 1);
}

// Turns scores of a span into weights: expf(score - largest so far) where a score is `seen`.
// Returns where a score is a new largest one; there the weight is 1, and `weights` has what all
// before shrinks by.
TARGET inline uint32_t weigh(float *weights, uint32_t seen, State &state) {
    uint32_t larger = 0, grows = 0;
    for (int i = 0; i < SPAN; i += LANES)
        larger |= Lanes::greater(Lanes::load(weights + i), Lanes::all(state.largest)) << i;
    if (larger & seen) {
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
    }
    for (int i = 0; i < SPAN; i += LANES) {
        Float x = Lanes::load(weights + i);
        if (!grows) x = Lanes::subtract(x, Lanes::all(state.largest));
        Lanes::store(weights + i, exp_each(x));
    }
    for (uint32_t left = seen; left; left &= left - 1) {
        const int i = __builtin_ctz(left);
        state.total = grows >> i & 1 ? fmaf(state.total, weights[i], 1) : state.total + weights[i];
    }
    return grows;
}

// The products of a span's keys with Q queries, as its weights.
template <class Keys, int Q>
TARGET void multiply_keys(const Cache &cache, const typename Keys::Ready *queries, Span &span) {
    for (int i = 0; i < span.n; i += KEYS) {
        const char *keys[KEYS];
        for (int k = 0; k < KEYS; k++) {
            const int position = i + k < span.n ? i + k : span.n - 1;
            keys[k] = cache.keys + (span.start + position) * cache.key_stride;
        }
        __m128 products[Q];
        Keys::template multiply<Q>(keys, queries, cache.size, products);
        for (int q = 0; q < Q; q++) _mm_store_ps(span.weights[q] + i, products[q]);
    }
}

// Adds a span's values to the sums of Q queries.
template <class Values, int Q>
TARGET void add_values(const Cache &cache, const Span &span, float (*sums)[LARGEST_HEAD]) {
    constexpr int V = VECTORS;
    for (int d = 0; d < cache.size; d += V * LANES) {
        Float sum[Q][V];
        for (int q = 0; q < Q; q++)
            for (int v = 0; v < V; v++) sum[q][v] = Lanes::load(sums[q] + d + v * LANES);
        for (uint32_t left = span.any; left; left &= left - 1) {
            const int i = __builtin_ctz(left);
            const char *value = cache.values + (span.start + i) * cache.value_stride;
            Float x[V];
            for (int v = 0; v < V; v++) x[v] = Values::load(value, d + v * LANES);
            if (span.plain >> i & 1) {
                for (int q = 0; q < Q; q++)
                    for (int v = 0; v < V; v++)
                        sum[q][v] = Values::rounded(
                            Lanes::fused(x[v], Lanes::all(span.weights[q][i]), sum[q][v]));
                continue;
            }
            for (int q = 0; q < Q; q++) {
                if (!(span.seen[q] >> i & 1)) continue;
                const bool first = span.grows[q] >> i & 1;
                const Float shrink = Lanes::all(span.weights[q][i]);
                const Float weight = first ? Lanes::all(1) : shrink;
                for (int v = 0; v < V; v++) {
                    if (first) sum[q][v] = Values::rounded(Lanes::multiply(sum[q][v], shrink));
                    sum[q][v] = Values::rounded(Lanes::fused(x[v], weight, sum[q][v]));
                }
            }
        }
        for (int q = 0; q < Q; q++)
            for (int v = 0; v < V; v++) Lanes::store(sums[q] + d + v * LANES, sum[q][v]);
    }
}

// Q queries to one head of the cache.
template <class Keys, class Values, int Q>
TARGET void attend(const Query *queries, const Cache &cache, float scale) {
    typename Keys::Ready ready[Q];
    alignas(64) float sums[Q][LARGEST_HEAD] = {};
    State states[Q];
    for (int q = 0; q < Q; q++) Keys::prepare(queries[q].values, cache, ready[q]);
    Span span;
    for (span.start = 0; span.start < cache.positions; span.start += SPAN) {
        span.n = std::min<int64_t>(cache.positions - span.start, SPAN);
        span.any = 0;
        for (int q = 0; q < Q; q++) {
            const uint16_t *mask = queries[q].mask ? queries[q].mask + span.start : nullptr;
            span.seen[q] = look(mask, span.n, span.bias[q]);
            span.any |= span.seen[q];
        }
        if (!span.any) continue;
        multiply_keys<Keys, Q>(cache, ready, span);
        span.plain = span.any;
        for (int q = 0; q < Q; q++) {
            float *weights = span.weights[q];
            for (int i = 0; i < SPAN; i += LANES) {
                const Float scores = Lanes::multiply(Lanes::load(weights + i), Lanes::all(scale));
                Lanes::store(weights + i, Lanes::add(scores, Lanes::load(span.bias[q] + i)));
            }
            span.grows[q] = weigh(weights, span.seen[q], states[q]);
            span.plain &= span.seen[q] & ~span.grows[q];
        }
        add_values<Values, Q>(cache, span, sums);
    }
    for (int q = 0; q < Q; q++) {
        const Float share = Lanes::all(states[q].total == 0 ? 0 : 1 / states[q].total);
        for (int d = 0; d < cache.size; d += LANES)
            Lanes::store(queries[q].out + d, Lanes::multiply(Lanes::load(sums[q] + d), share));
    }
}

// By the formats of keys and values, see Attention::cache, and by queries - 1.
#define FOR_EACH_NUMBER(...) \
    {attend<__VA_ARGS__, 1>, attend<__VA_ARGS__, 2>, attend<__VA_ARGS__, 3>, attend<__VA_ARGS__, 4>}
constexpr Attend ATTEND[Attention::CACHES][MOST_QUERIES] = {
    FOR_EACH_NUMBER(HalfKeys, HalfValues),
    FOR_EACH_NUMBER(HalfKeys, ByteValues),
    FOR_EACH_NUMBER(ByteKeys, HalfValues),
    FOR_EACH_NUMBER(ByteKeys, ByteValues),
};
#undef FOR_EACH_NUMBER
