// Launching the CUDA kernels from C++, for builds by kernel-builder. (The Python package compiles and launches the same
// kernels through the driver, cuda.py, with the same choices.)
#pragma once

#include "device_body.h"

namespace ms_deform_attn {

enum class CudaElement { kFloat32, kFloat64, kBFloat16, kFloat16 };

// What a launch cannot count, or nullptr; `parameters` of cuda.py has the same rule (the tests compare the two).
inline const char* launch_problem(const Params& p) {
  if (p.levels > kMaxLevels) return "at most 64 levels on CUDA";
  if (2 * p.levels * p.points >= Int64(1) << 31) return "fewer than 2^30 points for a query and head on CUDA";
  if (p.batch * p.heads * p.queries >= Int64(1) << 31) return "fewer than 2^31 queries times heads in all on CUDA";
  return nullptr;
}

// Whether 16-byte accesses fit channels and pointers, and 32 bits the vectors of an image. (The backward kernels count in
// vectors of at most 4, for their float32 sums.) `variant` of cuda.py has the same rule.
inline bool fits_vectors(const Params& p, int element_bytes) {
  const auto address = [](const void* pointer) { return reinterpret_cast<unsigned long long>(pointer); };
  const int vector = 16 / element_bytes, shortest = vector < 4 ? vector : 4;
  return p.channels % vector == 0 && p.pixels * p.heads * p.channels / shortest < Int64(1) << 32 &&
         (address(p.value) | address(p.output) | address(p.grad_output) | address(p.grad_value)) % 16 == 0;
}

// `vector`: fits_vectors. Both return a cudaError_t, 0 for success. The first launch on a GPU loads all kernels, so that any
// of them can be captured in a CUDA graph after it.
int launch_forward(CudaElement element, bool vector, const Params& p, void* stream);
int launch_backward(CudaElement element, bool vector, bool deterministic, Params p, void* stream);
const char* launch_error(int error);

}  // namespace ms_deform_attn
