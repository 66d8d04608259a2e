// How quantized weights and activations lie in memory: blocks of 32 values with a scale, and with
// a minimum in some formats, in half precision.
#pragma once

#include "ggml_abi.h"

#include <cstdint>

constexpr int BLOCK = 32;

struct BlockQ4_1 {
    uint16_t scale, minimum;
    uint8_t values[BLOCK / 2];  // value i in the low half of byte i, value i + 16 in the high half
};

struct BlockQ8_0 {
    uint16_t scale;
    int8_t values[BLOCK];
};

struct BlockQ8_1 {
    uint16_t scale, sum;  // the sum of the values, times the scale
    int8_t values[BLOCK];
};

// The functions of one format in one instruction set.
struct FormatKernel {
    int type;                         // of the weights
    int64_t most;                     // columns in all: with more, ggml's own product is faster
    int group;                        // columns at once, at most
    int vector_columns;               // of these share a vector
    size_t block_base, block_vector;  // bytes of a packed block: a base, and some per vector
    void (*pack)(ggml::Quantize, const char *from, size_t stride, int columns, int index, char *to);
    void (*rows[4])(const ggml::Tensor *weights, const char *packed, int64_t from, int64_t to,
                    int columns, float *out, size_t out_stride);  // by vectors - 1

    int vectors(int columns) const { return (columns + vector_columns - 1) / vector_columns; }
    size_t packed_block(int columns) const { return block_base + vectors(columns) * block_vector; }
    // Bytes that n columns take, in groups.
    size_t packed(int64_t blocks, int n) const {
        const int rest = n % group;
        return blocks * (n / group * packed_block(group) + (rest ? packed_block(rest) : 0));
    }
};
