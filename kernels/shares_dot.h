// Sums of a block where the processor adds up products of bytes in 32 bits (VNNI).
// Included by kernels.cpp after unpack.h.

// Adds a block's values times those of N columns, each share times its scale.
template <class Format, int N>
TARGET INLINE void add_shares(const char *body, const Packed<Format, N> &x, Simd::Int (&sums)[N]) {
    using F = Traits<Format>;
    const char *scales = body + Layout<Format, Simd::LANES>::VALUES;
#pragma GCC unroll 16
    for (int s = 0; s < F::SHARES; s++) {
        Simd::Int dots[N];
        for (int c = 0; c < N; c++) dots[c] = F::OFFSET ? Simd::each(x.starts[s][c]) : Simd::zero();
#pragma GCC unroll 8
        for (int k = s * F::STEPS; k < (s + 1) * F::STEPS; k++) {
            const Simd::Int w = step(Format(), body, k);
            for (int c = 0; c < N; c++) dots[c] = Simd::dot(dots[c], w, x.values[k][c]);
        }
        if constexpr (F::HAS_SCALES) {
            const Simd::Int scale = Simd::widen_signed(scales + s * Simd::LANES);
            for (int c = 0; c < N; c++) dots[c] = Simd::times(dots[c], scale);
        }
        for (int c = 0; c < N; c++) sums[c] = Simd::add(sums[c], dots[c]);
    }
}
