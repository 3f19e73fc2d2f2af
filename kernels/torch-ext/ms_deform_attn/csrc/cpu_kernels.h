// The CPU op between its two halves: binding.cpp (torch, threads) and cpu_kernels_impl.h (arithmetic, one thread).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ms_deform_attn {

enum class Element { kFloat32, kFloat64, kBFloat16 };

// One call of the op. All arrays are contiguous; `locations`, `weights` and their gradients are float64 for float64
// values and float32 otherwise.
struct CpuProblem {
  Element element;
  int64_t batch, pixels, heads, channels, queries, levels, points;
  int64_t splits;           // forward only: an image's queries are split into this many items
  const int64_t* shapes;    // (levels, 2): height, width
  const void* value;        // (batch, pixels, heads, channels)
  const void* locations;    // (batch, queries, heads, levels, points, 2): x, y
  const void* weights;      // (batch, queries, heads, levels, points)
  void* output;             // (batch, queries, heads * channels), forward only
  const void* grad_output;  // the same shape; this and the rest: backward only
  void* grad_value;
  void* grad_locations;
  void* grad_weights;
};

// Both functions do the independent work items [begin, end) on the calling thread. An item's result does not depend on
// how the items are split, which is why the bits are the same for any number of threads.
//   forward:  batch * heads * splits items, each some rows of the output
//   backward: batch * heads * levels items, each the only owner of its rows of grad_value
struct CpuKernels {
  size_t (*forward_scratch)(const CpuProblem&);  // bytes, 64-byte aligned
  void (*forward)(const CpuProblem&, int64_t begin, int64_t end, char* scratch);
  size_t (*backward_scratch)(const CpuProblem&);
  void (*backward)(const CpuProblem&, int64_t begin, int64_t end, char* scratch);
};

CpuKernels plain_kernels();
CpuKernels avx2_kernels();  // call only where supports_avx2()
bool supports_avx2();

}  // namespace ms_deform_attn
