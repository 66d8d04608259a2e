// Looking up rows of a table of weights: the embeddings of tokens.
//
// A table that is multiplied, too, lies in a buffer of ours (buffer.h). Its rows are read from
// there: in the file they would be a second copy, for to read a row maps pages around it.
#pragma once

#include "product.h"

#include <cstdlib>
#include <cstring>

struct Lookup final : Operation {
    bool applies(const ggml::Tensor *op) const override { return op->op == number; }

    // Whether it can be computed of a table of our formats that lies in our buffer.
    static bool supports(const ggml::Tensor *op) {
        const ggml::Tensor *table = op->src[0], *ids = op->src[1];
        return table->ne[2] * table->ne[3] == 1 && ids->type == ggml::I32 && op->type == ggml::F32;
    }

    // Whether llama.cpp may put a table there when this thread loads a model: what is looked up
    // and never multiplied takes less as it is mapped. An operation does not tell.
    static bool is_wanted(const ggml::Tensor *table) {
        return wanted() && !strcmp(table->name, "token_embd.weight");
    }
    static bool &wanted() {
        static thread_local bool is_tied = false;
        return is_tied;
    }

    bool work_size(int, const ggml::Tensor *, size_t &size) override {
        size = 0;
        return true;
    }

    // Threads share the rows as in ggml.
    bool compute_forward(ggml::Params *params, ggml::Tensor *op) override {
        count(params);
        const int64_t n = op->src[1]->ne[0], share = (n + params->nth - 1) / params->nth;
        const int64_t first = share * params->ith, last = std::min(first + share, n);
        for (int64_t i = first; i < last; i++) look_up(op, i);
        return true;
    }

  private:
    static void look_up(const ggml::Tensor *op, int64_t i) {
        const ggml::Tensor *table = op->src[0], *ids = op->src[1];
        const auto row = *(const int32_t *)((const char *)ids->data + i * ids->nb[0]);
        if (row < 0 || row >= table->ne[1]) abort();  // as ggml does
        const FormatKernel &k = Product::kernel(table);
        const int64_t blocks = k.blocks(table);
        k.look_up((const char *)table->data + row / k.lanes * k.band_bytes(blocks), row % k.lanes,
                  blocks, (float *)((char *)op->data + i * op->nb[1]));
    }
};
