// The op's two functions for torch, through its stable ABI (torch 2.10 and later, one binary for all): allocation and
// threads. ops.py calls them, with tensors that it has checked and prepared.
//
// The namespace TORCH_EXTENSION_NAME comes from the build: kernel-builder's registration.h, or build.py's flags.

#ifndef TORCH_TARGET_VERSION
#define TORCH_TARGET_VERSION 0x020a000000000000  // torch 2.10
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "cpu_kernels.h"
#ifdef CUDA_KERNEL
#include "cuda_launch.h"
// Declared by torch's header for CUDA builds of torch only.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif
#ifdef MS_DEFORM_ATTN_JIT
#define STABLE_TORCH_LIBRARY_EXPAND(NAME, MODULE) STABLE_TORCH_LIBRARY(NAME, MODULE)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, KEY, MODULE) STABLE_TORCH_LIBRARY_IMPL(NAME, KEY, MODULE)
#else
#include "registration.h"
#endif

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace ms_deform_attn {
namespace {

// What CpuProblem and Params have in common.
template <class Problem>
void describe(Problem& p, const Tensor& value, const Tensor& locations, const Tensor& weights) {
  p.batch = value.size(0), p.pixels = value.size(1), p.heads = value.size(2), p.channels = value.size(3);
  p.queries = locations.size(1), p.levels = locations.size(3), p.points = locations.size(4);
  p.value = value.const_data_ptr();
  p.locations = locations.const_data_ptr();
  p.weights = weights.const_data_ptr();
}

template <class Problem>
void describe_gradients(Problem& p, const Tensor& grad_output, Tensor& grad_value, Tensor& grad_locations,
                        Tensor& grad_weights) {
  p.grad_output = grad_output.const_data_ptr();
  p.grad_value = grad_value.mutable_data_ptr();
  p.grad_locations = grad_locations.mutable_data_ptr();
  p.grad_weights = grad_weights.mutable_data_ptr();
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels chosen =
      supports_avx2() && !std::getenv("MS_DEFORM_ATTN_PLAIN") ? avx2_kernels() : plain_kernels();
  return chosen;
}

CpuProblem cpu_problem(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations,
                       const Tensor& weights) {
  CpuProblem p{};
  switch (value.scalar_type()) {
    case ScalarType::Float: p.element = Element::kFloat32; break;
    case ScalarType::Double: p.element = Element::kFloat64; break;
    case ScalarType::BFloat16: p.element = Element::kBFloat16; break;
    default: STD_TORCH_CHECK(false, "ms_deform_attn: the CPU functions take float32, float64 and bfloat16 values.");
  }
  p.shapes = shapes.data();
  describe(p, value, locations, weights);
  return p;
}

// Splits items over torch's threads (torch.set_num_threads), each with its own scratch memory.
template <class Work>
void for_items(const CpuProblem& p, int64_t items, int64_t grain, size_t scratch_bytes, Work work) {
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, scratch_bytes + 64), &std::free);
    if (!scratch) throw std::bad_alloc();
    work(p, begin, end, static_cast<char*>(scratch.get()));
  });
}

Tensor forward_cpu(const Tensor& value, std::vector<int64_t> shapes, const Tensor& locations, const Tensor& weights) {
  CpuProblem p = cpu_problem(value, shapes, locations, weights);
  Tensor output = torch::stable::new_empty(value, {p.batch, p.queries, p.heads * p.channels});
  p.output = output.mutable_data_ptr();
  if (output.numel() == 0) return output;
  // About four items a thread, so that none waits long for another; but each copies its head of the image.
  const int64_t wanted = 4 * torch::stable::get_num_threads() / (p.batch * p.heads), most = 1 + p.queries / 64;
  p.splits = wanted < 1 ? 1 : wanted < most ? wanted : most;
  for_items(p, p.batch * p.heads * p.splits, 1, cpu_kernels().forward_scratch(p), cpu_kernels().forward);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad_output, const Tensor& value,
                                                std::vector<int64_t> shapes, const Tensor& locations,
                                                const Tensor& weights, bool /* deterministic: always */) {
  CpuProblem p = cpu_problem(value, shapes, locations, weights);
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_weights = torch::stable::empty_like(weights);
  describe_gradients(p, grad_output, grad_value, grad_locations, grad_weights);
  const int64_t items = p.batch * p.heads * p.levels;
  if (items > 0) for_items(p, items, 1, cpu_kernels().backward_scratch(p), cpu_kernels().backward);
  return {grad_value, grad_locations, grad_weights};
}

#ifdef CUDA_KERNEL

CudaElement cuda_element(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float: return CudaElement::kFloat32;
    case ScalarType::Double: return CudaElement::kFloat64;
    case ScalarType::BFloat16: return CudaElement::kBFloat16;
    case ScalarType::Half: return CudaElement::kFloat16;
    default: STD_TORCH_CHECK(false, "ms_deform_attn: value must be float32, float64, bfloat16 or float16.");
  }
}

Params cuda_params(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations,
                   const Tensor& weights) {
  Params p{};
  describe(p, value, locations, weights);
  const char* problem = launch_problem(p);
  STD_TORCH_CHECK(problem == nullptr, "ms_deform_attn: expected sampling_locations with ", problem, ".");
  Int64 start = 0;
  for (int64_t level = 0; level < p.levels; ++level) {
    p.level[level] = {int(shapes[2 * level]), int(shapes[2 * level + 1]), start};
    start += shapes[2 * level] * shapes[2 * level + 1];
  }
  return p;
}

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

Tensor forward_cuda(const Tensor& value, std::vector<int64_t> shapes, const Tensor& locations, const Tensor& weights) {
  Params p = cuda_params(value, shapes, locations, weights);
  Tensor output = torch::stable::new_empty(value, {p.batch, p.queries, p.heads * p.channels});
  p.output = output.mutable_data_ptr();
  if (output.numel() == 0) return output;
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const int error =
      launch_forward(cuda_element(value), fits_vectors(p, int(value.element_size())), p, current_stream(value));
  STD_TORCH_CHECK(error == 0, "ms_deform_attn: the launch failed: ", launch_error(error));
  return output;
}

// grad_value is of the dtype of the sums; ops.py narrows it.
std::tuple<Tensor, Tensor, Tensor> backward_cuda(const Tensor& grad_output, const Tensor& value,
                                                 std::vector<int64_t> shapes, const Tensor& locations,
                                                 const Tensor& weights, bool deterministic) {
  Params p = cuda_params(value, shapes, locations, weights);
  Tensor grad_value = torch::stable::new_zeros(value, value.sizes(), locations.scalar_type());
  // Zeros and not empty: without channels no kernel runs.
  Tensor grad_locations = torch::stable::new_zeros(locations, locations.sizes());
  Tensor grad_weights = torch::stable::new_zeros(weights, weights.sizes());
  describe_gradients(p, grad_output, grad_value, grad_locations, grad_weights);
  if (value.numel() == 0 || grad_output.numel() == 0) return {grad_value, grad_locations, grad_weights};
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const int error = launch_backward(cuda_element(value), fits_vectors(p, int(value.element_size())), deterministic, p,
                                    current_stream(value));
  STD_TORCH_CHECK(error == 0, "ms_deform_attn: the launch failed: ", launch_error(error));
  return {grad_value, grad_locations, grad_weights};
}

#endif

}  // namespace
}  // namespace ms_deform_attn

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "compiled_forward(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
      "-> Tensor");
  ops.def(
      "compiled_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights, bool deterministic) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
  ops.impl("compiled_forward", TORCH_BOX(&ms_deform_attn::forward_cpu));
  ops.impl("compiled_backward", TORCH_BOX(&ms_deform_attn::backward_cpu));
}

#ifdef CUDA_KERNEL
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
  ops.impl("compiled_forward", TORCH_BOX(&ms_deform_attn::forward_cuda));
  ops.impl("compiled_backward", TORCH_BOX(&ms_deform_attn::backward_cuda));
}
#endif

#ifndef MS_DEFORM_ATTN_JIT
REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
#endif
