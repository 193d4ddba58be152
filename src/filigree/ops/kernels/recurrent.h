// LSTM and GRU for inference: one loop over time steps, from the products with the inputs, which are made before.
#pragma once
#include "panel_weights.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// 1 / (1 + exp(-x)) within 2e-7: exp by a power of two and a polynomial (Cephes' expf).
inline V sigmoid(V x) {
  typedef Vec<int32_t, LANES<float>> I;
  V z = -x;
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
  const V power = reinterpret_cast<V>((n + 127) << 23);
  return 1.0f / (1.0f + p * power);
}
inline V tanh_of(V x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

// z[i] = W h[i] for all sequences
inline void products(const Operation &o, const float *const *h, float *const *z, int64_t count) {
  if (o.weight.coding == ROWS) {
    for (int64_t i = 0; i < count; ++i)
      multiply_rows_of(o.weight, h[i], z[i], o.finish, 0, o.weight.panels * LANES_OF_A_PANEL);
    return;
  }
  with_coding(o.weight.coding, [&](auto coding) {
    constexpr Coding C = decltype(coding)::value;
    for (int64_t number = 0; number * WIDTH < o.weight.panels; ++number) {
      const PanelBlock block = panel_block(o.weight, number);
      for_panels<C>(block, [&](auto width, int panel) {
        constexpr int B = decltype(width)::value, P = tile_size<C, B>;
        for (int64_t first = 0; first < count; first += P) {
          const float *x[P];
          float *y[P];
          for (int p = 0; p < P; ++p) {
            x[p] = h[std::min(first + p, count - 1)];
            y[p] = first + p < count ? z[first + p] : nullptr;
          }
          multiply_some<C, B>(o.weight, block, panel, int(std::min<int64_t>(P, count - first)), x, y, o.finish);
        }
      });
    }
  });
}

// The steps of a layer in one direction: time step t reads the products with its input at reads[t], the last output at
// writes[t - 1], and writes its own at writes[t]. `state`: of each sequence the cell state (of a GRU nothing) and then
// the products with the last output; all of `channels` numbers for each gate.
void recur(const Operation &o, Area in, Area state, Area out, int64_t sequences) {
  constexpr int L = LANES<float>;
  constexpr int64_t MOST = 64;  // sequences at a time
  const int64_t hidden = o.channels;
  for (int64_t first = 0; first < sequences; first += MOST) {
    const int64_t count = std::min(MOST, sequences - first);
    const float *h[MOST];
    float *z[MOST];
    for (int64_t i = 0; i < count; ++i) {
      float *own = state.data + (first + i) * state.by_image;
      std::fill(own, own + hidden, 0.0f);
      z[i] = own + hidden;
    }
    for (int64_t t = 0; t < o.points; ++t) {
      for (int64_t i = 0; i < count; ++i)
        h[i] = t ? out.data + (first + i) * out.by_image + o.writes[t - 1] : state.data + (first + i) * state.by_image;
      products(o, h, z, count);
      for (int64_t i = 0; i < count; ++i) {
        const float *x = in.data + (first + i) * in.by_image + o.reads[t];
        float *c = state.data + (first + i) * state.by_image, *y = out.data + (first + i) * out.by_image + o.writes[t];
        const auto gate = [&](int64_t number, int64_t j) {
          return load<float, L>(x + number * hidden + j) + load<float, L>(z[i] + number * hidden + j);
        };
        for (int64_t j = 0; j < hidden; j += L) {
          if (o.kind == LSTM) {
            const V cell = sigmoid(gate(1, j)) * load<float, L>(c + j) + sigmoid(gate(0, j)) * tanh_of(gate(2, j));
            store<float, L>(c + j, cell);
            store<float, L>(y + j, sigmoid(gate(3, j)) * tanh_of(cell));
          } else {
            const V update = sigmoid(gate(1, j));
            const V of_state = load<float, L>(z[i] + 2 * hidden + j);
            const V fresh = tanh_of(load<float, L>(x + 2 * hidden + j) + sigmoid(gate(0, j)) * of_state);
            store<float, L>(y + j, (1.0f - update) * fresh + update * load<float, L>(h[i] + j));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
