// The CPU op for any processor: what the compiler makes of the vectors without further instruction sets.
#include "cpu_kernels_impl.h"

namespace ms_deform_attn {

CpuKernels plain_kernels() { return {forward_scratch_bytes, forward_any, backward_scratch_bytes, backward_any}; }

}  // namespace ms_deform_attn
