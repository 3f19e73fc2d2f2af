#include "cuda_launch.h"

#include <atomic>

#include "cuda_kernels.cuh"

namespace ms_deform_attn {
namespace {

int launch(void (*kernel)(Params), Int64 blocks, const Params& p, void* stream) {
  if (blocks == 0) return 0;
  kernel<<<unsigned(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return int(cudaGetLastError());
}

struct Kernels {
  int group, backward_group;
  void (*forward)(Params);
  void (*backward)(Params);
  void (*owners)(Params);
};

Kernels kernels_of(CudaElement element, bool vector) {
#define MSDA_LIST(NAME, GROUP, BACKWARD_GROUP)                                                         \
  vector ? Kernels{GROUP, BACKWARD_GROUP, forward_##NAME##_vector, backward_##NAME##_vector,           \
                   backward_owners_##NAME}                                                             \
         : Kernels{8, 8, forward_##NAME##_scalar, backward_##NAME##_scalar, backward_owners_##NAME}
  switch (element) {
    case CudaElement::kFloat64: return MSDA_LIST(float64, 8, 8);
    case CudaElement::kBFloat16: return MSDA_LIST(bfloat16, 4, 8);
    case CudaElement::kFloat16: return MSDA_LIST(float16, 4, 8);
    default: return MSDA_LIST(float32, 8, 8);
  }
#undef MSDA_LIST
}

// Once for each GPU. CUDA would load each kernel at its first launch, which may be one that a graph captures.
int load_kernels() {
  static std::atomic<unsigned long long> loaded{0};  // a bit for each GPU
  int device = 0;
  int error = int(cudaGetDevice(&device));
  const unsigned long long bit = 1ull << (device % 64);
  if (error != 0 || (loaded & bit)) return error;
  for (int element = 0; element < 4; ++element)
    for (const bool vector : {false, true}) {
      const Kernels kernels = kernels_of(CudaElement(element), vector);
      for (const auto kernel : {kernels.forward, kernels.backward, kernels.owners}) {
        cudaFuncAttributes attributes;  // asking for them loads the kernel
        error = int(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)));
        if (error != 0) return error;
      }
    }
  loaded |= bit;
  return 0;
}

}  // namespace

int launch_forward(CudaElement element, bool vector, const Params& p, void* stream) {
  const Kernels kernels = kernels_of(element, vector);
  if (const int error = load_kernels()) return error;
  return launch(kernels.forward, blocks_of(p, kernels.group), p, stream);
}

int launch_backward(CudaElement element, bool vector, bool deterministic, Params p, void* stream) {
  const Kernels kernels = kernels_of(element, vector);
  if (const int error = load_kernels()) return error;
  p.adds = !deterministic;
  const int error = launch(kernels.backward, blocks_of(p, kernels.backward_group), p, stream);
  if (error != 0 || !deterministic) return error;
  return launch(kernels.owners, owner_blocks_of(p), p, stream);
}

const char* launch_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace ms_deform_attn
