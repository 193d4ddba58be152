// Numbers in memory: of the type that is computed in, or in 16 bits, which are read and written as float32.
#pragma once
#include <type_traits>

#include "vectors.h"
#if defined(FILIGREE_ISA_avx2) || defined(FILIGREE_ISA_avx512)
#include <immintrin.h>
#endif

namespace filigree {
namespace FILIGREE_ISA {
namespace {

struct bfloat16 {  // the upper half of a float32
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};
template <class S>
constexpr bool is_short = std::is_same_v<S, bfloat16> || std::is_same_v<S, float16>;

// the same bits as another type
template <class To, class From>
inline To as(const From &from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class To, int L, class From>
inline Vec<To, L> converted(const From &v) {
  if constexpr (L == 1) return To(v);
  else return __builtin_convertvector(v, Vec<To, L>);
}

template <int L>
using Words = Vec<uint32_t, L>;

template <int L>
inline Vec<float, L> widened(Vec<uint16_t, L> bits, bfloat16) {
#if defined(FILIGREE_ISA_avx512)  // GCC 12 makes several instructions of this one
  if constexpr (L == 16) return as<Vec<float, L>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(as<__m256i>(bits)), 16));
#endif
#if defined(FILIGREE_ISA_avx2) || defined(FILIGREE_ISA_avx512)
  if constexpr (L == 8) return as<Vec<float, L>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(as<__m128i>(bits)), 16));
#endif
  return as<Vec<float, L>>(Words<L>(converted<uint32_t, L>(bits) << 16));
}
// The nearest bfloat16 in the upper half of each word; the lower half is left as it comes.
template <int L>
inline Words<L> rounded(Vec<float, L> v) {
  const Words<L> word = as<Words<L>>(v);
  const Words<L> nearest = word + 0x7fffu + ((word >> 16) & 1u), nan = Words<L>{} + 0x7fc00000u;
  return v == v ? nearest : nan;
}
template <int L>
inline Vec<uint16_t, L> narrowed(Vec<float, L> v, bfloat16) {
  return converted<uint16_t, L>(Words<L>(rounded<L>(v) >> 16));
}

template <int L>
inline Vec<float, L> widened(Vec<uint16_t, L> bits, float16) {
#if defined(FILIGREE_ISA_avx512)
  if constexpr (L == 16) return as<Vec<float, L>>(_mm512_cvtph_ps(as<__m256i>(bits)));
#endif
#if defined(FILIGREE_ISA_avx2) || defined(FILIGREE_ISA_avx512)
  if constexpr (L == 8) return as<Vec<float, L>>(_mm256_cvtph_ps(as<__m128i>(bits)));
#endif
  const Words<L> half = converted<uint32_t, L>(bits), infinite = Words<L>{} + 0x7f800000u;
  const Vec<float, L> size = as<Vec<float, L>>(Words<L>((half & 0x7fffu) << 13)) * 0x1p112f;
  const Words<L> word = as<Words<L>>(size) | ((half & 0x8000u) << 16);
  return as<Vec<float, L>>(Words<L>(size >= 65536.f ? word | infinite : word));
}
template <int L>
inline Vec<uint16_t, L> narrowed(Vec<float, L> v, float16) {
#if defined(FILIGREE_ISA_avx512)
  if constexpr (L == 16) return as<Vec<uint16_t, L>>(_mm512_cvtps_ph(as<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(FILIGREE_ISA_avx2) || defined(FILIGREE_ISA_avx512)
  if constexpr (L == 8) return as<Vec<uint16_t, L>>(_mm256_cvtps_ph(as<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#endif
  const Words<L> word = as<Words<L>>(v), sign = (word >> 16) & 0x8000u, positive = word & 0x7fffffffu;
  const Vec<float, L> size = as<Vec<float, L>>(positive);
  const Words<L> normal = (positive - (112u << 23) + 0xfffu + ((positive >> 13) & 1u)) >> 13;
  const Words<L> small = as<Words<L>>(Vec<float, L>(size + .5f)) - 0x3f000000u;  // below 2^-14 the addition rounds
  const Words<L> infinite = Words<L>{} + 0x7c00u, nan = Words<L>{} + 0x7e00u;
  const Words<L> finite = size < 0x1p-14f ? small : normal;
  const Words<L> any = size < 65536.f ? finite : infinite;
  return converted<uint16_t, L>(Words<L>((v == v ? any : nan) | sign));
}

template <class T, int L, class S, std::enable_if_t<is_short<S>, int> = 0>
inline Vec<T, L> load(const S *p) {
  return widened<L>(load<uint16_t, L>(&p->bits), S{});
}
template <class T, int L, class S, std::enable_if_t<is_short<S>, int> = 0>
inline void store(S *p, Vec<T, L> v) {
  store<uint16_t, L>(&p->bits, narrowed<L>(v, S{}));
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
