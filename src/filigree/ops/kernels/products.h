// Products with sparse matrices, on feature-major matrices: every nonzero is a fused multiply-add over a contiguous
// vector of the batch.
//
// A batch is cut into blocks of at most NV vectors, held in registers while a row's nonzeros stream by. A last,
// partial vector is moved back so that it ends with the batch: it overlaps its neighbour, computes the same numbers
// twice, and where numbers are summed over the batch its repeated lanes are zeroed (`Fresh`).
//
// Threads share out rows by their nonzeros, and no sum crosses threads: results do not depend on their number.
#pragma once
#include "vectors.h"

#include <type_traits>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

template <class T, class I>
struct Rows {
  const I *indptr, *indices, *perm;
  const T *values;
  const T *bias;
  bool relu;
  T *dvalues;
  const I *to;            // where in dvalues each sum goes; null: in order
  const int64_t *chosen;  // the rows that are meant; null: all
};

// y[r] = sum_k value[k] x[col[k]]; U nonzeros at a time where few vectors would leave the adders waiting. Ordered: one
// by one, so that a column's bits do not depend on the block that it is in.
template <class T, class I, int L, int NV, bool ORDERED>
void spmm_rows(const Rows<T, I> &w, Matrix x, Matrix y, const Block &block, int64_t from, int64_t to) {
  typedef Vec<T, L> V;
  constexpr int U = ORDERED || NV >= 4 ? 1 : NV == 1 ? 4 : 2;
  const At<T, L, NV> at(block);
  const T *xd = static_cast<const T *>(x.data);
  T *yd = static_cast<T *>(y.data);
  for (int64_t s = from; s < to; ++s) {
    const int64_t r = w.chosen ? w.chosen[s] : s;
    V acc[U][NV];
    for (int u = 0; u < U; ++u)
      for (int v = 0; v < NV; ++v) acc[u][v] = V{} + (u == 0 && w.bias ? w.bias[r] : T(0));
    int64_t k = w.indptr[r];
    const int64_t end = w.indptr[r + 1];
    for (; k + U <= end; k += U)
      for (int u = 0; u < U; ++u) {
        const T value = w.perm ? w.values[w.perm[k + u]] : w.values[k + u];
        const T *row = xd + int64_t(w.indices[k + u]) * x.stride;
        for (int v = 0; v < NV; ++v) acc[u][v] += value * load<T, L>(row + at.offset[v]);
      }
    for (; U > 1 && k < end; ++k) {
      const T value = w.perm ? w.values[w.perm[k]] : w.values[k];
      const T *row = xd + int64_t(w.indices[k]) * x.stride;
      for (int v = 0; v < NV; ++v) acc[0][v] += value * load<T, L>(row + at.offset[v]);
    }
    for (int v = 0; v < NV; ++v) {
      V sum = acc[0][v];
      for (int u = 1; u < U; ++u) sum += acc[u][v];
      if (w.relu) sum = sum < 0 ? V{} : sum;  // keeps NaN, as torch does
      store<T, L>(yd + r * y.stride + at.offset[v], sum);
    }
  }
}

// dvalues[k] = dy[r] . x[col[k]]; of chosen rows dy holds only those
template <class T, class I, int L, int NV>
void sddmm_rows(const Rows<T, I> &w, Matrix dy, Matrix x, const Block &block, int64_t from, int64_t to) {
  typedef Vec<T, L> V;
  constexpr int G = sums_at_once<L>;
  const At<T, L, NV> at(block);
  const Fresh<T, L> fresh(block);
  const T *xd = static_cast<const T *>(x.data), *dyd = static_cast<const T *>(dy.data);
  for (int64_t s = from; s < to; ++s) {
    const int64_t r = w.chosen ? w.chosen[s] : s;
    V d[NV];
    for (int v = 0; v < NV; ++v) d[v] = load<T, L>(dyd + s * dy.stride + at.offset[v]);
    d[NV - 1] = fresh(d[NV - 1]);
    const auto group = [&](int64_t k, auto many) {
      constexpr int N = decltype(many)::value;
      V s[G] = {};
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) {
        const T *row = xd + int64_t(w.indices[k + g]) * x.stride;
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const V xv = load<T, L>(row + at.offset[v]);
          s[g] += d[v] * (v == NV - 1 ? fresh(xv) : xv);  // zero times infinity would be NaN
        }
      }
      const V total = sums<T, L>(s);
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) w.dvalues[k + g] = lane<L>(total, g) + (block.begins ? T(0) : w.dvalues[k + g]);
    };
    int64_t k = w.indptr[r];
    const int64_t end = w.indptr[r + 1];
    for (; k + G <= end; k += G) group(k, std::integral_constant<int, G>{});
    for (; k < end; ++k) group(k, std::integral_constant<int, 1>{});
  }
}

// By columns of W (rows of the transposed pattern): a vector of dy is loaded once and serves both products.
template <class T, class I, int L, int NV>
void backward_rows(const Rows<T, I> &w, Matrix dy, Matrix x, Matrix dx, const Block &block, int64_t from, int64_t to) {
  typedef Vec<T, L> V;
  constexpr int G = sums_at_once<L>;
  const At<T, L, NV> at(block);
  const Fresh<T, L> fresh(block);
  const T *xd = static_cast<const T *>(x.data), *dyd = static_cast<const T *>(dy.data);
  T *dxd = static_cast<T *>(dx.data);
  for (int64_t c = from; c < to; ++c) {
    V xs[NV], acc[NV] = {};
    for (int v = 0; v < NV; ++v) xs[v] = load<T, L>(xd + c * x.stride + at.offset[v]);
    xs[NV - 1] = fresh(xs[NV - 1]);
    const auto group = [&](int64_t k, auto many) {
      constexpr int N = decltype(many)::value;
      V s[G] = {};
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) {
        const T value = w.values[w.perm[k + g]];
        const T *row = dyd + int64_t(w.indices[k + g]) * dy.stride;
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const V d = load<T, L>(row + at.offset[v]);
          acc[v] += value * d;
          s[g] += xs[v] * (v == NV - 1 ? fresh(d) : d);
        }
      }
      const V total = sums<T, L>(s);
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) {
        T &out = w.dvalues[w.to ? w.to[k + g] : k + g];
        out = lane<L>(total, g) + (block.begins ? T(0) : out);
      }
    };
    int64_t k = w.indptr[c];
    const int64_t end = w.indptr[c + 1];
    for (; k + G <= end; k += G) group(k, std::integral_constant<int, G>{});
    for (; k < end; ++k) group(k, std::integral_constant<int, 1>{});
    for (int v = 0; v < NV; ++v) store<T, L>(dxd + c * dx.stride + at.offset[v], acc[v]);
  }
}

template <class T, class I, bool ORDERED = false>
struct Spmm {
  Rows<T, I> w;
  Matrix x, y;
  int64_t from, to;
  template <int L, int NV>
  void run(const Block &block) {
    spmm_rows<T, I, L, NV, ORDERED>(w, x, y, block, from, to);
  }
};
template <class T, class I>
struct Sddmm {
  Rows<T, I> w;
  Matrix dy, x;
  int64_t from, to;
  template <int L, int NV>
  void run(const Block &block) {
    sddmm_rows<T, I, L, NV>(w, dy, x, block, from, to);
  }
};
template <class T, class I>
struct Backward {
  Rows<T, I> w;
  Matrix dy, x, dx;
  int64_t from, to;
  template <int L, int NV>
  void run(const Block &block) {
    backward_rows<T, I, L, NV>(w, dy, x, dx, block, from, to);
  }
};

template <class T, class I>
Rows<T, I> rows_of(Pattern w, const void *values) {
  return {static_cast<const I *>(w.indptr),
          static_cast<const I *>(w.indices),
          static_cast<const I *>(w.perm),
          static_cast<const T *>(values),
          nullptr,
          false,
          nullptr,
          static_cast<const I *>(w.perm),
          nullptr};
}

// One thread's part of a team's work.
template <class T, class I>
void sddmm_part(const Rows<T, I> &w, int64_t rows, Matrix dy, Matrix x, int64_t batch, int thread, int threads) {
  const int64_t from = share(w.indptr, rows, thread, threads), to = share(w.indptr, rows, thread + 1, threads);
  if (batch == 0)
    for (int64_t k = w.indptr[from]; k < int64_t(w.indptr[to]); ++k) w.dvalues[k] = 0;
  blocks<LANES<T>, FORWARD>(batch, Sddmm<T, I>{w, dy, x, from, to});
}

template <class T, class I>
void backward_part(const Rows<T, I> &wt, int64_t cols, Matrix dy, Matrix x, Matrix dx, int64_t batch, int thread,
                   int threads) {
  const int64_t from = share(wt.indptr, cols, thread, threads), to = share(wt.indptr, cols, thread + 1, threads);
  if (batch == 0)
    for (int64_t k = wt.indptr[from]; k < int64_t(wt.indptr[to]); ++k) wt.dvalues[wt.to ? wt.to[k] : k] = 0;
  blocks<LANES<T>, BACKWARD>(batch, Backward<T, I>{wt, dy, x, dx, from, to});
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
