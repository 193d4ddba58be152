// Sparse layers of which only some rows are computed.
#include "dispatch.h"
#include "products.h"

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

// The gradients of chosen rows for columns [from, to) of W, one row after another: dots[k] = dz[row(k)] . x[column(k)]
// and, unless dx.data is null, dx[column(k)] += value[k] dz[row(k)]; dz = dy where y > 0 (where y is null: dy), and its
// sums go to `sums`, unless null. Few rows touch few columns: no transposed pattern is looked through for them.
template <class T, class I>
struct Scatter {
  Rows<T, I> w;
  int64_t count;
  bool whole;  // whether dy holds all rows, else the chosen ones
  Matrix dy, y, x, dx;
  T *dots, *sums;
  int64_t from, to;

  template <int L, int NV>
  void run(const Block &block) const {
    if (block.repeated) dx.data ? rows<L, NV, true, true>(block) : rows<L, NV, true, false>(block);
    else dx.data ? rows<L, NV, false, true>(block) : rows<L, NV, false, false>(block);
  }

 private:
  template <int L, int NV, bool RAGGED, bool ADD>
  void rows(const Block &block) const {
    typedef Vec<T, L> V;
    constexpr int G = sums_at_once<L>;
    const Place place = filigree::FILIGREE_ISA::place(block);
    const Fresh<T, L> fresh_lanes(block.repeated);
    const auto fresh = [&](V v, int i) { return RAGGED && i == NV - 1 ? fresh_lanes(v) : v; };
    for (int64_t s = 0; s < count; ++s) {
      const int64_t r = w.chosen[s];
      const T *own = at<T>(dy, block) + (whole ? r : s) * dy.stride;
      const T *output = y.data ? at<T>(y, block) + r * y.stride : nullptr;
      V mine[NV], added = {};
      for (int v = 0; v < NV; ++v) {
        mine[v] = load<T, L>(own + offset<L, NV>(place, v));
        if (output) mine[v] = load<T, L>(output + offset<L, NV>(place, v)) <= 0 ? V{} : mine[v];
        mine[v] = fresh(mine[v], v);
        added += mine[v];
      }
      if (sums) sums[r] = block.begins ? total<T, L>(added) : sums[r] + total<T, L>(added);
      const auto group = [&](int64_t k, auto many) {
        constexpr int N = decltype(many)::value;
        V dot[G] = {};
#pragma GCC unroll 4
        for (int g = 0; g < N; ++g) {
          const int64_t column = w.indices[k + g];
          const T *row = at<T>(x, block) + column * x.stride;
          T *out = ADD ? at<T>(dx, block) + column * dx.stride : nullptr;
          const T value = w.values[k + g];
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) {
            const int64_t i = offset<L, NV>(place, v);
            dot[g] += mine[v] * fresh(load<T, L>(row + i), v);  // zero times infinity would be NaN
            if constexpr (ADD) store<T, L>(out + i, load<T, L>(out + i) + fresh(value * mine[v], v));
          }
        }
        const Vec<T, G> each = filigree::FILIGREE_ISA::sums<T, L>(dot);
        for (int g = 0; g < N; ++g) dots[k + g] = lane<G>(each, g) + (block.begins ? T(0) : dots[k + g]);
      };
      const I *end = w.indices + w.indptr[r + 1], *first = std::lower_bound(w.indices + w.indptr[r], end, from);
      int64_t k = first - w.indices;
      const int64_t last = std::lower_bound(first, end, to) - w.indices;
      for (; k + G <= last; k += G) group(k, std::integral_constant<int, G>{});
      for (; k < last; ++k) group(k, std::integral_constant<int, 1>{});
    }
  }
};

// Each thread takes columns of W, so that none writes to another's.
template <class T, class I>
void rows_backward_(const Index &layer, Chosen chosen, const void *values, Matrix dy, bool whole, Matrix y, Matrix x,
                    Matrix dx, T *dvalues, T *dbias, int64_t batch) {
  Rows<T, I> w = rows_of<T, I>(layer.w, values);
  w.chosen = chosen.rows;
  const I *t_indptr = static_cast<const I *>(layer.wt.indptr);
  const int64_t rows = layer.w.rows, cols = layer.wt.rows, nnz = w.indptr[rows], count = chosen.count;
  parallel(team(2 * (nnz / (rows > 0 ? rows : 1) * count + cols) * batch), [&](int thread, int threads) {
    const int64_t from = share(t_indptr, cols, thread, threads), to = share(t_indptr, cols, thread + 1, threads);
    std::fill(dvalues + nnz * thread / threads, dvalues + nnz * (thread + 1) / threads, T(0));
    for (int64_t c = from; dx.data && c < to; ++c) {
      T *out = static_cast<T *>(dx.data) + c * dx.stride;
      std::fill(out, out + batch, T(0));
    }
    wait_for(threads);
    blocks<LANES<T>, BACKWARD>(
        batch, Scatter<T, I>{w, count, whole, dy, y, x, dx, dvalues, thread == 0 ? dbias : nullptr, from, to});
  });
}

}  // namespace

void rows_spmm(bool f64, Pattern w, Chosen chosen, const void *values, Matrix x, Matrix y, int64_t batch,
               const void *bias, bool relu) {
  with_types(f64, w.wide, [&](auto number, auto index) {
    rows_spmm_<decltype(number), decltype(index)>(w, chosen, values, x, y, batch, bias, relu);
  });
}
void rows_backward(bool f64, Index layer, Chosen chosen, const void *values, Matrix dy, bool whole, Matrix y, Matrix x,
                   Matrix dx, void *dvalues, void *dbias, int64_t batch) {
  with_types(f64, layer.w.wide, [&](auto number, auto index) {
    typedef decltype(number) T;
    rows_backward_<T, decltype(index)>(layer, chosen, values, dy, whole, y, x, dx, static_cast<T *>(dvalues),
                                       static_cast<T *>(dbias), batch);
  });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
