// bfloat16 in pairs: a word of two holds, in its upper half and in its lower one, a float32 each, so that one load and
// one operation for either make two vectors: the even samples of the block's next 2 L, then the odd ones.
#pragma once
#include "bfloat16.h"
#include "storage.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// Where a block's NV vectors of L lanes lie: one after another, but for the last one, which lies at `tail` and may so
// overlap its neighbour. `repeated` of its lanes are the neighbour's then. Rows of 16 bits have no such tail.
struct Place {
  int64_t tail;
  int repeated = 0;
};
template <int L, int NV>
inline int64_t offset(const Place &place, int v) {
  return v < NV - 1 ? v * L : place.tail;
}

template <class S, int L, int NV>
constexpr bool in_pairs = std::is_same_v<S, bfloat16> && NV % 2 == 0 && L > 1;

template <int L>
inline Words<L> pairs(const bfloat16 *row) {
  return as<Words<L>>(load<uint16_t, 2 * L>(&row->bits));
}
template <int L>
inline Vec<float, L> even(Words<L> both) {
  return as<Vec<float, L>>(Words<L>(both << 16));
}
template <int L>
inline Vec<float, L> odd(Words<L> both) {
  return as<Vec<float, L>>(Words<L>(both & 0xffff0000u));
}

// sum + the products of both pairs of each word, which are exact; denormal numbers count as zeros
#if defined(FILIGREE_ISA_avx512)
template <class S, int L, int NV>
constexpr bool has_pair_products = in_pairs<S, L, NV> && L == 16;
inline Vec<float, 16> add_products(Vec<float, 16> sum, Words<16> a, Words<16> b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));  // not every processor with AVX-512 has it
  return sum;
}
#else
template <class S, int L, int NV>
constexpr bool has_pair_products = false;
template <class V, class W>
V add_products(V sum, W, W);
#endif

// call(v, the v-th of the block's vectors), v = 0 ... NV - 1
template <class T, int L, int NV, class S, class Call>
inline void read_vectors(const S *row, const Place &place, Call call) {
  if constexpr (in_pairs<S, L, NV>) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; v += 2) {
      const Words<L> both = pairs<L>(row + v * L);
      call(v, even<L>(both)), call(v + 1, odd<L>(both));
    }
  } else {
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) call(v, load<T, L>(row + offset<L, NV>(place, v)));
  }
}

// The inverse of `read_vectors`.
template <class T, int L, int NV, class S>
inline void write_vectors(S *row, const Place &place, const Vec<T, L> *vectors) {
  if constexpr (in_pairs<S, L, NV>) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; v += 2) {
      const Words<L> both = rounded<L>(vectors[v]) >> 16 | (rounded<L>(vectors[v + 1]) & 0xffff0000u);
      store<uint16_t, 2 * L>(&row[v * L].bits, as<Vec<uint16_t, 2 * L>>(both));
    }
  } else {
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store<T, L>(row + offset<L, NV>(place, v), vectors[v]);
  }
}

// The samples of the v-th vector: lane i is sample first_sample + i * sample_step of the block.
template <class S, int L, int NV>
constexpr int sample_step = in_pairs<S, L, NV> ? 2 : 1;
template <class S, int L, int NV>
inline int64_t first_sample(const Place &place, int v) {
  return in_pairs<S, L, NV> ? (v - v % 2) * L + v % 2 : offset<L, NV>(place, v);
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
