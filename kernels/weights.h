// How weights lie in our buffers: LANES rows side by side, so that a lane of a vector is a row.
//
// A band of rows has, block after block, its body: step by step four bytes of each row's packed
// values, then the scales and minima (one byte each, those of all rows side by side; minima in
// pairs). Behind the bodies come the numbers in half precision, so that bodies stay aligned.
// Rows that are missing in the last band are zero.
#pragma once

#include "formats.h"

#include <cstddef>

template <class Format, int LANES>
struct Layout {
    using F = Traits<Format>;
    static constexpr size_t VALUES = F::PACKED * LANES;
    static constexpr size_t SCALES = F::HAS_SCALES ? F::SHARES * LANES : 0;
    static constexpr size_t MINIMA = F::HAS_SCALES && F::HAS_MINIMA ? F::SHARES * LANES : 0;
    static constexpr size_t BODY = VALUES + SCALES + MINIMA;
    static constexpr size_t HALVES = (F::HAS_MINIMA ? 2 : 1) * LANES * sizeof(uint16_t);

    static size_t band_bytes(int64_t blocks) {
        return (blocks * (BODY + HALVES) + 63) / 64 * 64;  // the next band is aligned, too
    }

    // Lays out the rows of one band; `rows` of them are there.
    static void band(const char *from, size_t stride, int rows, int64_t blocks, char *to) {
        memset(to, 0, band_bytes(blocks));
        for (int row = 0; row < rows; row++) {
            auto block = (const typename Format::Block *)(from + row * stride);
            for (int64_t b = 0; b < blocks; b++)
                put(block[b], row, to + b * BODY, to + blocks * BODY + b * HALVES);
        }
    }

  private:
    static void put(const typename Format::Block &block, int row, char *body, char *halves) {
        uint8_t values[F::PACKED];
        Format::packed(block, values);
        for (int i = 0; i < F::PACKED / 4; i++)
            memcpy(body + (i * LANES + row) * 4, values + 4 * i, 4);
        if constexpr (F::HAS_SCALES) {
            uint8_t scales[F::SHARES], minima[F::SHARES];
            Format::scales(block, scales, minima);
            for (int i = 0; i < F::SHARES; i++) {
                body[VALUES + i * LANES + row] = scales[i];
                if constexpr (F::HAS_MINIMA)
                    body[VALUES + SCALES + (i / 2 * LANES + row) * 2 + i % 2] = minima[i];
            }
        }
        memcpy(halves + row * 2, &block.scale, 2);
        if constexpr (F::HAS_MINIMA) memcpy(halves + (LANES + row) * 2, &block.minimum, 2);
    }
};
