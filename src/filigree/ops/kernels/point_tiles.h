// Products with sparse weights for many vectors of inputs: a tile of them is transposed, so that each nonzero is a
// multiply-add over the vectors of the tile, as in the sparse layers that train.
#pragma once
#include "panel_weights.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int TILE_VECTORS = 4, TILE = TILE_VECTORS * LANES<float>;  // inputs at a time

// Numbers of scratch memory for a thread: the inputs of a tile and the sums of a panel, input by input.
inline int64_t tile_scratch(const PanelWeight &w) {
  return w.coding == TILES ? (w.depth + LANES_OF_A_PANEL) * TILE : 0;
}

// to[k][p] = the k-th input of x[p]
inline void transpose_inputs(const PanelWeight &w, const float *const *x, int vectors, float *to) {
  constexpr int L = LANES<float>;
  for (int64_t r = 0; r < w.runs; ++r) {
    const int64_t first = w.run[2 * r], length = w.run[2 * r + 1];
    for (int v = 0; v < vectors; ++v) {
      const float *const *rows = x + v * L;
      float *out = to + v * L;
      int64_t k = 0;
      for (; k + L <= length; k += L) {
        V tile[L];
#pragma GCC unroll 16
        for (int p = 0; p < L; ++p) tile[p] = load<float, L>(rows[p] + first + k);
        transpose_registers<1, L>(tile);
#pragma GCC unroll 16
        for (int p = 0; p < L; ++p) store<float, L>(out + (k + p) * TILE, tile[p]);
      }
      for (; k < length; ++k)
        for (int p = 0; p < L; ++p) out[k * TILE + p] = rows[p][first + k];
    }
    to += length * TILE;
  }
}

// sums[i] = the products of output r + i of a panel with NV vectors of the tile
template <int NV>
inline void panel_sums(const PanelWeight &w, int64_t r, const float *inputs, float *sums) {
  constexpr int L = LANES<float>, APART_SUMS = 2;  // for any NV: the order of sums depends on no batch
  const float *values = static_cast<const float *>(w.values);
  for (int i = 0; i < LANES_OF_A_PANEL; ++i) {
    V sum[APART_SUMS][NV] = {};
    int64_t k = w.starts[r + i];
    const int64_t end = w.starts[r + i + 1];
    const auto add = [&](int64_t number, V *to) {
      const float *row = inputs + int64_t(w.masks[number]) * TILE;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) to[v] += values[number] * load<float, L>(row + v * L);
    };
    for (; k + APART_SUMS <= end; k += APART_SUMS)
#pragma GCC unroll 4
      for (int u = 0; u < APART_SUMS; ++u) add(k + u, sum[u]);
    for (; k < end; ++k) add(k, sum[0]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      V all = sum[0][v];
      for (int u = 1; u < APART_SUMS; ++u) all += sum[u][v];
      store<float, L>(sums + i * TILE + v * L, all);
    }
  }
}

// y[p] = W x[p] for `count` vectors of inputs; x is TILE long
inline void multiply_point_tile(const PanelWeight &w, int count, const float *const *x, float *const *y,
                                const Finishing &finish, float *memory) {
  constexpr int L = LANES<float>;
  const int vectors = (count + L - 1) / L;
  float *inputs = memory, *sums = memory + w.depth * TILE;
  transpose_inputs(w, x, vectors, inputs);
  for (int64_t r = 0; r < w.panels * LANES_OF_A_PANEL; r += LANES_OF_A_PANEL) {
    if (vectors == 1) panel_sums<1>(w, r, inputs, sums);
    else if (vectors == 2) panel_sums<2>(w, r, inputs, sums);
    else if (vectors == 3) panel_sums<3>(w, r, inputs, sums);
    else panel_sums<4>(w, r, inputs, sums);
    for (int v = 0; v < vectors; ++v)
      for (int part = 0; part < LANES_OF_A_PANEL; part += L) {
        V tile[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) tile[i] = load<float, L>(sums + (part + i) * TILE + v * L);
        transpose_registers<1, L>(tile);
        for (int p = 0; p < L && v * L + p < count; ++p)
          store<float, L>(y[v * L + p] + r + part, finished<L>(tile[p], finish, r + part));
      }
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
