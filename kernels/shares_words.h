// Sums of a block where the processor adds up products of bytes in 16 bits (AVX2).
// Included by kernels.cpp after unpack.h.

// How many steps fit into 16 bits: pairs of unsigned bytes times up to 127.
template <class F>
constexpr int word_steps() {
    const int most = 32767 / (2 * 127 * (F::LARGEST > 127 ? 128 : F::LARGEST));
    int steps = F::STEPS;
    while (steps > most) steps /= 2;
    return steps;
}

// Takes the offset off all shares of a block.
template <class Format, int N>
TARGET INLINE void take_offset(const char *scales, const Packed<Format, N> &x,
                               Simd::Int (&sums)[N]) {
    using F = Traits<Format>;
    if constexpr (!F::HAS_SCALES) {
        for (int c = 0; c < N; c++) sums[c] = Simd::add(sums[c], Simd::each(x.starts[0][c]));
    } else {
        Simd::Int excess[N] = {};
#pragma GCC unroll 8
        for (int s = 0; s < F::SHARES; s += 2) {
            const Simd::Int both = Simd::join(Simd::widen_signed(scales + s * Simd::LANES),
                                              Simd::widen_signed(scales + (s + 1) * Simd::LANES));
            for (int c = 0; c < N; c++)
                excess[c] = Simd::pairs(excess[c], both, each_pair(x.pairs[s / 2][c]));
        }
        for (int c = 0; c < N; c++)
            sums[c] = Simd::add(sums[c], Simd::times(excess[c], Simd::each(-F::OFFSET)));
    }
}

// Adds a block's values times those of N columns, each share times its scale.
template <class Format, int N>
TARGET INLINE void add_shares(const char *body, const Packed<Format, N> &x, Simd::Int (&sums)[N]) {
    using F = Traits<Format>;
    constexpr int RUN = word_steps<F>();
    constexpr bool IS_LARGE = F::LARGEST > 127;  // then values are signed, and have no offset
    const char *scales = body + Layout<Format, Simd::LANES>::VALUES;
#pragma GCC unroll 16
    for (int s = 0; s < F::SHARES; s++) {
        Simd::Int scale = Simd::each(0x00010001);
        if constexpr (F::HAS_SCALES) {
            scale = Simd::widen_signed(scales + s * Simd::LANES);
            scale = Simd::join(scale, scale);
        }
#pragma GCC unroll 8
        for (int k = s * F::STEPS; k < (s + 1) * F::STEPS; k += RUN) {
            Simd::Int words[N];
#pragma GCC unroll 8
            for (int i = 0; i < RUN; i++) {
                const Simd::Int w = step(Format(), body, k + i);
                for (int c = 0; c < N; c++) {
                    const Simd::Int x_c = Simd::each(x.values[k + i][c]);
                    const Simd::Int more =
                        IS_LARGE ? Simd::signed_words(w, x_c) : Simd::words(w, x_c);
                    words[c] = i ? Simd::add_words(words[c], more) : more;
                }
            }
            for (int c = 0; c < N; c++) sums[c] = Simd::pairs(sums[c], words[c], scale);
        }
    }
    if constexpr (F::OFFSET != 0 && !IS_LARGE) take_offset<Format, N>(scales, x, sums);
}
