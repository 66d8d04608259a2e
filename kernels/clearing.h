// Clearing memory by giving it back: the system fills a page with zeros when somebody touches it.
//
// llama.cpp clears a whole cache when a context is created, and touches all of its pages by that.
// Most texts never come to use most of them.
#pragma once

#include "buffer.h"

#include <cstring>

struct Clearing {
    using Allocate = ggml::Buffer *(*)(ggml::BufferType *, size_t);
    using Clear = void (*)(ggml::Buffer *, uint8_t);

    Ggml ggml{};

    // Has all buffers of ggml's CPU type made by `ours` from now on, or as before where it is null.
    // False where that can't be.
    bool set_up(const Ggml &from, Allocate ours) {
#ifdef __linux__
        ggml = from;
        ggml::BufferType *type = ggml.cpu_buffer_type();
        if (!allocate) allocate = type->functions.allocate;
        type->functions.allocate = ours ? ours : allocate;
        return true;
#else
        (void)from, (void)ours;
        return false;
#endif
    }

    // A buffer as ggml makes it, which is cleared by `ours`; as it is where it looks otherwise than
    // it must.
    ggml::Buffer *make(ggml::BufferType *type, size_t size, Clear ours) {
        ggml::Buffer *buffer = allocate(type, size);
        if (!buffer) return nullptr;
        auto &words = buffer->words;
        int at = ggml::Buffer::FUNCTIONS;
        while (at < ggml::Buffer::MOST && words[at] != type) at++;
        if (at == ggml::Buffer::MOST || words[at - 1] || !words[at - 2]) return buffer;
        if (!clear) clear = (Clear)words[at - 2];
        if (words[at - 2] == (void *)clear) words[at - 2] = (void *)ours;
        return buffer;
    }

    // Gives whole pages back, and lets ggml clear the buffer where the system does not take them.
    void operator()(ggml::Buffer *buffer, uint8_t value) const {
#ifdef __linux__
        const auto base = (uintptr_t)ggml.base_of(buffer), end = base + ggml.size_of(buffer);
        const uintptr_t page = sysconf(_SC_PAGESIZE);
        const uintptr_t from = (base + page - 1) / page * page, to = end / page * page;
        if (!value && from < to && !madvise((void *)from, to - from, MADV_DONTNEED)) {
            memset((void *)base, 0, from - base);
            memset((void *)to, 0, end - to);
            return;
        }
#endif
        clear(buffer, value);
    }

  private:
    Allocate allocate = nullptr;  // ggml's own
    Clear clear = nullptr;
};
