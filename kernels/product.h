// Products of quantized weights with columns of activations: how they are shared out.
//
// The weights lie in a buffer of ours (buffer.h). A thread takes some bands of rows and multiplies
// them with up to 8 columns at once; where there are more, a band meets all columns of a panel
// while it is in the cache.
#pragma once

#include "operation.h"

#include <algorithm>

constexpr int PANEL = 64;  // columns that are packed at a time

// Where the results of some rows and columns go.
struct Result {
    float *out;
    size_t stride;  // floats from a column to the next
    int rows, columns;
};

// The functions of one format for groups of so many columns.
struct Group {
    int columns;
    size_t block;  // bytes of a packed block
    void (*pack)(const float *const *from, int columns, int64_t index, char *to);
    void (*band)(const char *weights, const char *packed, int64_t blocks, bool is_first,
                 const Result &to);
};

// The functions of one format in one instruction set.
struct FormatKernel {
    static constexpr int GROUPS = 6;
    int type, values;   // of a block
    size_t file_block;  // its bytes in the file
    int lanes;          // rows of a band
    size_t (*band_bytes)(int64_t blocks);
    void (*lay_out)(const char *from, size_t stride, int rows, int64_t blocks, char *to);
    void (*look_up)(const char *band, int row, int64_t blocks, float *to);
    Group groups[GROUPS];  // by columns, fewest first; those that are 0 are not there

    // The smallest group that holds so many columns, else the largest one.
    const Group &group(int columns) const {
        int i = 0;
        while (groups[i].columns < columns && i + 1 < GROUPS && groups[i + 1].columns) i++;
        return groups[i];
    }
    int widest() const { return group(PANEL).columns; }

    int64_t blocks(const ggml::Tensor *w) const { return w->ne[0] / values; }
    int64_t bands(const ggml::Tensor *w) const { return (w->ne[1] + lanes - 1) / lanes; }
    size_t file_bytes(const ggml::Tensor *w) const {
        return blocks(w) * file_block * w->ne[1] * w->ne[2] * w->ne[3];
    }
    size_t matrix_bytes(const ggml::Tensor *w) const { return bands(w) * band_bytes(blocks(w)); }
};

// The columns of a product, in a row, whatever dimensions they have.
struct Columns {
    const ggml::Tensor *x;
    int64_t count() const { return x->ne[1] * x->ne[2] * x->ne[3]; }
    const float *at(int64_t c) const {
        const int64_t i = c % x->ne[1], j = c / x->ne[1] % x->ne[2], k = c / x->ne[1] / x->ne[2];
        return (const float *)((const char *)x->data + i * x->nb[1] + j * x->nb[2] + k * x->nb[3]);
    }
};

struct Product final : Operation {
    static const FormatKernel &kernel(const ggml::Tensor *w) {
        return *(const FormatKernel *)w->extra;
    }

    // Of weights that lie in our buffer.
    bool applies(const ggml::Tensor *op) const override { return op->op == number; }

    bool work_size(int, const ggml::Tensor *op, size_t &size) override {
        size = SHARED + packed_bytes(op, std::min<int64_t>(Columns{op->src[1]}.count(), PANEL));
        return true;
    }

    bool compute_forward(ggml::Params *params, ggml::Tensor *op) override {
        size_t needed;
        work_size(params->nth, op, needed);
        if (!params->fits(needed)) return false;
        count(params);
        const int64_t n = Columns{op->src[1]}.count();
        for (int64_t first = 0; first < n; first += PANEL) {
            if (first) barrier(params->threadpool);  // others still read the last panel
            panel(params, op, first, std::min<int64_t>(n - first, PANEL));
        }
        return true;
    }

  private:
    static size_t packed_bytes(const ggml::Tensor *op, int n) {
        const FormatKernel &k = kernel(op->src[0]);
        const int64_t blocks = k.blocks(op->src[0]);
        size_t size = n / k.widest() * k.group(k.widest()).block * blocks;
        if (n % k.widest()) size += k.group(n % k.widest()).block * blocks;
        return size;
    }

    // Columns `first` to `first` + n of the product.
    void panel(const ggml::Params *params, const ggml::Tensor *op, int64_t first, int n) const {
        const ggml::Tensor *w = op->src[0];
        const FormatKernel &k = kernel(w);
        char *packed = (char *)&next_task(params) + LINE;
        pack(params, op, first, n, packed);
        start_tasks(params);

        const int64_t bands = k.bands(w), blocks = k.blocks(w);
        const size_t band_bytes = k.band_bytes(blocks), stride = op->nb[1] / sizeof(float);
        const int64_t task = (bands + 8 * params->nth - 1) / (8 * params->nth);  // bands
        for (int64_t t = params->ith; t * task < bands; t = take_task(params))
            for (int64_t band = t * task; band < std::min((t + 1) * task, bands); band++) {
                const int rows = std::min<int64_t>(w->ne[1] - band * k.lanes, k.lanes);
                const char *group = packed;
                for (int c = 0; c < n; c += k.widest()) {
                    const int columns = std::min(n - c, k.widest());
                    const Group &g = k.group(columns);
                    float *out = (float *)op->data + (first + c) * stride + band * k.lanes;
                    g.band((const char *)w->data + band * band_bytes, group, blocks, c == 0,
                           {out, stride, rows, columns});
                    group += g.block * blocks;
                }
            }
    }

    static void pack(const ggml::Params *params, const ggml::Tensor *op, int64_t first, int n,
                     char *to) {
        const FormatKernel &k = kernel(op->src[0]);
        const Columns all{op->src[1]};
        const int64_t blocks = k.blocks(op->src[0]);
        const int ith = params->ith, nth = params->nth;
        for (int c = 0; c < n; c += k.widest()) {
            const int columns = std::min(n - c, k.widest());
            const Group &g = k.group(columns);
            const float *from[PANEL];
            for (int i = 0; i < columns; i++) from[i] = all.at(first + c + i);
            for (int64_t b = blocks * ith / nth; b < blocks * (ith + 1) / nth; b++)
                g.pack(from, columns, b, to + b * g.block);
            to += g.block * blocks;
        }
    }
};
