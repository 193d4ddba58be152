// What transformers have beside products with weights: layer norms, and attention.
#pragma once
#include "by_vector.h"

#include <algorithm>
#include <cmath>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int64_t QUERIES = 24;  // at a time

inline int64_t whole_panels(int64_t numbers) {
  return (numbers + LANES_OF_A_PANEL - 1) / LANES_OF_A_PANEL * LANES_OF_A_PANEL;
}

// Numbers of scratch memory for a thread: a head's keys, its values, and some queries' products with the keys.
inline int64_t attention_scratch(const Operation &o) {
  if (o.kind != ATTENTION) return 0;
  return whole_panels(o.attention.keys) * (whole_panels(o.channels) + whole_panels(o.attention.width) + QUERIES);
}

// (x - mean) / sqrt(variance + epsilon) of each pixel's first `taps` channels
void normalise(const Operation &o, Area in, Area out, int64_t from, int64_t to) {
  constexpr int L = LANES<float>;
  for (int64_t g = from; g < to; ++g) {
    const int64_t image = g / o.points, point = g % o.points, count = o.taps, whole = count / L * L;
    const float *x = in.data + image * in.by_image + o.reads[point];
    float *y = out.data + image * out.by_image + o.writes[point];
    const auto mean_of = [&](auto number, auto numbers) {
      V sum{};
      for (int64_t c = 0; c < whole; c += L) sum += numbers(c);
      float all = total<float, L>(sum);
      for (int64_t c = whole; c < count; ++c) all += number(c);
      return all / float(count);
    };
    const float mean = mean_of([&](int64_t c) { return x[c]; }, [&](int64_t c) { return load<float, L>(x + c); });
    const float variance = mean_of([&](int64_t c) { return (x[c] - mean) * (x[c] - mean); },
                                   [&](int64_t c) {
                                     const V apart = load<float, L>(x + c) - mean;
                                     return apart * apart;
                                   });
    const float factor = 1.0f / std::sqrt(variance + float(o.number));
    for (int64_t c = 0; c < o.channels; c += L)
      store<float, L>(y + c, finished((load<float, L>(x + c) - mean) * factor, o.finish, c));
  }
}

// to[i * wide + c] = x[at[c] + i] for i < L and c < count
template <int L>
inline void transposed_to(const float *x, const int32_t *at, int64_t count, float *to, int64_t wide) {
  int64_t c = 0;
  for (; c + L <= count; c += L) {
    V tile[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) tile[i] = load<float, L>(x + at[c + i]);
    transpose_registers<1, L>(tile);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) store<float, L>(to + i * wide + c, tile[i]);
  }
  for (; c < count; ++c)
    for (int i = 0; i < L; ++i) to[i * wide + c] = x[at[c] + i];
}

// The rows x + at[0 ... count), of `width` numbers, as a weight whose outputs they are (`transposed`), or whose inputs.
inline PanelWeight packed(const float *x, const int32_t *at, int64_t count, int64_t width, bool transposed,
                          const int32_t *run, float *memory) {
  constexpr int L = LANES<float>;
  const int64_t outputs = transposed ? count : width, depth = transposed ? width : count;
  const int64_t panels = whole_panels(outputs) / LANES_OF_A_PANEL;
  constexpr int64_t wide = LANES_OF_A_PANEL;
  float *to = memory;
  for (int64_t begin = 0; begin < panels * wide; begin += wide) {
    const int64_t given = std::min(wide, outputs - begin);
    for (int64_t k = 0; k < depth; ++k, to += wide) {
      if (!transposed) std::copy(x + at[k] + begin, x + at[k] + begin + given, to);
      else if (k % L == 0 && k + L <= depth) transposed_to<L>(x + k, at + begin, given, to, wide);
      else if (k >= depth / L * L)
        for (int64_t c = 0; c < given; ++c) to[c] = x[at[begin + c] + k];
      std::fill(to + given, to + wide, 0.0f);
    }
  }
  return {FLOATS, depth, panels, memory, nullptr, nullptr, run, 1, nullptr, 1, 0};
}

// s[j] = exp(scale s[j] + bias[j]) / their sum, j < count; of `width` numbers, whole vectors
inline void softmax(float *s, int64_t count, int64_t width, float scale, const float *bias) {
  constexpr int L = LANES<float>;
  if (bias) {
    for (int64_t j = 0; j < width; j += L)
      store<float, L>(s + j, load<float, L>(s + j) * scale + load<float, L>(bias + j));
    scale = 1;
  }
  std::fill(s + count, s + width, s[0]);
  V most = load<float, L>(s) * scale;
  for (int64_t j = L; j < width; j += L) {
    const V v = load<float, L>(s + j) * scale;
    most = v > most ? v : most;
  }
  float top = most[0];
  for (int i = 1; i < L; ++i) top = std::max(top, most[i]);
  for (int64_t j = 0; j < width; j += L) store<float, L>(s + j, exp_of(load<float, L>(s + j) * scale - top));
  std::fill(s + count, s + width, 0.0f);
  V sum{};
  for (int64_t j = 0; j < width; j += L) sum += load<float, L>(s + j);
  const float factor = 1.0f / total<float, L>(sum);
  for (int64_t j = 0; j < width; j += L) store<float, L>(s + j, load<float, L>(s + j) * factor);
}

// softmax(number Q K^T + bias) V of the heads [from, to) of all images
void attend(const Operation &o, Area in, Area of_k, Area of_v, Area out, int64_t from, int64_t to, float *memory) {
  const int64_t count = o.points, width = o.channels, of_value = o.attention.width, all = o.attention.keys;
  const int64_t wide = whole_panels(all);
  const int32_t of_keys[] = {0, int32_t(width)}, of_values[] = {0, int32_t(all)};
  float *const keys = memory, *const values = keys + wide * whole_panels(width),
               *const scores = values + wide * whole_panels(of_value);
  const Finishing plain{};
  for (int64_t unit = from; unit < to; ++unit) {
    const int64_t image = unit / o.taps, head = unit % o.taps;
    const float *x = in.data + image * in.by_image;
    float *y = out.data + image * out.by_image;
    const int32_t *reads = o.reads + head * count, *writes = o.writes + head * count;
    const int32_t *of_key = o.others + head * all, *of_its_value = of_key + o.taps * all;
    const PanelWeight k = packed(of_k.data + image * of_k.by_image, of_key, all, width, true, of_keys, keys);
    const PanelWeight v =
        packed(of_v.data + image * of_v.by_image, of_its_value, all, of_value, false, of_values, values);
    const float *bias = o.attention.bias;
    if (bias && o.attention.biases > 1) bias += head * count * wide;
    for (int64_t begin = 0; begin < count; begin += QUERIES) {
      const int64_t queries = std::min(QUERIES, count - begin);
      const float *given[QUERIES];
      float *results[QUERIES];
      for (int64_t q = 0; q < queries; ++q) given[q] = x + reads[begin + q], results[q] = scores + q * wide;
      products(k, plain, given, results, queries, 0, blocks_of(k));
      for (int64_t q = 0; q < queries; ++q) {
        softmax(results[q], all, wide, float(o.number), bias ? bias + (begin + q) * wide : nullptr);
        given[q] = results[q], results[q] = y + writes[begin + q];
      }
      products(v, plain, given, results, queries, 0, blocks_of(v));
    }
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
