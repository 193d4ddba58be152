// The gradient of a layer's output before its ReLU, and that of its bias.
#pragma once
#include "vectors.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// Features [from, to) of dz, which lies at `out`, and of dbias.
template <class T>
void delta_rows(const Delta &delta, Matrix out, int64_t batch, int64_t from, int64_t to) {
  constexpr int L = LANES<T>;
  typedef Vec<T, L> V;
  const T *dy = static_cast<const T *>(delta.dy.data), *yd = static_cast<const T *>(delta.y.data);
  T *zd = static_cast<T *>(out.data), *dbias = static_cast<T *>(delta.dbias);
  const int64_t dy_feature = delta.dy.by_feature, dy_sample = delta.dy.by_sample, y_stride = delta.y.stride;
  const bool batch_major = dy_feature == 1 && dy_sample != 1;
  if (batch_major) transpose_rows(dy, dy_sample, zd, out.stride, batch, from, to);
  for (int64_t f = from; f < to; ++f) {
    T *z = zd + f * out.stride;
    const T *d = batch_major ? z : dy + f * dy_feature;
    const int64_t step = batch_major ? 1 : dy_sample;
    V sum = {};
    T tail = 0;
    int64_t b = 0;
    if (step == 1)
      for (; b + L <= batch; b += L) {
        V v = load<T, L>(d + b);
        if (yd) v = load<T, L>(yd + f * y_stride + b) <= 0 ? V{} : v;
        sum += v;
        store<T, L>(z + b, v);
      }
    for (; b < batch; ++b) {
      const T v = yd && yd[f * y_stride + b] <= 0 ? T(0) : d[b * step];
      tail += v;
      z[b] = v;
    }
    if (dbias) {
      for (int i = 0; i < L; ++i) tail += sum[i];
      dbias[f] = tail;
    }
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
