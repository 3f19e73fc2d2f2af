// The arithmetic of the CUDA op: what one group of lanes does for one (image, query, head). The same text is compiled
// for the GPU (cuda_kernels.cuh, by nvcc or NVRTC) and for the host (tests/kernel), which run a group's lanes
// one after the other. It needs no headers.
//
// A group is 4 or 8 lanes of a warp, or a whole warp. In the gathering phases each lane holds a vector of channels; in
// the preparing phases each lane holds one sampling point, so that no coordinate is computed twice. Between the two the
// points' corners travel through `slots` (shared memory), and in the backward pass sums over channels travel back by
// `collect`.
#pragma once

#if defined(__CUDACC__)
#define MSDA_FN __device__ __forceinline__
#define MSDA_BOTH __host__ __device__ __forceinline__
#define MSDA_UNROLL _Pragma("unroll")
#define MSDA_NO_UNROLL _Pragma("unroll 1")
#define MSDA_COPY memcpy  // NVRTC knows no __builtin_memcpy
#define MSDA_KEEP(POINTER) asm("" : "+l"(POINTER))  // one number in registers: nothing is added to it anew at each use
#else
#define MSDA_FN inline
#define MSDA_BOTH inline
#define MSDA_UNROLL
#define MSDA_NO_UNROLL
#define MSDA_COPY __builtin_memcpy
#define MSDA_KEEP(POINTER)
#endif

namespace ms_deform_attn {

using Int64 = long long;

constexpr int kMaxLevels = 64;  // they travel as kernel parameters
constexpr int kThreads = 256;   // in a block

struct Level {
  int height, width;
  Int64 start;  // the level's first pixel
};

// One call of the op; the layout is repeated in cuda.py. Arrays are contiguous. Coordinates, weights, their gradients and
// grad_value are float64 for float64 values and float32 otherwise.
struct Params {
  const void* value;        // (batch, pixels, heads, channels)
  const void* locations;    // (batch, queries, heads, levels, points, 2)
  const void* weights;      // (batch, queries, heads, levels, points)
  void* output;             // (batch, queries, heads, channels), forward only
  const void* grad_output;  // the same shape; this and the rest: backward only
  void* grad_value;
  void* grad_locations;
  void* grad_weights;
  Int64 batch, pixels, heads, channels, queries, levels, points;
  Int64 adds;  // 1 where the backward kernel adds to grad_value, 0 where its owners do
  Level level[kMaxLevels];
};

// ------------------------------------------------------------------------------------------------------ number types

struct BFloat16 {
  unsigned short bits;
};
struct Float16 {
  unsigned short bits;
};

template <class T>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};

template <class To, class From>
MSDA_FN To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  MSDA_COPY(&to, &from, sizeof(To));
  return to;
}

MSDA_FN int lowest_bit(unsigned bits) {  // of at least one
#if defined(__CUDACC__)
  return __ffs(bits) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

MSDA_FN float widen(float x) { return x; }
MSDA_FN double widen(double x) { return x; }
MSDA_FN float widen(BFloat16 x) { return bits_as<float>((unsigned)x.bits << 16); }
MSDA_FN float widen(Float16 x) {
#if defined(__CUDACC__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  const unsigned sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_as<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // As a float the exponent is off by 112; multiplying puts it right, subnormal numbers too.
  return bits_as<float>(sign | magnitude << 13) * 5.192296858534828e33f;  // 2^112
#endif
}

MSDA_FN void narrow(float x, float& to) { to = x; }
MSDA_FN void narrow(double x, double& to) { to = x; }
MSDA_FN void narrow(float x, BFloat16& to) {  // to nearest, ties to even
  const unsigned bits = bits_as<unsigned>(x);
  to.bits = x != x ? 0x7fc0 : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
MSDA_FN void narrow(float x, Float16& to) {
#if defined(__CUDACC__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const unsigned bits = bits_as<unsigned>(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  unsigned half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fffu;
  } else if (magnitude >= 0x47800000u) {  // 65536 and more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the rounded subnormal in the last bits
    half = bits_as<unsigned>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to.bits = (unsigned short)(sign | half);
#endif
}

template <class C, int kVector>
struct Vector {
  C lane[kVector];
};

// kVector elements as they lie in memory: vectors as words, which a condition selects in as many instructions.
template <class T, int kVector, bool kWords = (kVector > 1)>
struct alignas(sizeof(T) * kVector) Packed {
  T element[kVector];
  MSDA_FN T get(int i) const { return element[i]; }
  MSDA_FN void set(int i, T x) { element[i] = x; }
};

template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Packed<T, kVector, true> {
  unsigned word[sizeof(T) * kVector / 4];
  MSDA_FN T get(int i) const {
    if constexpr (sizeof(T) == 2) {
      return T{(unsigned short)(word[i / 2] >> (i % 2 * 16))};
    } else if constexpr (sizeof(T) == 4) {
      return bits_as<T>(word[i]);
    } else {
      return bits_as<T>((unsigned long long)word[2 * i + 1] << 32 | word[2 * i]);
    }
  }
  MSDA_FN void set(int i, T x) {
    if constexpr (sizeof(T) == 2) {
      word[i / 2] = i % 2 ? word[i / 2] | unsigned(x.bits) << 16 : unsigned(x.bits);
    } else if constexpr (sizeof(T) == 4) {
      word[i] = bits_as<unsigned>(x);
    } else {
      const unsigned long long bits = bits_as<unsigned long long>(x);
      word[2 * i] = unsigned(bits), word[2 * i + 1] = unsigned(bits >> 32);
    }
  }
};

// Loads and stores kVector elements; `from` and `to` are aligned to all of them. What is read stays as it lies in memory
// until it is used: a conversion beside a load under a condition would become a branch, in which one load is waited for
// before the next begins.
template <class T, int kVector>
MSDA_FN Packed<T, kVector> load_packed(const T* from) {
#if defined(__CUDACC__)
  if constexpr (sizeof(Packed<T, kVector>) == 16) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
    Packed<T, kVector> packed;
    packed.word[0] = words.x, packed.word[1] = words.y, packed.word[2] = words.z, packed.word[3] = words.w;
    return packed;
  }
  if constexpr (sizeof(Packed<T, kVector>) == 8 && kVector > 1) {
    const uint2 words = __ldg(reinterpret_cast<const uint2*>(from));
    Packed<T, kVector> packed;
    packed.word[0] = words.x, packed.word[1] = words.y;
    return packed;
  }
#endif
  Packed<T, kVector> packed;
  MSDA_COPY(&packed, from, sizeof(packed));
  return packed;
}

template <class T, int kVector>
MSDA_FN Vector<typename ComputeOf<T>::Type, kVector> widened(const Packed<T, kVector>& packed) {
  Vector<typename ComputeOf<T>::Type, kVector> wide;
  MSDA_UNROLL
  for (int i = 0; i < kVector; ++i) wide.lane[i] = widen(packed.get(i));
  return wide;
}

template <class T, int kVector>
MSDA_FN Vector<typename ComputeOf<T>::Type, kVector> load(const T* from) {
  return widened<T, kVector>(load_packed<T, kVector>(from));
}

template <class T, int kVector>
MSDA_FN void store(T* to, const Vector<typename ComputeOf<T>::Type, kVector>& wide) {
  Packed<T, kVector> packed;
  MSDA_UNROLL
  for (int i = 0; i < kVector; ++i) {
    T narrowed;
    narrow(wide.lane[i], narrowed);
    packed.set(i, narrowed);
  }
  *reinterpret_cast<Packed<T, kVector>*>(to) = packed;
}

// --------------------------------------------------------------------------------------------------- sampling points

// A point's corners, as the gathering lanes need them. Order: (y0, x0), (y0, x1), (y1, x0), (y1, x1).
template <class C>
struct alignas(16) Corners {
  unsigned at[4];  // the corner's row of channels, in steps of `Rows`; kOutside where the corner is outside
  C weight[4];     // bilinear weight times attention weight
};

constexpr unsigned kOutside = 0xffffffffu;

// How the rows of one image are counted. In the vector kernels in vectors, so that one multiplication gives an address
// (32 bits: the host takes the scalar kernels for an image of more vectors), else in pixels.
template <class T, int kVector>
struct Rows {
  static constexpr bool kInVectors = kVector > 1;
  Int64 stride;  // elements of a pixel
  MSDA_FN unsigned steps() const { return kInVectors ? unsigned(stride / kVector) : 1u; }
  MSDA_FN Int64 element(unsigned at) const { return Int64(at) * (kInVectors ? Int64(kVector) : stride); }
};

// What the lane that owns a point keeps for its gradients.
template <class C>
struct Point {
  C attention, right, below, width, height;
};

template <class C>
MSDA_FN C clamped(C x, C limit) {  // into [-2, limit + 1]: just outside; NaN too
  x = x > C(-2) ? x : C(-2);
  return x < limit + 1 ? x : limit + 1;
}

template <class C>
MSDA_FN int floor_of(C x) {
  const int towards_zero = (int)x;
  return towards_zero - (C(towards_zero) > x);
}

template <class C>
MSDA_FN Corners<C> corners_of(const Level& level, unsigned steps, C x, C y, C attention, Point<C>& point) {
  point.width = C(level.width);
  point.height = C(level.height);
  x = x * point.width - C(0.5);
  y = y * point.height - C(0.5);
  const C poison = (x - x) + (y - y);  // 0, or NaN where a coordinate is not finite
  x = clamped(x, point.width);
  y = clamped(y, point.height);
  const int left = floor_of(x), top = floor_of(y);
  point.right = x - C(left);
  point.below = y - C(top);
  point.attention = attention + poison;

  const C from_right = 1 - point.right, from_below = 1 - point.below;
  const bool x0 = left >= 0 && left < level.width, x1 = left >= -1 && left < level.width - 1;
  const bool y0 = top >= 0 && top < level.height, y1 = top >= -1 && top < level.height - 1;
  // Modulo 2^32, where a corner that is inside is right.
  const unsigned first = (unsigned(level.start) + unsigned(top) * unsigned(level.width) + unsigned(left)) * steps;
  const unsigned down = unsigned(level.width) * steps;
  Corners<C> corners;
  corners.at[0] = y0 && x0 ? first : kOutside;
  corners.at[1] = y0 && x1 ? first + steps : kOutside;
  corners.at[2] = y1 && x0 ? first + down : kOutside;
  corners.at[3] = y1 && x1 ? first + down + steps : kOutside;
  corners.weight[0] = point.attention * from_below * from_right;
  corners.weight[1] = point.attention * from_below * point.right;
  corners.weight[2] = point.attention * point.below * from_right;
  corners.weight[3] = point.attention * point.below * point.right;
  return corners;
}

template <class C>
MSDA_FN Corners<C> no_corners() {
  Corners<C> corners;
  MSDA_UNROLL
  for (int i = 0; i < 4; ++i) corners.at[i] = kOutside, corners.weight[i] = 0;
  return corners;
}

// A corner's channels; zeros outside. (So that a weight that is not a number reaches the sum from outside, too.)
template <class T, int kVector>
MSDA_FN Packed<T, kVector> load_corner(const T* row, const Rows<T, kVector>& rows, unsigned at) {
  Packed<T, kVector> packed{};
  if (at != kOutside) packed = load_packed<T, kVector>(row + rows.element(at));
  return packed;
}

// -------------------------------------------------------------------------------------------------------- work items

struct Item {
  Int64 image, query, head;
  bool active;  // false for the surplus groups of the last block: they do the work of another and store nothing
};

// A block has kThreads / group consecutive queries of one head: neighbours read the same pixels. Heads of the same
// queries come next, then the next queries, then the next image: few images are in use at a time.
MSDA_BOTH Int64 query_tiles(const Params& p, int group) {
  const int queries = kThreads / group;
  return (p.queries + queries - 1) / queries;
}

MSDA_BOTH Int64 blocks_of(const Params& p, int group) { return p.batch * query_tiles(p, group) * p.heads; }

MSDA_FN Item item_of(const Params& p, int group, unsigned block, int thread) {
  // All of them are below 2^31: the host counts them. Divisions of 64 bits would be a tenth of the kernel.
  const unsigned heads = unsigned(p.heads), tiles = unsigned(query_tiles(p, group)), tile = block / heads;
  Item item;
  item.head = block - tile * heads;
  item.image = tile / tiles;
  item.query = Int64(tile % tiles) * (kThreads / group) + thread / group;
  item.active = item.query < p.queries;
  if (!item.active) item.query = p.queries - 1;
  return item;
}

// The owners of the deterministic backward pass: a warp for some pixels of one (image, head) side by side in memory.
constexpr int kOwnerLanes = 32, kOwnedPixels = 16;

MSDA_BOTH Int64 owners_of_image(const Params& p) { return (p.pixels + kOwnedPixels - 1) / kOwnedPixels; }

MSDA_BOTH Int64 owner_blocks_of(const Params& p) {
  const int owners = kThreads / kOwnerLanes;
  return (p.batch * p.heads * owners_of_image(p) + owners - 1) / owners;
}

// --------------------------------------------------------------------------------------------------------- the bodies

// Calls body(i) for i below `count`, at most kMost. Unrolled in the vector kernels, so that what body indexes with i stays
// in registers; the others are to be small and quick to compile.
template <bool kUnrolled, int kMost, class F>
MSDA_FN void repeat(int count, F body) {
  if constexpr (kUnrolled) {
    MSDA_UNROLL
    for (int i = 0; i < kMost; ++i)
      if (i < count) body(i);
  } else {
    MSDA_NO_UNROLL
    for (int i = 0; i < kMost && i < count; ++i) body(i);
  }
}

template <class T, int kVector, class Group>
MSDA_FN void forward_item(Group& group, const Params& p, const Item& item) {
  using C = typename ComputeOf<T>::Type;
  constexpr int kLanes = Group::kLanes;
  constexpr bool kUnrolled = kVector >= 4;
  const int points = int(p.levels * p.points);
  const Int64 row = (item.image * p.queries + item.query) * p.heads + item.head;
  const Rows<T, kVector> rows{p.heads * p.channels};
  const unsigned steps = rows.steps();
  const T* value = static_cast<const T*>(p.value) + (item.image * p.pixels * p.heads + item.head) * p.channels;
  const C* locations = static_cast<const C*>(p.locations) + row * points * 2;
  const C* weights = static_cast<const C*>(p.weights) + row * points;
  T* output = static_cast<T*>(p.output) + row * p.channels;

  for (Int64 channel = 0; channel < p.channels; channel += kLanes * kVector) {
    typename Group::template PerLane<Vector<C, kVector>> sum;
    group.each([&](int lane) {
      MSDA_UNROLL
      for (int i = 0; i < kVector; ++i) sum[lane].lane[i] = 0;
    });
    for (int first = 0; first < points; first += kLanes) {
      group.each([&](int lane) {
        const int at = first + lane;
        Point<C> point;
        group.slot(lane) = at < points ? corners_of<C>(p.level[unsigned(at) / unsigned(p.points)], steps,
                                                       locations[2 * at], locations[2 * at + 1], weights[at], point)
                                       : no_corners<C>();
      });
      group.sync();
      group.each([&](int lane) {
        const Int64 c = channel + lane * kVector;
        if (c >= p.channels) return;
        const T* from = value + c;
        MSDA_KEEP(from);
        repeat<kUnrolled, kLanes>(points - first, [&](int i) {
          const Corners<C> corners = group.slot(i);
          Packed<T, kVector> packed[4];
          MSDA_UNROLL
          for (int corner = 0; corner < 4; ++corner)
            packed[corner] = load_corner<T, kVector>(from, rows, corners.at[corner]);
          MSDA_UNROLL
          for (int corner = 0; corner < 4; ++corner) {
            const Vector<C, kVector> sample = widened<T, kVector>(packed[corner]);
            MSDA_UNROLL
            for (int v = 0; v < kVector; ++v) sum[lane].lane[v] += corners.weight[corner] * sample.lane[v];
          }
        });
      });
      group.sync();
    }
    group.each([&](int lane) {
      const Int64 c = channel + lane * kVector;
      if (item.active && c < p.channels) store<T, kVector>(output + c, sum[lane]);
    });
  }
}

// One lane's partial dot products of grad_output with the corners of kLanes points.
template <class C, int kLanes>
struct Dots {
  C corner[4][kLanes];
};

// Where p.adds, also adds to grad_value, in no particular order.
template <class T, int kVector, class Group>
MSDA_FN void backward_item(Group& group, const Params& p, const Item& item) {
  using C = typename ComputeOf<T>::Type;
  constexpr int kLanes = Group::kLanes;
  constexpr bool kUnrolled = kVector >= 4;
  const int points = int(p.levels * p.points);
  const Int64 row = (item.image * p.queries + item.query) * p.heads + item.head;
  const Rows<T, kVector> rows{p.heads * p.channels};
  const unsigned steps = rows.steps();
  const Int64 origin = (item.image * p.pixels * p.heads + item.head) * p.channels;
  const T* value = static_cast<const T*>(p.value) + origin;
  C* grad_value = static_cast<C*>(p.grad_value) + origin;
  const C* locations = static_cast<const C*>(p.locations) + row * points * 2;
  const C* weights = static_cast<const C*>(p.weights) + row * points;
  const T* grad_output = static_cast<const T*>(p.grad_output) + row * p.channels;
  C* grad_locations = static_cast<C*>(p.grad_locations) + row * points * 2;
  C* grad_weights = static_cast<C*>(p.grad_weights) + row * points;
  const bool adds = p.adds && item.active;

  for (int first = 0; first < points; first += kLanes) {
    typename Group::template PerLane<Point<C>> point;
    typename Group::template PerLane<Dots<C, kLanes>> dots;
    group.each([&](int lane) {
      const int at = first + lane;
      group.slot(lane) = at < points ? corners_of<C>(p.level[unsigned(at) / unsigned(p.points)], steps,
                                                     locations[2 * at], locations[2 * at + 1], weights[at], point[lane])
                                     : no_corners<C>();
      MSDA_UNROLL
      for (int i = 0; i < 4 * kLanes; ++i) dots[lane].corner[i / kLanes][i % kLanes] = 0;
    });
    group.sync();
    for (Int64 channel = 0; channel < p.channels; channel += kLanes * kVector) {
      group.each([&](int lane) {
        const Int64 c = channel + lane * kVector;
        if (c >= p.channels) return;
        const Vector<C, kVector> grad = load<T, kVector>(grad_output + c);
        const T* from = value + c;
        C* to = grad_value + c;
        MSDA_KEEP(from);
        MSDA_KEEP(to);
        repeat<kUnrolled, kLanes>(points - first, [&](int i) {
          const Corners<C> corners = group.slot(i);
          Packed<T, kVector> packed[4];
          MSDA_UNROLL
          for (int corner = 0; corner < 4; ++corner)
            packed[corner] = load_corner<T, kVector>(from, rows, corners.at[corner]);
          MSDA_UNROLL
          for (int corner = 0; corner < 4; ++corner) {
            const Vector<C, kVector> sample = widened<T, kVector>(packed[corner]);
            Vector<C, kVector> share;
            MSDA_UNROLL
            for (int v = 0; v < kVector; ++v) {
              dots[lane].corner[corner][i] += grad.lane[v] * sample.lane[v];
              share.lane[v] = corners.weight[corner] * grad.lane[v];
            }
            if (adds && corners.at[corner] != kOutside)
              group.add(to + rows.element(corners.at[corner]), share);
          }
        });
      });
    }
    MSDA_UNROLL
    for (int corner = 0; corner < 4; ++corner) group.collect(dots, corner);
    group.each([&](int lane) {
      const int at = first + lane;
      if (!item.active || at >= points) return;
      const Point<C>& own = point[lane];
      const C d0 = dots[lane].corner[0][0], d1 = dots[lane].corner[1][0];
      const C d2 = dots[lane].corner[2][0], d3 = dots[lane].corner[3][0];
      const C from_right = 1 - own.right, from_below = 1 - own.below;
      const C poison = own.attention - own.attention;
      Vector<C, 2> grad;
      grad.lane[0] = own.attention * own.width * (from_below * (d1 - d0) + own.below * (d3 - d2));
      grad.lane[1] = own.attention * own.height * (from_right * (d2 - d0) + own.right * (d3 - d1));
      store<C, 2>(grad_locations + 2 * at, grad);
      grad_weights[at] =
          from_below * (from_right * d0 + own.right * d1) + own.below * (from_right * d2 + own.right * d3) + poison;
    });
    group.sync();
  }
}

// The deterministic way to grad_value: each owner looks at all points of the levels that its pixels belong to, adds what
// meets them in the order of the queries, and stores each pixel once. `sums` has kOwnedPixels rows of kOwnerLanes.
template <class T, class Group>
MSDA_FN void owner_item(Group& group, typename ComputeOf<T>::Type* sums, const Params& p, Int64 owner) {
  using C = typename ComputeOf<T>::Type;
  const Int64 owners = owners_of_image(p), image_head = owner / owners;
  if (image_head >= p.batch * p.heads) return;
  const Int64 image = image_head / p.heads, head = image_head % p.heads, begin = owner % owners * kOwnedPixels;
  const Int64 left = p.pixels - begin;
  const unsigned pixels = left < kOwnedPixels ? unsigned(left) : kOwnedPixels;
  const Int64 row = p.heads * p.channels, samples = p.heads * p.levels * p.points;  // of a query
  const C* locations = static_cast<const C*>(p.locations) + 2 * image * p.queries * samples;
  const C* weights = static_cast<const C*>(p.weights) + image * p.queries * samples;
  const T* grad_output = static_cast<const T*>(p.grad_output) + image * p.queries * row + head * p.channels;
  C* grad_value = static_cast<C*>(p.grad_value) + (image * p.pixels + begin) * row + head * p.channels;
  const Int64 count = p.queries * p.points;
  const int points = count > 0 ? int(p.points) : 1;

  for (Int64 channel = 0; channel < p.channels; channel += kOwnerLanes) {
    group.each([&](int lane) {
      for (int i = 0; i < kOwnedPixels; ++i) sums[i * kOwnerLanes + lane] = 0;
    });
    for (int level = 0; level < int(p.levels); ++level) {
      const Level& size = p.level[level];
      if (begin + pixels <= size.start || begin >= size.start + Int64(size.height) * size.width) continue;
      const Int64 origin = (head * p.levels + level) * p.points;
      typename Group::template PerLane<int> query, point;  // of each lane
      group.each([&](int lane) { query[lane] = lane / points, point[lane] = lane % points; });
      for (Int64 first = 0; first < count; first += kOwnerLanes) {
        unsigned found = group.vote([&](int lane) {
          if (first + lane >= count) return false;
          const Int64 at = origin + query[lane] * samples + point[lane];
          Point<C> unused;
          const Corners<C> corners =
              corners_of<C>(size, 1, locations[2 * at], locations[2 * at + 1], weights[at], unused);
          bool meets = false;
          MSDA_UNROLL
          for (int i = 0; i < 4; ++i) meets = meets || corners.at[i] - unsigned(begin) < pixels;
          group.slot(lane) = corners;
          return meets;
        });
        group.sync();
        for (; found != 0; found &= found - 1) {
          const int i = lowest_bit(found);
          const T* grads = grad_output + group.broadcast(query, i) * row;
          group.each([&](int lane) {
            if (channel + lane >= p.channels) return;
            const C grad = widen(grads[channel + lane]);
            const Corners<C> corners = group.slot(i);
            MSDA_UNROLL
            for (int corner = 0; corner < 4; ++corner) {
              const unsigned pixel = corners.at[corner] - unsigned(begin);
              if (pixel < pixels) sums[pixel * kOwnerLanes + lane] += corners.weight[corner] * grad;
            }
          });
        }
        group.sync();
        group.each([&](int lane) {
          query[lane] += kOwnerLanes / points, point[lane] += kOwnerLanes % points;
          if (point[lane] >= points) point[lane] -= points, ++query[lane];
        });
      }
    }
    group.each([&](int lane) {
      if (channel + lane >= p.channels) return;
      for (int i = 0; i < int(pixels); ++i) grad_value[i * row + channel + lane] = sums[i * kOwnerLanes + lane];
    });
  }
}

}  // namespace ms_deform_attn
