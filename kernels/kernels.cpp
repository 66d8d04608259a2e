// specgen's kernels for llama.cpp's CPU backend, and how they get into it.
//
// ggml asks its "extra buffer types" where to keep weights and who computes each operation on the
// CPU. One more of these keeps weights in our layout and answers for the operations that are
// computed here.

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// Raised with every change of a function's arguments: core/llama/kernels.py wants its own.
extern "C" int specgen_version() { return 7; }

#include "rows.h"

#define TARGET
#define NAMED(name) specgen_##name
namespace plain {
#include "rows_largest.h"
}  // namespace plain
#undef NAMED
#undef TARGET

// Nanoseconds, by a clock that is never set back.
extern "C" int64_t specgen_now() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// llama.cpp asks after every operation whether it shall give a call up: yes, when the time that
// `end` points to has passed.
extern "C" bool specgen_is_over(void *end) {
    return specgen_now() > *static_cast<const int64_t *>(end);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include "attention.h"
#include "buffer.h"
#include "clearing.h"
#include "experts.h"
#include "lookup.h"
#include "product.h"
#include "weights.h"

#include <cpuid.h>
#include <immintrin.h>

namespace {

#define INLINE __attribute__((always_inline)) inline

#define TARGET __attribute__((target("avx2")))
#define NAMED(name) specgen_##name##_avx2
namespace logits {
#include "rows_largest.h"
}  // namespace logits
#undef NAMED
#undef TARGET

#define TARGET __attribute__((target("avx2,fma,f16c")))
TARGET inline float through_half(float x) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtps_ph(_mm_set_ss(x), 0)));
}
TARGET inline float half_to_float(uint16_t h) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}
#include "columns.h"
// As ggml stores Q8_0; n is a multiple of 32.
TARGET void quantize_q8_0(const float *from, void *to, int64_t n) {
    auto block = (Q8_0::Block *)to;
    for (int64_t i = 0; i < n; i += 32, block++) {
        Quantized values;
        quantize_32(from + i, values);
        block->scale = _cvtss_sh(values.scale, 0);
        memcpy(block->values, values.values, 32);
    }
}
// The sums of four vectors whose halves are added up already, each in that order.
TARGET inline __m128 sum_each8(__m128 a, __m128 b, __m128 c, __m128 d) {
    const __m128 ab = _mm_add_ps(_mm_shuffle_ps(a, b, 0x44), _mm_shuffle_ps(a, b, 0xEE));
    const __m128 cd = _mm_add_ps(_mm_shuffle_ps(c, d, 0x44), _mm_shuffle_ps(c, d, 0xEE));
    return _mm_hadd_ps(ab, cd);
}
namespace avx2 {
#include "avx2.h"
#include "unpack.h"
#include "lookup_tile.h"
#include "shares_words.h"
#include "product_tile.h"
namespace attending {
#include "attention_avx2.h"
#include "attention_tile.h"
}  // namespace attending
}  // namespace avx2
#undef TARGET

// The 256-bit instructions of AVX-512: what AVX-VNNI computes, for machines to test that have none.
#define TARGET \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define DOT256 _mm256_dpbusd_epi32
namespace avx512vl {
#include "avx2.h"
#include "unpack.h"
#include "lookup_tile.h"
#include "shares_dot.h"
#include "product_tile.h"
}  // namespace avx512vl
#undef DOT256

namespace avx512 {
#include "avx512.h"
#include "unpack.h"
#include "lookup_tile.h"
#include "shares_dot.h"
#include "product_tile.h"
namespace attending {
#include "attention_avx512.h"
#include "attention_tile.h"
}  // namespace attending
}  // namespace avx512
#undef TARGET

#if defined(__clang__) || __GNUC__ >= 11
#define HAS_AVXVNNI 1
#define TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
#define DOT256 _mm256_dpbusd_avx_epi32
namespace avxvnni {
#include "avx2.h"
#include "unpack.h"
#include "lookup_tile.h"
#include "shares_dot.h"
#include "product_tile.h"
}  // namespace avxvnni
#undef DOT256
#undef TARGET
#endif

Product product;
Experts experts;
Lookup lookup;
Attention attention;
WeightBuffers buffers;
Clearing clearing;

struct Interceptor final : ggml::ExtraBufferType {
    // Where llama.cpp may put a matrix that is multiplied, or those of all experts; a table, too,
    // where rows of it are looked up.
    bool supports_op(void *, const ggml::Tensor *op) override {
        const ggml::Tensor *w = op->src[0], *x = op->src[1];
        if (!product.enabled || !w || !x || w->view_src || !buffers.format(w->type)) return false;
        if (lookup.applies(op)) return lookup.supports(op) && (is_ours(w) || lookup.is_wanted(w));
        if (x->type != ggml::F32) return false;
        if (experts.enabled && experts.applies(op)) return w->ne[3] == 1;
        return product.applies(op) && !op->op_params[1] && w->ne[2] * w->ne[3] == 1;
    }
    ggml::TensorTraits *get_tensor_traits(const ggml::Tensor *op) override {
        if (product.applies(op) && is_ours(op->src[0])) return &product;
        if (experts.applies(op) && is_ours(op->src[0])) return &experts;
        if (lookup.applies(op) && is_ours(op->src[0])) return &lookup;
        return attention.applies(op) ? &attention : nullptr;
    }
    static bool is_ours(const ggml::Tensor *w);
};

Interceptor interceptor;

int init_tensor(ggml::Buffer *, ggml::Tensor *w) {
    w->extra = (void *)buffers.format(w->type);
    return 0;
}

void set_tensor(ggml::Buffer *, ggml::Tensor *w, const void *data, size_t offset, size_t size) {
    if (!w->extra || offset || size != Product::kernel(w).file_bytes(w)) abort();  // as ggml does
    buffers.lay_out(w, (const char *)data);
}

const char *name_of_type(ggml::BufferType *) { return "CPU_SPECGEN"; }
ggml::Buffer *allocate(ggml::BufferType *type, size_t size) {
    buffers.mapping.forget();  // of another model, whose addresses may be somebody else's by now
    return buffers.make(type, size, init_tensor, set_tensor);
}
size_t alignment(ggml::BufferType *) { return 64; }
size_t tensor_bytes(ggml::BufferType *, const ggml::Tensor *w) { return buffers.bytes(w); }

ggml::BufferType buffer_type{
    {name_of_type, allocate, alignment, nullptr, tensor_bytes, nullptr}, nullptr, &interceptor};

bool Interceptor::is_ours(const ggml::Tensor *w) {
    return w->buffer && w->extra && buffers.ggml.type_of((ggml::Buffer *)w->buffer) == &buffer_type;
}

void clear(ggml::Buffer *buffer, uint8_t value) { clearing(buffer, value); }
ggml::Buffer *allocate_clearable(ggml::BufferType *type, size_t size) {
    return clearing.make(type, size, clear);
}

bool has(const char *instructions) {
    unsigned eax, ebx, ecx = 0, edx;
    __get_cpuid(1, &eax, &ebx, &ecx, &edx);
    const bool basic =
        ecx & bit_F16C && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strncmp(instructions, "avx512", 6))
        return basic && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#ifdef HAS_AVXVNNI
    if (!strcmp(instructions, "avxvnni")) {
        constexpr unsigned AVX_VNNI = 1 << 4;  // of leaf 7, subleaf 1
        return basic && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax & AVX_VNNI;
    }
#endif
    return basic && !strcmp(instructions, "avx2");
}

template <int N>
void use(const FormatKernel (&formats)[N]) {
    buffers.formats = formats;
    buffers.n_formats = N;
}

void use(const char *instructions) {
    if (!strcmp(instructions, "avx512")) return use(avx512::FORMATS);
    if (!strcmp(instructions, "avx512vl")) return use(avx512vl::FORMATS);
#ifdef HAS_AVXVNNI
    if (!strcmp(instructions, "avxvnni")) return use(avxvnni::FORMATS);
#endif
    use(avx2::FORMATS);
}

}  // namespace

extern "C" {

// Whether this processor has the functions whose names end in avx2.
bool specgen_has_avx2() { return __builtin_cpu_supports("avx2"); }

// Whether a product is laid out as declared above; nothing outside the tensors is read.
bool specgen_layout(const ggml::Tensor *result, const ggml::Tensor *weights,
                    const ggml::Tensor *columns, size_t overhead, int mul_mat) {
    constexpr size_t OBJECT = 32;  // ggml_object, counted as well
    const ggml::Tensor *w = weights, *x = columns;
    return overhead == OBJECT + sizeof(ggml::Tensor) && result->op == mul_mat &&
           !result->op_params[1] && result->src[0] == w && result->src[1] == x && !result->src[2] &&
           result->ne[0] == w->ne[1] && result->ne[1] == x->ne[1] && result->ne[2] == 1 &&
           result->nb[1] == sizeof(float) * result->ne[0] && w->ne[0] == x->ne[0] && !w->extra &&
           w->type == ggml::Q8_0 && w->nb[1] == w->ne[0] / 32 * sizeof(Q8_0::Block) &&
           result->type == ggml::F32 && x->type == ggml::F32 && (const void *)w->data > w &&
           !strcmp(result->name, "product");
}

// Whether some buffer type has an object with this table of virtual functions.
bool specgen_has_type(const void *table, std::vector<ggml::BufferType *> &(*extra_buffer_types)()) {
    for (auto *type : extra_buffer_types())
        if (type != &buffer_type && type->context && *(const void **)type->context == table)
            return true;
    return false;
}

// Takes the buffer type of this name out of those that weights may be kept in, before llama.cpp
// has asked for them. False where there is none.
bool specgen_leave_out(const char *name, std::vector<ggml::BufferType *> &(*extra_buffer_types)()) {
    auto &types = extra_buffer_types();
    for (auto type = types.begin(); type != types.end(); ++type) {
        if (strcmp((*type)->functions.name(*type), name)) continue;
        types.erase(type);
        return true;
    }
    return false;
}

// What ggml gives, in the order in which core/llama/kernels.py has it.
struct Addresses {
    void (*barrier)(void *);
    std::vector<ggml::BufferType *> &(*extra_buffer_types)();
    Ggml ggml;
    void *device;
};

// Adds the kernels to ggml's CPU backend, switched off. False where the processor lacks the
// instructions.
bool specgen_install(const char *instructions, int mul_mat, int mul_mat_id, int get_rows,
                     int flash_attn_ext, const Addresses *from) {
    if (!has(instructions)) return false;
    use(instructions);
    buffers.ggml = from->ggml;
    buffer_type.device = from->device;
    product.number = mul_mat;
    experts.number = mul_mat_id;
    lookup.number = get_rows;
    attention.quantize = quantize_q8_0;
    attention.number = flash_attn_ext;
    product.barrier = experts.barrier = attention.barrier = from->barrier;
    auto &types = from->extra_buffer_types();
    for (auto *type : types)
        if (type == &buffer_type) return true;
    types.insert(types.begin(), &buffer_type);
    return true;
}

// The buffer type that was added.
const void *specgen_buffer_type() { return &buffer_type; }

// Bytes that a matrix takes in our layout, or 0 where there are no kernels for this ggml_type.
int64_t specgen_laid_out(int type, int64_t columns, int64_t rows) {
    const FormatKernel *k = buffers.format(type);
    if (!k || columns % k->values) return 0;
    return (rows + k->lanes - 1) / k->lanes * k->band_bytes(columns / k->values);
}

// Switches kernels on and off; attention only to caches that are allowed.
void specgen_enable(bool products, bool attentions) {
    product.enabled = products;
    attention.enabled = attentions;
}

// Has ggml's buffers cleared by giving their pages back, those that are made from now on, or has
// ggml clear them. False where that can't be.
bool specgen_give_back(bool gives) {
    return clearing.set_up(buffers.ggml, gives ? allocate_clearable : nullptr);
}

// Whether products of experts are among the products that are switched on.
void specgen_allow_experts(bool allowed) { experts.enabled = allowed; }

// Whether the table of tokens is laid out, too, where this thread loads a model from now on: one
// that multiplies with it.
void specgen_lay_out_table(bool wanted) { Lookup::wanted() = wanted; }

// Has attention to caches with keys and values of these types, by heads of this size, computed with
// these instructions, or by ggml where they are "none". False where that can't be.
bool specgen_allow(const char *instructions, int keys, int values, int64_t size) {
    if (!strcmp(instructions, "none")) return attention.allow(keys, values, size, nullptr);
    if (!has(instructions)) return false;
    const bool wide = !strcmp(instructions, "avx512");
    return attention.allow(keys, values, size,
                           wide ? avx512::attending::ATTEND : avx2::attending::ATTEND);
}

// Which threads took part in products since this was asked last: bit i is thread i.
uint64_t specgen_threads() { return product.threads.exchange(0); }

// How many products, look-ups and attentions were computed here since the library was loaded.
int64_t specgen_products() { return product.calls + experts.calls; }
int64_t specgen_lookups() { return lookup.calls; }
int64_t specgen_attentions() { return attention.calls; }
}

#endif  // other processors keep llama.cpp's own kernels
