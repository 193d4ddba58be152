// Sparse weights in panels for few vectors of inputs, one at a time: by the nonzeros of each row, or by windows.
//
// A window is WINDOW neighbouring inputs, which two registers of AVX-512 hold. A word of a panel has a window and, for
// each of its 16 outputs, some numbers (at most six, as many in each word of a weight) and which of the window's inputs
// each belongs to, in five bits; where an output has fewer connections there the numbers are zeros. Narrow windows are
// eight inputs, a register of AVX2; their words have one or two numbers of each of eight outputs, and three bits.
#pragma once
#include "panel_weights.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// The numbers of `x` at L columns.
inline V gathered(const float *x, const uint16_t *columns) {
#if defined(FILIGREE_ISA_avx512)
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(columns));
  const __m512i all = _mm512_maskz_cvtepu16_epi32(ALL, narrow);
  return V(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), ALL, all, x, 4));
#elif defined(FILIGREE_ISA_avx2)
  uint64_t fours[2];  // numbers one by one: on Zen 3 the instruction that gathers is slower
  __builtin_memcpy(fours, columns, sizeof fours);
  const auto four = [x](uint64_t c) {
    return _mm_set_ps(x[c >> 48], x[c >> 32 & 0xffff], x[c >> 16 & 0xffff], x[c & 0xffff]);
  };
  return V(_mm256_set_m128(four(fours[1]), four(fours[0])));
#else
  V all{};
  for (int i = 0; i < LANES<float>; ++i) all[i] = x[columns[i]];
  return all;
#endif
}

// The panels [from, to) for one vector of inputs, by the nonzeros of each row: columns of 16 bits and floats.
inline void multiply_rows_of(const PanelWeight &w, const float *x, float *y, const Finishing &finish, int64_t from,
                             int64_t to) {
  constexpr int L = LANES<float>, FAR = L == 16 ? 128 : 512;  // numbers ahead that are fetched; 512 on Zen 3
  const float *values = static_cast<const float *>(w.values);
  for (int64_t c = from * LANES_OF_A_PANEL; c < to * LANES_OF_A_PANEL; c += L) {
    float sums[L];
    for (int i = 0; i < L; ++i) {
      V sum[2] = {};
      int64_t k = w.starts[c + i];
      const int64_t end = w.starts[c + i + 1];
      for (; k + 2 * L <= end; k += 2 * L) {
        __builtin_prefetch(values + k + FAR);
        __builtin_prefetch(values + k + FAR + L);
        __builtin_prefetch(w.masks + k + FAR);
        for (int u = 0; u < 2; ++u) sum[u] += load<float, L>(values + k + u * L) * gathered(x, w.masks + k + u * L);
      }
      sums[i] = total<float, L>(sum[0] + sum[1]);
      for (; k < end; ++k) sums[i] += values[k] * x[w.masks[k]];
    }
    store<float, L>(y + c, finished(load<float, L>(sums), finish, c));
  }
}

// Of the inputs, with what lies between them.
inline int64_t extent_of(const PanelWeight &w) { return w.runs ? w.run[2 * w.runs - 2] + w.run[2 * w.runs - 1] : 0; }

constexpr int WINDOW = 32, BITS_OF_A_NUMBER = 5;

// The inputs of a window, of which only `extent` exist; at(numbers) are those with the numbers in the lowest bits.
class Window {
 public:
#if defined(FILIGREE_ISA_avx512)
  Window(const float *x, int64_t extent)
      : low(_mm512_maskz_loadu_ps(mask(extent), x)), high(_mm512_maskz_loadu_ps(mask(extent - 16), x + 16)) {}
  V at(I numbers) const { return V(_mm512_permutex2var_ps(low, __m512i(numbers), high)); }

 private:
  static __mmask16 mask(int64_t count) { return count >= 16 ? ALL : __mmask16((1 << std::max<int64_t>(count, 0)) - 1); }
  __m512 low, high;
#else
  Window(const float *x, int64_t) : x(x) {}
  V at(I numbers) const {
    V all{};
    for (int i = 0; i < LANES<float>; ++i) all[i] = x[numbers[i] & (WINDOW - 1)];
    return all;
  }

 private:
  const float *x;
#endif
};

// The panels [from, to) for one vector of inputs, by words of N numbers.
template <int N>
void multiply_windows(const PanelWeight &w, const float *x, float *y, const Finishing &finish, int64_t from,
                      int64_t to) {
  constexpr int L = LANES<float>;
  const int64_t extent = extent_of(w);
  const int32_t *numbers = reinterpret_cast<const int32_t *>(w.masks);
  const float *values = static_cast<const float *>(w.values);
  for (int64_t panel = from; panel < to; ++panel) {
    V sum[N][VECTORS] = {};
    for (int64_t k = w.starts[panel]; k < w.starts[panel + 1]; ++k) {
      const Window window(x + w.totals[k], extent);
      I each[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) each[v] = load<int32_t, L>(numbers + k * LANES_OF_A_PANEL + v * L);
#pragma GCC unroll 6
      for (int n = 0; n < N; ++n) {
        const float *value = values + (k * N + n) * LANES_OF_A_PANEL;
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
          sum[n][v] += load<float, L>(value + v * L) * window.at(each[v]);
          each[v] = each[v] >> BITS_OF_A_NUMBER;
        }
      }
    }
    for (int v = 0; v < VECTORS; ++v) {
      V all = sum[0][v];
      for (int n = 1; n < N; ++n) all += sum[n][v];
      const int64_t c = panel * LANES_OF_A_PANEL + v * L;
      store<float, L>(y + c, finished(all, finish, c));
    }
  }
}

constexpr int NARROW = 8, BITS_OF_A_NARROW_NUMBER = 3;  // inputs, and outputs of a word

// The sums of NARROW outputs, by the words [k, end) of narrow windows with N numbers of each output.
template <int N>
inline void add_narrow_windows(const PanelWeight &w, const float *x, int64_t k, int64_t end, float *sums) {
  const uint8_t *numbers = reinterpret_cast<const uint8_t *>(w.masks);
  const float *values = static_cast<const float *>(w.values);
#if defined(FILIGREE_ISA_avx512) || defined(FILIGREE_ISA_avx2)
  constexpr int APART = 2;  // words, whose sums do not wait for each other
  using E = Vec<float, NARROW>;
  E sum[APART][N] = {};
  const auto add = [&](int64_t word, E(&to)[N]) {
    const __m256 window = _mm256_loadu_ps(x + w.totals[word]);
    __m256i each = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(numbers + word * NARROW)));
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {  // the permutation reads the three lowest bits
      to[n] += load<float, NARROW>(values + (word * N + n) * NARROW) * E(_mm256_permutevar8x32_ps(window, each));
      each = _mm256_srli_epi32(each, BITS_OF_A_NARROW_NUMBER);
    }
  };
  for (; k + APART <= end; k += APART)
    for (int u = 0; u < APART; ++u) add(k + u, sum[u]);
  if (k < end) add(k, sum[0]);
  E all{};
  for (int n = 0; n < N; ++n) all += sum[0][n] + sum[1][n];
  store<float, NARROW>(sums, all);
#else
  std::fill(sums, sums + NARROW, 0.0f);
  for (; k < end; ++k)
    for (int n = 0; n < N; ++n)
      for (int i = 0; i < NARROW; ++i)
        sums[i] += values[(k * N + n) * NARROW + i] *
                   x[w.totals[k] + (numbers[k * NARROW + i] >> n * BITS_OF_A_NARROW_NUMBER & (NARROW - 1))];
#endif
}

// The panels [from, to) for one vector of inputs, by words of N numbers of narrow windows.
template <int N>
void multiply_narrow_windows(const PanelWeight &w, const float *x, float *y, const Finishing &finish, int64_t from,
                             int64_t to) {
  constexpr int L = LANES<float>, HALVES = LANES_OF_A_PANEL / NARROW;
  float few[NARROW] = {}, sums[LANES_OF_A_PANEL];
  if (const int64_t extent = extent_of(w); extent < NARROW) {  // only these may be read
    std::copy(x, x + extent, few);
    x = few;
  }
  for (int64_t panel = from; panel < to; ++panel) {
    for (int64_t h = 0; h < HALVES; ++h) {
      const int64_t *starts = w.starts + panel * HALVES + h;
      add_narrow_windows<N>(w, x, starts[0], starts[1], sums + h * NARROW);
    }
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t c = panel * LANES_OF_A_PANEL + v * L;
      store<float, L>(y + c, finished(load<float, L>(sums + v * L), finish, c));
    }
  }
}

inline bool is_by_vector(const PanelWeight &w) {
  return w.coding == ROWS || w.coding == WINDOWS || w.coding == NARROW_WINDOWS;
}

inline void multiply_vector(const PanelWeight &w, const float *x, float *y, const Finishing &finish, int64_t from,
                            int64_t to) {
  if (w.coding == ROWS) return multiply_rows_of(w, x, y, finish, from, to);
  if (w.coding == NARROW_WINDOWS) {
    const bool single = w.starts[w.panels * LANES_OF_A_PANEL / NARROW + 1] == 1;
    return (single ? multiply_narrow_windows<1> : multiply_narrow_windows<2>)(w, x, y, finish, from, to);
  }
  switch (w.starts[w.panels + 1]) {
    case 2:
      return multiply_windows<2>(w, x, y, finish, from, to);
    case 3:
      return multiply_windows<3>(w, x, y, finish, from, to);
    case 4:
      return multiply_windows<4>(w, x, y, finish, from, to);
    default:
      return multiply_windows<6>(w, x, y, finish, from, to);
  }
}

// z[i] = W h[i] for `count` vectors of inputs and the blocks [from, to) of panels
inline void products(const PanelWeight &w, const Finishing &finish, const float *const *h, float *const *z,
                     int64_t count, int64_t from, int64_t to) {
  if (is_by_vector(w)) {
    for (int64_t i = 0; i < count; ++i)
      multiply_vector(w, h[i], z[i], finish, from * WIDTH, std::min(to * WIDTH, w.panels));
    return;
  }
  with_coding(w.coding, [&](auto coding) {
    constexpr Coding C = decltype(coding)::value;
    for (int64_t number = from; number < to; ++number)
      for (int64_t first = 0; first < count; first += MOST_VECTORS)
        multiply_block<C>(w, panel_block(w, number), int(std::min<int64_t>(MOST_VECTORS, count - first)), h + first,
                          z + first, finish);
  });
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
