// The largest entries of each row of a matrix, and products with what is kept.
#include "dispatch.h"
#include "products.h"
#include "scratch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(FILIGREE_ISA_neon)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// An entry's magnitude as an integer that orders as the number does: its bits without the sign.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
template <class T>
constexpr Bits<T> UNSIGNED = std::numeric_limits<Bits<T>>::max();

template <class T>
inline Bits<T> magnitude(T x) {
  Bits<T> bits;
  std::memcpy(&bits, &x, sizeof(T));
  return bits & UNSIGNED<T>;
}
template <class T>
inline Vec<Bits<T>, LANES<T>> magnitudes(const T *x) {
  return load<Bits<T>, LANES<T>>(reinterpret_cast<const Bits<T> *>(x)) & UNSIGNED<T>;
}

// How many of `n` entries are larger than `bound`.
template <class T>
int64_t count_above(const T *x, int64_t n, Bits<T> bound) {
  constexpr int L = LANES<T>;
  Vec<Bits<T>, L> some{}, more{};
  int64_t i = 0, found = 0;
  for (; i + 2 * L <= n; i += 2 * L) some -= magnitudes<T>(x + i) > bound, more -= magnitudes<T>(x + i + L) > bound;
  some += more;
  for (int l = 0; l < L; ++l) found += some[l];
  for (; i < n; ++i) found += magnitude(x[i]) > bound;
  return found;
}

template <class T>
Bits<T> largest(const T *x, int64_t n) {
  constexpr int L = LANES<T>;
  Vec<Bits<T>, L> top{};
  Bits<T> most = 0;
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<Bits<T>, L> here = magnitudes<T>(x + i);
    top = here > top ? here : top;
  }
  for (int l = 0; l < L; ++l) most = std::max(most, top[l]);
  for (; i < n; ++i) most = std::max(most, magnitude(x[i]));
  return most;
}

// What a row keeps: entries above `bound`, and the first `ties` of those equal to it.
template <class T>
struct Kept {
  Bits<T> bound;
  int64_t count, ties;
};

// Find the k largest by narrowing the interval that holds the k-th: by halves and by interpolating the counts at its
// ends in turn, from a guess. A row with at most k nonzeros needs no search. Zeros are never kept.
template <class T>
Kept<T> find_largest(const T *x, int64_t n, int64_t k, Bits<T> guess) {
  const int64_t nonzero = count_above(x, n, Bits<T>(0));
  if (nonzero <= k) return {0, nonzero, 0};
  Bits<T> low = 0, high = largest(x, n);  // more than k above low, fewer than k above high
  int64_t above_low = nonzero, above_high = 0;
  for (int turn = 0; high - low > 1; ++turn) {
    Bits<T> middle = low + (high - low) / 2;
    if (turn == 0 && guess > low && guess < high) {
      middle = guess;
    } else if (turn % 3) {
      const double share = double(above_low - k) / double(above_low - above_high);
      middle = std::clamp(Bits<T>(low + share * double(high - low)), Bits<T>(low + 1), Bits<T>(high - 1));
    }
    const int64_t above = count_above(x, n, middle);
    if (above == k) return {middle, k, 0};
    if (above > k) low = middle, above_low = above;
    else high = middle, above_high = above;
  }
  return {high, k, k - above_high};
}

// Bit l of the result: whether x[l] is larger than the bound.
template <class T>
inline uint32_t above(const T *x, Bits<T> bound) {
#if defined(FILIGREE_ISA_avx512)
  if constexpr (sizeof(T) == 4) return _mm512_cmpgt_epi32_mask((__m512i)magnitudes<T>(x), _mm512_set1_epi32(bound));
  else return _mm512_cmpgt_epi64_mask((__m512i)magnitudes<T>(x), _mm512_set1_epi64(bound));
#elif defined(FILIGREE_ISA_avx2)
  const auto greater = magnitudes<T>(x) > bound;
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps((__m256)greater);
  else return _mm256_movemask_pd((__m256d)greater);
#elif defined(FILIGREE_ISA_neon)
  const auto greater = magnitudes<T>(x) > bound;
  if constexpr (sizeof(T) == 4) return vaddvq_u32((uint32x4_t)greater & uint32x4_t{1, 2, 4, 8});
  else return uint32_t(vaddvq_u64((uint64x2_t)greater & uint64x2_t{1, 2}));
#else
  uint32_t mask = 0;
  for (int l = 0; l < LANES<T>; ++l) mask |= uint32_t(magnitude(x[l]) > bound) << l;
  return mask;
#endif
}

template <class T>
void keep(const T *x, int64_t n, Kept<T> row, int32_t *indices, T *values) {
  constexpr int L = LANES<T>;
  int64_t ties = row.ties, i = 0;
  const auto take = [&](int64_t at) { *indices++ = int32_t(at), *values++ = x[at]; };
  if (ties == 0)
    for (; i + L <= n; i += L)
      for (uint32_t mask = above(x + i, row.bound); mask; mask &= mask - 1) take(i + __builtin_ctz(mask));
  for (; i < n; ++i) {
    const Bits<T> m = magnitude(x[i]);
    if (m > row.bound) take(i);
    else if (ties && m == row.bound) take(i), --ties;
  }
}

// A matrix by rows, with the index of its transpose; `next` is room for `cols` numbers.
template <class T>
struct Entries {
  int32_t *indptr, *indices;
  T *values;
  int32_t *t_indptr, *t_indices, *t_perm, *next;
};

template <class T>
void transpose_index(int64_t rows, int64_t cols, const Entries<T> &e, T *sums) {
  std::fill(e.t_indptr, e.t_indptr + cols + 1, 0);
  if (sums) std::fill(sums, sums + cols, T(0));
  for (int32_t i = 0; i < e.indptr[rows]; ++i) ++e.t_indptr[e.indices[i] + 1];
  std::partial_sum(e.t_indptr, e.t_indptr + cols + 1, e.t_indptr);
  std::copy(e.t_indptr, e.t_indptr + cols, e.next);
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t i = e.indptr[r]; i < e.indptr[r + 1]; ++i) {
      const int32_t column = e.indices[i], at = e.next[column]++;
      e.t_indices[at] = int32_t(r), e.t_perm[at] = i;
      if (sums) sums[column] += e.values[i];
    }
}

// The largest entries of each row, by a team of threads.
template <class T>
void top_part(int64_t rows, int64_t cols, int64_t k, const T *x, int64_t stride, Kept<T> *kept, const Entries<T> &e,
              int thread, int threads) {
  const int64_t from = rows * thread / threads, to = rows * (thread + 1) / threads;
  Bits<T> guess = 0;
  for (int64_t r = from; r < to; ++r) {
    kept[r] = find_largest(x + r * stride, cols, k, guess);
    guess = kept[r].bound;
  }
  wait_for(threads);
  int32_t at = 0;  // each thread adds up for itself: cheaper than another wait
  for (int64_t r = 0; r < to; ++r) {
    if (r >= from) e.indptr[r] = at;
    at += int32_t(kept[r].count);
  }
  if (to == rows) e.indptr[rows] = at;
  for (int64_t r = from; r < to; ++r)
    keep(x + r * stride, cols, kept[r], e.indices + e.indptr[r], e.values + e.indptr[r]);
}

template <class T>
int64_t top_(int64_t rows, int64_t cols, int64_t k, const T *x, int64_t stride, Top out) {
  Kept<T> *kept = scratch<Kept<T>>(0, rows);
  int32_t *const next = scratch<int32_t>(1, out.t_indptr ? cols : 0);
  const Entries<T> e{out.indptr, out.indices, static_cast<T *>(out.values), out.t_indptr, out.t_indices,
                     out.t_perm, next};
  parallel(team(rows * cols / 2),
           [&](int thread, int threads) { top_part(rows, cols, k, x, stride, kept, e, thread, threads); });
  if (out.t_indptr) transpose_index(rows, cols, e, static_cast<T *>(out.sums));
  return rows ? e.indptr[rows] : 0;
}

// A layer's backward pass from the k largest of each row of delta, in one go: dx = S W, dW = S^T X, db = sums of S.
// Threads share out the columns of W and X, of which a part fits a core's cache; each column is summed in order, so
// that results do not depend on their number.
template <class T>
void top_backward_(int64_t batch, int64_t outs, int64_t ins, int64_t k, Matrix delta, Matrix x, Matrix w, Matrix dx,
                   Matrix dw, T *db) {
  const int64_t room = batch * k;
  Kept<T> *rows = scratch<Kept<T>>(0, batch);
  int32_t *at = scratch<int32_t>(1, batch + 1 + 3 * room + 2 * (outs + 1));
  T *numbers = scratch<T>(2, room);
  const auto next = [&](int64_t count) { return std::exchange(at, at + count); };
  const Entries<T> e{next(batch + 1), next(room), numbers, next(outs + 1), next(room), next(room), next(outs)};
  e.indptr[0] = 0;
  parallel(team(room * ins), [&](int thread, int threads) {
    top_part(batch, outs, k, static_cast<const T *>(delta.data), delta.stride, rows, e, thread, threads);
    const int64_t vectors = (ins + LANES<T> - 1) / LANES<T>;
    const int64_t from = vectors * thread / threads * LANES<T>,
                  to = std::min(ins, vectors * (thread + 1) / threads * LANES<T>);
    const auto part = [&](Matrix m) { return Matrix{static_cast<T *>(m.data) + from, m.stride}; };
    wait_for(threads);
    if (thread == 0) transpose_index(batch, outs, e, db);
    if (dx.data) {
      const Rows<T, int32_t> s{e.indptr, e.indices, nullptr, e.values};
      blocks<LANES<T>, FORWARD>(to - from, Multiply<T, int32_t, true>{s, part(w), part(dx), {}, 0, batch});
    }
    wait_for(threads);
    if (dw.data) {
      const Rows<T, int32_t> s{e.t_indptr, e.t_indices, e.t_perm, e.values};
      blocks<LANES<T>, FORWARD>(to - from, Multiply<T, int32_t, true>{s, part(x), part(dw), {}, 0, outs});
    }
  });
}

// c[i] = sum_k a[i, k] b[k]: a few rows at a time, so that each vector of b is read for all of them. Rows of b and c go
// by their index where there is one; a lies by its strides.
template <class T>
struct Small {
  int64_t rows, depth;
  const T *a;
  int64_t by_row, by_depth;
  Matrix b;
  const int32_t *b_index;
  Matrix c;
  const int32_t *c_index;

  template <int L, int NV>
  void run(const Block &block) const {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) tile<L, NV, 4>(block, i);
    for (; i < rows; ++i) tile<L, NV, 1>(block, i);
  }
  template <int L, int NV, int R>
  void tile(const Block &block, int64_t i) const {
    typedef Vec<T, L> V;
    const Place at = place(block);
    V acc[R][NV];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) acc[r][v] = V{};
    const T *ai = a + i * by_row;
    for (int64_t d = 0; d < depth; ++d) {
      const T *row = static_cast<const T *>(b.data) + block.first + (b_index ? b_index[d] : d) * b.stride;
      V bv[NV];
      for (int v = 0; v < NV; ++v) bv[v] = load<T, L>(row + offset<L, NV>(at, v));
      for (int r = 0; r < R; ++r) {
        const T scale = ai[r * by_row + d * by_depth];
        for (int v = 0; v < NV; ++v) acc[r][v] += scale * bv[v];
      }
    }
    for (int r = 0; r < R; ++r) {
      T *out = static_cast<T *>(c.data) + block.first + (c_index ? c_index[i + r] : i + r) * c.stride;
      for (int v = 0; v < NV; ++v) store<T, L>(out + offset<L, NV>(at, v), acc[r][v]);
    }
  }
};

// The same with one choice for all rows: the k columns of delta with the largest sums of magnitudes.
template <class T>
void unified_backward_(int64_t batch, int64_t outs, int64_t ins, int64_t k, Matrix delta, Matrix x, Matrix w, Matrix dx,
                       Matrix dw, T *db) {
  constexpr int NV = BYTES == 64 ? 4 : 2;
  int32_t *chosen = scratch<int32_t>(0, k);
  T *sum = scratch<T>(1, outs), *values = scratch<T>(2, k + batch * k);  // the chosen sums, then the chosen columns
  const T *d = static_cast<const T *>(delta.data);
  int64_t many = 0;
  const auto split = [](int64_t n, int thread, int threads) {
    constexpr int64_t L = LANES<T>;
    return std::min(n, (n + L - 1) / L * thread / threads * L);
  };
  parallel(team(batch * k * ins), [&](int thread, int threads) {
    int64_t from = split(outs, thread, threads), to = split(outs, thread + 1, threads);
    std::fill(sum + from, sum + to, T(0));
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t j = from; j < to; ++j) sum[j] += std::abs(d[b * delta.stride + j]);
    wait_for(threads);
    if (thread == 0) {
      const Kept<T> kept = find_largest(sum, outs, k, Bits<T>(0));
      keep(sum, outs, kept, chosen, values);
      many = kept.count;
    }
    wait_for(threads);
    T *few = values + k;
    for (int64_t b = batch * thread / threads; b < batch * (thread + 1) / threads; ++b)
      for (int64_t s = 0; s < many; ++s) few[b * many + s] = d[b * delta.stride + chosen[s]];
    if (db && thread == 0) std::fill(db, db + outs, T(0));
    wait_for(threads);
    if (db && thread == 0)
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t s = 0; s < many; ++s) db[chosen[s]] += few[b * many + s];
    from = split(ins, thread, threads), to = split(ins, thread + 1, threads);
    const auto part = [&](Matrix m) { return Matrix{static_cast<T *>(m.data) + from, m.stride}; };
    if (dx.data)
      blocks<LANES<T>, NV>(to - from, Small<T>{batch, many, few, many, 1, part(w), chosen, part(dx), nullptr});
    if (dw.data) {
      const Matrix mine = part(dw);
      for (int64_t j = 0, s = 0; j < outs; ++j) {
        if (s < many && chosen[s] == j) ++s;
        else std::memset(static_cast<T *>(mine.data) + j * mine.stride, 0, (to - from) * sizeof(T));
      }
      blocks<LANES<T>, NV>(to - from, Small<T>{many, batch, few, 1, many, part(x), nullptr, mine, chosen});
    }
  });
}

// The matrix with its zeros.
template <class T>
void spread_(int64_t rows, int64_t cols, const int32_t *indptr, const int32_t *indices, const T *values, T *out) {
  const int threads = team(rows * cols / 8);
  parallel(threads, [&](int thread, int team) {
    for (int64_t r = rows * thread / team; r < rows * (thread + 1) / team; ++r) {
      std::fill(out + r * cols, out + (r + 1) * cols, T(0));
      for (int32_t i = indptr[r]; i < indptr[r + 1]; ++i) out[r * cols + indices[i]] = values[i];
    }
  });
}

// y = A^T B of two sparse matrices with the same rows: A by its transposed index, each row of y summed up in cache.
template <class T>
void outer_(int64_t a_cols, const int32_t *t_indptr, const int32_t *t_indices, const int32_t *t_perm, const T *a,
            const int32_t *indptr, const int32_t *indices, const T *b, int64_t b_cols, Matrix y) {
  const int64_t nnz = t_indptr[a_cols];
  parallel(team(nnz * (indptr[1] + 1) + a_cols * b_cols / 16), [&](int thread, int threads) {
    for (int64_t j = a_cols * thread / threads; j < a_cols * (thread + 1) / threads; ++j) {
      T *out = static_cast<T *>(y.data) + j * y.stride;
      std::fill(out, out + b_cols, T(0));
      for (int32_t e = t_indptr[j]; e < t_indptr[j + 1]; ++e) {
        const T scale = a[t_perm[e]];
        const int32_t row = t_indices[e];
        for (int32_t i = indptr[row]; i < indptr[row + 1]; ++i) out[indices[i]] += scale * b[i];
      }
    }
  });
}

}  // namespace

int64_t top(bool f64, int64_t rows, int64_t cols, int64_t k, Matrix x, Top out) {
  return with_number(f64, [&](auto number) {
    return top_(rows, cols, k, static_cast<const decltype(number) *>(x.data), x.stride, out);
  });
}
void top_backward(bool f64, bool unified, int64_t batch, int64_t outs, int64_t ins, int64_t k, Matrix delta, Matrix x,
                  Matrix w, Matrix dx, Matrix dw, void *db) {
  with_number(f64, [&](auto number) {
    typedef decltype(number) T;
    const auto run = unified ? unified_backward_<T> : top_backward_<T>;
    run(batch, outs, ins, k, delta, x, w, dx, dw, static_cast<T *>(db));
  });
}
void spread(bool f64, int64_t rows, int64_t cols, Top in, void *out) {
  with_number(f64, [&](auto number) {
    typedef decltype(number) T;
    spread_(rows, cols, in.indptr, in.indices, static_cast<const T *>(in.values), static_cast<T *>(out));
  });
}
void outer(bool f64, int64_t a_cols, Top a, int64_t b_cols, Top b, Matrix y) {
  with_number(f64, [&](auto number) {
    typedef decltype(number) T;
    outer_(a_cols, a.t_indptr, a.t_indices, a.t_perm, static_cast<const T *>(a.values), b.indptr, b.indices,
           static_cast<const T *>(b.values), b_cols, y);
  });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
