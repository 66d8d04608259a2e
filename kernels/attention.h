// Attention of a few tokens to a cache in half precision or in Q8_0: how it is shared out.
//
// Queries that share keys and values go through the cache together, up to 4 at a time. ggml splits
// the cache between threads where there is one token alone, which rounds otherwise; here one token
// is computed like several, so the number of tokens and of threads does not show in the result.
#pragma once

#include "formats.h"
#include "operation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

using Quantize = void (*)(const float *from, void *to, int64_t n);

constexpr int MOST_QUERIES = 4;  // that go through the cache together
constexpr int HEAD_SIZES[] = {64, 128, 256};
constexpr int LARGEST_HEAD = 256;  // multiples of 64, so that no vector is filled in part

// A query: one token at one head.
struct Query {
    const float *values;
    const uint16_t *mask;  // halves, one for each position: 0 or minus infinity; or null
    float *out;
};

struct Cache {
    const char *keys, *values;        // of one head
    size_t key_stride, value_stride;  // bytes from one position to the next
    int64_t positions;
    int size;           // dimensions of the head
    Quantize quantize;  // to Q8_0, for queries that meet keys in it
};

// 2^(i/32) as bits, less what the exponent's last bits add: the table of the C library's expf.
struct ExpTable {
    alignas(64) uint64_t bits[32];
    ExpTable() {
        for (uint64_t i = 0; i < 32; i++) {
            const double power = exp2(i / 32.0);
            memcpy(&bits[i], &power, sizeof power);
            bits[i] -= i << 47;
        }
    }
};
inline const ExpTable EXP_TABLE;

using Attend = void (*)(const Query *queries, const Cache &cache, float scale);

struct Attention final : Operation {
    static constexpr int CACHES = 4;  // formats of keys times formats of values

    Quantize quantize = nullptr;
    // By cache and head, see below, then by queries - 1. Null where attention is ggml's.
    std::atomic<const Attend *> attend[CACHES][std::size(HEAD_SIZES)] = {};

    // ggml has another kernel for more, where keys and values are both halves.
    static constexpr int MOST_TOKENS = 63;
    enum { QUERY, KEY, VALUE, MASK, SINKS };

    struct Settings {
        float scale, max_bias, softcap;
    };
    static Settings settings(const ggml::Tensor *op) {
        Settings s;
        memcpy(&s, op->op_params, sizeof s);
        return s;
    }

    // Where tables have keys and values of these types, or -1.
    static int cache(int keys, int values) {
        if ((keys != ggml::F16 && keys != ggml::Q8_0) ||
            (values != ggml::F16 && values != ggml::Q8_0))
            return -1;
        return 2 * (keys == ggml::Q8_0) + (values == ggml::Q8_0);
    }
    // Where tables have heads of this size, or -1.
    static int head(int64_t size) {
        for (int i = 0; i < (int)std::size(HEAD_SIZES); i++)
            if (HEAD_SIZES[i] == size) return i;
        return -1;
    }
    // Has attention to such caches computed by this code, or by ggml where there is none. False
    // where no code is written for them.
    bool allow(int keys, int values, int64_t size, const Attend (*code)[MOST_QUERIES]) {
        const int c = cache(keys, values), h = head(size);
        if (c < 0 || h < 0) return false;
        attend[c][h] = code ? code[c] : nullptr;
        return true;
    }

    bool applies(const ggml::Tensor *op) const override {
        if (op->op != number || !enabled) return false;
        const ggml::Tensor *q = op->src[QUERY], *k = op->src[KEY], *v = op->src[VALUE];
        const int c = cache(k->type, v->type), h = head(k->ne[0]);
        return c >= 0 && h >= 0 && attend[c][h] && fits(q, k, v) && fits(op);
    }

    bool work_size(int, const ggml::Tensor *, size_t &size) override {
        size = SHARED;
        return true;
    }

    bool compute_forward(ggml::Params *params, ggml::Tensor *op) override {
        if (!params->fits(SHARED)) return false;
        count(params);
        start_tasks(params);

        // A task: some of the queries that share a head of the cache.
        const ggml::Tensor *q = op->src[QUERY], *k = op->src[KEY];
        const int64_t pairs = q->ne[1] * (q->ne[2] / k->ne[2]);
        const int64_t spread = pairs * k->ne[2] / (2 * params->nth);  // leaves something to share
        const int size = std::clamp<int64_t>(spread, 1, MOST_QUERIES);
        const int tasks = (pairs + size - 1) / size;  // of one head
        for (int t = params->ith; t < tasks * k->ne[2]; t = take_task(params)) {
            const int64_t first = (int64_t)(t % tasks) * size;
            some(op, t / tasks, first, std::min<int64_t>(pairs - first, size));
        }
        return true;
    }

  private:
    static bool fits(const ggml::Tensor *q, const ggml::Tensor *k, const ggml::Tensor *v) {
        const bool few = q->ne[1] <= MOST_TOKENS || k->type != ggml::F16 || v->type != ggml::F16;
        return few && q->type == ggml::F32 && q->ne[3] == 1 && k->ne[3] == 1 && v->ne[3] == 1 &&
               k->ne[0] == v->ne[0] && k->ne[2] == v->ne[2] && q->nb[0] == sizeof(float) &&
               k->nb[0] == piece(k) && v->nb[0] == piece(v);
    }
    static bool fits(const ggml::Tensor *op) {
        const ggml::Tensor *mask = op->src[MASK];
        const Settings s = settings(op);
        return !op->src[SINKS] && s.max_bias == 0 && s.softcap == 0 &&
               (!mask || (mask->type == ggml::F16 && mask->ne[2] == 1));
    }
    // Bytes from one value, or one block of them, to the next.
    static size_t piece(const ggml::Tensor *t) {
        return t->type == ggml::F16 ? sizeof(uint16_t) : sizeof(Q8_0::Block);
    }

    // Queries `first` to `first` + n, token by token, of those that share this head of the cache.
    void some(const ggml::Tensor *op, int64_t shared, int64_t first, int n) const {
        const ggml::Tensor *k = op->src[KEY], *v = op->src[VALUE];
        const int64_t sharing = op->src[QUERY]->ne[2] / k->ne[2];
        Query queries[MOST_QUERIES];
        for (int i = 0; i < n; i++)
            queries[i] = query(op, (first + i) / sharing, shared * sharing + (first + i) % sharing);
        const Cache of_head{(const char *)k->data + shared * k->nb[2],
                            (const char *)v->data + shared * v->nb[2],
                            k->nb[1],
                            v->nb[1],
                            k->ne[1],
                            (int)k->ne[0],
                            quantize};
        const Attend *code = attend[cache(k->type, v->type)][head(k->ne[0])];
        code[n - 1](queries, of_head, settings(op).scale);
    }
    static Query query(const ggml::Tensor *op, int64_t token, int64_t head) {
        const ggml::Tensor *q = op->src[QUERY], *mask = op->src[MASK];
        const char *values = (const char *)q->data + token * q->nb[1] + head * q->nb[2];
        const char *row = mask ? (const char *)mask->data + token * mask->nb[1] : nullptr;
        char *out = (char *)op->data + (head + token * op->ne[1]) * op->nb[1];
        return {(const float *)values, (const uint16_t *)row, (float *)out};
    }
};
