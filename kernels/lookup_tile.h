// One row of a band as floats, written once and included for each instruction set after unpack.h.

// A value times its share's scale, then the minimum, each rounded: as ggml does it in all formats.
template <class Format>
TARGET void look_up(const char *band, int row, int64_t blocks, float *to) {
    using F = Traits<Format>;
    using L = Layout<Format, Simd::LANES>;
    const char *body = band;
    auto halves = (const uint16_t *)(band + blocks * L::BODY);
    for (int64_t b = 0; b < blocks; b++, body += L::BODY, halves += L::HALVES / 2)
        for (int s = 0; s < F::SHARES; s++) {
            float scale = half_to_float(halves[row]), minimum = 0;
            if (F::HAS_SCALES) scale *= (int8_t)body[L::VALUES + s * Simd::LANES + row];
            if (F::HAS_MINIMA) minimum = half_to_float(halves[Simd::LANES + row]);
            if (F::HAS_SCALES && F::HAS_MINIMA)
                minimum *= body[L::VALUES + L::SCALES + (s / 2 * Simd::LANES + row) * 2 + s % 2];
            for (int k = s * F::STEPS; k < (s + 1) * F::STEPS; k++) {
                const Simd::Int all = step(Format(), body, k);
                uint8_t values[4];
                memcpy(values, (const char *)&all + 4 * row, 4);
                for (const int value : values) {
                    *to = scale * (value - F::OFFSET);
                    if (F::HAS_MINIMA) *to = F::HAS_SCALES ? *to - minimum : *to + minimum;
                    to++;
                }
            }
        }
}
