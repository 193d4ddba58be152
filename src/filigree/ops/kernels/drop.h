// Dropout from a counter: an element is dropped by its number, so that no mask is kept and any block finds the same.
#pragma once
#include "vectors.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// v * scale where the number is at least the threshold, else 0
template <class T, int L>
inline Vec<T, L> kept(Vec<T, L> v, Vec<uint32_t, L> number, uint32_t threshold, T scale) {
  if constexpr (L == 1 || sizeof(T) == 4) return number >= threshold ? v * scale : Vec<T, L>{};
  else return __builtin_convertvector(number >= threshold, Vec<int64_t, L>) ? v * scale : Vec<T, L>{};
}

// The random numbers of elements at, at + STEP, ...
template <int L, int STEP = 1>
inline Vec<uint32_t, L> element_numbers(uint64_t seed, int64_t at) {
  Vec<uint32_t, L> lane{};
  if constexpr (L > 1)
    for (int i = 0; i < L; ++i) lane[i] = i * STEP;
  const uint32_t high = uint32_t(seed >> 32) + uint32_t(at >> 32) * 0x9e3779b9u;
  return random<L>(lane + uint32_t(at), uint32_t(seed), high);
}

// Dropout with probability p of a feature-major matrix of `batch` samples: as kernel `dropout` does it in memory order.
template <class T>
struct Drop {
  uint64_t seed = 0;
  uint32_t threshold = 0;  // 0: nothing is dropped
  T scale = 1;
  int64_t batch = 0, first_row = 0;

  Drop() = default;
  Drop(double p, uint64_t seed, int64_t batch) : seed(seed), batch(batch) {
    const double most = 4294967295.0;
    threshold = uint32_t(p * 4294967296.0 < most ? p * 4294967296.0 : most);
    scale = p < 1 ? T(1 / (1 - p)) : T(0);
  }
  template <int L, int STEP = 1>  // STEP: from lane to lane, in samples
  Vec<T, L> apply(Vec<T, L> v, int64_t row, int64_t sample) const {
    return kept<T, L>(v, element_numbers<L, STEP>(seed, (first_row + row) * batch + sample), threshold, scale);
  }
};

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
