// LSTM and GRU for inference: one loop over time steps, from the products with the inputs, which are made before.
#pragma once
#include "panel_weights.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

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
      products(o.weight, o.finish, h, z, count);
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
