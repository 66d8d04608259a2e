// The parts of ggml's structures that are used here. ggml does not install the headers that
// declare them; core/llama/kernels.py compares them with the running library before anything is
// changed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ggml {

constexpr int F32 = 0, F16 = 1, Q8_0 = 8, I32 = 26;  // ggml_type, as in GGUF files

struct Tensor {  // ggml_tensor
    int type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    Tensor *src[10];
    Tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
    void *extra;  // set where a backend keeps the data in a layout of its own
    char padding[8];
};

struct Params {  // ggml_compute_params: one thread's share of one operation
    int ith, nth;
    size_t work_size;
    void *work;
    void *threadpool;

    // Whether it looks as it must: `needed` bytes were asked for.
    bool fits(size_t needed) const {
        return work && threadpool && work_size >= needed && 0 <= ith && ith < nth;
    }
};

// ggml_backend_buffer, as words: functions, then (where it is, differs) its type, and more.
struct Buffer {
    enum { FREE, BASE, INIT, MEMSET, SET, GET, FUNCTIONS, MOST = 16 };
    void *words[MOST];
};

struct BufferType;
struct BufferTypeFunctions {
    const char *(*name)(BufferType *);
    Buffer *(*allocate)(BufferType *, size_t size);
    size_t (*alignment)(BufferType *);
    size_t (*most)(BufferType *);  // bytes of a buffer; null: any number
    size_t (*tensor_bytes)(BufferType *, const Tensor *);
    bool (*is_host)(BufferType *);  // whether all may read what is in it; null: no
};

struct BufferType {  // ggml_backend_buffer_type
    BufferTypeFunctions functions;
    void *device;
    void *context;
};

// The virtual functions of ggml::cpu::tensor_traits and ggml::cpu::extra_buffer_type, in order.
struct TensorTraits {
    virtual ~TensorTraits() = default;
    virtual bool work_size(int n_threads, const Tensor *op, size_t &size) = 0;
    virtual bool compute_forward(Params *params, Tensor *op) = 0;
};

struct ExtraBufferType {
    virtual ~ExtraBufferType() = default;
    virtual bool supports_op(void *device, const Tensor *op) = 0;
    virtual TensorTraits *get_tensor_traits(const Tensor *op) = 0;
};

// As ggml 0.25 lays them out where pointers have 64 bits, which is all that there are kernels for.
static_assert(sizeof(void *) != 8 || sizeof(Tensor) == 336, "ggml_tensor");
static_assert(sizeof(void *) != 8 || offsetof(Tensor, src) == 152, "ggml_tensor.src");
static_assert(sizeof(void *) != 8 || offsetof(Tensor, data) == 248, "ggml_tensor.data");
static_assert(sizeof(void *) != 8 || offsetof(Tensor, extra) == 320, "ggml_tensor.extra");
static_assert(sizeof(void *) != 8 || sizeof(Params) == 32, "ggml_compute_params");
static_assert(sizeof(void *) != 8 || sizeof(BufferType) == 64, "ggml_backend_buffer_type");

}  // namespace ggml
