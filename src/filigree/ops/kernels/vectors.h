// What all kernels share: vectors of one instruction set, sums over them, transposes in registers, teams of threads.
// Read once for each instruction set that kernels are compiled for; GCC's vector extension turns into its registers.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "openmp.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

#if defined(FILIGREE_ISA_avx512)
constexpr int BYTES = 64, FORWARD = 8, BACKWARD = 8;  // vector size; vectors of a block, by registers to hold them
#elif defined(FILIGREE_ISA_avx2)
constexpr int BYTES = 32, FORWARD = 8, BACKWARD = 4;
#elif defined(FILIGREE_ISA_neon)
constexpr int BYTES = 16, FORWARD = 16, BACKWARD = 8;
#else
constexpr int BYTES = 16, FORWARD = 8, BACKWARD = 4;
#endif

template <class T, int L>
struct Lanes {
  typedef T type __attribute__((vector_size(L * sizeof(T))));
  typedef type anywhere __attribute__((aligned(sizeof(T)), may_alias));  // in memory, among numbers
};
template <class T>
struct Lanes<T, 1> {
  typedef T type;  // a vector of one number would go through memory
  typedef T anywhere __attribute__((may_alias));
};
template <class T, int L>
using Vec = typename Lanes<T, L>::type;

template <class T, int L>
inline Vec<T, L> load(const T *p) {
  return *reinterpret_cast<const typename Lanes<T, L>::anywhere *>(p);
}
template <class T, int L>
inline void store(T *p, Vec<T, L> v) {
  *reinterpret_cast<typename Lanes<T, L>::anywhere *>(p) = v;
}

template <int L, class V>
inline auto lane(const V &v, int i) {
  if constexpr (L == 1) return v;
  else return v[i];
}

template <int... I>
struct Seq {};
template <int N, int... I>
struct MakeSeq : MakeSeq<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSeq<0, I...> {
  typedef Seq<I...> type;
};
template <int L>
using Range = typename MakeSeq<L>::type;

// lanes i of `a` and `b` with bit S of i cleared (first) or set: sums over neighbours S apart, a's and b's in turn
template <int S, int L, class V, int... I>
inline V fold(V a, V b, Seq<I...>) {
  return __builtin_shufflevector(a, b, ((I & S ? L : 0) + (I & ~S))...) +
         __builtin_shufflevector(a, b, ((I & S ? L : 0) + (I | S))...);
}

// v's lower half plus its upper half
template <class T, int L, int... I>
inline Vec<T, L / 2> halves(Vec<T, L> v, Seq<I...>) {
  if constexpr (L == 2) return v[0] + v[1];
  else return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + L / 2)...);
}

// The sums of G vectors; G = sums_at_once<L>. Wide vectors are folded first: narrower ones take fewer cycles.
template <int L>
constexpr int sums_at_once = L >= 4 ? 4 : L;

template <class T, int L>
inline Vec<T, sums_at_once<L>> sums(const Vec<T, L> *s) {
  if constexpr (L == 1) {
    return s[0];
  } else if constexpr (L == 2) {
    return fold<1, L>(s[0], s[1], Range<L>{});
  } else if constexpr (L == 4) {
    return fold<2, L>(fold<1, L>(s[0], s[1], Range<L>{}), fold<1, L>(s[2], s[3], Range<L>{}), Range<L>{});
  } else if constexpr (L == 8) {
    const Vec<T, L> v = fold<2, L>(fold<1, L>(s[0], s[1], Range<L>{}), fold<1, L>(s[2], s[3], Range<L>{}), Range<L>{});
    return halves<T, L>(v, Range<L / 2>{});
  } else {
    Vec<T, L / 2> half[4];
    for (int g = 0; g < 4; ++g) half[g] = halves<T, L>(s[g], Range<L / 2>{});
    return sums<T, L / 2>(half);
  }
}

// A block of the batch: NV vectors of L lanes; all but the last begin at first + v * L, the last at `last`.
struct Block {
  int64_t first, last;
  int repeated;  // lanes of the last vector that its neighbour has already covered
  bool begins;   // the first block of the batch: sums are stored, not added to
};

// v with its repeated lanes at zero; selected, not multiplied, so that a NaN there does not spread. Both factors of a
// product need it.
template <class T, int L>
struct Fresh {
  Vec<T, L> counts{};
  explicit Fresh(int repeated) {
    if constexpr (L > 1)
      for (int i = 0; i < L; ++i) counts[i] = T(i >= repeated);
  }
  Vec<T, L> operator()(Vec<T, L> v) const {
    if constexpr (L == 1) return v;
    else return counts > 0 ? v : Vec<T, L>{};
  }
};

// Cut the batch into blocks of L * MOST numbers and call rows<L, NV>(block) for each, narrower for the remainder.
template <int L, int NV, class Call>
inline void with_vectors(int vectors, Call call, const Block &block) {
  if (vectors == NV) return call.template run<L, NV>(block);
  if constexpr (NV > 1) with_vectors<L, NV - 1>(vectors, call, block);
}

template <int L, int MOST, class Call>
inline void blocks(int64_t batch, Call call) {
  if constexpr (L > 1)
    if (batch < L) return blocks<L / 2, (MOST < 2 ? MOST : 2)>(batch, call);  // less than two vectors of L / 2
  for (int64_t first = 0; first < batch; first += L * MOST) {
    const int64_t rest = batch - first < L * MOST ? batch - first : L * MOST;
    const int vectors = int((rest + L - 1) / L);
    with_vectors<L, MOST>(vectors, call, Block{first, first + rest - L, int(vectors * L - rest), first == 0});
  }
}

// The share of `thread` among `threads`: rows whose nonzeros (and the rows themselves) add up to equal work.
template <class I>
inline int64_t share(const I *indptr, int64_t rows, int thread, int threads) {
  constexpr int64_t ROW = 4;  // a row's own cost, in nonzeros
  if (thread == threads) return rows;
  const double want = double(indptr[rows] + ROW * rows) * thread / threads;
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t mid = (low + high) / 2;
    if (double(indptr[mid] + ROW * mid) < want) low = mid + 1;
    else high = mid;
  }
  return low;
}

inline int team(int64_t work) {
  constexpr int64_t GRAIN = 16384;  // multiply-adds below which another thread costs more than it brings
  const int64_t most = omp_get_max_threads(), useful = work / GRAIN;
  return omp_in_parallel() || useful < 2 ? 1 : int(useful < most ? useful : most);
}

template <class Body>
inline void parallel(int threads, Body body) {
  if (threads == 1) return body(0, 1);
  by_team(threads, [&] { body(omp_get_thread_num(), omp_get_num_threads()); });
}

template <class T>
constexpr int LANES = BYTES / int(sizeof(T));

// The i-th random number of a seed: a counter and two keys through an integer hash (rounds and constants after
// C. Wellons' search for low bias). No state, so threads and the backward pass find the same numbers by index.
template <int L>
inline Vec<uint32_t, L> random(Vec<uint32_t, L> counter, uint32_t first, uint32_t second) {
  Vec<uint32_t, L> x = counter + first;
  x = (x ^ (x >> 16)) * 0x21f0aaadu;
  x = (x ^ second ^ (x >> 15)) * 0x735a2d97u;
  x = (x ^ (x >> 15)) * 0x21f0aaadu;
  return x ^ (x >> 15);
}

// An L x L transpose in registers: at step S the blocks of S x S off the diagonal change places.
template <int S, int L, class V, int... I>
inline void swap_blocks(V &a, V &b, Seq<I...>) {
  const V low = __builtin_shufflevector(a, b, (I & S ? L + (I & ~S) : I)...);
  b = __builtin_shufflevector(a, b, (I & S ? L + I : (I | S))...);
  a = low;
}
template <int S, int L, class V>
inline void transpose_registers(V *rows) {
  if constexpr (S < L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if (!(i & S)) swap_blocks<S, L>(rows[i], rows[i | S], Range<L>{});
    transpose_registers<2 * S, L>(rows);
  }
}

// out[j, i] = in[i, j] for rows [from, to) of `out`
template <class T>
void transpose_rows(const T *in, int64_t in_stride, T *out, int64_t out_stride, int64_t cols, int64_t from,
                    int64_t to) {
  constexpr int L = sizeof(T) == 2 && BYTES > 16 ? LANES<T> / 2 : LANES<T>;  // registers hold the tile
  typedef Vec<T, L> V;
  int64_t j = from;
  for (; j + L <= to; j += L) {
    int64_t i = 0;
    for (; i + L <= cols; i += L) {
      V tile[L];
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k) tile[k] = load<T, L>(in + (i + k) * in_stride + j);
      transpose_registers<1, L>(tile);
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k) store<T, L>(out + (j + k) * out_stride + i, tile[k]);
    }
    for (; i < cols; ++i)
      for (int k = 0; k < L; ++k) out[(j + k) * out_stride + i] = in[i * in_stride + j + k];
  }
  for (; j < to; ++j)
    for (int64_t i = 0; i < cols; ++i) out[j * out_stride + i] = in[i * in_stride + j];
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
