// The CPU op's arithmetic under sanitizers: both instruction sets, random shapes, against plain float64 loops.

#include "cpu_kernels.h"

#include <sys/mman.h>

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

// Address space only: memory that is never touched is not there.
struct Mapped {
  size_t bytes;
  float* data;
  explicit Mapped(int64_t count) : bytes(size_t(count) * sizeof(float)) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    data = (float*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (data == MAP_FAILED) std::puts("no address space"), std::exit(3);
  }
  ~Mapped() { munmap(data, bytes); }
};

// Behind more than 2^31 elements an image gets the same bits as alone.
bool check_last_image(const CpuKernels& kernels, std::mt19937& random) {
  Oracle o;
  o.batch = 1, o.heads = 8, o.channels = 32, o.queries = 70, o.levels = 2, o.points = 3;
  o.shapes = {7, 5, 4, 9};
  o.fill(random);
  const int64_t images = (int64_t(1) << 31) / int64_t(o.value.size()) + 2;
  const size_t sizes[] = {o.value.size(), o.locations.size(), o.weights.size(), o.grad_output.size()};
  std::vector<float> results[2];
  for (const int64_t batch : {int64_t(1), images}) {
    Mapped value(batch * sizes[0]), grad_value(batch * sizes[0]), output(batch * sizes[3]), grad_output(batch * sizes[3]);
    Mapped locations(batch * sizes[1]), grad_locations(batch * sizes[1]);
    Mapped weights(batch * sizes[2]), grad_weights(batch * sizes[2]);
    std::copy(o.value.begin(), o.value.end(), value.data + (batch - 1) * sizes[0]);
    std::copy(o.locations.begin(), o.locations.end(), locations.data + (batch - 1) * sizes[1]);
    std::copy(o.weights.begin(), o.weights.end(), weights.data + (batch - 1) * sizes[2]);
    std::copy(o.grad_output.begin(), o.grad_output.end(), grad_output.data + (batch - 1) * sizes[3]);
    CpuProblem p{};
    p.element = Element::kFloat32;
    p.batch = batch, p.pixels = o.pixels, p.heads = o.heads, p.channels = o.channels;
    p.queries = o.queries, p.levels = o.levels, p.points = o.points, p.splits = 2;
    p.shapes = o.shapes.data();
    p.value = value.data, p.locations = locations.data, p.weights = weights.data, p.output = output.data;
    p.grad_output = grad_output.data, p.grad_value = grad_value.data;
    p.grad_locations = grad_locations.data, p.grad_weights = grad_weights.data;
    Mapped scratch(int64_t(kernels.forward_scratch(p) + kernels.backward_scratch(p)));
    const int64_t forward = p.heads * p.splits, backward = p.heads * p.levels;
    kernels.forward(p, (batch - 1) * forward, batch * forward, (char*)scratch.data);
    kernels.backward(p, (batch - 1) * backward, batch * backward, (char*)scratch.data);
    std::vector<float>& seen = results[batch > 1];
    const float* last[] = {grad_value.data, grad_locations.data, grad_weights.data, output.data};
    for (int i = 0; i < 4; ++i) seen.insert(seen.end(), last[i] + (batch - 1) * sizes[i], last[i] + batch * sizes[i]);
  }
  const bool same = std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)) == 0;
  if (!same) std::puts("the last image of many differs from the same image alone");
  return same;
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
  for (const CpuKernels& kernels : all) good = check_last_image(kernels, random) && good;
  std::puts(good ? "ok" : "failed");
  return good ? 0 : 1;
}
