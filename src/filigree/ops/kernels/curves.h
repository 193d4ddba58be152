// Functions of every number of a vector: the activations that follow a sum.
#pragma once
#include "vectors.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

typedef Vec<float, LANES<float>> V;
typedef Vec<int32_t, LANES<float>> I;

// exp(z) for |z| <= 87, within 2e-7 of it: a power of two and a polynomial (Cephes' expf).
inline V exp_of(V z) {
  z = z > 87.0f ? V{} + 87.0f : z;
  z = z < -87.0f ? V{} - 87.0f : z;
  const V scaled = z * 1.44269504f;
  const I n = __builtin_convertvector(scaled + (scaled < 0 ? V{} - 0.5f : V{} + 0.5f), I);
  const V whole = __builtin_convertvector(n, V);
  const V r = z - whole * 0.693359375f + whole * 2.12194440e-4f;
  V p = V{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * reinterpret_cast<V>((n + 127) << 23);
}

inline V sigmoid(V x) { return 1.0f / (1.0f + exp_of(-x)); }
inline V tanh_of(V x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

// x times the normal distribution's function of x, by Abramowitz and Stegun's 7.1.26 (1964), within 1.5e-7 |x|.
inline V gelu(V x) {
  const V z = (x < 0 ? -x : x) * 0.707106781f;
  const V t = 1.0f / (1.0f + 0.3275911f * z);
  V p = V{} + 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const V beyond = 0.5f * p * t * exp_of(-z * z);
  return x * (x < 0 ? beyond : 1.0f - beyond);
}

inline V gelu_by_tanh(V x) { return x * sigmoid(x * (1.59576912f + 0.0713548162f * x * x)); }

inline V curve_of(int32_t curve, V x) {
  switch (curve) {
    case GELU:
      return gelu(x);
    case GELU_TANH:
      return gelu_by_tanh(x);
    case SILU:
      return x * sigmoid(x);
    case TANH:
      return tanh_of(x);
    default:
      return x;
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
