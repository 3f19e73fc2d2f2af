// The CPU op's arithmetic under sanitizers: both instruction sets, random shapes, against plain float64 loops.

#include "cpu_kernels.h"

#include <algorithm>
#include <cstdlib>

#include "oracle.h"

using namespace ms_deform_attn;

template <class T>
struct Array {  // exactly as many elements as it should have, so that the sanitizer sees every slip
  T* data;
  explicit Array(size_t count) : data((T*)std::malloc(count * sizeof(T))) { std::memset((void*)data, 0xff, count * sizeof(T)); }
  ~Array() { std::free(data); }
};

struct BF16 {
  uint16_t bits;
};
inline float widen(BF16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline void set(float& to, double x) { to = float(x); }
inline void set(double& to, double x) { to = x; }
inline void set(BF16& to, double x) {  // ties away from zero; the oracle takes what comes out
  const float wide = float(x);
  uint32_t bits;
  std::memcpy(&bits, &wide, 4);
  to.bits = uint16_t((bits + 0x8000) >> 16);
}

template <class T, class C>
bool check(const CpuKernels& kernels, Element element, Oracle o, double tolerance) {
  const auto wide = [](auto x) { return widen(x); };
  Array<T> value(o.value.size()), grad_output(o.grad_output.size()), output(o.grad_output.size());
  Array<T> grad_value(o.value.size());
  Array<C> locations(o.locations.size()), weights(o.weights.size());
  Array<C> grad_locations(o.locations.size()), grad_weights(o.weights.size());
  for (size_t i = 0; i < o.value.size(); ++i) set(value.data[i], o.value[i]), o.value[i] = widen(value.data[i]);
  for (size_t i = 0; i < o.grad_output.size(); ++i)
    set(grad_output.data[i], o.grad_output[i]), o.grad_output[i] = widen(grad_output.data[i]);
  for (size_t i = 0; i < o.locations.size(); ++i) locations.data[i] = C(o.locations[i]);
  for (size_t i = 0; i < o.weights.size(); ++i) weights.data[i] = C(o.weights[i]);
  o.run();

  CpuProblem p{};
  p.element = element;
  p.batch = o.batch, p.pixels = o.pixels, p.heads = o.heads, p.channels = o.channels;
  p.queries = o.queries, p.levels = o.levels, p.points = o.points, p.splits = 1 + o.queries / 3;
  p.shapes = o.shapes.data();
  p.value = value.data, p.locations = locations.data, p.weights = weights.data, p.output = output.data;
  p.grad_output = grad_output.data, p.grad_value = grad_value.data;
  p.grad_locations = grad_locations.data, p.grad_weights = grad_weights.data;
  const auto all = [&](auto scratch, auto work, int64_t items) {  // two calls, as two threads would make
    const size_t bytes = (scratch(p) + 63) / 64 * 64;
    char* memory = (char*)std::aligned_alloc(64, bytes);
    std::memset(memory, 0xff, bytes);
    work(p, 0, items / 2, memory);
    work(p, items / 2, items, memory);
    std::free(memory);
  };
  all(kernels.forward_scratch, kernels.forward, o.batch * o.heads * p.splits);
  all(kernels.backward_scratch, kernels.backward, o.batch * o.heads * o.levels);
  bool good = close("output", o, o.output, output.data, tolerance, wide);
  good = close("grad_value", o, o.grad_value, grad_value.data, tolerance, wide) && good;
  const double exact = sizeof(C) == 8 ? 1e-12 : 1e-5;
  good = close("grad_locations", o, o.grad_locations, grad_locations.data, 4 * exact, wide) && good;
  good = close("grad_weights", o, o.grad_weights, grad_weights.data, exact, wide) && good;
  if (!good) std::printf("  with %d-byte elements\n", int(sizeof(T)));
  return good;
}

int main() {
  std::mt19937 random(20261123);
  bool good = true;
  std::vector<CpuKernels> all{plain_kernels()};
  if (supports_avx2()) all.push_back(avx2_kernels());
  for (int number = 0; number < 40; ++number) {
    const Oracle o = random_problem(random, number);
    for (const CpuKernels& kernels : all) {
      good = check<float, float>(kernels, Element::kFloat32, o, 1e-5) && good;
      good = check<double, double>(kernels, Element::kFloat64, o, 1e-12) && good;
      good = check<BF16, float>(kernels, Element::kBFloat16, o, 1.0 / 128) && good;
    }
  }
  std::puts(good ? "ok" : "failed");
  return good ? 0 : 1;
}
