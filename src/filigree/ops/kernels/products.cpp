// Products with one sparse matrix.
#include "dispatch.h"
#include "products.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

template <class T, class I>
void spmm_(Pattern p, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias, bool relu) {
  const Rows<T, I> w = rows_of<T, I>(p, values);
  const Finish<T> finish{static_cast<const T *>(bias), relu};
  parallel(team((w.indptr[p.rows] + p.rows) * batch), [&](int thread, int threads) {
    const int64_t from = share(w.indptr, p.rows, thread, threads), to = share(w.indptr, p.rows, thread + 1, threads);
    blocks<LANES<T>, FORWARD>(batch, Multiply<T, I>{w, x, y, finish, from, to});
  });
}

// A dot product a nonzero and, unless `out` is null, the sums that multiply_rows would make.
template <class T, class I>
void backward_(Pattern p, const void *values, Matrix own, Matrix other, Matrix out, void *dots, int64_t batch) {
  const Rows<T, I> w = rows_of<T, I>(p, values);
  T *to_dots = static_cast<T *>(dots);
  parallel(team((out.data ? 2 : 1) * (w.indptr[p.rows] + p.rows) * batch), [&](int thread, int threads) {
    const int64_t from = share(w.indptr, p.rows, thread, threads), to = share(w.indptr, p.rows, thread + 1, threads);
    if (batch == 0) std::fill(to_dots + w.indptr[from], to_dots + w.indptr[to], T(0));
    blocks<LANES<T>, BACKWARD>(batch, Backward<T, I>{w, own, other, out, to_dots, from, to});
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
  with_types(f64, w.wide, [&](auto number, auto index) {
    backward_<decltype(number), decltype(index)>(w, nullptr, dy, x, {}, dvalues, batch);
  });
}
void backward(bool f64, Pattern wt, const void *ordered, Matrix dy, Matrix x, Matrix dx, void *dvalues, int64_t batch) {
  with_types(f64, wt.wide, [&](auto number, auto index) {
    backward_<decltype(number), decltype(index)>(wt, ordered, x, dy, dx, dvalues, batch);
  });
}
void transpose(bool f64, int64_t rows, int64_t cols, Matrix in, Matrix out) {
  with_number(f64, [&](auto number) { transpose_<decltype(number)>(rows, cols, in, out); });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
