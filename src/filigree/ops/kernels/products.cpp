// The kernels of sparse layers: products, and a layer's whole backward pass.
#include "delta.h"
#include "dispatch.h"
#include "products.h"
#include "scratch.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

template <class T, class I>
void spmm_(Pattern p, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias, bool relu) {
  Rows<T, I> w = rows_of<T, I>(p, values);
  w.bias = static_cast<const T *>(bias);
  w.relu = relu;
  parallel(team((w.indptr[p.rows] + p.rows) * batch), [&](int thread, int threads) {
    const int64_t from = share(w.indptr, p.rows, thread, threads), to = share(w.indptr, p.rows, thread + 1, threads);
    blocks<LANES<T>, FORWARD>(batch, Spmm<T, I>{w, x, y, from, to});
  });
}

template <class T, class I>
void sddmm_(Pattern p, Matrix dy, Matrix x, void *dvalues, int64_t batch) {
  Rows<T, I> w = rows_of<T, I>(p, nullptr);
  w.dvalues = static_cast<T *>(dvalues);
  parallel(team((w.indptr[p.rows] + p.rows) * batch),
           [&](int thread, int threads) { sddmm_part(w, p.rows, dy, x, batch, thread, threads); });
}

template <class T, class I>
void backward_(Pattern p, const void *values, Matrix dy, Matrix x, Matrix dx, void *dvalues, int64_t batch) {
  Rows<T, I> w = rows_of<T, I>(p, values);
  w.dvalues = static_cast<T *>(dvalues);
  parallel(team(2 * (w.indptr[p.rows] + p.rows) * batch),
           [&](int thread, int threads) { backward_part(w, p.rows, dy, x, dx, batch, thread, threads); });
}

// A layer's whole backward pass in one go: the threads stay together.
template <class T, class I>
void linear_backward_(const Index &index, const void *values, const Delta &delta, Matrix x, Matrix dx, void *dvalues,
                      int64_t batch) {
  Rows<T, I> w = rows_of<T, I>(index.w, values), wt = rows_of<T, I>(index.wt, values);
  w.dvalues = wt.dvalues = static_cast<T *>(dvalues);
  const int64_t rows = index.w.rows, nnz = w.indptr[rows];
  const int many = team(2 * (nnz + rows) * batch);
  const bool sorted = dx.data && many > 1;  // sums of a column lie in many rows: threads would write to the same lines
  if (sorted) wt.dvalues = scratch<T>(0, nnz), wt.to = nullptr;
  parallel(many, [&](int thread, int threads) {
    Matrix ready{delta.dy.data, delta.dy.by_feature};
    if (delta.dz.data || delta.dbias) {  // by the rows that the thread made in the forward pass
      const int64_t from = share(w.indptr, rows, thread, threads), to = share(w.indptr, rows, thread + 1, threads);
      delta_rows<T>(delta, delta.dz, batch, from, to);
      ready = delta.dz;
      wait_for(threads);
    }
    if (dx.data) backward_part(wt, index.wt.rows, ready, x, dx, batch, thread, threads);
    else sddmm_part(w, rows, ready, x, batch, thread, threads);
    if (sorted) {
      wait_for(threads);
      const I *from = static_cast<const I *>(index.place);
      for (int64_t k = nnz * thread / threads; k < nnz * (thread + 1) / threads; ++k)
        w.dvalues[k] = wt.dvalues[from[k]];
    }
  });
}

template <class T>
void transpose_(int64_t rows, int64_t cols, Matrix in, Matrix out) {
  parallel(team(rows * cols), [&](int thread, int threads) {
    constexpr int64_t L = LANES<T>;
    const int64_t strips = (cols + L - 1) / L;
    const int64_t from = strips * thread / threads * L, to = strips * (thread + 1) / threads * L;
    transpose_rows(static_cast<const T *>(in.data), in.stride, static_cast<T *>(out.data), out.stride, rows, from,
                   to < cols ? to : cols);
  });
}

}  // namespace

void spmm(bool f64, Pattern w, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias, bool relu) {
  with_types(f64, w.wide, [&](auto number, auto index) {
    spmm_<decltype(number), decltype(index)>(w, values, x, y, batch, bias, relu);
  });
}
void sddmm(bool f64, Pattern w, Matrix dy, Matrix x, void *dvalues, int64_t batch) {
  with_types(f64, w.wide,
             [&](auto number, auto index) { sddmm_<decltype(number), decltype(index)>(w, dy, x, dvalues, batch); });
}
void backward(bool f64, Pattern wt, const void *values, Matrix dy, Matrix x, Matrix dx, void *dvalues, int64_t batch) {
  with_types(f64, wt.wide, [&](auto number, auto index) {
    backward_<decltype(number), decltype(index)>(wt, values, dy, x, dx, dvalues, batch);
  });
}
void linear_backward(bool f64, Index layer, const void *values, Delta delta, Matrix x, Matrix dx, void *dvalues,
                     int64_t batch) {
  with_types(f64, layer.w.wide, [&](auto number, auto index) {
    linear_backward_<decltype(number), decltype(index)>(layer, values, delta, x, dx, dvalues, batch);
  });
}
void transpose(bool f64, int64_t rows, int64_t cols, Matrix in, Matrix out) {
  with_number(f64, [&](auto number) { transpose_<decltype(number)>(rows, cols, in, out); });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
