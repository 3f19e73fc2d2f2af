// The op's two functions for torch, through its stable ABI (torch 2.10 and later, one binary for all): checks that keep
// memory safe, allocation, threads. Friendly messages and type conversions are the business of ops.py and checks.py.
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

// What both functions check of their common inputs. Sizes are read from here on from `value` and `locations` only.
void check_inputs(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations,
                  const Tensor& weights) {
  STD_TORCH_CHECK(value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5,
                  "ms_deform_attn: expected value (N,S,M,D), sampling_locations (N,Q,M,L,P,2) and attention_weights "
                  "(N,Q,M,L,P), got ", value.dim(), ", ", locations.dim(), " and ", weights.dim(), " dimensions.");
  const auto compute = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(locations.scalar_type() == compute && weights.scalar_type() == compute,
                  "ms_deform_attn: sampling_locations and attention_weights must be float32 (float64 for float64 "
                  "values).");
  STD_TORCH_CHECK(value.is_contiguous() && locations.is_contiguous() && weights.is_contiguous(),
                  "ms_deform_attn: the compiled functions take contiguous tensors.");
  STD_TORCH_CHECK(locations.size(0) == value.size(0) && locations.size(2) == value.size(2) && locations.size(5) == 2,
                  "ms_deform_attn: sampling_locations does not fit value.");
  for (int dim = 0; dim < 5; ++dim)
    STD_TORCH_CHECK(weights.size(dim) == locations.size(dim),
                    "ms_deform_attn: attention_weights does not fit sampling_locations.");
  STD_TORCH_CHECK(int64_t(shapes.size()) == 2 * locations.size(3),
                  "ms_deform_attn: spatial_shapes does not fit sampling_locations.");
  int64_t pixels = 0;
  for (size_t level = 0; level < shapes.size(); level += 2) {
    const int64_t height = shapes[level], width = shapes[level + 1];
    // 2^24: beyond it float32 coordinates cannot tell neighbouring pixels apart.
    STD_TORCH_CHECK(height > 0 && width > 0 && height <= (1 << 24) && width <= (1 << 24),
                    "ms_deform_attn: spatial_shapes must be between 1 and 2^24, got (", height, ", ", width, ").");
    pixels += height * width;
  }
  STD_TORCH_CHECK(pixels == value.size(1), "ms_deform_attn: spatial_shapes cover ", pixels, " pixels, value has ",
                  value.size(1), ".");
  STD_TORCH_CHECK(pixels < (int64_t(1) << 31), "ms_deform_attn: an image may have at most 2^31 - 1 pixels, got ",
                  pixels, ".");
}

void check_grad_output(const Tensor& grad_output, const Tensor& value, const Tensor& locations) {
  STD_TORCH_CHECK(grad_output.is_contiguous() && grad_output.scalar_type() == value.scalar_type() &&
                      grad_output.dim() == 3 && grad_output.size(0) == value.size(0) &&
                      grad_output.size(1) == locations.size(1) &&
                      grad_output.size(2) == value.size(2) * value.size(3),
                  "ms_deform_attn: grad_output must be contiguous (N,Q,M*D) and of the dtype of value.");
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels chosen =
      supports_avx2() && !std::getenv("MS_DEFORM_ATTN_PLAIN") ? avx2_kernels() : plain_kernels();
  return chosen;
}

CpuProblem cpu_problem(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations,
                       const Tensor& weights) {
  check_inputs(value, shapes, locations, weights);
  STD_TORCH_CHECK(value.is_cpu() && locations.is_cpu() && weights.is_cpu(), "ms_deform_attn: expected CPU tensors.");
  CpuProblem p{};
  switch (value.scalar_type()) {
    case ScalarType::Float: p.element = Element::kFloat32; break;
    case ScalarType::Double: p.element = Element::kFloat64; break;
    case ScalarType::BFloat16: p.element = Element::kBFloat16; break;
    default: STD_TORCH_CHECK(false, "ms_deform_attn: the CPU functions take float32, float64 and bfloat16 values.");
  }
  p.batch = value.size(0), p.pixels = value.size(1), p.heads = value.size(2), p.channels = value.size(3);
  p.queries = locations.size(1), p.levels = locations.size(3), p.points = locations.size(4);
  p.shapes = shapes.data();
  p.value = value.const_data_ptr();
  p.locations = locations.const_data_ptr();
  p.weights = weights.const_data_ptr();
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
  check_grad_output(grad_output, value, locations);
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_weights = torch::stable::empty_like(weights);
  p.grad_output = grad_output.const_data_ptr();
  p.grad_value = grad_value.mutable_data_ptr();
  p.grad_locations = grad_locations.mutable_data_ptr();
  p.grad_weights = grad_weights.mutable_data_ptr();
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
  check_inputs(value, shapes, locations, weights);
  STD_TORCH_CHECK(locations.is_cuda() && weights.is_cuda() &&
                      locations.get_device_index() == value.get_device_index() &&
                      weights.get_device_index() == value.get_device_index(),
                  "ms_deform_attn: expected all tensors on the GPU of value.");
  const int64_t levels = locations.size(3);
  Params p{};
  p.batch = value.size(0), p.pixels = value.size(1), p.heads = value.size(2), p.channels = value.size(3);
  p.queries = locations.size(1), p.levels = levels, p.points = locations.size(4);
  const char* problem = launch_problem(p);
  STD_TORCH_CHECK(problem == nullptr, "ms_deform_attn: expected sampling_locations with ", problem, ".");
  Int64 start = 0;
  for (int64_t level = 0; level < levels; ++level) {
    p.level[level] = {int(shapes[2 * level]), int(shapes[2 * level + 1]), start};
    start += shapes[2 * level] * shapes[2 * level + 1];
  }
  p.value = value.const_data_ptr();
  p.locations = locations.const_data_ptr();
  p.weights = weights.const_data_ptr();
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
  check_grad_output(grad_output, value, locations);
  Tensor grad_value = torch::stable::new_zeros(value, value.sizes(), locations.scalar_type());
  // Zeros and not empty: without channels no kernel runs.
  Tensor grad_locations = torch::stable::new_zeros(locations, locations.sizes());
  Tensor grad_weights = torch::stable::new_zeros(weights, weights.sizes());
  p.grad_output = grad_output.const_data_ptr();
  p.grad_value = grad_value.mutable_data_ptr();
  p.grad_locations = grad_locations.mutable_data_ptr();
  p.grad_weights = grad_weights.mutable_data_ptr();
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
