// What all operations that are computed here have in common: how they are asked for, and how
// their threads share tasks.
#pragma once

#include "ggml_abi.h"

#include <atomic>

struct Operation : ggml::TensorTraits {
    int number = -1;  // of the operation in ggml
    void (*barrier)(void *threadpool) = nullptr;
    std::atomic<bool> enabled{false};
    std::atomic<int64_t> calls{0};
    std::atomic<uint64_t> threads{0};  // that took part, a bit for each, until somebody asks

    virtual bool applies(const ggml::Tensor *op) const = 0;

  protected:
    using Next = std::atomic<int>;  // the next task that no thread has taken

    // At the beginning of the work buffer, on a line of its own; what else is in there follows.
    static constexpr size_t LINE = 64, SHARED = 2 * LINE;
    static Next &next_task(const ggml::Params *params) {
        return *(Next *)(((uintptr_t)params->work + LINE - 1) & ~(uintptr_t)(LINE - 1));
    }

    // Waits for all threads; then each begins with the task of its own number.
    void start_tasks(const ggml::Params *params) const {
        if (params->ith == 0) next_task(params).store(params->nth, std::memory_order_relaxed);
        barrier(params->threadpool);
    }
    static int take_task(const ggml::Params *params) {
        return next_task(params).fetch_add(1, std::memory_order_relaxed);
    }
    void count(const ggml::Params *params) {
        if (params->ith == 0) calls.fetch_add(1, std::memory_order_relaxed);
        const uint64_t bit = uint64_t{1} << (params->ith & 63);
        if (!(threads.load(std::memory_order_relaxed) & bit))
            threads.fetch_or(bit, std::memory_order_relaxed);
    }
};
