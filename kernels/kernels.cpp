// specgen's kernels for llama.cpp's CPU backend, and how they get into it.
//
// ggml asks its "extra buffer types" about every operation that it computes on the CPU; one more
// of these, which holds no data, answers for the operations that are computed here. The results
// have the same bits as ggml's own for one token at a time.

#include <cmath>
#include <cstring>
#include <vector>

// Raised with every change of a function's arguments: core/llama/kernels.py wants its own.
extern "C" int specgen_version() { return 3; }

#if defined(__x86_64__) && defined(__GNUC__)
#include "attention.h"
#include "product.h"

#include <cpuid.h>
#include <immintrin.h>

namespace {

#define TARGET __attribute__((target("avx2,fma,f16c")))
TARGET inline float half_to_float(uint16_t h) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}
// The order in which ggml adds 8 lanes.
TARGET inline float sum8(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// The sums of four vectors whose halves are added up already, each in that order.
TARGET inline __m128 sum_each8(__m128 a, __m128 b, __m128 c, __m128 d) {
    const __m128 ab = _mm_add_ps(_mm_shuffle_ps(a, b, 0x44), _mm_shuffle_ps(a, b, 0xEE));
    const __m128 cd = _mm_add_ps(_mm_shuffle_ps(c, d, 0x44), _mm_shuffle_ps(c, d, 0xEE));
    return _mm_hadd_ps(ab, cd);
}
namespace avx2 {
#include "avx2.h"
#include "product_tile.h"
namespace attending {
#include "attention_avx2.h"
#include "attention_tile.h"
}  // namespace attending
}  // namespace avx2
#undef TARGET

#define TARGET \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
namespace avx512 {
#include "avx512.h"
#include "product_tile.h"
namespace attending {
#include "attention_avx512.h"
#include "attention_tile.h"
}  // namespace attending
}  // namespace avx512
#undef TARGET

Product product;
Attention attention;

struct Interceptor final : ggml::ExtraBufferType {
    // Nothing is kept in it.
    bool supports_op(void *, const ggml::Tensor *) override { return false; }
    ggml::TensorTraits *get_tensor_traits(const ggml::Tensor *op) override {
        if (product.applies(op)) return &product;
        return attention.applies(op) ? &attention : nullptr;
    }
};

Interceptor interceptor;
ggml::BufferType buffer_type{{}, nullptr, &interceptor};

bool has(const char *instructions) {
    unsigned eax, ebx, ecx = 0, edx;
    __get_cpuid(1, &eax, &ebx, &ecx, &edx);
    const bool basic =
        ecx & bit_F16C && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(instructions, "avx512"))
        return basic && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    return basic && !strcmp(instructions, "avx2");
}

}  // namespace

extern "C" {

// Whether a product is laid out as declared above; nothing outside the tensors is read.
bool specgen_layout(const ggml::Tensor *result, const ggml::Tensor *weights,
                    const ggml::Tensor *columns, size_t overhead, int mul_mat) {
    constexpr size_t OBJECT = 32;  // ggml_object, counted as well
    const ggml::Tensor *w = weights, *x = columns;
    return overhead == OBJECT + sizeof(ggml::Tensor) && result->op == mul_mat &&
           !result->op_params[1] && result->src[0] == w && result->src[1] == x && !result->src[2] &&
           result->ne[0] == w->ne[1] && result->ne[1] == x->ne[1] && result->ne[2] == 1 &&
           result->nb[1] == sizeof(float) * result->ne[0] && w->ne[0] == x->ne[0] && !w->extra &&
           w->type == ggml::Q8_0 && w->nb[1] == w->ne[0] / BLOCK * sizeof(BlockQ8_0) &&
           result->type == ggml::F32 && x->type == ggml::F32 && (const void *)w->data > w &&
           !strcmp(result->name, "product");
}

// Takes the buffer type of this name out of those that weights may be kept in, before llama.cpp
// has asked for them. False where there is none.
bool specgen_leave_out(const char *name, std::vector<ggml::BufferType *> &(*extra_buffer_types)()) {
    auto &types = extra_buffer_types();
    for (auto type = types.begin(); type != types.end(); ++type) {
        using Name = const char *(*)(ggml::BufferType *);
        if (*type == &buffer_type) continue;  // which has no name
        if (strcmp(reinterpret_cast<Name>((*type)->functions[0])(*type), name)) continue;
        types.erase(type);
        return true;
    }
    return false;
}

// Adds the kernels to ggml's CPU backend, switched off. False where the processor lacks the
// instructions, or ggml's own products take their columns in another format.
bool specgen_install(const char *instructions, int mul_mat, int flash_attn_ext,
                     void (*barrier)(void *), const ggml::TypeTraits *(*type_traits)(int),
                     std::vector<ggml::BufferType *> &(*extra_buffer_types)()) {
    if (!has(instructions)) return false;
    if (type_traits(ggml::Q4_1)->vec_dot_type != ggml::Q8_1 ||
        type_traits(ggml::Q8_0)->vec_dot_type != ggml::Q8_0)
        return false;
    const bool wide = !strcmp(instructions, "avx512");
    product.formats = wide ? avx512::FORMATS : avx2::FORMATS;
    product.quantize[0] = type_traits(ggml::Q8_1)->quantize;
    product.quantize[1] = type_traits(ggml::Q8_0)->quantize;
    product.number = mul_mat;
    attention.quantize = product.quantize[1];
    attention.number = flash_attn_ext;
    product.barrier = attention.barrier = barrier;
    auto &types = extra_buffer_types();
    for (auto *type : types)
        if (type == &buffer_type) return true;
    types.push_back(&buffer_type);
    return true;
}

// Switches kernels on and off; attention only to caches that are allowed.
void specgen_enable(bool products, bool attentions) {
    product.enabled = products;
    attention.enabled = attentions;
}

// Has attention to caches with keys and values of these types, by heads of this size, computed with
// these instructions, or by ggml where they are "none". False where that can't be.
bool specgen_allow(const char *instructions, int keys, int values, int64_t size) {
    if (!strcmp(instructions, "none")) return attention.allow(keys, values, size, nullptr);
    if (!has(instructions)) return false;
    const bool wide = !strcmp(instructions, "avx512");
    return attention.allow(keys, values, size,
                           wide ? avx512::attending::ATTEND : avx2::attending::ATTEND);
}

// How many products, and how many attentions, were computed here since the library was loaded.
int64_t specgen_products() { return product.calls; }
int64_t specgen_attentions() { return attention.calls; }
}

#endif  // other processors keep llama.cpp's own kernels
