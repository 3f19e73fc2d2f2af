// The CPU op for x86-64 processors with AVX2 and FMA (2013 and later). The instruction set is chosen here and not by
// compiler flags, so that one plain command line builds the library; binding.cpp asks the processor before it calls.
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "cpu_kernels_impl.h"

namespace ms_deform_attn {

CpuKernels avx2_kernels() { return {forward_scratch_bytes, forward_any, backward_scratch_bytes, backward_any}; }

}  // namespace ms_deform_attn

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace ms_deform_attn {
bool supports_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace ms_deform_attn

#else

#include "cpu_kernels.h"

namespace ms_deform_attn {
bool supports_avx2() { return false; }
CpuKernels avx2_kernels() { return plain_kernels(); }
}  // namespace ms_deform_attn

#endif
