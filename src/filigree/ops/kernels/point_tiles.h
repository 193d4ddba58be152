// Products with sparse weights for many vectors of inputs: a tile of them is transposed, so that each nonzero is a
// multiply-add over the vectors of the tile, as in the sparse layers that train. A nonzero is a word of 32 bits: a
// float, or the bytes for four inputs that are not all zero. Inputs are taken CHUNK words at a time, which stay in
// level 1, and outputs BLOCK at a time, whose sums stay in level 2.
#pragma once
#include "byte_products.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int TILE_VECTORS = 4, TILE = TILE_VECTORS * LANES<float>;  // vectors of inputs at a time
constexpr int64_t CHUNK = 128, BLOCK = 8;                            // words, panels; as the weight is packed

inline bool is_tiles(const PanelWeight &w) { return w.coding == TILES || w.coding == INT8_TILES; }
inline int64_t words_of(const PanelWeight &w) { return w.coding == TILES ? w.depth : w.depth / GROUP; }

// Numbers of scratch memory for a thread: the inputs of a tile and the sums of a block.
inline int64_t tile_scratch(const PanelWeight &w) {
  return is_tiles(w) ? (words_of(w) + BLOCK * LANES_OF_A_PANEL) * TILE : 0;
}

struct FloatWords {
  typedef V Sum;
  static constexpr int64_t inputs = 1;
  static V add(V sum, int32_t word, const int32_t *row) {
    float number;
    __builtin_memcpy(&number, &word, sizeof number);
    return sum + number * load<float, LANES<float>>(reinterpret_cast<const float *>(row));
  }
};
template <class How>
struct ByteWords {
  typedef I Sum;
  static constexpr int64_t inputs = GROUP;
  static I add(I sum, int32_t word, const int32_t *row) {
    return add_fours<How>(sum, load<int32_t, LANES<float>>(row), I{} + word);
  }
};

// to[k][p] = the k-th word of vector p; `first`, `length` of each run count inputs, `of_word` of them in a word
inline void transpose_words(const ByteRuns *byte_runs, const PanelWeight &w, const char *const *x, int vectors,
                            int32_t *to) {
  constexpr int L = LANES<float>;
  const int64_t bytes = byte_runs ? 1 : 4;  // of an input
  const int32_t *run = byte_runs ? byte_runs->run : w.run;
  const int64_t runs = byte_runs ? byte_runs->runs : w.runs;
  for_runs(run, runs, [&](int64_t first, int64_t inputs) {
    const int64_t length = (inputs * bytes + 3) / 4;
    for (int v = 0; v < vectors; ++v) {
      const char *rows[L];
      for (int p = 0; p < L; ++p) rows[p] = x[v * L + p] + first * bytes;
      int32_t *out = to + v * L;
      int64_t k = 0;
      for (; k + L <= length; k += L) {
        I tile[L];
#pragma GCC unroll 16
        for (int p = 0; p < L; ++p) tile[p] = words_at(rows[p] + 4 * k);
        transpose_registers<1, L>(tile);
#pragma GCC unroll 16
        for (int p = 0; p < L; ++p) store<int32_t, L>(out + (k + p) * TILE, tile[p]);
      }
      for (; k < length; ++k)
        for (int p = 0; p < L; ++p) __builtin_memcpy(out + k * TILE + p, rows[p] + 4 * k, 4);
    }
    to += length * TILE;
  });
}

// sums[i] = (or += where `more`) the products of the rows of a block, from a chunk of inputs, with NV vectors of a tile
template <class Words, int NV>
inline void block_sums(const PanelWeight &w, const int64_t *starts, int64_t rows, const int32_t *inputs, bool more,
                       int32_t *sums) {
  typedef typename Words::Sum Sum;
  constexpr int L = LANES<float>, APART_SUMS = 2;  // for any NV: the order of sums depends on no batch
  const int32_t *values = static_cast<const int32_t *>(w.values);
  for (int64_t i = 0; i < rows; ++i) {
    Sum sum[APART_SUMS][NV] = {};
    int64_t k = starts[i];
    const int64_t end = starts[i + 1];
    const auto add = [&](int64_t number, Sum *to) {
      const int32_t *row = inputs + int64_t(w.masks[number]) * TILE;
      const int32_t word = values[number];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) to[v] = Words::add(to[v], word, row + v * L);
    };
    for (; k + APART_SUMS <= end; k += APART_SUMS)
#pragma GCC unroll 4
      for (int u = 0; u < APART_SUMS; ++u) add(k + u, sum[u]);
    for (; k < end; ++k) add(k, sum[0]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      Sum all = sum[0][v];
      for (int u = 1; u < APART_SUMS; ++u) all += sum[u][v];
      int32_t *to = sums + i * TILE + v * L;
      if (more) all += reinterpret_cast<Sum>(load<int32_t, L>(to));
      store<int32_t, L>(to, reinterpret_cast<I>(all));
    }
  }
}

// y[p] = W x[p] for `count` vectors of inputs; x is TILE long. Of bytes with the scale and the zero of each vector.
template <class Words>
inline void multiply_point_tile(const PanelWeight &w, int count, const char *const *x, float *const *y,
                                const Finishing &finish, float *memory, const ByteRuns *runs, const float *scale,
                                const int32_t *zero) {
  constexpr int L = LANES<float>;
  const int vectors = (count + L - 1) / L;
  const int64_t words = words_of(w), chunks = std::max<int64_t>(1, (words + CHUNK - 1) / CHUNK);
  int32_t *inputs = reinterpret_cast<int32_t *>(memory), *sums = inputs + words * TILE;
  transpose_words(runs, w, x, vectors, inputs);
  const int64_t *starts = w.starts;
  for (int64_t panel = 0; panel < w.panels; panel += BLOCK) {
    const int64_t rows = std::min(BLOCK, w.panels - panel) * LANES_OF_A_PANEL;
    for (int64_t chunk = 0; chunk < chunks; ++chunk, starts += rows) {
      const int32_t *from = inputs + chunk * CHUNK * TILE;
      if (vectors == 1) block_sums<Words, 1>(w, starts, rows, from, chunk, sums);
      else if (vectors == 2) block_sums<Words, 2>(w, starts, rows, from, chunk, sums);
      else if (vectors == 3) block_sums<Words, 3>(w, starts, rows, from, chunk, sums);
      else block_sums<Words, 4>(w, starts, rows, from, chunk, sums);
    }
    for (int v = 0; v < vectors; ++v)
      for (int64_t part = 0; part < rows; part += L) {
        const int64_t r = panel * LANES_OF_A_PANEL + part;
        V tile[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          const I sum = load<int32_t, L>(sums + (part + i) * TILE + v * L);
          if constexpr (Words::inputs == 1) tile[i] = reinterpret_cast<V>(sum);
          else
            tile[i] = __builtin_convertvector(sum - w.totals[r + i] * load<int32_t, L>(zero + v * L), V) *
                      load<float, L>(scale + v * L);
        }
        transpose_registers<1, L>(tile);
        for (int p = 0; p < L && v * L + p < count; ++p)
          store<float, L>(y[v * L + p] + r, finished(tile[p], finish, r));
      }
  }
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
