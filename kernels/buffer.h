// A buffer type of ggml's CPU backend that keeps weights in our layout.
//
// llama.cpp asks it first where to put each matrix, and goes on to the next type (its own layouts,
// then the file as it is mapped) where it does not support the product. A matrix is laid out when
// llama.cpp hands it over, and the pages of the file that it came from are let go: only one copy
// of it stays in memory.
#pragma once

#include "product.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

// Functions of ggml that are used.
struct Ggml {
    ggml::BufferType *(*cpu_buffer_type)();
    ggml::Buffer *(*allocate)(ggml::BufferType *, size_t);
    ggml::BufferType *(*type_of)(const ggml::Buffer *);
    void *(*base_of)(ggml::Buffer *);
    size_t (*size_of)(ggml::Buffer *);
};

// A file that is mapped into memory, as far as it is known.
struct Mapping {
    // Lets go of the pages that hold nothing but these bytes, if they are of a file: they are read
    // again when somebody looks. Those at the edges stay: somebody else uses them, too. To fetch a
    // page, Linux maps its neighbours, up to 2 MiB of them, but none that are marked otherwise.
    void let_go(const void *data, size_t size) {
#ifdef __linux__
        const auto first = (uintptr_t)data, last = first + size;
        const uintptr_t page = sysconf(_SC_PAGESIZE);
        const uintptr_t from = (first + page - 1) / page * page, to = last / page * page;
        if (from >= to) return;
        const std::lock_guard<std::mutex> alone(mutex);  // several models may be loaded at once
        if (!(start <= first && last <= end)) find(first);
        if (!(start <= first && last <= end)) return;
        madvise((void *)from, to - from, MADV_DONTDUMP);
        madvise((void *)from, to - from, MADV_DONTNEED);
#else
        (void)data, (void)size;
#endif
    }

    void forget() {
        const std::lock_guard<std::mutex> alone(mutex);
        start = end = 0;
    }

  private:
    std::mutex mutex;
    uintptr_t start = 0, end = 0;

    void find(uintptr_t inside) {
        start = end = 0;
        FILE *maps = fopen("/proc/self/maps", "re");
        if (!maps) return;
        char line[4352];
        while (fgets(line, sizeof line, maps)) {
            unsigned long from, to, inode;
            char rights[5];
            if (sscanf(line, "%lx-%lx %4s %*s %*s %lu", &from, &to, rights, &inode) != 4) continue;
            // What is written to a private mapping would be lost.
            if (inside < from || inside >= to || !inode || rights[1] == 'w') continue;
            start = from;
            end = to;
        }
        fclose(maps);
    }
};

struct WeightBuffers {
    Ggml ggml{};
    const FormatKernel *formats = nullptr;
    int n_formats = 0;
    Mapping mapping;

    const FormatKernel *format(int type) const {
        for (int i = 0; i < n_formats; i++)
            if (formats[i].type == type) return formats + i;
        return nullptr;
    }

    size_t bytes(const ggml::Tensor *w) const {
        const FormatKernel *k = format(w->type);
        return k ? k->matrix_bytes(w) * w->ne[2] * w->ne[3] : 0;
    }

    using Init = int (*)(ggml::Buffer *, ggml::Tensor *);
    using Set = void (*)(ggml::Buffer *, ggml::Tensor *, const void *, size_t offset, size_t);

    // A buffer of ggml's own with other functions. Null where it does not look as it must.
    ggml::Buffer *make(ggml::BufferType *type, size_t size, Init init, Set set) const {
        ggml::Buffer *buffer = ggml.allocate(ggml.cpu_buffer_type(), size);
        if (!buffer) return nullptr;
        auto &words = buffer->words;
        int at = ggml::Buffer::FUNCTIONS;
        while (at < ggml::Buffer::MOST && words[at] != ggml.cpu_buffer_type()) at++;
        if (at == ggml::Buffer::MOST || words[ggml::Buffer::INIT] || !words[ggml::Buffer::SET])
            return nullptr;
        words[at] = type;
        words[ggml::Buffer::INIT] = (void *)init;
        words[ggml::Buffer::SET] = (void *)set;
        words[ggml::Buffer::GET] = nullptr;  // nobody reads weights back
#ifdef __linux__
        const uintptr_t base = (uintptr_t)ggml.base_of(buffer), page = sysconf(_SC_PAGESIZE);
        const uintptr_t from = (base + page - 1) / page * page;
        if (base + size > from) madvise((void *)from, base + size - from, MADV_HUGEPAGE);
#endif
        return buffer;
    }

    // Lays out all matrices of a tensor, and lets go of where they came from piece by piece.
    void lay_out(const ggml::Tensor *w, const char *data) {
        const FormatKernel &k = Product::kernel(w);
        const int64_t bands = k.bands(w), all = bands * w->ne[2] * w->ne[3];
        const size_t row = k.blocks(w) * k.file_block;
        const int64_t piece = std::max<int64_t>(1, PIECE / (k.lanes * row));
        for (int64_t from = 0; from < all; from += piece) {
            const int64_t to = std::min(from + piece, all);
            lay_out(w, data, from, to);
            mapping.let_go(data, (to / bands * w->ne[1] + to % bands * k.lanes) * row);
        }
    }

  private:
    static constexpr size_t PIECE = 2 << 20;  // bytes

    // Lays out some bands, on several threads.
    static void lay_out(const ggml::Tensor *w, const char *data, int64_t first, int64_t last) {
        const FormatKernel &k = Product::kernel(w);
        const int64_t bands = k.bands(w), blocks = k.blocks(w), count = last - first;
        const size_t row = blocks * k.file_block;
        auto some = [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; i++) {
                const int64_t top = i % bands * k.lanes;
                k.lay_out(data + (i / bands * w->ne[1] + top) * row, row,
                          std::min<int64_t>(w->ne[1] - top, k.lanes), blocks,
                          (char *)w->data + i * k.band_bytes(blocks));
            }
        };
        const int64_t n = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 8);
        std::vector<std::thread> others;
        int64_t done = last;  // from here on others do it
        for (int64_t i = n - 1; i > 0 && row * k.lanes * count > 1 << 18; i--) try {
                others.emplace_back(some, first + count * i / n, done);
                done = first + count * i / n;
            } catch (const std::exception &) {
                break;
            }
        some(first, done);
        for (auto &thread : others) thread.join();
    }
};
