// The two inner loops of all sparse products: `multiply_rows` (y = W x) and `backward_rows` (a dot product for each
// nonzero and, in the same pass, the other factor's gradient). Every nonzero is a fused multiply-add over the vectors
// of one block of the batch.
#pragma once
#include "drop.h"
#include "pairs.h"

#include <type_traits>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// Compressed rows. `chosen`: the rows that are meant, null: all; `values` is read at `perm` where that is given.
template <class T, class I>
struct Rows {
  const I *indptr, *indices, *perm;
  const T *values;
  const int64_t *chosen = nullptr;
};

// What becomes of the sums: bias is added, then ReLU and dropout are applied.
template <class T>
struct Finish {
  const T *bias = nullptr;
  bool relu = false;
  Drop<T> drop = {};
};

template <class T>
inline void prefetch(const T *row, int64_t numbers) {
  for (int64_t i = 0; i < numbers; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + i);
}
constexpr int AHEAD = 8;  // nonzeros between a prefetch and its use

// How many nonzeros are summed apart from one another, so that no adder waits for another sum. One where the order of
// the sum must not depend on the block.
template <int NV>
constexpr int APART = NV >= 8   ? 1
                      : NV >= 3 ? 2
                                : 4;

// y[r] = sum_k value[k] x[column[k]] for rows [from, to); x and y are of S, T or shorter. PERM: values may be permuted.
template <class T, class I, int L, int NV, bool ORDERED = false, bool FAR = false, bool PERM = true, class S>
void multiply_rows(const Rows<T, I> &w, const S *x, int64_t x_stride, S *y, int64_t y_stride, Place place,
                   const Finish<T> &finish, int64_t sample, int64_t from, int64_t to) {
  typedef Vec<T, L> V;
  constexpr int U = ORDERED ? 1 : APART<NV>;
  const I *indices = w.indices, *perm = w.perm;
  const T *values = w.values;
  for (int64_t s = from; s < to; ++s) {
    const int64_t r = w.chosen ? w.chosen[s] : s;
    const int64_t end = w.indptr[r + 1];
    V sum[U][NV];
    for (int u = 0; u < U; ++u)
      for (int v = 0; v < NV; ++v) sum[u][v] = V{} + (u == 0 && finish.bias ? finish.bias[r] : T(0));
    const auto add = [&](int64_t k, V *to_sum) {
      const T value = PERM && perm ? values[perm[k]] : values[k];
      const S *row = x + int64_t(indices[k]) * x_stride;
      if constexpr (FAR) prefetch(x + int64_t(indices[k + AHEAD < end ? k + AHEAD : k]) * x_stride, NV * L);
      read_vectors<T, L, NV>(row, place, [&](int v, V theirs) { to_sum[v] += value * theirs; });
    };
    int64_t k = w.indptr[r];
    for (; k + U <= end; k += U)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) add(k + u, sum[u]);
    if constexpr (U > 1)
      for (; k < end; ++k) add(k, sum[0]);
    for (int u = 1; u < U; ++u)
      for (int v = 0; v < NV; ++v) sum[0][v] += sum[u][v];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      V &total = sum[0][v];
      if (finish.relu) total = total < 0 ? V{} : total;  // keeps NaN, as torch does
      if (finish.drop.threshold)
        total =
            finish.drop.template apply<L, sample_step<S, L, NV>>(total, r, sample + first_sample<S, L, NV>(place, v));
    }
    write_vectors<T, L, NV>(y + r * y_stride, place, sum[0]);
  }
}

// The sum of a vector's numbers.
template <class T, int L>
inline T total(Vec<T, L> v) {
  if constexpr (L == 1) return v;
  else return total<T, L / 2>(halves<T, L>(v, Range<L / 2>{}));
}

// What becomes of a row of the gradient: zero where the row's own numbers, an activation's output, are not positive,
// and times `scale`, where that activation was ReLU (with dropout); its sum goes to `sums`, unless null.
template <class T>
struct Through {
  bool relu = false;
  T scale = 1;
  T *sums = nullptr;
};

// For rows r in [from, to): dots[k] = own[r] . other[column[k]] (stored in the `first` block of the batch, else added),
// and, with SUM, out[r] = sum_k value[k] other[column[k]], in one pass over `other`. PAIRS: dot products of bfloat16s
// by the processor's own instruction, where it has one.
template <class T, class I, int L, int NV, bool SUM, bool RAGGED = false, bool FAR = false, bool PAIRS = false, class S>
void backward_rows(const Rows<T, I> &w, const S *own, int64_t own_stride, const S *other, int64_t other_stride, T *dots,
                   bool first, S *out, int64_t out_stride, Place place, const Through<T> &through, int64_t from,
                   int64_t to) {
  if constexpr (has_pair_products<S, L, NV> && !PAIRS)
    if (multiplies_pairs())
      return backward_rows<T, I, L, NV, SUM, RAGGED, FAR, true>(w, own, own_stride, other, other_stride, dots, first,
                                                                out, out_stride, place, through, from, to);
  typedef Vec<T, L> V;
  constexpr int G = sums_at_once<L>;
  const Fresh<T, L> fresh(place.repeated);
  const I *indices = w.indices;
  const T *values = w.values;
  for (int64_t s = from; s < to; ++s) {
    const int64_t r = w.chosen ? w.chosen[s] : s;
    const int64_t end = w.indptr[r + 1];
    V mine[NV], sum[NV] = {};
    read_vectors<T, L, NV>(own + s * own_stride, place, [&](int v, V own_vector) { mine[v] = own_vector; });
    if constexpr (RAGGED) mine[NV - 1] = fresh(mine[NV - 1]);
    const auto group = [&](int64_t k, auto many) {
      constexpr int N = decltype(many)::value;
      V dot[G] = {};
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) {
        const S *row = other + int64_t(indices[k + g]) * other_stride;
        if constexpr (FAR)
          prefetch(other + int64_t(indices[k + g + AHEAD < end ? k + g + AHEAD : k + g]) * other_stride, NV * L);
        const T value = SUM ? values[k + g] : T(0);
        read_vectors<T, L, NV>(row, place, [&](int v, V theirs) {
          if constexpr (SUM) sum[v] += value * theirs;
          if constexpr (!PAIRS)
            dot[g] += mine[v] * (RAGGED && v == NV - 1 ? fresh(theirs) : theirs);  // zero times infinity would be NaN
        });
        if constexpr (PAIRS)
#pragma GCC unroll 8
          for (int v = 0; v < NV; v += 2)
            dot[g] = add_products(dot[g], pairs<L>(own + s * own_stride + v * L), pairs<L>(row + v * L));
      }
      if constexpr (N == 1) {
        const T sum_of_one = lane<G>(sums<T, L>(dot), 0);  // added up as in a group, to the same bits
        dots[k] = first ? sum_of_one : dots[k] + sum_of_one;
      } else {
        Vec<T, N> each = sums<T, L>(dot);
        if (!first) each += load<T, N>(dots + k);
        store<T, N>(dots + k, each);
      }
    };
    int64_t k = w.indptr[r];
    for (; k + G <= end; k += G) group(k, std::integral_constant<int, G>{});
    for (; k < end; ++k) group(k, std::integral_constant<int, 1>{});
    if constexpr (SUM) {
      V added = {};
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        if (through.relu) sum[v] = mine[v] <= 0 ? V{} : sum[v] * through.scale;
        added += sum[v];
      }
      write_vectors<T, L, NV>(out + r * out_stride, place, sum);
      if (through.sums) {
        const T all = total<T, L>(added);
        through.sums[r] = first ? all : through.sums[r] + all;
      }
    }
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
