// LSTM and GRU for inference: one loop over time steps, from the products with the inputs, which are made before.
#pragma once
#include "byte_products.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int64_t SEQUENCES = 64;  // at a time

inline bool is_recurrent(const Operation &o) { return o.kind == LSTM || o.kind == GRU; }

// Numbers of scratch memory for a thread: the last outputs as bytes, their scales and zeros.
inline int64_t recurrent_scratch(const Operation &o) {
  return is_recurrent(o) && is_bytes(o.weight) ? SEQUENCES * (bytes_of_vector(o, 0) / 4 + 2) : 0;
}

// z[i] = W h[i] for some blocks of panels, of bytes where the weight is
inline void state_products(const Operation &o, const float *const *h, float *const *z, int64_t count, int64_t from,
                           int64_t to, float *own) {
  if (!is_bytes(o.weight)) return products(o.weight, o.finish, h, z, count, from, to);
  const int64_t stride = bytes_of_vector(o, 0);
  float *scales = own + SEQUENCES * stride / 4;
  const Quantised bytes{reinterpret_cast<uint8_t *>(own), stride, scales,
                        reinterpret_cast<int32_t *>(scales) + SEQUENCES};
  for (int64_t i = 0; i < count; ++i) quantise(h[i], o.weight.run, o.weight.runs, bytes, i);
  byte_products(o, bytes, z, count, from, to);
}

// The steps of a layer in one direction: time step t reads the products with its input at reads[t], the last output at
// writes[t - 1], and writes its own at writes[t]. Those of all gates of 16 channels lie side by side, then come the
// next channels. `state`: of each sequence the cell state (of a GRU nothing), zeros, and the products with the last
// output.
//
// Each thread of a team has channels of its own, whose gates are whole blocks of panels, and waits for the others'
// after each time step.
void recur(const Operation &o, Area in, Area state, Area out, int64_t sequences, int thread, int threads, float *own) {
  constexpr int L = LANES<float>;
  const int64_t channels = o.channels, panels = channels / LANES_OF_A_PANEL;
  const int64_t gates = o.kind == LSTM ? 4 : 3, unit = o.kind == LSTM ? 1 : WIDTH;
  const int64_t units = (panels + unit - 1) / unit;
  const int64_t from = units * thread / threads * unit, to = std::min(panels, units * (thread + 1) / threads * unit);
  for (int64_t first = 0; first < sequences; first += SEQUENCES) {
    const int64_t count = std::min(SEQUENCES, sequences - first);
    const float *h[SEQUENCES];
    float *z[SEQUENCES];
    for (int64_t i = 0; i < count; ++i) {
      float *memory = state.data + (first + i) * state.by_image;
      if (thread == 0) std::fill(memory, memory + 2 * channels, 0.0f);
      z[i] = memory + 2 * channels;
    }
    wait_for(threads);
    for (int64_t t = 0; t < o.points; ++t) {
      for (int64_t i = 0; i < count; ++i)
        h[i] = t ? out.data + (first + i) * out.by_image + o.writes[t - 1]
                 : state.data + (first + i) * state.by_image + channels;
      state_products(o, h, z, count, from * gates / WIDTH, (to * gates + WIDTH - 1) / WIDTH, own);
      for (int64_t i = 0; i < count; ++i) {
        const float *x = in.data + (first + i) * in.by_image + o.reads[t];
        float *c = state.data + (first + i) * state.by_image, *y = out.data + (first + i) * out.by_image + o.writes[t];
        for (int64_t j = from * LANES_OF_A_PANEL; j < to * LANES_OF_A_PANEL; j += L) {
          const int64_t at = j / LANES_OF_A_PANEL * gates * LANES_OF_A_PANEL + j % LANES_OF_A_PANEL;
          const auto of_input = [&](int64_t gate) { return load<float, L>(x + at + gate * LANES_OF_A_PANEL); };
          const auto of_state = [&](int64_t gate) { return load<float, L>(z[i] + at + gate * LANES_OF_A_PANEL); };
          const auto both = [&](int64_t gate) { return of_input(gate) + of_state(gate); };
          if (o.kind == LSTM) {
            const V cell = sigmoid(both(1)) * load<float, L>(c + j) + sigmoid(both(0)) * tanh_of(both(2));
            store<float, L>(c + j, cell);
            store<float, L>(y + j, sigmoid(both(3)) * tanh_of(cell));
          } else {
            const V update = sigmoid(both(1));
            const V fresh = tanh_of(of_input(2) + sigmoid(both(0)) * of_state(2));
            store<float, L>(y + j, (1.0f - update) * fresh + update * load<float, L>(h[i] + j));
          }
        }
      }
      wait_for(threads);
    }
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
