// The CUDA kernels: device_body.h on groups of lanes. Compiled by nvcc or by NVRTC, with no headers but our own.
#include "device_body.h"

namespace ms_deform_attn {

template <class C, int kGroup>
struct CudaGroup {
  static constexpr int kLanes = kGroup;
  template <class T>
  struct PerLane {
    T own;
    __device__ __forceinline__ T& operator[](int) { return own; }
  };
  int lane;
  Corners<C>* slots;  // in shared memory

  // A group's slots end with 16 bytes of nothing, so that the groups of a warp read different banks.
  static constexpr int kBytes = kGroup * int(sizeof(Corners<C>)) + 16;
  __device__ __forceinline__ CudaGroup(char* shared)
      : lane(threadIdx.x % kGroup), slots(reinterpret_cast<Corners<C>*>(shared + threadIdx.x / kGroup * kBytes)) {}

  __device__ __forceinline__ Corners<C>& slot(int i) { return slots[i]; }
  template <class F>
  __device__ __forceinline__ void each(F body) {
    body(lane);
  }
  __device__ __forceinline__ void sync() { __syncwarp(); }
  // These two are for whole warps: which lanes say yes, and the number that one of them has.
  template <class F>
  __device__ __forceinline__ unsigned vote(F body) {
    return __ballot_sync(0xffffffffu, body(lane));
  }
  __device__ __forceinline__ Int64 broadcast(const PerLane<int>& number, int i) {
    return __shfl_sync(0xffffffffu, number.own, i);
  }

  template <int kVector>
  __device__ __forceinline__ void add(C* to, const Vector<C, kVector>& share) {
#if __CUDA_ARCH__ >= 900
    constexpr bool kWhole = sizeof(C) == 4 && kVector % 4 == 0;  // four sums in one request
#else
    constexpr bool kWhole = false;
#endif
    if constexpr (kWhole) {
      MSDA_UNROLL
      for (int v = 0; v < kVector; v += 4)
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + v), "f"(share.lane[v]),
                     "f"(share.lane[v + 1]), "f"(share.lane[v + 2]), "f"(share.lane[v + 3])
                     : "memory");
    } else {
      MSDA_UNROLL
      for (int v = 0; v < kVector; ++v) atomicAdd(to + v, share.lane[v]);
    }
  }

  // Adds dots.corner[corner][i] over the lanes and leaves the sum in element 0 of lane i: each step hands over the half
  // that the other lane collects, 7 shuffles for 8 lanes and 8 points.
  __device__ __forceinline__ void collect(PerLane<Dots<C, kGroup>>& dots, int corner) {
    C(&own)[kGroup] = dots.own.corner[corner];
    MSDA_UNROLL
    for (int step = kGroup / 2; step > 0; step /= 2) {
      MSDA_UNROLL
      for (int i = 0; i < step; ++i) {
        const C keep = lane & step ? own[i + step] : own[i];
        const C give = lane & step ? own[i] : own[i + step];
        own[i] = keep + __shfl_xor_sync(0xffffffffu, give, step);
      }
    }
  }
};

}  // namespace ms_deform_attn

using namespace ms_deform_attn;

// Blocks that an SM should hold at once: so many registers that a point's four loads are in flight together, so few that
// other warps fill the waits. float64 takes what it needs.
#define MSDA_BOUNDS(T, BLOCKS) __launch_bounds__(kThreads, sizeof(ComputeOf<T>::Type) == 4 ? BLOCKS : 1)

// `name_vector` reads 16 bytes per lane (channels and pointers must fit), `name_scalar` one element.
#define MSDA_KERNEL(NAME, T, GROUP, BODY)                                                                             \
  extern "C" __global__ void NAME(const __grid_constant__ Params p) {                                                 \
    using Group = CudaGroup<ComputeOf<T>::Type, GROUP>;                                                               \
    __shared__ alignas(16) char shared[kThreads / GROUP * Group::kBytes];                                             \
    Group group(shared);                                                                                              \
    BODY;                                                                                                             \
  }

#define MSDA_KERNELS(NAME, T, GROUP, VECTOR, BACKWARD_GROUP, BACKWARD_VECTOR)                                         \
  MSDA_KERNEL(MSDA_BOUNDS(T, 4) forward_##NAME, T, GROUP,                                                             \
              (forward_item<T, VECTOR>(group, p, item_of(p, GROUP, blockIdx.x, threadIdx.x))))                        \
  MSDA_KERNEL(MSDA_BOUNDS(T, 3) backward_##NAME, T, BACKWARD_GROUP,                                                   \
              (backward_item<T, BACKWARD_VECTOR>(group, p, item_of(p, BACKWARD_GROUP, blockIdx.x, threadIdx.x))))

// The 16-bit backward kernels have 8 lanes of 4 channels: 4 lanes of 8 would reduce into every other 16 bytes of memory.
MSDA_KERNELS(float32_vector, float, 8, 4, 8, 4)
MSDA_KERNELS(float32_scalar, float, 8, 1, 8, 1)
MSDA_KERNELS(float64_vector, double, 8, 2, 8, 2)
MSDA_KERNELS(float64_scalar, double, 8, 1, 8, 1)
MSDA_KERNELS(bfloat16_vector, BFloat16, 4, 8, 8, 4)
MSDA_KERNELS(bfloat16_scalar, BFloat16, 8, 1, 8, 1)
MSDA_KERNELS(float16_vector, Float16, 4, 8, 8, 4)
MSDA_KERNELS(float16_scalar, Float16, 8, 1, 8, 1)

#define MSDA_OWNERS(NAME, T)                                                                                          \
  MSDA_KERNEL(MSDA_BOUNDS(T, 1) backward_owners_##NAME, T, kOwnerLanes,                                               \
              __shared__ ComputeOf<T>::Type sums[kThreads * kOwnedPixels];                                            \
              (owner_item<T>(group, sums + threadIdx.x / kOwnerLanes * kOwnerLanes * kOwnedPixels, p,                 \
                             (blockIdx.x * (Int64)kThreads + threadIdx.x) / kOwnerLanes)))

MSDA_OWNERS(float32, float)
MSDA_OWNERS(float64, double)
MSDA_OWNERS(bfloat16, BFloat16)
MSDA_OWNERS(float16, Float16)
