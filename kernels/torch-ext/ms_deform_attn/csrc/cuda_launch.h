// Launching the CUDA kernels from C++, for builds by kernel-builder. (The Python package compiles and launches the same
// kernels through the driver, cuda.py, with the same choices.)
#pragma once

#include "device_body.h"

namespace ms_deform_attn {

enum class CudaElement { kFloat32, kFloat64, kBFloat16, kFloat16 };

// `vector`: 16-byte accesses fit channels and pointers. Both return a cudaError_t, 0 for success.
int launch_forward(CudaElement element, bool vector, const Params& p, void* stream);
int launch_backward(CudaElement element, bool vector, bool deterministic, Params p, void* stream);
const char* launch_error(int error);

}  // namespace ms_deform_attn
