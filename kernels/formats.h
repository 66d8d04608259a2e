// The formats of weights: how GGUF files hold a block of them, and what a product needs to know.
//
// A format says how its values and scales are read from the file's block. How they are laid out in
// memory (weights.h), how columns are quantized for them (columns.h) and how they are multiplied
// (product_tile.h, with unpack.h) is written once for all.
#pragma once

#include <cstdint>
#include <cstring>

// TYPE      its number in GGUF files (ggml_type)
// VALUES    of a block
// SHARE     values that share a scale; where a block has several scales, these are small integers
//           times one number in half precision
// LARGEST   that a value is when it is multiplied, unsigned
// OFFSET    to take off such a value
// PACKED    bytes of a block's values: fours of bytes in the order in which a product first reads
//           them, else the processor does not fetch them early
struct Q4_0 {
    static constexpr int TYPE = 2, VALUES = 32, SHARE = 32, LARGEST = 15, OFFSET = 8, PACKED = 16;
    static constexpr bool HAS_MINIMA = false;
    struct Block {
        uint16_t scale;
        uint8_t values[16];  // value i in the low half of byte i, value i + 16 in the high half
    };
    static void packed(const Block &b, uint8_t *to) { memcpy(to, b.values, PACKED); }
};

struct Q4_1 {
    static constexpr int TYPE = 3, VALUES = 32, SHARE = 32, LARGEST = 15, OFFSET = 0, PACKED = 16;
    static constexpr bool HAS_MINIMA = true;
    struct Block {
        uint16_t scale, minimum;
        uint8_t values[16];
    };
    static void packed(const Block &b, uint8_t *to) { memcpy(to, b.values, PACKED); }
};

// Bit i belongs to value i; here bit k of byte i to value 4 k + i.
inline void spread_bits(const uint8_t *bits, uint8_t *to) {
    uint32_t all;
    memcpy(&all, bits, sizeof all);
    for (int i = 0; i < 4; i++) {
        to[i] = 0;
        for (int k = 0; k < 8; k++) to[i] |= (all >> (4 * k + i) & 1) << k;
    }
}

struct Q5_0 {
    static constexpr int TYPE = 6, VALUES = 32, SHARE = 32, LARGEST = 31, OFFSET = 16, PACKED = 20;
    static constexpr bool HAS_MINIMA = false;
    struct Block {
        uint16_t scale;
        uint8_t high[4], values[16];
    };
    static void packed(const Block &b, uint8_t *to) {
        spread_bits(b.high, to);
        memcpy(to + 4, b.values, 16);
    }
};

struct Q5_1 {
    static constexpr int TYPE = 7, VALUES = 32, SHARE = 32, LARGEST = 31, OFFSET = 0, PACKED = 20;
    static constexpr bool HAS_MINIMA = true;
    struct Block {
        uint16_t scale, minimum;
        uint8_t high[4], values[16];
    };
    static void packed(const Block &b, uint8_t *to) {
        spread_bits(b.high, to);
        memcpy(to + 4, b.values, 16);
    }
};

struct Q8_0 {
    static constexpr int TYPE = 8, VALUES = 32, SHARE = 32, LARGEST = 255, OFFSET = 128,
                         PACKED = 32;
    static constexpr bool HAS_MINIMA = false;
    struct Block {
        uint16_t scale;
        uint8_t values[32];  // signed
    };
    static void packed(const Block &b, uint8_t *to) {
        for (int i = 0; i < PACKED; i++) to[i] = b.values[i] ^ 0x80;
    }
};

struct IQ4_NL {
    static constexpr int TYPE = 20, VALUES = 32, SHARE = 32, LARGEST = 255, OFFSET = 128,
                         PACKED = 16;
    static constexpr bool HAS_MINIMA = false;
    struct Block {
        uint16_t scale;
        uint8_t values[16];
    };
    static void packed(const Block &b, uint8_t *to) { memcpy(to, b.values, PACKED); }
};

// Eight fours of bytes of each, in turns.
inline void in_turns(const uint8_t *first, const uint8_t *second, uint8_t *to) {
    for (int i = 0; i < 8; i++) {
        memcpy(to + 8 * i, first + 4 * i, 4);
        memcpy(to + 8 * i + 4, second + 4 * i, 4);
    }
}

struct Q2_K {
    static constexpr int TYPE = 10, VALUES = 256, SHARE = 16, LARGEST = 3, OFFSET = 0, PACKED = 64;
    static constexpr bool HAS_MINIMA = true;
    struct Block {
        uint8_t scales[16], values[64];
        uint16_t scale, minimum;
    };
    static void packed(const Block &b, uint8_t *to) { memcpy(to, b.values, PACKED); }
    static void scales(const Block &b, uint8_t *scales, uint8_t *minima) {
        for (int i = 0; i < 16; i++) {
            scales[i] = b.scales[i] & 15;
            minima[i] = b.scales[i] >> 4;
        }
    }
};

struct Q3_K {
    static constexpr int TYPE = 11, VALUES = 256, SHARE = 16, LARGEST = 7, OFFSET = 4, PACKED = 96;
    static constexpr bool HAS_MINIMA = false;
    struct Block {
        uint8_t high[32], values[64], scales[12];
        uint16_t scale;
    };
    static void packed(const Block &b, uint8_t *to) {
        in_turns(b.values, b.high, to);
        memcpy(to + 64, b.values + 32, 32);
    }
    static void scales(const Block &b, uint8_t *scales, uint8_t *) {
        for (int i = 0; i < 16; i++) {
            const int low = b.scales[i % 8] >> (i / 8 * 4) & 15;
            const int high = b.scales[8 + i % 4] >> (i / 4 * 2) & 3;
            scales[i] = (low | high << 4) - 32;
        }
    }
};

// Eight scales and eight minima of 6 bits in 12 bytes.
inline void six_bits(const uint8_t *from, uint8_t *scales, uint8_t *minima) {
    for (int i = 0; i < 4; i++) {
        scales[i] = from[i] & 63;
        minima[i] = from[i + 4] & 63;
        scales[i + 4] = (from[i + 8] & 15) | from[i] >> 6 << 4;
        minima[i + 4] = from[i + 8] >> 4 | from[i + 4] >> 6 << 4;
    }
}

struct Q4_K {
    static constexpr int TYPE = 12, VALUES = 256, SHARE = 32, LARGEST = 15, OFFSET = 0,
                         PACKED = 128;
    static constexpr bool HAS_MINIMA = true;
    struct Block {
        uint16_t scale, minimum;
        uint8_t scales[12], values[128];
    };
    static void packed(const Block &b, uint8_t *to) { memcpy(to, b.values, PACKED); }
    static void scales(const Block &b, uint8_t *scales, uint8_t *minima) {
        six_bits(b.scales, scales, minima);
    }
};

struct Q5_K {
    static constexpr int TYPE = 13, VALUES = 256, SHARE = 32, LARGEST = 31, OFFSET = 0,
                         PACKED = 160;
    static constexpr bool HAS_MINIMA = true;
    struct Block {
        uint16_t scale, minimum;
        uint8_t scales[12], high[32], values[128];
    };
    static void packed(const Block &b, uint8_t *to) {
        in_turns(b.values, b.high, to);
        memcpy(to + 64, b.values + 32, 96);
    }
    static void scales(const Block &b, uint8_t *scales, uint8_t *minima) {
        six_bits(b.scales, scales, minima);
    }
};

struct Q6_K {
    static constexpr int TYPE = 14, VALUES = 256, SHARE = 16, LARGEST = 63, OFFSET = 32,
                         PACKED = 192;
    static constexpr bool HAS_MINIMA = false;
    struct Block {
        uint8_t values[128], high[64], scales[16];  // scales are signed
        uint16_t scale;
    };
    static void packed(const Block &b, uint8_t *to) {
        for (int half = 0; half < 2; half++, to += 96) {
            in_turns(b.values + 64 * half, b.high + 32 * half, to);
            memcpy(to + 64, b.values + 64 * half + 32, 32);
        }
    }
    static void scales(const Block &b, uint8_t *scales, uint8_t *) { memcpy(scales, b.scales, 16); }
};

struct IQ4_XS {
    static constexpr int TYPE = 23, VALUES = 256, SHARE = 32, LARGEST = 255, OFFSET = 128,
                         PACKED = 128;
    static constexpr bool HAS_MINIMA = false;
    struct Block {
        uint16_t scale, high_scales;
        uint8_t low_scales[4], values[128];
    };
    static void packed(const Block &b, uint8_t *to) { memcpy(to, b.values, PACKED); }
    static void scales(const Block &b, uint8_t *scales, uint8_t *) {
        for (int i = 0; i < 8; i++) {
            const int low = b.low_scales[i / 2] >> (i % 2 * 4) & 15;
            scales[i] = (low | (b.high_scales >> 2 * i & 3) << 4) - 32;
        }
    }
};

// What a format's definition leads to.
template <class Format>
struct Traits : Format {
    static constexpr int SHARES = Format::VALUES / Format::SHARE;  // scales of a block
    static constexpr bool HAS_SCALES = SHARES > 1;
    static constexpr int STEPS = Format::SHARE / 4;  // four values a step
};
