// Products of quantized weights with a few columns of activations: how they are shared out.
//
// With more than one column ggml hands out weights in pieces of a few kB, by turns to the threads,
// and unpacks them for each column anew: two columns of Q4_1 take twice as long as one. Here a
// thread reads weights in one go and multiplies them with up to 8 columns at once.
#pragma once

#include "formats.h"
#include "operation.h"

#include <algorithm>

constexpr int PANEL = 64;  // columns that are packed at a time
constexpr int STRIP = 16;  // rows that stay in the cache while they meet all columns of a panel

struct Product final : Operation {
    const FormatKernel *formats = nullptr;
    ggml::Quantize quantize[2] = {};

    int format(const ggml::Tensor *op) const { return op->src[0]->type == formats[1].type; }

    bool applies(const ggml::Tensor *op) const override {
        if (op->op != number || op->op_params[1] || !enabled) return false;  // [1]: a Hadamard hint
        const ggml::Tensor *w = op->src[0], *x = op->src[1];
        return (w->type == formats[0].type || w->type == formats[1].type) && x->type == ggml::F32 &&
               !w->extra && x->nb[0] == sizeof(float) && op->nb[0] == sizeof(float) &&
               w->ne[2] * w->ne[3] * x->ne[2] * x->ne[3] == 1 &&
               x->ne[1] <= formats[format(op)].most;
    }

    bool work_size(int, const ggml::Tensor *op, size_t &size) override {
        const int n = std::min<int64_t>(op->ne[1], PANEL);
        size = SHARED + formats[format(op)].packed(op->src[0]->ne[0] / BLOCK, n);
        return true;
    }

    bool compute_forward(ggml::Params *params, ggml::Tensor *op) override {
        size_t needed;
        work_size(params->nth, op, needed);
        if (!params->fits(needed)) return false;
        count(params);
        for (int first = 0; first < op->ne[1]; first += PANEL) {
            if (first) barrier(params->threadpool);  // others still read the last panel
            panel(params, op, first, std::min<int64_t>(op->ne[1] - first, PANEL));
        }
        return true;
    }

    // Columns `first` to `first` + n of the product.
    void panel(const ggml::Params *params, const ggml::Tensor *op, int first, int n) const {
        const ggml::Tensor *w = op->src[0], *x = op->src[1];
        const FormatKernel &kernel = formats[format(op)];
        const int64_t blocks = w->ne[0] / BLOCK, rows = w->ne[1];
        const int ith = params->ith, nth = params->nth;
        char *packed = (char *)&next_task(params) + LINE;

        const size_t group_bytes = kernel.packed(blocks, kernel.group);
        auto from = (const char *)x->data + first * x->nb[1];
        for (int c = 0; c < n; c += kernel.group) {
            const int columns = std::min(n - c, kernel.group);
            char *group = packed + c / kernel.group * group_bytes;
            for (int64_t b = blocks * ith / nth; b < blocks * (ith + 1) / nth; b++)
                kernel.pack(quantize[format(op)], from + c * x->nb[1], x->nb[1], columns, b,
                            group + b * kernel.packed_block(columns));
        }
        start_tasks(params);

        const int64_t strips = (rows + STRIP - 1) / STRIP;
        const int64_t task = (strips + 4 * nth - 1) / (4 * nth) * STRIP;  // rows
        auto out = (float *)((char *)op->data + first * op->nb[1]);
        const size_t out_stride = op->nb[1] / sizeof(float);
        for (int64_t t = ith; t * task < rows; t = take_task(params)) {
            const int64_t end = std::min((t + 1) * task, rows);
            const int64_t step = n > kernel.group ? STRIP : task;
            for (int64_t i = t * task; i < end; i += step)
                for (int c = 0; c < n; c += kernel.group) {
                    const int columns = std::min(n - c, kernel.group);
                    kernel.rows[kernel.vectors(columns) - 1](
                        w, packed + c / kernel.group * group_bytes, i, std::min(i + step, end),
                        columns, out + c * out_stride, out_stride);
                }
        }
    }
};
