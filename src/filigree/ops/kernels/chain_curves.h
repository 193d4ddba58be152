// The smooth activations between the layers of a chain. Products write sums z; here rows of a panel go through a
// layer's curve and dropout, and their gradients back. Doubles go through the C library, one by one.
#pragma once
#include "curves.h"
#include "drop.h"
#include "panels.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

inline bool is_smooth(Curve curve) { return curve >= GELU && curve <= SIGMOID; }

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double gate_by_tanh(double x) { return 1.5957691216057308 * x * (1 + 0.044715 * x * x); }

inline double curve_of(int32_t curve, double x) {
  switch (curve) {
    case GELU:
      return 0.5 * x * (1 + std::erf(x * 0.70710678118654752));
    case GELU_TANH:
      return 0.5 * x * (1 + std::tanh(0.5 * gate_by_tanh(x)));
    case SILU:
      return x * sigmoid(x);
    case TANH:
      return std::tanh(x);
    default:
      return sigmoid(x);
  }
}
inline double slope_of(int32_t curve, double x) {
  if (curve == TANH) return 1 - std::tanh(x) * std::tanh(x);
  const double s = sigmoid(curve == GELU_TANH ? gate_by_tanh(x) : x);
  switch (curve) {
    case GELU:
      return 0.5 * (1 + std::erf(x * 0.70710678118654752)) + x * 0.39894228040143268 * std::exp(-0.5 * x * x);
    case GELU_TANH:
      return s + x * s * (1 - s) * 1.5957691216057308 * (1 + 3 * 0.044715 * x * x);
    case SILU:
      return s + x * s * (1 - s);
    default:
      return s * (1 - s);
  }
}
inline void curves_of(int32_t curve, double *x, int count) {
  for (int i = 0; i < count; ++i) x[i] = curve_of(curve, x[i]);
}
inline void slopes_of(int32_t curve, double *x, int count) {
  for (int i = 0; i < count; ++i) x[i] = slope_of(curve, x[i]);
}

// A row of a panel in vectors, the only one of a short row filled with zeros.
template <class T>
struct Row {
  static constexpr int L = std::is_same_v<T, float> ? LANES<float> : 1, MOST = 256 / (L * 2);
  Vec<T, L> v[MOST];
  int count;

  template <class S>
  Row(const S *row, int64_t width) : count(width < L ? 1 : int(width / L)) {
    if (width >= L) {
      for (int i = 0; i < count; ++i) v[i] = load<T, L>(row + i * L);
    } else {
      T few[L] = {};
      for (int64_t i = 0; i < width; ++i) few[i] = load<T, 1>(row + i);
      v[0] = load<T, L>(few);
    }
  }
  template <class S>
  void write(S *row, int64_t width) const {
    if (width >= L) {
      for (int i = 0; i < count; ++i) store<T, L>(row + i * L, v[i]);
    } else {
      T few[L];
      store<T, L>(few, v[0]);
      for (int64_t i = 0; i < width; ++i) store<T, 1>(row + i, few[i]);
    }
  }
  void drop(const Drop<T> &dropped, int64_t unit, int64_t sample) {
    for (int i = 0; dropped.threshold && i < count; ++i) v[i] = dropped.template apply<L>(v[i], unit, sample + i * L);
  }
};

// out = dropout(curve(z)) for units [from, to), whose rows begin at `z` and `out`, which may be the same
template <class T, class S>
void through_curve(const Layer &layer, int64_t batch, const Panel &panel, const S *z, S *out, int64_t from,
                   int64_t to) {
  const Drop<T> dropped(layer.drop, layer.seed, batch);
  for (int64_t unit = from; unit < to; ++unit, z += panel.width, out += panel.width) {
    Row<T> row(z, panel.width);
    curves_of(layer.curve, row.v, row.count);
    row.drop(dropped, unit, panel.first);
    row.write(out, panel.width);
  }
}

// The gradient of z from that of `out`, in its place; sums over the panel go to `sums`, unless null.
template <class T, class S>
void back_through_curve(const Layer &layer, int64_t batch, const Panel &panel, const S *z, S *d, T *sums, bool first,
                        int64_t from, int64_t to) {
  const Drop<T> dropped(layer.drop, layer.seed, batch);
  for (int64_t unit = from; unit < to; ++unit, z += panel.width, d += panel.width) {
    Row<T> row(d, panel.width), slope(z, panel.width);
    slopes_of(layer.curve, slope.v, slope.count);
    row.drop(dropped, unit, panel.first);
    Vec<T, Row<T>::L> sum{};
    for (int i = 0; i < row.count; ++i) sum += row.v[i] *= slope.v[i];
    row.write(d, panel.width);
    if (!sums) continue;
    const T all = total<T, Row<T>::L>(sum);
    sums[unit - from] = first ? all : sums[unit - from] + all;
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
