// The inner loop of products, written once and included for each instruction set after its Simd.
//
// A band of rows meets up to N packed columns. Each pair of a row and a column has an accumulator
// of its own, and one for minima, to which blocks are added in their order: the result has the same
// bits, whatever is computed beside it.

// Weights are fetched this early: by themselves they come too late where there is much to compute.
constexpr int AHEAD = 8192;  // bytes

// A band of rows times packed columns. Where it `is_first` to read these weights, what follows them
// is fetched, which may be the next band.
template <class Format, int N>
TARGET void band(const char *weights, const char *packed, int64_t blocks, bool is_first,
                 const Result &to) {
    using F = Traits<Format>;
    using L = Layout<Format, Simd::LANES>;
    auto x = (const Packed<Format, N> *)packed;
    const char *body = weights, *halves = weights + blocks * L::BODY;
    // Columns lie far apart: written without this, each result waits for its line of memory.
    for (int c = 0; c < to.columns; c++)
        _mm_prefetch((const char *)(to.out + c * to.stride), _MM_HINT_T0);
    Simd::Float sums[N], minima[N];
    for (int c = 0; c < N; c++) sums[c] = minima[c] = Simd::zerof();
    for (int64_t b = 0; b < blocks; b++, x++, body += L::BODY, halves += L::HALVES) {
        if (is_first)
            for (size_t line = 0; line < L::BODY + L::HALVES; line += 64)
                _mm_prefetch(body + AHEAD + line, _MM_HINT_T1);
        Simd::Int whole[N];
        for (int c = 0; c < N; c++) whole[c] = Simd::zero();
        add_shares<Format, N>(body, *x, whole);
        const Simd::Float scale = Simd::halves(halves);
        for (int c = 0; c < N; c++)
            sums[c] = Simd::fused(Simd::to_float(whole[c]),
                                  Simd::product(scale, Simd::eachf(x->scales[c])), sums[c]);
        if constexpr (F::HAS_MINIMA) {
            const Simd::Float minimum = Simd::halves(halves + Simd::LANES * 2);
            if constexpr (F::HAS_SCALES) {
                const char *at = body + L::VALUES + L::SCALES;
                for (int c = 0; c < N; c++) whole[c] = Simd::zero();
#pragma GCC unroll 8
                for (int s = 0; s < F::SHARES / 2; s++) {
                    const Simd::Int m = Simd::widen_pairs(at + s * Simd::LANES * 2);
                    for (int c = 0; c < N; c++)
                        whole[c] = Simd::pairs(whole[c], m, each_pair(x->pairs[s][c]));
                }
                for (int c = 0; c < N; c++)
                    minima[c] =
                        Simd::fused(Simd::to_float(whole[c]),
                                    Simd::product(minimum, Simd::eachf(x->scales[c])), minima[c]);
            } else {
                for (int c = 0; c < N; c++)
                    minima[c] = Simd::fused(minimum, Simd::eachf(x->sums[c]), minima[c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < N; c++) {
        if (F::HAS_MINIMA)
            sums[c] = F::HAS_SCALES ? Simd::difference(sums[c], minima[c])
                                    : Simd::sum(sums[c], minima[c]);
        if (c < to.columns) Simd::store(to.out + c * to.stride, sums[c], to.rows);
    }
}

template <class Format, int N>
constexpr Group group() {
    return {N, sizeof(Packed<Format, N>), pack<Format, N>, band<Format, N>};
}

template <class Format>
constexpr FormatKernel kernel() {
    using L = Layout<Format, Simd::LANES>;
    FormatKernel k{
        Format::TYPE,
        Format::VALUES,
        sizeof(typename Format::Block),
        Simd::LANES,
        L::band_bytes,
        L::band,
        look_up<Format>,
        {group<Format, 1>(), group<Format, 2>(), group<Format, 3>(), group<Format, 4>()}};
    if constexpr (Simd::COLUMNS > 4) {
        k.groups[4] = group<Format, 6>();
        k.groups[5] = group<Format, 8>();
    }
    return k;
}

constexpr FormatKernel FORMATS[] = {kernel<Q4_0>(), kernel<Q4_1>(), kernel<Q5_0>(),
                                    kernel<Q5_1>(), kernel<Q8_0>(), kernel<IQ4_NL>(),
                                    kernel<Q2_K>(), kernel<Q3_K>(), kernel<Q4_K>(),
                                    kernel<Q5_K>(), kernel<Q6_K>(), kernel<IQ4_XS>()};
