// Sparse layers of which only some rows are computed.
#include "delta.h"
#include "dispatch.h"
#include "products.h"
#include "scratch.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// y[chosen] = relu(W[chosen] x + bias[chosen]); other rows of y are left as they are
template <class T, class I>
void rows_spmm_(Pattern p, Chosen chosen, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias,
                bool relu) {
  Rows<T, I> w = rows_of<T, I>(p, values);
  w.chosen = chosen.rows;
  const Finish<T> finish{static_cast<const T *>(bias), relu};
  const int64_t count = chosen.count;
  const int64_t about = w.indptr[p.rows] / (p.rows > 0 ? p.rows : 1) + 1;  // nonzeros of a row
  parallel(team(about * count * batch), [&](int thread, int threads) {
    const int64_t from = count * thread / threads, to = count * (thread + 1) / threads;
    blocks<LANES<T>, FORWARD>(batch, Multiply<T, I>{w, x, y, finish, from, to});
  });
}

// A layer's backward pass by some of its rows: each thread takes their nonzeros out of its columns, and runs on those.
template <class T, class I>
void rows_backward_(const Index &layer, Chosen some, const void *values, const Delta &delta, Matrix x, Matrix dx,
                    void *dvalues, int64_t batch) {
  const Rows<T, I> w = rows_of<T, I>(layer.w, values), wt = rows_of<T, I>(layer.wt, values);
  T *dv = static_cast<T *>(dvalues);
  const I *place = static_cast<const I *>(layer.place);
  const int64_t *chosen = some.rows, count = some.count;
  const int64_t rows = layer.w.rows, cols = layer.wt.rows, nnz = w.indptr[rows];
  T *sums = scratch<T>(0, nnz);
  int32_t *row_of = scratch<int32_t>(1, rows);  // where in dy
  std::fill(row_of, row_of + rows, -1);
  for (int64_t s = 0; s < count; ++s) row_of[chosen[s]] = int32_t(s);
  const int many = team(2 * (nnz / (rows > 0 ? rows : 1) * count + cols) * batch);
  // the chosen rows' part of the transposed pattern: each thread's columns, with room for one entry more
  I *all_indptr = scratch<I>(2, cols + many), *all_indices = scratch<I>(3, nnz + many);
  I *all_at = scratch<I>(4, nnz + many);
  T *all_values = scratch<T>(5, nnz + many), *all_dots = scratch<T>(6, nnz + many);
  parallel(many, [&](int thread, int threads) {
    const int64_t from = share(wt.indptr, cols, thread, threads), to = share(wt.indptr, cols, thread + 1, threads);
    const int64_t first = wt.indptr[from], most = int64_t(wt.indptr[to]) - first;
    I *indptr = all_indptr + from + thread, *indices = all_indices + first + thread;
    I *at = all_at + first + thread;
    T *ordered = all_values + first + thread, *dots = all_dots + first + thread;
    if (dx.data) std::fill(sums + first, sums + first + most, T(0));
    else std::fill(dv + nnz * thread / threads, dv + nnz * (thread + 1) / threads, T(0));
    int64_t n = 0;
    for (int64_t c = from; dx.data && c < to; ++c) {
      indptr[c - from] = I(n);
      for (int64_t k = wt.indptr[c]; k < int64_t(wt.indptr[c + 1]); ++k) {
        const int32_t row = row_of[wt.indices[k]];
        indices[n] = I(row), ordered[n] = w.values[wt.perm[k]], at[n] = I(k);
        n += row >= 0;
      }
    }
    indptr[to - from] = I(n);
    if (delta.dz.data) {
      const int64_t stride = delta.dz.stride;
      for (int64_t s = count * thread / threads; s < count * (thread + 1) / threads; ++s) {
        const Matrix row{static_cast<T *>(delta.dz.data) + (s - chosen[s]) * stride, stride};
        delta_rows<T>(delta, row, batch, chosen[s], chosen[s] + 1);
      }
    }
    wait_for(threads);
    const Matrix ready = delta.dz.data ? delta.dz : Matrix{delta.dy.data, delta.dy.by_feature};
    if (!dx.data) {  // only dvalues, by rows
      Rows<T, I> part = w;
      part.chosen = chosen;
      const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
      blocks<LANES<T>, BACKWARD>(batch, Backward<T, I>{part, ready, x, {}, dv, begin, end});
      return;
    }
    const Rows<T, I> kept{indptr, indices, nullptr, ordered};
    const Matrix its_x{static_cast<T *>(x.data) + from * x.stride, x.stride};
    const Matrix its_dx{static_cast<T *>(dx.data) + from * dx.stride, dx.stride};
    blocks<LANES<T>, BACKWARD>(batch, Backward<T, I>{kept, its_x, ready, its_dx, dots, 0, to - from});
    for (int64_t k = 0; batch > 0 && k < n; ++k) sums[at[k]] = dots[k];
    wait_for(threads);  // sums of a column lie in many rows: threads would write to the same lines
    for (int64_t k = nnz * thread / threads; k < nnz * (thread + 1) / threads; ++k) dv[k] = sums[place[k]];
  });
}

}  // namespace

void rows_spmm(bool f64, Pattern w, Chosen chosen, const void *values, Matrix x, Matrix y, int64_t batch,
               const void *bias, bool relu) {
  with_types(f64, w.wide, [&](auto number, auto index) {
    rows_spmm_<decltype(number), decltype(index)>(w, chosen, values, x, y, batch, bias, relu);
  });
}
void rows_backward(bool f64, Index layer, Chosen chosen, const void *values, Delta delta, Matrix x, Matrix dx,
                   void *dvalues, int64_t batch) {
  with_types(f64, layer.w.wide, [&](auto number, auto index) {
    rows_backward_<decltype(number), decltype(index)>(layer, chosen, values, delta, x, dx, dvalues, batch);
  });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
