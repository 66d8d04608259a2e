// Products of a mixture of experts: each token has some experts, and each expert a matrix.
//
// Pairs of a token and one of its experts are sorted by expert, so that the matrix of an expert
// meets all its columns at once, as in product.h. Columns are packed in that order, as many as fit
// the work buffer; threads then take some bands of one expert after the other.
#pragma once

#include "product.h"

#include <cstdlib>
#include <cstring>

struct Experts final : Operation {
    bool applies(const ggml::Tensor *op) const override { return op->op == number; }

    bool work_size(int n_threads, const ggml::Tensor *op, size_t &size) override {
        size = SHARED + most_pairs(op) * column_bytes(op) + n_threads * Pairs::bytes(op);
        return true;
    }

    bool compute_forward(ggml::Params *params, ggml::Tensor *op) override {
        size_t needed;
        work_size(params->nth, op, needed);
        if (!params->fits(needed)) return false;
        count(params);
        char *packed = (char *)&next_task(params) + LINE;
        char *own = packed + most_pairs(op) * column_bytes(op) + params->ith * Pairs::bytes(op);
        const Pairs pairs(op, own);
        const int64_t most = most_pairs(op);
        for (int64_t first = 0; first < pairs.n; first += most) {
            if (first) barrier(params->threadpool);  // others still read the last panel
            panel(params, op, {pairs, first, std::min(first + most, pairs.n), packed});
        }
        return true;
    }

  private:
    static constexpr int64_t PANEL_BYTES = 4 << 20;  // of packed columns
    static constexpr int RUN = 64;                   // columns that a band meets while it is cached

    static const FormatKernel &kernel(const ggml::Tensor *op) {
        return Product::kernel(op->src[0]);
    }
    static int64_t blocks(const ggml::Tensor *op) { return kernel(op).blocks(op->src[0]); }

    // What a packed column takes, at most: in a group that is not full it takes more.
    static size_t column_bytes(const ggml::Tensor *op) {
        const FormatKernel &k = kernel(op);
        size_t most = 0;
        for (int n = 1; n <= k.widest(); n++) most = std::max(most, (k.group(n).block + n - 1) / n);
        return (most + 3) / 4 * 4 * blocks(op);
    }

    // Pairs that are packed at a time.
    static int64_t most_pairs(const ggml::Tensor *op) {
        const int64_t all = op->ne[1] * op->ne[2];
        return std::min<int64_t>(all, std::max<int64_t>(PANEL_BYTES / column_bytes(op), RUN));
    }

    // The pairs of tokens and experts, sorted. Each thread does that for itself: they need not wait
    // for each other.
    struct Pairs {
        const ggml::Tensor *x, *op;
        int64_t n;
        int32_t *ends;   // by expert, of its pairs in `order`
        int32_t *order;  // pairs by expert, then by token; their number is token * n_used + slot

        static size_t bytes(const ggml::Tensor *op) {
            const int64_t n = op->src[0]->ne[2] + op->ne[1] * op->ne[2];
            return (n * sizeof(int32_t) + LINE - 1) / LINE * LINE;
        }

        Pairs(const ggml::Tensor *op, char *memory)
            : x(op->src[1]),
              op(op),
              n(op->ne[1] * op->ne[2]),
              ends((int32_t *)memory),
              order(ends + op->src[0]->ne[2]) {
            const int64_t n_experts = op->src[0]->ne[2];
            std::fill(ends, order, 0);
            for (int64_t i = 0; i < n; i++) {
                const int32_t e = expert(i);
                if (e < 0 || e >= n_experts) abort();  // as ggml does
                ends[e]++;
            }
            int32_t start = 0;
            for (int64_t e = 0; e < n_experts; e++) {
                const int32_t those = ends[e];
                ends[e] = start;
                start += those;
            }
            for (int64_t i = 0; i < n; i++) order[ends[expert(i)]++] = i;
        }

        int64_t slot(int64_t i) const { return i % op->ne[1]; }
        int64_t token(int64_t i) const { return i / op->ne[1]; }
        int32_t expert(int64_t i) const {
            const ggml::Tensor *ids = op->src[2];
            return *(const int32_t *)((const char *)ids->data + slot(i) * ids->nb[0] +
                                      token(i) * ids->nb[1]);
        }
        // Of the pair at this place in the order.
        const float *column(int64_t at) const {
            const int32_t i = order[at];
            return (const float *)((const char *)x->data + slot(i) % x->ne[1] * x->nb[1] +
                                   token(i) * x->nb[2]);
        }
        float *result(int64_t at) const {
            const int32_t i = order[at];
            return (float *)((char *)op->data + slot(i) * op->nb[1] + token(i) * op->nb[2]);
        }
    };

    // Pairs that are packed together.
    struct Panel {
        const Pairs &pairs;
        int64_t first, last;
        char *packed;
    };

    // Some of them with the same expert, one after the other.
    struct Run {
        int expert;
        int64_t first, last;
        char *packed;
        int columns() const { return last - first; }
    };

    // Calls use(run) for all runs of a panel.
    template <class Use>
    static void each_run(const FormatKernel &k, int64_t blocks, const Panel &p, Use use) {
        Run run{0, p.first, p.first, p.packed};
        for (; run.first < p.last; run.first = run.last) {
            while (p.pairs.ends[run.expert] <= run.first) run.expert++;
            run.last = std::min({(int64_t)p.pairs.ends[run.expert], run.first + RUN, p.last});
            use(run);
            each_group(k, blocks, run, [&](const Group &g, int64_t, int, char *packed) {
                run.packed = packed + g.block * blocks;
            });
        }
    }

    // Calls use(group, first pair, columns, packed) for a run.
    template <class Use>
    static void each_group(const FormatKernel &k, int64_t blocks, const Run &run, Use use) {
        char *packed = run.packed;
        for (int64_t first = run.first; first < run.last; first += k.widest()) {
            const int columns = std::min<int64_t>(run.last - first, k.widest());
            const Group &g = k.group(columns);
            use(g, first, columns, packed);
            packed += g.block * blocks;
        }
    }

    void panel(const ggml::Params *params, const ggml::Tensor *op, const Panel &p) const {
        const FormatKernel &k = kernel(op);
        const int64_t n_blocks = blocks(op), bands = k.bands(op->src[0]);
        int64_t weight = 0;  // of all runs
        int64_t b = params->ith;
        each_run(k, n_blocks, p, [&](const Run &run) {
            weight += weight_of(k, run);
            each_group(k, n_blocks, run, [&](const Group &g, int64_t first, int n, char *to) {
                const float *from[RUN];
                for (int c = 0; c < n; c++) from[c] = p.pairs.column(first + c);
                for (; b < n_blocks; b += params->nth) g.pack(from, n, b, to + b * g.block);
                b -= n_blocks;
            });
        });
        start_tasks(params);

        int64_t t = params->ith, start = 0;  // task, and the first one of a run
        each_run(k, n_blocks, p, [&](const Run &run) {
            const int64_t share = weight_of(k, run) * 8 * params->nth / weight;
            const int64_t tasks = std::clamp<int64_t>(share, 1, bands);
            for (; t < start + tasks; t = take_task(params))
                multiply(op, p.pairs, run, bands * (t - start) / tasks,
                         bands * (t - start + 1) / tasks);
            start += tasks;
        });
    }

    // How long a run takes: to read weights takes as long as to multiply them with some columns.
    static int64_t weight_of(const FormatKernel &k, const Run &run) {
        return k.widest() + run.columns();
    }

    // Some bands of the run's expert with all its columns.
    static void multiply(const ggml::Tensor *op, const Pairs &pairs, const Run &run, int64_t band,
                         int64_t end) {
        const ggml::Tensor *w = op->src[0];
        const FormatKernel &k = kernel(op);
        const int64_t n_blocks = blocks(op);
        const size_t band_bytes = k.band_bytes(n_blocks);
        const char *weights = (const char *)w->data + run.expert * k.matrix_bytes(w);
        for (; band < end; band++) {
            const int64_t row = band * k.lanes;
            const int rows = std::min<int64_t>(w->ne[1] - row, k.lanes);
            each_group(k, n_blocks, run, [&](const Group &g, int64_t first, int n, char *packed) {
                for (int c = 0; c < n; c++)  // written without this, each waits for its line
                    __builtin_prefetch(pairs.result(first + c) + row, 1);
                float sums[16 * 8];  // lanes times columns, at most
                const Result to{sums, (size_t)k.lanes, rows, n};
                g.band(weights + band * band_bytes, packed, n_blocks, first == run.first, to);
                for (int c = 0; c < n; c++)
                    memcpy(pairs.result(first + c) + row, sums + c * k.lanes, rows * sizeof(float));
            });
        }
    }
};
