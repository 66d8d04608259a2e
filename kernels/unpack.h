// Step k of a block: values 4 k to 4 k + 3 of each row as unsigned bytes.
// Included by kernels.cpp after a Simd. `k` is a constant wherever time counts.

// Two numbers of 16 bits in each lane.
TARGET INLINE Simd::Int each_pair(const int16_t *p) {
    int32_t both;
    memcpy(&both, p, sizeof both);
    return Simd::each(both);
}

#define STEP(FORMAT) TARGET INLINE Simd::Int step(FORMAT, const char *body, int k)

// Four bytes of each row's packed values.
TARGET INLINE Simd::Int packed_step(const char *body, int i) {
    return Simd::load(body + i * Simd::LANES * 4);
}

TARGET INLINE Simd::Int half_bytes(Simd::Int x, bool is_low) {
    return is_low ? Simd::low4(x) : Simd::high4(x);
}

// 32 values in halves of bytes: value i in the low half of byte i, i + 16 in the high half.
TARGET INLINE Simd::Int halves_of_32(const char *body, int k) {
    return half_bytes(packed_step(body, k / 8 * 4 + k % 4), k % 8 < 4);
}
STEP(Q4_0) { return halves_of_32(body, k); }
STEP(Q4_1) { return halves_of_32(body, k); }

TARGET INLINE Simd::Int fifth_of_32(const char *body, int k) {
    return Simd::either(half_bytes(packed_step(body, 1 + k % 4), k < 4),
                        Simd::bits(packed_step(body, 0), k - 4, 16));
}
STEP(Q5_0) { return fifth_of_32(body, k); }
STEP(Q5_1) { return fifth_of_32(body, k); }

STEP(Q8_0) { return packed_step(body, k); }

// The values of IQ4's sixteen numbers, and 128.
TARGET INLINE Simd::Int uneven(Simd::Int x) {
    return Simd::lookup(
        _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15),
        x);
}
STEP(IQ4_NL) { return uneven(halves_of_32(body, k)); }
STEP(IQ4_XS) { return uneven(halves_of_32(body, k)); }

// 64 values in halves of bytes: value i in the low half of byte i, i + 32 in the high half.
STEP(Q4_K) { return half_bytes(packed_step(body, k / 16 * 8 + k % 8), k % 16 < 8); }

// Where the i-th four bytes are, if high bits stand between the first eight.
INLINE constexpr int between(int i) { return i < 8 ? 2 * i : 8 + i; }

STEP(Q5_K) {
    const Simd::Int x = packed_step(body, between(k / 16 * 8 + k % 8));
    return Simd::either(half_bytes(x, k % 16 < 8),
                        Simd::bits(packed_step(body, k % 8 * 2 + 1), k / 8 - 4, 16));
}

// Two bits of each value: byte i of 32 has values i, i + 32, i + 64, i + 96 of 128.
TARGET INLINE Simd::Int two_bits(Simd::Int x, int k) { return Simd::bits(x, k % 32 / 8 * 2, 3); }
STEP(Q2_K) { return two_bits(packed_step(body, k / 32 * 8 + k % 8), k); }
STEP(Q3_K) {
    return Simd::either(two_bits(packed_step(body, between(k / 32 * 8 + k % 8)), k),
                        Simd::bits(packed_step(body, k % 8 * 2 + 1), k / 8 - 2, 4));
}

// Each half of the block: 64 bytes as above, with 32 of two more bits between the first.
STEP(Q6_K) {
    const int quarter = k % 32 / 8, half = k / 32 * 24;
    const Simd::Int x = packed_step(body, half + between(quarter % 2 * 8 + k % 8));
    const Simd::Int high = packed_step(body, half + k % 8 * 2 + 1);
    return Simd::either(half_bytes(x, quarter < 2), Simd::bits(high, 2 * quarter - 4, 48));
}
#undef STEP
