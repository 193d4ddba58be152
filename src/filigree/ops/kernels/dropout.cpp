// Dropout from a counter: no state, and no mask that is kept.
#include "dispatch.h"
#include "vectors.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

template <class T, int L>
inline Vec<T, L> kept(Vec<T, L> v, Vec<uint32_t, L> number, uint32_t threshold, T scale) {
  if constexpr (sizeof(T) == 8)
    return __builtin_convertvector(number >= threshold, Vec<int64_t, L>) ? v * scale : Vec<T, L>{};
  else return number >= threshold ? v * scale : Vec<T, L>{};
}

template <class T>
void dropout_(int64_t size, uint64_t seed, uint32_t first, uint32_t threshold, T scale, const T *in, T *out) {
  constexpr int L = LANES<T>;
  const int64_t vectors = size / L;
  parallel(team(size / 2), [&](int thread, int threads) {
    Vec<uint32_t, L> lane;
    for (int i = 0; i < L; ++i) lane[i] = i;
    const auto numbers = [&](int64_t at) {
      const uint32_t high = uint32_t(seed >> 32) + uint32_t(at >> 32) * 0x9e3779b9u;
      return random<L>(lane + uint32_t(at), uint32_t(seed), high) - first;
    };
    for (int64_t v = vectors * thread / threads; v < vectors * (thread + 1) / threads; ++v)
      store<T, L>(out + v * L, kept<T, L>(load<T, L>(in + v * L), numbers(v * L), threshold, scale));
    if (thread == threads - 1) {
      const Vec<uint32_t, L> last = numbers(vectors * L);
      for (int64_t i = vectors * L; i < size; ++i) out[i] = last[i - vectors * L] >= threshold ? in[i] * scale : T(0);
    }
  });
}

}  // namespace

void dropout(bool f64, int64_t size, uint64_t seed, uint32_t first, uint32_t threshold, double scale, const void *in,
             void *out) {
  with_number(f64, [&](auto number) {
    typedef decltype(number) T;
    dropout_<T>(size, seed, first, threshold, T(scale), static_cast<const T *>(in), static_cast<T *>(out));
  });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
