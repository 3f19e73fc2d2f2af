// Runs the CUDA op's body on the host, block by block and group by group, as the launch would.
//
// As a program (-DPROGRAM, under sanitizers): random shapes against plain float64 loops. As a library: the same through
// C functions, for test_device_body.py.

#include "cuda_launch.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "oracle.h"

using namespace ms_deform_attn;

// A group on the host: its lanes one after the other, what each keeps in an array.
template <class C, int kGroup>
struct HostGroup {
  static constexpr int kLanes = kGroup;
  template <class T>
  struct PerLane {
    T of[kGroup];
    T& operator[](int lane) { return of[lane]; }
  };
  Corners<C> slots[kGroup];

  Corners<C>& slot(int lane) { return slots[lane]; }
  template <class F>
  void each(F body) {
    for (int lane = 0; lane < kGroup; ++lane) body(lane);
  }
  void sync() {}
  template <class F>
  unsigned vote(F body) {
    unsigned found = 0;
    for (int lane = 0; lane < kGroup; ++lane) found |= unsigned(body(lane)) << lane;
    return found;
  }
  Int64 broadcast(const PerLane<int>& number, int lane) { return number.of[lane]; }
  template <int kVector>
  void add(C* to, const Vector<C, kVector>& share) {
    for (int v = 0; v < kVector; ++v) to[v] += share.lane[v];
  }
  // The same exchanges, in the same order, as CudaGroup::collect.
  void collect(PerLane<Dots<C, kGroup>>& dots, int corner) {
    for (int step = kGroup / 2; step > 0; step /= 2) {
      PerLane<Dots<C, kGroup>> before = dots;
      for (int lane = 0; lane < kGroup; ++lane) {
        for (int i = 0; i < step; ++i) {
          const C* own = before[lane].corner[corner];
          const C* other = before[lane ^ step].corner[corner];
          dots[lane].corner[corner][i] = lane & step ? own[i + step] + other[i + step] : own[i] + other[i];
        }
      }
    }
  }
};

// Calls body(group, item) for all that <<<blocks, kThreads>>> runs, from block `first` on; every lane of a group has to
// be given the same item.
template <class C, int kGroup, class Body>
int grid(const Params& p, Int64 first, Int64 blocks, Body body) {
  for (Int64 block = first; block < blocks; ++block)
    for (int thread = 0; thread < kThreads; thread += kGroup) {
      const Item item = item_of(p, kGroup, unsigned(block), thread);
      for (int lane = 1; lane < kGroup; ++lane) {
        const Item other = item_of(p, kGroup, unsigned(block), thread + lane);
        if (other.image != item.image || other.query != item.query || other.head != item.head) return 1;
      }
      HostGroup<C, kGroup> group;
      body(group, item);
    }
  return 0;
}

template <class T, int kGroup, int kVector, int kBackwardGroup, int kBackwardVector>
struct Launch {
  using C = typename ComputeOf<T>::Type;

  static int forward(const Params& p, Int64 blocks, Int64 first = 0) {
    return grid<C, kGroup>(p, first, blocks, [&](auto& group, const Item& item) {
      forward_item<T, kVector>(group, p, item);
    });
  }
  static int backward(const Params& p, Int64 blocks, Int64 first = 0) {
    return grid<C, kBackwardGroup>(p, first, blocks, [&](auto& group, const Item& item) {
      backward_item<T, kBackwardVector>(group, p, item);
    });
  }
  static int last_block(const Params& p) {
    const Int64 blocks = blocks_of(p, kGroup), backward_blocks = blocks_of(p, kBackwardGroup);
    return forward(p, blocks, blocks - 1) + backward(p, backward_blocks, backward_blocks - 1);
  }
  static int owners(const Params& p, Int64 blocks, Int64 first = 0) {
    constexpr int kWarps = kThreads / kOwnerLanes;
    for (Int64 owner = first * kWarps; owner < blocks * kWarps; ++owner) {
      HostGroup<C, kOwnerLanes> group;
      C sums[kOwnedPixels * kOwnerLanes];
      owner_item<T>(group, sums, p, owner);
    }
    return 0;
  }
  // How often each (image, query, head) is computed and stored: 1, or the grid is wrong.
  template <int kOf>
  static void visits(const Params& p, int* counts) {
    for (Int64 block = 0; block < blocks_of(p, kOf); ++block)
      for (int thread = 0; thread < kThreads; thread += kOf) {
        const Item item = item_of(p, kOf, unsigned(block), thread);
        if (item.active) ++counts[(item.image * p.queries + item.query) * p.heads + item.head];
      }
  }
  static int visits(const Params& p, bool backward, int* counts) {
    backward ? visits<kBackwardGroup>(p, counts) : visits<kGroup>(p, counts);
    return 0;
  }
};

// The list at the end of cuda_kernels.cuh.
template <class Do>
int with_kernels(const char* suffix, Do run) {
  const auto is = [&](const char* name) { return std::strcmp(suffix, name) == 0; };
  if (is("float32_vector")) return run(Launch<float, 8, 4, 8, 4>());
  if (is("float32_scalar")) return run(Launch<float, 8, 1, 8, 1>());
  if (is("float64_vector")) return run(Launch<double, 8, 2, 8, 2>());
  if (is("float64_scalar")) return run(Launch<double, 8, 1, 8, 1>());
  if (is("bfloat16_vector")) return run(Launch<BFloat16, 4, 8, 8, 4>());
  if (is("bfloat16_scalar")) return run(Launch<BFloat16, 8, 1, 8, 1>());
  if (is("float16_vector")) return run(Launch<Float16, 4, 8, 8, 4>());
  if (is("float16_scalar")) return run(Launch<Float16, 8, 1, 8, 1>());
  return 2;
}

extern "C" {
// A launch, as the kernel of that name would get it: `backward_float32_vector`, `backward_owners_float32`.
int host_launch(const char* kernel, Int64 blocks, const Params* p) {
  const auto behind = [&](const char* prefix) {
    const size_t length = std::strlen(prefix);
    return std::strncmp(kernel, prefix, length) == 0 ? kernel + length : nullptr;
  };
  if (const char* type = behind("backward_owners_")) {
    const std::string suffix = std::string(type) + "_scalar";
    return with_kernels(suffix.c_str(), [&](auto launch) { return launch.owners(*p, blocks); });
  }
  if (const char* suffix = behind("backward_"))
    return with_kernels(suffix, [&](auto launch) { return launch.backward(*p, blocks); });
  if (const char* suffix = behind("forward_"))
    return with_kernels(suffix, [&](auto launch) { return launch.forward(*p, blocks); });
  return 2;
}
int host_last_block(const char* suffix, const Params* p) {
  return with_kernels(suffix, [&](auto launch) { return launch.last_block(*p); });
}
// The last block of the deterministic way.
int host_last_owners(const char* suffix, const Params* p) {
  return with_kernels(suffix, [&](auto launch) {
    return launch.owners(*p, owner_blocks_of(*p), owner_blocks_of(*p) - 1);
  });
}
int host_visits(const char* suffix, bool backward, const Params* p, int* counts) {
  return with_kernels(suffix, [&](auto launch) { return launch.visits(*p, backward, counts); });
}
Int64 host_blocks(int group, const Params* p) { return blocks_of(*p, group); }
Int64 host_owner_blocks(const Params* p) { return owner_blocks_of(*p); }
const char* host_launch_problem(const Params* p) { return launch_problem(*p); }
bool host_fits_vectors(const Params* p, int element_bytes) { return fits_vectors(*p, element_bytes); }
Int64 host_size_of_params() { return sizeof(Params); }
void host_to_half(const float* from, unsigned short* to) {
  Float16 half;
  narrow(*from, half);
  *to = half.bits;
}
void host_from_half(const unsigned short* from, float* to) { *to = widen(Float16{*from}); }
void host_to_bfloat16(const float* from, unsigned short* to) {
  BFloat16 narrowed;
  narrow(*from, narrowed);
  *to = narrowed.bits;
}
}

#if defined(PROGRAM)

template <class T>
struct Array {  // exactly as many elements as it should have, 16-byte aligned, so that the sanitizer sees every slip
  size_t bytes;
  T* data;
  explicit Array(size_t count) : bytes((count * sizeof(T) + 15) / 16 * 16), data((T*)std::aligned_alloc(16, bytes ? bytes : 16)) {
    std::memset((void*)data, 0, bytes);
  }
  explicit Array(const std::vector<double>& from) : Array(from.size()) {
    for (size_t i = 0; i < from.size(); ++i) narrow(typename ComputeOf<T>::Type(from[i]), data[i]);
  }
  ~Array() { std::free(data); }
};

template <class T, int kGroup, int kVector, int kBackwardGroup, int kBackwardVector>
bool check(Oracle o, double tolerance) {
  if (o.channels % kVector) return true;
  using C = typename ComputeOf<T>::Type;
  using L = Launch<T, kGroup, kVector, kBackwardGroup, kBackwardVector>;
  const auto wide = [](auto x) { return widen(x); };
  const Array<T> value(o.value), grad_output(o.grad_output);
  const Array<C> locations(o.locations), weights(o.weights);
  for (size_t i = 0; i < o.value.size(); ++i) o.value[i] = widen(value.data[i]);  // as stored: rounded
  for (size_t i = 0; i < o.grad_output.size(); ++i) o.grad_output[i] = widen(grad_output.data[i]);
  o.run();
  Array<T> output(o.grad_output.size());
  Array<C> grad_value(o.value.size()), owned(o.value.size());
  Array<C> grad_locations(o.locations.size()), grad_weights(o.weights.size());
  Params p{};
  p.value = value.data, p.locations = locations.data, p.weights = weights.data, p.output = output.data;
  p.grad_output = grad_output.data, p.grad_value = grad_value.data;
  p.grad_locations = grad_locations.data, p.grad_weights = grad_weights.data;
  p.batch = o.batch, p.pixels = o.pixels, p.heads = o.heads, p.channels = o.channels;
  p.queries = o.queries, p.levels = o.levels, p.points = o.points, p.adds = 1;
  Int64 start = 0;
  for (int64_t level = 0; level < o.levels; ++level) {
    p.level[level] = {int(o.shapes[2 * level]), int(o.shapes[2 * level + 1]), start};
    start += o.shapes[2 * level] * o.shapes[2 * level + 1];
  }
  bool good = L::forward(p, blocks_of(p, kGroup)) == 0 && L::backward(p, blocks_of(p, kBackwardGroup)) == 0;
  p.grad_value = owned.data;
  good = L::owners(p, owner_blocks_of(p)) == 0 && good;
  for (const bool backward : {false, true}) {
    std::vector<int> counts(o.batch * o.queries * o.heads, 0);
    L::visits(p, backward, counts.data());
    good = std::all_of(counts.begin(), counts.end(), [](int count) { return count == 1; }) && good;
  }

  const double exact = sizeof(C) == 8 ? 1e-12 : 1e-5;  // coordinates are float32: relative to a large sum
  good = close("output", o, o.output, output.data, tolerance, wide) && good;
  good = close("grad_value", o, o.grad_value, grad_value.data, exact, wide) && good;
  good = close("grad_value of owners", o, o.grad_value, owned.data, exact, wide) && good;
  good = close("grad_locations", o, o.grad_locations, grad_locations.data, 4 * exact, wide) && good;
  good = close("grad_weights", o, o.grad_weights, grad_weights.data, exact, wide) && good;
  if (!good) std::printf("  with %d-byte elements, groups of %d, vectors of %d\n", int(sizeof(T)), kGroup, kVector);
  return good;
}

int main() {
  std::mt19937 random(20261123);
  bool good = true;
  for (int number = 0; number < 40; ++number) {
    const Oracle o = random_problem(random, number);
    good = check<float, 8, 4, 8, 4>(o, 1e-5) && good;
    good = check<float, 8, 1, 8, 1>(o, 1e-5) && good;
    good = check<double, 8, 2, 8, 2>(o, 1e-12) && good;
    good = check<double, 8, 1, 8, 1>(o, 1e-12) && good;
    good = check<BFloat16, 4, 8, 8, 4>(o, 1.0 / 128) && good;
    good = check<BFloat16, 8, 1, 8, 1>(o, 1.0 / 128) && good;
    good = check<Float16, 4, 8, 8, 4>(o, 1.0 / 1024) && good;
    good = check<Float16, 8, 1, 8, 1>(o, 1.0 / 1024) && good;
  }
  std::puts(good ? "ok" : "failed");
  return good ? 0 : 1;
}

#endif
