// The op in plain float64 loops, for the C++ tests: nothing here is shared with what it checks. Also random problems.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

struct Oracle {
  int64_t batch, heads, channels, queries, levels, points, pixels;
  std::vector<int64_t> shapes;  // height, width, height, width, ...
  std::vector<double> value, locations, weights, grad_output;
  std::vector<double> output, grad_value, grad_locations, grad_weights;

  void allocate() {
    pixels = 0;
    for (int64_t level = 0; level < levels; ++level) pixels += shapes[2 * level] * shapes[2 * level + 1];
    value.assign(batch * pixels * heads * channels, 0);
    locations.assign(batch * queries * heads * levels * points * 2, 0);
    weights.assign(batch * queries * heads * levels * points, 0);
    grad_output.assign(batch * queries * heads * channels, 0);
  }

  void fill(std::mt19937& random) {
    allocate();
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> around(-0.4, 1.4);
    for (double& x : value) x = float(normal(random));
    for (double& x : grad_output) x = float(normal(random));
    for (double& x : weights) x = float(normal(random));
    for (double& x : locations) x = float(around(random));
    // Corners, edges and far away, now and then.
    const double special[] = {0.0, 1.0, 0.5, -0.25, 1.25, 1e30, -1e30, 3.5};
    for (size_t i = 0; i < locations.size(); i += 7) locations[i] = float(special[random() % 8]);
  }

  void run() {
    output.assign(grad_output.size(), 0);
    grad_value.assign(value.size(), 0);
    grad_locations.assign(locations.size(), 0);
    grad_weights.assign(weights.size(), 0);
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t q = 0; q < queries; ++q)
        for (int64_t m = 0; m < heads; ++m) {
          int64_t start = 0;
          for (int64_t l = 0; l < levels; ++l) {
            const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
            for (int64_t k = 0; k < points; ++k) {
              const int64_t at = (((n * queries + q) * heads + m) * levels + l) * points + k;
              const double x = locations[2 * at] * width - 0.5, y = locations[2 * at + 1] * height - 0.5;
              const double left = std::floor(x), top = std::floor(y);
              for (int dy = 0; dy < 2; ++dy)
                for (int dx = 0; dx < 2; ++dx) {
                  const double column = left + dx, row = top + dy;
                  if (!(column >= 0 && column < width && row >= 0 && row < height)) continue;
                  const double across = dx ? x - left : left + 1 - x, down = dy ? y - top : top + 1 - y;
                  const int64_t pixel = start + int64_t(row) * width + int64_t(column);
                  for (int64_t c = 0; c < channels; ++c) {
                    const int64_t v = ((n * pixels + pixel) * heads + m) * channels + c;
                    const int64_t o = ((n * queries + q) * heads + m) * channels + c;
                    const double dot = value[v] * grad_output[o];
                    output[o] += weights[at] * across * down * value[v];
                    grad_value[v] += weights[at] * across * down * grad_output[o];
                    grad_weights[at] += across * down * dot;
                    grad_locations[2 * at] += weights[at] * width * (dx ? 1 : -1) * down * dot;
                    grad_locations[2 * at + 1] += weights[at] * height * (dy ? 1 : -1) * across * dot;
                  }
                }
            }
            start += height * width;
          }
        }
  }

  const char* name() const {
    static char text[200];
    std::snprintf(text, sizeof text, "N=%d Q=%d M=%d D=%d L=%d P=%d S=%d", int(batch), int(queries), int(heads),
                  int(channels), int(levels), int(points), int(pixels));
    return text;
  }
};

// Odd and unequal sizes, zeros among them; the first ones are the shapes that the kernels are made for.
inline Oracle random_problem(std::mt19937& random, int number) {
  const auto pick = [&](std::vector<int> from) { return from[random() % from.size()]; };
  Oracle o;
  o.batch = pick({1, 2, 3});
  o.queries = pick({1, 5, 7, 33, 70});
  o.heads = pick({1, 3, 4});
  o.channels = number < 3 ? 32 : pick({1, 2, 3, 4, 5, 8, 12, 16, 24, 31, 40, 65});
  o.levels = pick({1, 2, 3});
  o.points = pick({1, 3, 4, 9});
  if (number % 11 == 10) o.points = 0;
  if (number % 13 == 12) o.queries = 0;
  for (int64_t level = 0; level < o.levels; ++level) {
    o.shapes.push_back(pick({1, 2, 5, 8}));
    o.shapes.push_back(pick({1, 3, 4, 7}));
  }
  o.fill(random);
  return o;
}

// Compares relative to the largest expected number; prints and returns false where the difference is larger.
template <class T, class Widen>
bool close(const char* what, const Oracle& oracle, const std::vector<double>& expected, const T* got, double tolerance,
           Widen widen) {
  double largest = 1, worst = 0;
  for (const double x : expected) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(expected[i] - double(widen(got[i])));
    worst = difference == difference ? std::max(worst, difference) : HUGE_VAL;
  }
  if (worst <= tolerance * largest) return true;
  std::printf("%s differs by %g of %g: %s\n", what, worst, largest, oracle.name());
  return false;
}
