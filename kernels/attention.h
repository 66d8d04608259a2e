// Attention of a few tokens to a cache of half precision: how it is shared out.
//
// Queries that share keys and values go through the cache together, up to 4 at a time. ggml splits
// the cache between threads where there is one token alone, which rounds otherwise; here one token
// is computed like several, so the number of tokens and of threads does not show in the result.
#pragma once

#include "operation.h"

#include <algorithm>
#include <cstring>

// A query: one token at one head.
struct Query {
    const float *values;
    const uint16_t *mask;  // halves, one for each position: 0 or minus infinity; or null
    float *out;
};

struct Cache {
    const char *keys, *values;        // of one head, halves
    size_t key_stride, value_stride;  // bytes from one position to the next
    int64_t positions;
};

using Attend = void (*)(const Query *queries, const Cache &cache, float scale);

struct Attention final : Operation {
    const Attend (*heads)[4] = nullptr;  // by the size of a head, then by queries - 1

    static constexpr int MOST_TOKENS = 63;  // ggml has another kernel for more
    enum { QUERY, KEY, VALUE, MASK, SINKS };

    struct Settings {
        float scale, max_bias, softcap;
    };
    static Settings settings(const ggml::Tensor *op) {
        Settings s;
        memcpy(&s, op->op_params, sizeof s);
        return s;
    }
    // Where `heads` has this size of a head, or -1.
    static int sizes(int64_t dimensions) {
        return dimensions == 64 ? 0 : dimensions == 128 ? 1 : dimensions == 256 ? 2 : -1;
    }

    bool applies(const ggml::Tensor *op) const override {
        if (op->op != number || !enabled) return false;
        const ggml::Tensor *q = op->src[QUERY], *k = op->src[KEY], *v = op->src[VALUE];
        const ggml::Tensor *mask = op->src[MASK];
        const Settings s = settings(op);
        return q->type == ggml::F32 && k->type == ggml::F16 && v->type == ggml::F16 &&
               !op->src[SINKS] && s.max_bias == 0 && s.softcap == 0 && q->ne[1] <= MOST_TOKENS &&
               q->ne[3] == 1 && k->ne[3] == 1 && v->ne[3] == 1 && k->ne[0] == v->ne[0] &&
               k->ne[2] == v->ne[2] && sizes(k->ne[0]) >= 0 && q->nb[0] == 4 && k->nb[0] == 2 &&
               v->nb[0] == 2 && (!mask || (mask->type == ggml::F16 && mask->ne[2] == 1));
    }

    bool work_size(int, const ggml::Tensor *, size_t &size) override {
        size = SHARED;
        return true;
    }

    bool compute_forward(ggml::Params *params, ggml::Tensor *op) override {
        const ggml::Tensor *q = op->src[QUERY], *k = op->src[KEY], *v = op->src[VALUE];
        const ggml::Tensor *mask = op->src[MASK];
        if (!params->fits(SHARED)) return false;
        count(params);
        start_tasks(params);

        // A task: some of the queries that share a head of the cache.
        const auto &attend = heads[sizes(k->ne[0])];
        const int tokens = q->ne[1], sharing = q->ne[2] / k->ne[2], pairs = tokens * sharing;
        int size = pairs * k->ne[2] / (2 * params->nth);  // leaves something to share
        size = std::clamp(size, 1, 4);
        while (!attend[size - 1]) size--;
        const int tasks = (pairs + size - 1) / size;  // of one head
        for (int t = params->ith; t < tasks * k->ne[2]; t = take_task(params)) {
            const int64_t shared = t / tasks;
            const int first = t % tasks * size, n = std::min(pairs - first, size);
            Query queries[4];
            for (int i = 0; i < n; i++) {
                const int64_t token = (first + i) / sharing,
                              head = shared * sharing + (first + i) % sharing;
                queries[i].values =
                    (const float *)((const char *)q->data + token * q->nb[1] + head * q->nb[2]);
                queries[i].mask =
                    mask ? (const uint16_t *)((const char *)mask->data + token * mask->nb[1])
                         : nullptr;
                queries[i].out =
                    (float *)((char *)op->data + (head + token * op->ne[1]) * op->nb[1]);
            }
            const Cache cache{(const char *)k->data + shared * k->nb[2],
                              (const char *)v->data + shared * v->nb[2], k->nb[1], v->nb[1],
                              k->ne[1]};
            attend[n - 1](queries, cache, settings(op).scale);
        }
        return true;
    }
};
