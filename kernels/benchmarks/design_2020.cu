// The benchmark's baseline, for measuring only: the mapping of the CUDA kernel of 2020 (Zhu et al., "Deformable DETR"),
// written anew from its description. Forward: one thread per output channel, each computing all coordinates for itself.
// Backward, for 32 channels: one block of 32 threads per (image, query, head); per point thread 0 adds up 32 values three
// times from shared memory, between two barriers; scalar atomics.
#include "device_body.h"

using namespace ms_deform_attn;

namespace {

struct Sample {
  int left, top;
  float right, below;
  bool inside;
};

__device__ Sample sample_at(const Params& p, Int64 at, int level) {
  const float* locations = static_cast<const float*>(p.locations);
  const float x = locations[2 * at] * p.level[level].width - 0.5f;
  const float y = locations[2 * at + 1] * p.level[level].height - 0.5f;
  Sample sample;
  sample.inside = x > -1 && y > -1 && x < p.level[level].width && y < p.level[level].height;
  sample.left = (int)floorf(x);
  sample.top = (int)floorf(y);
  sample.right = x - sample.left;
  sample.below = y - sample.top;
  return sample;
}

__device__ bool valid(const Level& level, int x, int y) {
  return x >= 0 && y >= 0 && x < level.width && y < level.height;
}

}  // namespace

extern "C" __global__ void design_2020_forward(const __grid_constant__ Params p) {
  const Int64 index = (Int64)blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.batch * p.queries * p.heads * p.channels) return;
  const Int64 channel = index % p.channels, row = index / p.channels, head = row % p.heads;
  const Int64 image = row / p.heads / p.queries, stride = p.heads * p.channels;
  const float* value = static_cast<const float*>(p.value) + image * p.pixels * stride + head * p.channels + channel;
  float sum = 0;
  for (int level = 0; level < p.levels; ++level) {
    for (int point = 0; point < p.points; ++point) {
      const Int64 at = (row * p.levels + level) * p.points + point;
      const Sample s = sample_at(p, at, level);
      if (!s.inside) continue;
      float sampled = 0;
      for (int corner = 0; corner < 4; ++corner) {
        const int x = s.left + corner % 2, y = s.top + corner / 2;
        if (!valid(p.level[level], x, y)) continue;
        const float weight = (corner % 2 ? s.right : 1 - s.right) * (corner / 2 ? s.below : 1 - s.below);
        sampled += weight * value[(p.level[level].start + (Int64)y * p.level[level].width + x) * stride];
      }
      sum += static_cast<const float*>(p.weights)[at] * sampled;
    }
  }
  static_cast<float*>(p.output)[index] = sum;
}

extern "C" __global__ void design_2020_backward(const __grid_constant__ Params p) {  // 32 threads, 32 channels
  __shared__ float along_x[32], along_y[32], by_weight[32];
  const Int64 row = blockIdx.x, head = row % p.heads, image = row / p.heads / p.queries;
  const Int64 stride = p.heads * p.channels;
  const int channel = threadIdx.x;
  const Int64 origin = image * p.pixels * stride + head * p.channels + channel;
  const float* value = static_cast<const float*>(p.value) + origin;
  float* grad_value = static_cast<float*>(p.grad_value) + origin;
  const float grad = static_cast<const float*>(p.grad_output)[row * p.channels + channel];
  for (int level = 0; level < p.levels; ++level) {
    for (int point = 0; point < p.points; ++point) {
      const Int64 at = (row * p.levels + level) * p.points + point;
      const Sample s = sample_at(p, at, level);
      const float attention = static_cast<const float*>(p.weights)[at];
      float dx = 0, dy = 0, sampled = 0;
      if (s.inside) {
        for (int corner = 0; corner < 4; ++corner) {
          const int x = s.left + corner % 2, y = s.top + corner / 2;
          if (!valid(p.level[level], x, y)) continue;
          const float across = corner % 2 ? s.right : 1 - s.right, down = corner / 2 ? s.below : 1 - s.below;
          const Int64 pixel = (p.level[level].start + (Int64)y * p.level[level].width + x) * stride;
          const float corner_value = value[pixel];
          dx += (corner % 2 ? 1 : -1) * down * corner_value;
          dy += (corner / 2 ? 1 : -1) * across * corner_value;
          sampled += across * down * corner_value;
          atomicAdd(grad_value + pixel, across * down * attention * grad);
        }
      }
      along_x[channel] = p.level[level].width * attention * grad * dx;
      along_y[channel] = p.level[level].height * attention * grad * dy;
      by_weight[channel] = grad * sampled;
      __syncthreads();
      if (channel == 0) {
        float x = 0, y = 0, weight = 0;
        for (int i = 0; i < 32; ++i) x += along_x[i], y += along_y[i], weight += by_weight[i];
        static_cast<float*>(p.grad_locations)[2 * at] = x;
        static_cast<float*>(p.grad_locations)[2 * at + 1] = y;
        static_cast<float*>(p.grad_weights)[at] = weight;
      }
      __syncthreads();
    }
  }
}
