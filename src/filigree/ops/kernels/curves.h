// Functions of every number of a vector: the activations that follow a sum.
#pragma once
#include "vectors.h"

#include <cmath>
#if defined(FILIGREE_ISA_avx512) || defined(FILIGREE_ISA_avx2)
#include <immintrin.h>
#endif

namespace filigree {
namespace FILIGREE_ISA {
namespace {

typedef Vec<float, LANES<float>> V;
typedef Vec<int32_t, LANES<float>> I;

// To the nearest whole number, ties to the even one.
inline I rounded(V v) {
#if defined(FILIGREE_ISA_avx512)
  return I(_mm512_maskz_cvtps_epi32(__mmask16(0xffff), __m512(v)));  // masked: GCC warns of the other
#elif defined(FILIGREE_ISA_avx2)
  return I(_mm256_cvtps_epi32(__m256(v)));
#else
  I all{};
  for (int i = 0; i < LANES<float>; ++i) all[i] = int32_t(std::lrint(v[i]));
  return all;
#endif
}

// The larger and the smaller one of two numbers; b where they cannot be compared.
inline V larger(V a, V b) {
#if defined(FILIGREE_ISA_avx512)
  return V(_mm512_maskz_max_ps(__mmask16(0xffff), __m512(a), __m512(b)));
#elif defined(FILIGREE_ISA_avx2)
  return V(_mm256_max_ps(__m256(a), __m256(b)));
#else
  return a > b ? a : b;
#endif
}
inline V smaller(V a, V b) {
#if defined(FILIGREE_ISA_avx512)
  return V(_mm512_maskz_min_ps(__mmask16(0xffff), __m512(a), __m512(b)));
#elif defined(FILIGREE_ISA_avx2)
  return V(_mm256_min_ps(__m256(a), __m256(b)));
#else
  return a < b ? a : b;
#endif
}

// x within [low, high]; keeps NaN, as torch does
inline V within(V x, float low, float high) { return smaller(V{} + high, larger(V{} + low, x)); }
inline V relu(V x) { return larger(V{}, x); }  // likewise

// exp(z) for |z| <= 87, within 2e-7 of it: a power of two and a polynomial of degree 5, by least squares that were
// weighted until the largest error was least. A sum with `WHOLE` has the nearest whole number in its lowest bits.
inline V exp_of(V z) {
  constexpr float WHOLE = 12582912.0f;  // 1.5 * 2^23
  z = within(z, -87.0f, 87.0f);
  const V bits = z * 1.44269504f + WHOLE;
  const V n = bits - WHOLE;
  const V r = z - n * 0.693359375f + n * 2.12194440e-4f;
  V p = r * 0.00829027207f + 0.0418981596f;
  p = p * r + 0.166676381f;
  p = p * r + 0.499991478f;
  p = p * r + 0.999999706f;
  p = p * r + 1.0f;
  return p * reinterpret_cast<V>((reinterpret_cast<I>(bits) + 127) << 23);
}

inline V sigmoid(V x) { return 1.0f / (1.0f + exp_of(-x)); }

// Near zero, where a difference from 1 / 2 would lose digits, a series.
inline V tanh_of(V x) {
  const V u = x * x;
  V p = V{} - 0.00886323552f;
  p = p * u + 0.0218694885f;
  p = p * u - 0.0539682540f;
  p = p * u + 0.133333333f;
  p = p * u - 0.333333333f;
  return u < 0.0625f ? x + x * u * p : 2.0f * sigmoid(2.0f * x) - 1.0f;
}

// The normal distribution's function of x: erf(z) = z P(z z) / Q(z z) for |z| <= 4, within 5e-7, with polynomials of
// degree 5 by least squares that were weighted until the largest error was least.
inline V normal(V x) {
  const V z = within(x * 0.707106781f, -4.0f, 4.0f);
  const V u = z * z;
  V p = V{} + 1.97556394e-6f, q = V{} + 3.74768786e-5f;
  p = p * u + 2.87823642e-4f, q = q * u + 1.21444032e-3f;
  p = p * u + 3.99616724e-3f, q = q * u + 1.54297228e-2f;
  p = p * u + 5.34448411e-2f, q = q * u + 1.16406447e-1f;
  p = p * u + 1.96080831e-1f, q = q * u + 5.07103377e-1f;
  p = p * u + 1.12837899f, q = q * u + 1.0f;
  return relu(0.5f + 0.5f * z * p / q);
}
inline V gelu(V x) { return x * normal(x); }
inline V slope_of_gelu(V x) {
  const V c = within(x, -13.0f, 13.0f);
  return normal(x) + c * 0.398942280f * exp_of(-0.5f * c * c);
}

// x sigmoid(f) where f has the sign of x. The sigmoid is never below 1.6e-38, where the exponential's argument is cut,
// so that x is cut too.
inline V gated(V x, V f) { return larger(V{} - 100.0f, x) * sigmoid(f); }
inline V silu(V x) { return gated(x, x); }
inline V slope_of_silu(V x) {
  const V s = sigmoid(x);
  return s + within(x, -100.0f, 100.0f) * s * (1.0f - s);
}

inline V gelu_by_tanh(V x) { return gated(x, x * (1.59576912f + 0.0713548162f * x * x)); }
inline V slope_of_gelu_by_tanh(V x) {
  const V c = within(x, -100.0f, 100.0f), s = sigmoid(c * (1.59576912f + 0.0713548162f * c * c));
  return s + c * s * (1.0f - s) * (1.59576912f + 0.214064449f * c * c);
}

inline V hard_sigmoid(V x) { return within(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f); }

template <class Function>
inline void each(V *x, int count, Function function) {
  for (int i = 0; i < count; ++i) x[i] = function(x[i]);
}

// The curves whose code is long, of several vectors.
[[gnu::noinline]] inline void curves_of(int32_t curve, V *x, int count) {
  switch (curve) {
    case GELU:
      return each(x, count, [](V v) { return gelu(v); });
    case GELU_TANH:
      return each(x, count, [](V v) { return gelu_by_tanh(v); });
    case SILU:
      return each(x, count, [](V v) { return silu(v); });
    case TANH:
      return each(x, count, [](V v) { return tanh_of(v); });
    case SIGMOID:
      return each(x, count, [](V v) { return sigmoid(v); });
    case HARD_SIGMOID:
      return each(x, count, [](V v) { return hard_sigmoid(v); });
    case HARD_SWISH:
      return each(x, count, [](V v) { return v * hard_sigmoid(v); });
  }
}

// The slopes of the smooth curves.
[[gnu::noinline]] inline void slopes_of(int32_t curve, V *x, int count) {
  switch (curve) {
    case GELU:
      return each(x, count, [](V v) { return slope_of_gelu(v); });
    case GELU_TANH:
      return each(x, count, [](V v) { return slope_of_gelu_by_tanh(v); });
    case SILU:
      return each(x, count, [](V v) { return slope_of_silu(v); });
    case TANH:
      return each(x, count, [](V v) { return 1.0f - tanh_of(v) * tanh_of(v); });
    case SIGMOID:
      return each(x, count, [](V v) { return sigmoid(v) * sigmoid(-v); });
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
