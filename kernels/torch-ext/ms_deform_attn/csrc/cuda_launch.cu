#include "cuda_launch.h"

#include "cuda_kernels.cuh"

namespace ms_deform_attn {
namespace {

Int64 host_blocks(const Params& p, int group) {  // blocks_of in device_body.h, which is device code here
  const int queries = kThreads / group;
  return p.batch * ((p.queries + queries - 1) / queries) * p.heads;
}

Int64 host_owner_blocks(const Params& p, int group) {
  const int owners = kThreads / group;
  return (p.batch * p.heads * p.levels + owners - 1) / owners;
}

int launch(void (*kernel)(Params), Int64 blocks, const Params& p, void* stream) {
  if (blocks == 0) return 0;
  kernel<<<unsigned(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return int(cudaGetLastError());
}

struct Kernels {
  int group;
  void (*forward)(Params);
  void (*backward)(Params);
  void (*owners)(Params);
};

Kernels kernels_of(CudaElement element, bool vector) {
#define MSDA_LIST(NAME, GROUP) \
  { GROUP, forward_##NAME, backward_##NAME, backward_owners_##NAME }
  switch (element) {
    case CudaElement::kFloat64: return vector ? Kernels MSDA_LIST(float64_vector, 8) : Kernels MSDA_LIST(float64_scalar, 8);
    case CudaElement::kBFloat16:
      return vector ? Kernels MSDA_LIST(bfloat16_vector, 4) : Kernels MSDA_LIST(bfloat16_scalar, 8);
    case CudaElement::kFloat16: return vector ? Kernels MSDA_LIST(float16_vector, 4) : Kernels MSDA_LIST(float16_scalar, 8);
    default: return vector ? Kernels MSDA_LIST(float32_vector, 8) : Kernels MSDA_LIST(float32_scalar, 8);
  }
#undef MSDA_LIST
}

}  // namespace

int launch_forward(CudaElement element, bool vector, const Params& p, void* stream) {
  const Kernels kernels = kernels_of(element, vector);
  return launch(kernels.forward, host_blocks(p, kernels.group), p, stream);
}

int launch_backward(CudaElement element, bool vector, bool deterministic, Params p, void* stream) {
  const Kernels kernels = kernels_of(element, vector);
  p.adds = !deterministic;
  const int error = launch(kernels.backward, host_blocks(p, kernels.group), p, stream);
  if (error != 0 || !deterministic) return error;
  return launch(kernels.owners, host_owner_blocks(p, kernels.group), p, stream);
}

const char* launch_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace ms_deform_attn
