// Products of bytes by AMX, where the processor has it: one instruction multiplies 16 vectors of 64 inputs with the
// weights of 16 outputs. Sums are the same whole numbers as by other instructions.
//
// A block's weights lie as AMX takes them (word by word, the bytes of 16 outputs for each); bitmaps are spread before.
#pragma once
#include "byte_products.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int AMX_ROWS = 16, AMX_INPUTS = 64;  // vectors, and bytes of each, that a register of AMX holds
constexpr int AMX_VECTORS = 2 * AMX_ROWS;      // at a time
constexpr int64_t AMX_LEAST = AMX_ROWS / 2;    // vectors; for fewer its registers are mostly empty
constexpr int64_t AMX_WORK = 1 << 22;          // multiply-adds, below which to begin takes as long as it saves

inline int64_t whole_amx(int64_t inputs) { return (inputs + AMX_INPUTS - 1) / AMX_INPUTS * AMX_INPUTS; }

inline bool is_for_amx(const PanelWeight &w) { return w.coding == INT8 || w.coding == INT8_BITMAP; }

// Whether these vectors of inputs are multiplied by AMX. Those for a single panel would be packed for too few outputs.
inline bool pays_amx(const PanelWeight &w, int64_t vectors, int threads) {
  if (!is_for_amx(w) || !uses_amx()) return false;
  const int64_t work = vectors * w.depth * w.panels * LANES_OF_A_PANEL / threads;
  return always_amx() || (vectors >= AMX_LEAST && w.panels > 1 && work >= AMX_WORK);
}

// Bytes of a packed vector: its inputs, and a cache line more, so that vectors do not all lie in the same sets of
// level 1.
inline int64_t amx_stride(const PanelWeight &w) { return whole_amx(w.depth) + 64; }

// Numbers of scratch memory for a thread: a block's weights, and some vectors of inputs.
inline int64_t amx_scratch(const PanelWeight &w) {
  if (!is_for_amx(w) || !uses_amx()) return 0;
  return (whole_amx(w.depth) * WIDTH * LANES_OF_A_PANEL + amx_stride(w) * AMX_VECTORS + 64) / 4;
}

#if defined(FILIGREE_ISA_avx512)
// Registers 0 ... 3 hold sums, 4 and 5 inputs, 6 and 7 weights; all have 16 rows of 64 bytes.
class Amx {
 public:
  Amx() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, none[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Amx() { asm volatile("tilerelease"); }
  Amx(const Amx &) = delete;

  template <int T>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  static void load(const void *from, int64_t stride) {
    asm volatile("tileloadd (%0,%1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  static void store(void *to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int SUM, int X, int W>
  static void multiply() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(X), "i"(W));
  }
};

// The weights of a block of B panels, word by word, with zeros up to a multiple of AMX_INPUTS; where they do not lie so
// already they are written to `to`.
template <Coding C, int B>
inline const int8_t *amx_weights(const PanelWeight &w, const PanelBlock &block, int8_t *to) {
  if (C == INT8 && w.depth % AMX_INPUTS == 0) return reinterpret_cast<const int8_t *>(block.values);
  int8_t *end = to;
  ByteStream<C, B> stream(block, 0);
  for (int64_t k = 0; k < w.depth; k += GROUP) {
    I each[B];
    stream.next(each);
    for (int b = 0; b < B; ++b, end += BYTES) store<int8_t, BYTES>(end, reinterpret_cast<Vec<int8_t, BYTES>>(each[b]));
  }
  std::fill(end, to + whole_amx(w.depth) * B * LANES_OF_A_PANEL, int8_t(0));
  return to;
}

// Vectors of bytes one after another, with zeros up to a multiple of AMX_INPUTS.
inline void pack_for_amx(const ByteRuns &runs, const uint8_t *const *x, int count, int64_t stride, uint8_t *to) {
  for (int p = 0; p < count; ++p) {
    uint8_t *end = to + p * stride;
    for_runs(runs.run, runs.runs, [&](int64_t first, int64_t length) {
      length = (length + GROUP - 1) / GROUP * GROUP;
      end = std::copy(x[p] + first, x[p] + first + length, end);
    });
    std::fill(end, to + (p + 1) * stride, uint8_t(0));
  }
}

// What is fetched to level 2 while other weights are multiplied: the next block's, so many lines each time.
struct Ahead {
  const char *at, *end;
  int64_t lines;
  Ahead(const PanelBlock &next, int64_t bytes, int64_t times)
      : at(next.values), end(at + bytes), lines((bytes / 64 + times - 1) / times) {}
  void fetch() {
    for (int64_t i = 0; i < lines && at < end; ++i, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// The products of 16 X vectors and 16 N outputs: to sums[a][b], of 16 by 16.
template <int X, int N>
inline void amx_sums(const uint8_t *x, int64_t x_stride, const int8_t *w, int64_t w_stride, int64_t inputs,
                     Ahead &ahead, int32_t (*sums)[2][AMX_ROWS * LANES_OF_A_PANEL]) {
  Amx::zero<0>(), Amx::zero<1>(), Amx::zero<2>(), Amx::zero<3>();
  for (int64_t k = 0; k < inputs; k += AMX_INPUTS, x += AMX_INPUTS, w += AMX_INPUTS / GROUP * w_stride) {
    ahead.fetch();
    Amx::load<6>(w, w_stride);
    Amx::load<4>(x, x_stride);
    Amx::multiply<0, 4, 6>();
    if constexpr (N == 2) Amx::load<7>(w + GROUP_BYTES, w_stride), Amx::multiply<1, 4, 7>();
    if constexpr (X == 2) Amx::load<5>(x + AMX_ROWS * x_stride, x_stride), Amx::multiply<2, 5, 6>();
    if constexpr (X == 2 && N == 2) Amx::multiply<3, 5, 7>();
  }
  Amx::store<0>(sums[0][0], BYTES);
  if constexpr (N == 2) Amx::store<1>(sums[0][1], BYTES);
  if constexpr (X == 2) Amx::store<2>(sums[1][0], BYTES);
  if constexpr (X == 2 && N == 2) Amx::store<3>(sums[1][1], BYTES);
}

// y[p] = W x[p] for `count` vectors, which lie x_stride apart, and a block of B panels
template <int B>
void multiply_amx_tile(const PanelWeight &w, const PanelBlock &block, const int8_t *weights, const uint8_t *x,
                       int64_t x_stride, int count, Ahead &ahead, const ByteTile<AMX_VECTORS> &t,
                       const Finishing &finish) {
  alignas(64) int32_t sums[2][2][AMX_ROWS * LANES_OF_A_PANEL];
  const int64_t inputs = whole_amx(w.depth), w_stride = B * GROUP_BYTES;
  const auto panels = [&](auto several, int panel) {
    constexpr int N = decltype(several)::value;
    const int8_t *from = weights + panel * GROUP_BYTES;
    if (count > AMX_ROWS) amx_sums<2, N>(x, x_stride, from, w_stride, inputs, ahead, sums);
    else amx_sums<1, N>(x, x_stride, from, w_stride, inputs, ahead, sums);
    for (int b = 0; b < N; ++b) {
      const int64_t c = (block.first + panel + b) * LANES_OF_A_PANEL;
      const I totals = load<int32_t, LANES<float>>(w.totals + c);
      for (int p = 0; p < count; ++p) {
        const I all = load<int32_t, LANES<float>>(sums[p / AMX_ROWS][b] + p % AMX_ROWS * LANES_OF_A_PANEL);
        const V each = __builtin_convertvector(all - t.zero[p] * totals, V) * t.scale[p];
        store<float, LANES<float>>(t.y[p] + c, finished(each, finish, c));
      }
    }
  };
  int panel = 0;
  for (; panel + 2 <= B; panel += 2) panels(std::integral_constant<int, 2>{}, panel);
  if (panel < B) panels(std::integral_constant<int, 1>{}, panel);
}
#endif

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
