// The inner loop of products, written once and included for each instruction set after its Simd.
//
// A group of columns, quantized, is packed block by block: the values of each vector, their scales
// repeated over its lanes, and one float per column for formats with a minimum. Each pair of a row
// and a column is then summed in 8 lanes, in the order of ggml's own dot products: the
// result has the same bits, whatever is computed beside it.

constexpr int VECTORS = 4;                           // per group, at most
constexpr int GROUP = VECTORS * Simd::COLUMNS;       // columns
constexpr int WIDTH = sizeof(typename Simd::Float);  // bytes of a vector
constexpr int ROWS = 2;                              // that are multiplied at the same time
constexpr int AHEAD = 8192;                          // bytes: weights are fetched this early

constexpr size_t packed_block(int vectors) { return (2 * vectors + 1) * WIDTH; }

struct FormatQ4_1 {
    using Block = BlockQ4_1;
    using Values = BlockQ8_1;
    static constexpr bool HAS_MINIMUM = true;
    static constexpr uint8_t FLIP = 0;

    TARGET static float minimum_of(const Values &v) { return half_to_float(v.sum); }
    TARGET static typename Simd::Int read(const Block &b, typename Simd::Float &scale,
                                          __m256 &minimum) {
        Simd::half_pair(&b.scale, scale, minimum);
        return Simd::nibbles(b.values);
    }
};

struct FormatQ8_0 {
    using Block = BlockQ8_0;
    using Values = BlockQ8_0;
    static constexpr bool HAS_MINIMUM = false;
    static constexpr uint8_t FLIP = Simd::FLIP;

    TARGET static float minimum_of(const Values &) { return 0; }
    TARGET static typename Simd::Signed read(const Block &b, typename Simd::Float &scale,
                                             __m256 &) {
        scale = Simd::half(b.scale);
        return Simd::signed_bytes(b.values);
    }
};

// Packs block `index` of up to GROUP columns that begin at `from`, `stride` bytes apart.
template <class Format>
TARGET void pack(ggml::Quantize quantize, const char *from, size_t stride, int columns, int index,
                 char *to) {
    const int vectors = (columns + Simd::COLUMNS - 1) / Simd::COLUMNS;
    auto scales = (float *)(to + vectors * WIDTH);
    auto minima = (float *)(to + 2 * vectors * WIDTH);
    memset(to, 0, packed_block(vectors));
    for (int c = 0; c < columns; c++) {
        typename Format::Values values;
        quantize((const float *)(from + c * stride) + index * BLOCK, &values, BLOCK);
        for (int i = 0; i < BLOCK; i++) to[c * BLOCK + i] = values.values[i] ^ Format::FLIP;
        for (int i = 0; i < 8; i++) scales[c * 8 + i] = half_to_float(values.scale);
        minima[c] = Format::minimum_of(values);
    }
}

// R rows of weights times a packed group: R results for each column.
template <class Format, int R, int V>
TARGET void tile(const char *weights, size_t stride, const char *packed, int blocks, int columns,
                 float *out, size_t out_stride) {
    typename Simd::Float sums[R][V];
    __m256 minima[R];
    for (int r = 0; r < R; r++) {
        minima[r] = _mm256_setzero_ps();
        for (int v = 0; v < V; v++) sums[r][v] = Simd::zero();
    }
    for (int b = 0; b < blocks; b++, packed += packed_block(V)) {
        for (int r = 0; r < R; r++) {
            auto block = (const typename Format::Block *)(weights + r * stride) + b;
            _mm_prefetch((const char *)block + AHEAD, _MM_HINT_T0);
            typename Simd::Float scale;
            __m256 minimum;
            auto row = Format::read(*block, scale, minimum);
            for (int v = 0; v < V; v++) {
                auto dots = Simd::dot(row, Simd::load_bytes(packed + v * WIDTH));
                auto scales = Simd::load(packed + (V + v) * WIDTH);
                sums[r][v] = Simd::scaled_add(scale, scales, dots, sums[r][v]);
            }
            if (Format::HAS_MINIMUM) {
                auto column_sums = _mm256_load_ps((const float *)(packed + 2 * V * WIDTH));
                minima[r] = _mm256_fmadd_ps(minimum, column_sums, minima[r]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        alignas(32) float result[8] = {}, minimum[8];
        for (int v = 0; v < V; v++) Simd::sum_lanes(sums[r][v], result + v * Simd::COLUMNS);
        _mm256_store_ps(minimum, minima[r]);
        for (int c = 0; c < columns; c++)
            out[c * out_stride + r] = Format::HAS_MINIMUM ? result[c] + minimum[c] : result[c];
    }
}

// Rows `from` to `to` of the weights times a packed group.
template <class Format, int V>
TARGET void rows(const ggml::Tensor *weights, const char *packed, int64_t from, int64_t to,
                 int columns, float *out, size_t out_stride) {
    const size_t stride = weights->nb[1];
    const int blocks = weights->ne[0] / BLOCK;
    auto first = (const char *)weights->data;
    int64_t i = from;
    for (; i + ROWS <= to; i += ROWS)
        tile<Format, ROWS, V>(first + i * stride, stride, packed, blocks, columns, out + i,
                              out_stride);
    for (; i < to; i++)
        tile<Format, 1, V>(first + i * stride, stride, packed, blocks, columns, out + i,
                           out_stride);
}

template <class Format>
constexpr FormatKernel kernel(int type, int64_t most) {
    return {type,
            most,
            GROUP,
            Simd::COLUMNS,
            packed_block(0),
            2 * WIDTH,
            pack<Format>,
            {rows<Format, 1>, rows<Format, 2>, rows<Format, 3>, rows<Format, 4>}};
}

constexpr FormatKernel FORMATS[] = {kernel<FormatQ4_1>(ggml::Q4_1, INT64_MAX),
                                    kernel<FormatQ8_0>(ggml::Q8_0, Simd::MOST_Q8_0)};
