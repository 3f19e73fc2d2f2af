// The arithmetic of the CPU op. Included by cpu_plain.cpp and cpu_avx2.cpp, which compile it for their instruction set;
// everything here is in an anonymous namespace, so that the linker cannot mix the two. No standard headers but the two
// of cpu_kernels.h, for the same reason.
//
// Vectors are GCC's (also clang's): 32 bytes, one AVX2 register, or two SSE/NEON ones on the plain path.

#include "cpu_kernels.h"

namespace ms_deform_attn {
namespace {

typedef float F32x8 __attribute__((vector_size(32)));
typedef int32_t I32x8 __attribute__((vector_size(32)));
typedef int32_t I32x4 __attribute__((vector_size(16)));
typedef uint32_t U32x8 __attribute__((vector_size(32)));
typedef double F64x4 __attribute__((vector_size(32)));
typedef int64_t I64x4 __attribute__((vector_size(32)));

#define MSDA_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define MSDA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MSDA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I32x8{__VA_ARGS__})
#endif

struct BFloat16 {
  uint16_t bits;
};

template <class C>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Float = F32x8;
  using Int = I32x8;
  using Index = int32_t;
  static constexpr int kLanes = 8;
};
template <>
struct VectorOf<double> {
  using Float = F64x4;
  using Int = I64x4;
  using Index = int64_t;
  static constexpr int kLanes = 4;
};

template <class V, class T>
MSDA_INLINE V load_as(const T* from) {
  V vector;
  __builtin_memcpy(&vector, from, sizeof(V));
  return vector;
}

template <class V, class T>
MSDA_INLINE void store_as(T* to, const V& vector) {
  __builtin_memcpy(to, &vector, sizeof(V));
}

template <class T>
MSDA_INLINE T widen(T x) {
  return x;
}
MSDA_INLINE float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, 4);
  return wide;
}

MSDA_INLINE void narrow(float x, float& to) { to = x; }
MSDA_INLINE void narrow(double x, double& to) { to = x; }
MSDA_INLINE void narrow(float x, BFloat16& to) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  to.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A run of kChannels stored elements held as kVectors vectors. The order inside is free as long as load and store agree:
// bfloat16 keeps the even channels in one vector and the odd ones in the other, so widening costs one operation each.
template <class T>
struct Run {
  using C = T;
  static constexpr int kVectors = 1;
  static constexpr int kChannels = VectorOf<C>::kLanes;
  using V = typename VectorOf<C>::Float;
  static MSDA_INLINE void load(const T* from, V* to) { to[0] = load_as<V>(from); }
  static MSDA_INLINE void store(T* to, const V* from) { store_as(to, from[0]); }
};

template <>
struct Run<BFloat16> {
  using C = float;
  static constexpr int kVectors = 2;
  static constexpr int kChannels = 16;
  using V = F32x8;
  static MSDA_INLINE void load(const BFloat16* from, V* to) {
    const U32x8 pairs = load_as<U32x8>(from);
    to[0] = (V)(pairs << 16);
    to[1] = (V)(pairs & 0xffff0000u);
  }
  static MSDA_INLINE U32x8 rounded(V x) {  // bfloat16 bits in the upper half
    const U32x8 bits = (U32x8)x;
    const U32x8 up = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (U32x8)(x == x ? (I32x8)up : (I32x8)(up * 0u + 0x7fc00000u));
  }
  static MSDA_INLINE void store(BFloat16* to, const V* from) {
    store_as(to, (rounded(from[1]) & 0xffff0000u) | (rounded(from[0]) >> 16));
  }
};

// One sampling point's four corners, for kLanes points at once. Corner order: (y0, x0), (y0, x1), (y1, x0), (y1, x1).
template <class C>
struct Corners {
  using V = typename VectorOf<C>::Float;
  using I = typename VectorOf<C>::Int;
  V weight[4];  // bilinear weight, without the attention weight
  I inside[4];  // all bits set, or none
  I first;      // the first corner's pixel in the level; the others' are 1, columns, and columns + 1 further
  V right, below;  // distances to the upper left corner, in [0, 1)
  V poison;        // 0, or NaN where a coordinate is not finite, as grid_sample gives
};

template <class C>
MSDA_INLINE Corners<C> corners_of(typename VectorOf<C>::Float x, typename VectorOf<C>::Float y,
                                  typename VectorOf<C>::Float width, typename VectorOf<C>::Float height,
                                  typename VectorOf<C>::Int columns, typename VectorOf<C>::Int rows) {
  using V = typename VectorOf<C>::Float;
  using I = typename VectorOf<C>::Int;
  Corners<C> corners;
  x = x * width - C(0.5);
  y = y * height - C(0.5);
  corners.poison = (x - x) + (y - y);
  // Clamped to just outside, where no corner is valid, so that the conversion to integers is always defined.
  const V lowest = width * 0 - 2;
  x = x > lowest ? x : lowest;
  y = y > lowest ? y : lowest;
  x = x < width + 1 ? x : width + 1;
  y = y < height + 1 ? y : height + 1;
  I left = __builtin_convertvector(x, I), top = __builtin_convertvector(y, I);  // towards zero ...
  left += (__builtin_convertvector(left, V) > x);                               // ... so -1 where that went up
  top += (__builtin_convertvector(top, V) > y);
  corners.right = x - __builtin_convertvector(left, V);
  corners.below = y - __builtin_convertvector(top, V);
  const V from_right = 1 - corners.right, from_below = 1 - corners.below;
  corners.weight[0] = from_below * from_right;
  corners.weight[1] = from_below * corners.right;
  corners.weight[2] = corners.below * from_right;
  corners.weight[3] = corners.below * corners.right;
  const I x0 = (left >= 0) & (left < columns), x1 = (left >= -1) & (left < columns - 1);
  const I y0 = (top >= 0) & (top < rows), y1 = (top >= -1) & (top < rows - 1);
  corners.first = top * columns + left;
  corners.inside[0] = x0 & y0;
  corners.inside[1] = x1 & y0;
  corners.inside[2] = x0 & y1;
  corners.inside[3] = x1 & y1;
  return corners;
}

MSDA_INLINE void split_pairs(F32x8 a, F32x8 b, F32x8& even, F32x8& odd) {
  even = MSDA_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  odd = MSDA_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
MSDA_INLINE void split_pairs(F64x4 a, F64x4 b, F64x4& even, F64x4& odd) {
  even = F64x4{a[0], a[2], b[0], b[2]};
  odd = F64x4{a[1], a[3], b[1], b[3]};
}

constexpr int kAhead = 24;  // rows to fetch ahead of their use

// Asks for `count` elements to be in the cache soon: the processor does not foresee our strides by itself. The address
// may lie beyond the array; it is not read then.
template <class T>
MSDA_INLINE void fetch(const T* from, int64_t count) {
  const char* address = reinterpret_cast<const char*>(from);
  for (int64_t byte = 0; byte < count * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(address + byte);
}

MSDA_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Hands out pieces of the caller's scratch memory, each on a 64-byte line; with no memory it only adds up the sizes.
struct Carver {
  char* memory;
  size_t used;
  template <class T>
  T* take(int64_t count) {
    T* piece = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
    used += size_t(round_up(count * int64_t(sizeof(T)), 64));
    return piece;
  }
};

// ---------------------------------------------------------------------------------------------------------- forward

constexpr int kQueries = 8;  // queries prepared together: their points fill whole vectors, whatever their number

template <class T>
struct ForwardScratch {
  using C = typename Run<T>::C;
  using Index = typename VectorOf<C>::Index;
  // Per point of kQueries queries of one head: its level, the same for all of them ...
  C *width, *height;
  Index *columns, *rows, *start;
  Index* below;  // elements from a row to the row one pixel lower
  // ... its inputs, copied to stand side by side, and its corners, corner-major: weights, and the rows to read.
  C *locations, *attention, *weight;
  const T** row;
  T* zeros;  // what a corner outside reads
  T* packed;  // one head of one image, rows side by side
  int64_t count;
  size_t bytes;
  ForwardScratch(const CpuProblem& p, char* memory) {
    Carver carver{memory, 0};
    count = kQueries * p.levels * p.points;
    width = carver.take<C>(count);
    height = carver.take<C>(count);
    columns = carver.take<Index>(count);
    rows = carver.take<Index>(count);
    start = carver.take<Index>(count);
    below = carver.take<Index>(count);
    locations = carver.take<C>(2 * count);
    attention = carver.take<C>(count);
    weight = carver.take<C>(4 * count);
    row = carver.take<const T*>(4 * count);
    zeros = carver.take<T>(p.channels);
    packed = carver.take<T>(packs(p) ? p.pixels * p.channels : 0);
    bytes = carver.used;
  }
  // Packing reads the head once, in order. It pays unless few queries read little of it.
  static bool packs(const CpuProblem& p) { return p.heads > 1 && p.queries * p.levels * p.points >= p.pixels; }
};

// A copy without the call of memcpy, which would take longer than the copy.
template <class C>
MSDA_INLINE void copy_short(const C* from, int64_t count, C* to) {
  int64_t i = 0;
  for (; i + int64_t(16 / sizeof(C)) <= count; i += int64_t(16 / sizeof(C))) store_as(to + i, load_as<I32x4>(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

// Copies rows of `channels` elements that are `stride` apart to stand side by side.
template <class T>
MSDA_INLINE void pack_rows(const T* from, int64_t stride, int64_t count, int64_t channels, T* to) {
  for (int64_t i = 0; i < count; ++i, from += stride, to += channels) {
    fetch(from + kAhead * stride, channels);
    int64_t c = 0;
    for (; c + int64_t(32 / sizeof(T)) <= channels; c += int64_t(32 / sizeof(T)))
      store_as(to + c, load_as<U32x8>(from + c));
    for (; c < channels; ++c) to[c] = from[c];
  }
}

template <int kPart>
MSDA_INLINE I64x4 quarter_of(const I32x8& vector) {  // four of the lanes, widened
  I32x4 lanes;
  __builtin_memcpy(&lanes, reinterpret_cast<const char*>(&vector) + 16 * kPart, 16);
  return __builtin_convertvector(lanes, I64x4);
}
template <int kPart>
MSDA_INLINE I64x4 quarter_of(const I64x4& vector) {
  return vector;
}

// Where the rows of four points' corners are, or `outside`. The addresses are made in vectors and without branches: every
// fourth corner or so is outside, at random.
template <int kPart, class T, class Corners, class Int>
MSDA_INLINE void store_rows(const T* base, int64_t stride, const Corners& corners, Int first, Int below,
                            const T* outside, const T** to, int64_t apart) {
  const I64x4 nowhere = I64x4{} + reinterpret_cast<int64_t>(outside);
  const int64_t right = stride * int64_t(sizeof(T));
  const I64x4 upper = quarter_of<kPart>(first) * int64_t(sizeof(T)) + reinterpret_cast<int64_t>(base);
  const I64x4 lower = upper + quarter_of<kPart>(below) * int64_t(sizeof(T));
  store_as(to + 4 * kPart, quarter_of<kPart>(corners.inside[0]) ? upper : nowhere);
  store_as(to + apart + 4 * kPart, quarter_of<kPart>(corners.inside[1]) ? upper + right : nowhere);
  store_as(to + 2 * apart + 4 * kPart, quarter_of<kPart>(corners.inside[2]) ? lower : nowhere);
  store_as(to + 3 * apart + 4 * kPart, quarter_of<kPart>(corners.inside[3]) ? lower + right : nowhere);
}

// Sums `count` points into kRuns runs of channels, from channel `c` on. A corner's rows and weights are `apart` from the next's.
template <class T, int kRuns>
MSDA_INLINE void gather_runs(const T* const* rows, const typename Run<T>::C* weights, int64_t apart, int64_t count,
                             int64_t c, T* out) {
  using R = Run<T>;
  using V = typename R::V;
  constexpr int kVectors = kRuns * R::kVectors;
  V upper[kVectors], lower[kVectors];  // two sums, for twice as many additions in flight
  for (int v = 0; v < kVectors; ++v) upper[v] = lower[v] = V{};
  for (int64_t k = 0; k < count; ++k) {
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) {
      const T* row = rows[corner * apart + k] + c;
      const typename R::C weight = weights[corner * apart + k];
      V* sum = corner < 2 ? upper : lower;
#pragma GCC unroll 4
      for (int run = 0; run < kRuns; ++run) {
        V channels[R::kVectors];
        R::load(row + run * R::kChannels, channels);
#pragma GCC unroll 2
        for (int v = 0; v < R::kVectors; ++v) sum[run * R::kVectors + v] += weight * channels[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) upper[v] += lower[v];
#pragma GCC unroll 4
  for (int run = 0; run < kRuns; ++run) R::store(out + c + run * R::kChannels, upper + run * R::kVectors);
}

template <class T>
MSDA_INLINE void gather_channel(const T* const* rows, const typename Run<T>::C* weights, int64_t apart, int64_t count,
                                int64_t c, T* out) {
  typename Run<T>::C sum = 0;
  for (int64_t k = 0; k < count; ++k)
    for (int64_t at = k; at < 4 * apart; at += apart) sum += weights[at] * widen(rows[at][c]);
  narrow(sum, out[c]);
}

template <class T>
void forward(const CpuProblem& p, int64_t begin, int64_t end, char* memory) {
  using R = Run<T>;
  using C = typename R::C;
  using V = typename VectorOf<C>::Float;
  using I = typename VectorOf<C>::Int;
  using Index = typename VectorOf<C>::Index;
  constexpr int kLanes = VectorOf<C>::kLanes;
  constexpr int kRuns = 4 / R::kVectors;
  ForwardScratch<T> s(p, memory);
  const int64_t points = p.levels * p.points;
  const bool packs = s.packs(p);
  const int64_t stride = packs ? p.channels : p.heads * p.channels;
  const bool small = p.pixels * stride < (int64_t(1) << 31);  // an element's position in an image fits 32 bits

  for (int64_t k = 0; k < s.count; ++k) {
    const int64_t level = k % points / p.points;
    int64_t start = 0;
    for (int64_t i = 0; i < level; ++i) start += p.shapes[2 * i] * p.shapes[2 * i + 1];
    s.height[k] = C(p.shapes[2 * level]);
    s.width[k] = C(p.shapes[2 * level + 1]);
    s.rows[k] = Index(p.shapes[2 * level]);
    s.columns[k] = Index(p.shapes[2 * level + 1]);
    s.start[k] = Index(start);
    s.below[k] = small ? Index(p.shapes[2 * level + 1] * stride) : 0;
    s.locations[2 * k] = s.locations[2 * k + 1] = s.attention[k] = 0;
  }
  for (int64_t c = 0; c < p.channels; ++c) narrow(C(0), s.zeros[c]);

  int64_t packed = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image_head = item / p.splits, image = image_head / p.heads, head = image_head % p.heads;
    const int64_t first = item % p.splits * p.queries / p.splits, last = (item % p.splits + 1) * p.queries / p.splits;
    const T* value = static_cast<const T*>(p.value) + (image * p.pixels * p.heads + head) * p.channels;
    if (packs) {
      if (packed != image_head) pack_rows(value, p.heads * p.channels, p.pixels, p.channels, s.packed);
      packed = image_head;
      value = s.packed;
    }

    for (int64_t query = first; query < last; query += kQueries) {
      const int64_t queries = last - query < kQueries ? last - query : kQueries;
      for (int64_t i = 0; i < queries; ++i) {
        const int64_t from = ((image * p.queries + query + i) * p.heads + head) * points;
        const C *locations = static_cast<const C*>(p.locations) + 2 * from, *attention = static_cast<const C*>(p.weights) + from;
        fetch(locations + 2 * kQueries * p.heads * points, 2 * points);
        fetch(attention + kQueries * p.heads * points, points);
        copy_short(locations, 2 * points, s.locations + 2 * i * points);
        copy_short(attention, points, s.attention + i * points);
      }
      for (int64_t k = 0; k < s.count; k += kLanes) {
        V x, y;
        split_pairs(load_as<V>(s.locations + 2 * k), load_as<V>(s.locations + 2 * k + kLanes), x, y);
        const Corners<C> corners = corners_of<C>(x, y, load_as<V>(s.width + k), load_as<V>(s.height + k),
                                                 load_as<I>(s.columns + k), load_as<I>(s.rows + k));
        const V scale = load_as<V>(s.attention + k) + corners.poison;
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner)
          store_as(s.weight + corner * s.count + k, scale * corners.weight[corner]);
        const I start = load_as<I>(s.start + k), columns = load_as<I>(s.columns + k);
        if (small) {
          const I first = (corners.first + start) * Index(stride), below = load_as<I>(s.below + k);
          store_rows<0>(value, stride, corners, first, below, s.zeros, s.row + k, s.count);
          if constexpr (kLanes == 8) store_rows<1>(value, stride, corners, first, below, s.zeros, s.row + k, s.count);
        } else {
          for (int corner = 0; corner < 4; ++corner)
            for (int i = 0; i < kLanes; ++i) {
              const int64_t pixel = int64_t(corners.first[i]) + start[i] + corner % 2 + (corner / 2) * columns[i];
              s.row[corner * s.count + k + i] = corners.inside[corner][i] ? value + pixel * stride : s.zeros;
            }
        }
      }

      for (int64_t i = 0; i < queries; ++i) {
        T* out = static_cast<T*>(p.output) + ((image * p.queries + query + i) * p.heads + head) * p.channels;
        const int64_t k = i * points;
        int64_t c = 0;
        for (; c + kRuns * R::kChannels <= p.channels; c += kRuns * R::kChannels)
          gather_runs<T, kRuns>(s.row + k, s.weight + k, s.count, points, c, out);
        for (; c + R::kChannels <= p.channels; c += R::kChannels)
          gather_runs<T, 1>(s.row + k, s.weight + k, s.count, points, c, out);
        for (; c < p.channels; ++c) gather_channel<T>(s.row + k, s.weight + k, s.count, points, c, out);
      }
    }
  }
}

// --------------------------------------------------------------------------------------------------------- backward

constexpr int kChunk = 64;  // points prepared together

template <class T>
struct BackwardScratch {
  using C = typename Run<T>::C;
  using Index = typename VectorOf<C>::Index;
  int64_t channels;  // rounded up to whole vectors, so that nothing below has a tail
  // One (image, head, level): rows packed one after the other, then four rows for corners outside: zeros to read in
  // `value`, and in `grad` rows whose sums nobody wants (four, so that one point's corners do not wait for each other).
  C *value, *grad;
  C* grad_output;  // the rows of grad_output of one chunk's queries
  C *x, *y, *attention, *weight, *dots;
  Index* pixel;
  size_t bytes;
  BackwardScratch(const CpuProblem& p, char* memory) {
    Carver carver{memory, 0};
    channels = round_up(p.channels, VectorOf<C>::kLanes);
    int64_t pixels = 0;
    for (int64_t level = 0; level < p.levels; ++level) {
      const int64_t area = p.shapes[2 * level] * p.shapes[2 * level + 1];
      pixels = area > pixels ? area : pixels;
    }
    value = carver.take<C>((pixels + 4) * channels);
    grad = carver.take<C>((pixels + 4) * channels);
    grad_output = carver.take<C>(kChunk * channels);
    x = carver.take<C>(kChunk);
    y = carver.take<C>(kChunk);
    attention = carver.take<C>(kChunk);
    weight = carver.take<C>(4 * kChunk);
    dots = carver.take<C>(4 * kChunk);
    pixel = carver.take<Index>(4 * kChunk);
    bytes = carver.used;
  }
};

// The four sums over lanes.
MSDA_INLINE void add_lanes(const F32x8* d, float* sums) {
  const F32x8 a = MSDA_SHUFFLE(d[0], d[1], 0, 8, 1, 9, 4, 12, 5, 13) + MSDA_SHUFFLE(d[0], d[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const F32x8 b = MSDA_SHUFFLE(d[2], d[3], 0, 8, 1, 9, 4, 12, 5, 13) + MSDA_SHUFFLE(d[2], d[3], 2, 10, 3, 11, 6, 14, 7, 15);
  const F32x8 c = MSDA_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + MSDA_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  typedef float F32x4 __attribute__((vector_size(16)));
  F32x4 low, high;
  __builtin_memcpy(&low, &c, 16);
  __builtin_memcpy(&high, reinterpret_cast<const char*>(&c) + 16, 16);
  store_as(sums, low + high);
}
MSDA_INLINE void add_lanes(const F64x4* d, double* sums) {
  for (int corner = 0; corner < 4; ++corner)
    sums[corner] = (d[corner][0] + d[corner][1]) + (d[corner][2] + d[corner][3]);
}

// Widens one row, and fills it up with zeros to `padded` channels.
template <class T>
MSDA_INLINE void widen_row(const T* from, int64_t channels, typename Run<T>::C* to, int64_t padded) {
  for (int64_t c = 0; c < channels; ++c) to[c] = widen(from[c]);
  for (int64_t c = channels; c < padded; ++c) to[c] = 0;
}

// One point: the dot products of its query's grad_output with its four corners, and its share of the corners' gradients.
// kVectors is the number of vectors in a row, or 0 for `vectors` of them.
template <class C, int kVectors, class Index>
MSDA_INLINE void point_backward(const C* value, C* grad, const C* grad_output, int64_t channels, int64_t vectors,
                                const Index* pixel, const C* weight, C* dots) {
  using V = typename VectorOf<C>::Float;
  constexpr int kLanes = VectorOf<C>::kLanes;
  V dot[4];
  if constexpr (kVectors > 0) {
    V g[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) g[v] = load_as<V>(grad_output + v * kLanes);
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t at = int64_t(pixel[corner * kChunk]) * channels;
      const C scale = weight[corner * kChunk];
      dot[corner] = g[0] * load_as<V>(value + at);
#pragma GCC unroll 8
      for (int v = 1; v < kVectors; ++v) dot[corner] += g[v] * load_as<V>(value + at + v * kLanes);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        C* sum = grad + at + v * kLanes;
        store_as(sum, load_as<V>(sum) + scale * g[v]);
      }
    }
  } else {
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t at = int64_t(pixel[corner * kChunk]) * channels;
      const C scale = weight[corner * kChunk];
      dot[corner] = V{};
      for (int64_t v = 0; v < vectors; ++v) {
        const V g = load_as<V>(grad_output + v * kLanes);
        C* sum = grad + at + v * kLanes;
        dot[corner] += g * load_as<V>(value + at + v * kLanes);
        store_as(sum, load_as<V>(sum) + scale * g);
      }
    }
  }
  add_lanes(dot, dots);
}

template <class T>
void backward(const CpuProblem& p, int64_t begin, int64_t end, char* memory) {
  using C = typename Run<T>::C;
  using V = typename VectorOf<C>::Float;
  using I = typename VectorOf<C>::Int;
  constexpr int kLanes = VectorOf<C>::kLanes;
  BackwardScratch<T> s(p, memory);
  const int64_t vectors = s.channels / kLanes, stride = p.heads * p.channels;
  const int64_t ahead = p.heads * p.levels * p.points;  // from a query's points to the next's

  for (int64_t item = begin; item < end; ++item) {
    const int64_t level = item % p.levels, head = item / p.levels % p.heads, image = item / p.levels / p.heads;
    const int64_t height = p.shapes[2 * level], width = p.shapes[2 * level + 1], pixels = height * width;
    int64_t start = 0;
    for (int64_t i = 0; i < level; ++i) start += p.shapes[2 * i] * p.shapes[2 * i + 1];

    const int64_t first = ((image * p.pixels + start) * p.heads + head) * p.channels;
    const T* value = static_cast<const T*>(p.value) + first;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      fetch(value + (pixel + kAhead) * stride, p.channels);
      widen_row(value + pixel * stride, p.channels, s.value + pixel * s.channels, s.channels);
    }
    for (int64_t i = pixels * s.channels; i < (pixels + 4) * s.channels; ++i) s.value[i] = 0;
    for (int64_t i = 0; i < (pixels + 4) * s.channels; ++i) s.grad[i] = 0;

    // Points of this level in order: query-major. A chunk may begin and end inside a query.
    for (int64_t chunk = 0; chunk < p.queries * p.points; chunk += kChunk) {
      const int64_t left = p.queries * p.points - chunk, count = left < kChunk ? left : kChunk;
      const int64_t first_query = chunk / p.points, first_point = chunk % p.points;
      int64_t query = first_query, point = first_point;
      const auto offset = [&](int64_t q) {  // of the first point of query q, in points
        return (((image * p.queries + q) * p.heads + head) * p.levels + level) * p.points;
      };

      for (int64_t i = 0; i < count; ++query, point = 0) {
        const int64_t from = offset(query);
        const C* xy = static_cast<const C*>(p.locations) + 2 * from;
        const C* attention = static_cast<const C*>(p.weights) + from;
        fetch(xy + 2 * kAhead * ahead, 2 * p.points);
        fetch(attention + kAhead * ahead, p.points);
        for (; point < p.points && i < count; ++point, ++i) {
          s.x[i] = xy[2 * point];
          s.y[i] = xy[2 * point + 1];
          s.attention[i] = attention[point];
        }
        const T* g = static_cast<const T*>(p.grad_output) + (image * p.queries + query) * stride + head * p.channels;
        fetch(g + kAhead * stride, p.channels);
        widen_row(g, p.channels, s.grad_output + (query - first_query) * s.channels, s.channels);
      }
      for (int64_t i = count; i < kChunk; ++i) s.x[i] = s.y[i] = s.attention[i] = 0;

      const V wide = V{} + C(width), high = V{} + C(height);
      const I columns = I{} + typename VectorOf<C>::Index(width), rows = I{} + typename VectorOf<C>::Index(height);
      for (int i = 0; i < count; i += kLanes) {
        const Corners<C> corners = corners_of<C>(load_as<V>(s.x + i), load_as<V>(s.y + i), wide, high, columns, rows);
        const V scale = load_as<V>(s.attention + i);
        for (int corner = 0; corner < 4; ++corner) {
          const I outside = columns * 0 + typename VectorOf<C>::Index(pixels + corner);
          const I pixel = corners.first + (corner % 2) + (corner / 2) * columns;
          store_as(s.weight + corner * kChunk + i, scale * corners.weight[corner]);
          store_as(s.pixel + corner * kChunk + i, corners.inside[corner] ? pixel : outside);
        }
      }

      query = 0;
      point = first_point;
      for (int64_t i = 0; i < count; ++i) {
        const C* g = s.grad_output + query * s.channels;
        if (vectors == 4)
          point_backward<C, 4>(s.value, s.grad, g, s.channels, vectors, s.pixel + i, s.weight + i, s.dots + 4 * i);
        else
          point_backward<C, 0>(s.value, s.grad, g, s.channels, vectors, s.pixel + i, s.weight + i, s.dots + 4 * i);
        if (++point == p.points) point = 0, ++query;
      }

      for (int i = 0; i < count; i += kLanes) {
        V dot[4] = {};
        for (int lane = 0; lane < kLanes; ++lane)
          for (int corner = 0; corner < 4; ++corner) dot[corner][lane] = s.dots[4 * (i + lane) + corner];
        const Corners<C> corners = corners_of<C>(load_as<V>(s.x + i), load_as<V>(s.y + i), wide, high, columns, rows);
        const V scale = load_as<V>(s.attention + i) + corners.poison;
        const V along_x = (1 - corners.below) * (dot[1] - dot[0]) + corners.below * (dot[3] - dot[2]);
        const V along_y = (1 - corners.right) * (dot[2] - dot[0]) + corners.right * (dot[3] - dot[1]);
        V by_weight = corners.poison;
        for (int corner = 0; corner < 4; ++corner) by_weight += corners.weight[corner] * dot[corner];
        store_as(s.x + i, scale * wide * along_x);
        store_as(s.y + i, scale * high * along_y);
        store_as(s.attention + i, by_weight);
      }

      query = first_query;
      point = first_point;
      for (int64_t i = 0; i < count; ++query, point = 0) {
        const int64_t to = offset(query);
        C* grad_xy = static_cast<C*>(p.grad_locations) + 2 * to;
        C* grad_attention = static_cast<C*>(p.grad_weights) + to;
        for (; point < p.points && i < count; ++point, ++i) {
          grad_xy[2 * point] = s.x[i];
          grad_xy[2 * point + 1] = s.y[i];
          grad_attention[point] = s.attention[i];
        }
      }
    }

    T* grad_value = static_cast<T*>(p.grad_value) + first;
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int64_t c = 0; c < p.channels; ++c)
        narrow(s.grad[pixel * s.channels + c], grad_value[pixel * stride + c]);
  }
}

// -------------------------------------------------------------------------------------------------- dispatch on type

// Calls body with a value of the element type.
template <class F>
auto with_element(Element element, F body) {
  switch (element) {
    case Element::kFloat64: return body(double());
    case Element::kBFloat16: return body(BFloat16());
    default: return body(float());
  }
}

size_t forward_scratch_bytes(const CpuProblem& p) {
  return with_element(p.element, [&](auto x) { return ForwardScratch<decltype(x)>(p, nullptr).bytes; });
}

size_t backward_scratch_bytes(const CpuProblem& p) {
  return with_element(p.element, [&](auto x) { return BackwardScratch<decltype(x)>(p, nullptr).bytes; });
}

void forward_any(const CpuProblem& p, int64_t begin, int64_t end, char* scratch) {
  with_element(p.element, [&](auto x) { forward<decltype(x)>(p, begin, end, scratch); });
}

void backward_any(const CpuProblem& p, int64_t begin, int64_t end, char* scratch) {
  with_element(p.element, [&](auto x) { backward<decltype(x)>(p, begin, end, scratch); });
}

}  // namespace
}  // namespace ms_deform_attn
