// Weights in panels of 16 outputs, and their product with a few vectors of inputs at a time.
//
// A block is at most WIDTH panels. Weights lie panel by panel, input by input, as floats or as bytes (small integers,
// scaled at the end); or block by block, input by input, as a bitmap: for each input and panel a mask of 16 bits and
// only the numbers that are not zero, which are spread over the lanes by the mask.
#pragma once
#include "curves.h"
#include "loops.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int LANES_OF_A_PANEL = 16, WIDTH = 4;
constexpr int VECTORS = LANES_OF_A_PANEL / LANES<float>;  // of a panel

// Where the numbers of each image lie.
struct Area {
  float *data;
  int64_t by_image;
};

// What becomes of the sums of P vectors of outputs, N registers each, from output `c` on: whole tiles step by step, so
// that what a layer lacks is asked once for all of them.
template <int P, int N>
[[gnu::always_inline]] inline void finish_tile(V (&sums)[P][N], const Finishing &f, int64_t c) {
  constexpr int L = LANES<float>;
  const auto each = [&](auto change) {
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v)
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) sums[p][v] = change(sums[p][v]);
  };
  const auto with = [&](const float *numbers, auto change) {
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) {
      const V number = load<float, L>(numbers + c + v * L);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) sums[p][v] = change(sums[p][v], number);
    }
  };
  if (f.scale) with(f.scale, [](V x, V scale) { return x * scale; });
  if (f.bias) with(f.bias, [](V x, V bias) { return x + bias; });
  if (f.slope) with(f.slope, [](V x, V slope) { return x < 0 ? x * slope : x; });
  else if (f.relu) each([](V x) { return relu(x); });
  else if (f.curve == RELU6) each([](V x) { return within(x, 0.0f, 6.0f); });
  else if (f.curve) {
    V all[P * N];  // in memory: the code of most curves is long
    int i = 0;
    each([&](V x) { return all[i++] = x; });
    curves_of(f.curve, all, P * N);
    i = 0;
    each([&](V) { return all[i++]; });
  }
  if (f.factor) {
    with(f.factor, [](V x, V factor) { return x * factor; });
    with(f.shift, [](V x, V shift) { return x + shift; });
  }
}
inline V finished(V v, const Finishing &f, int64_t c) {
  V sums[1][1] = {{v}};
  finish_tile(sums, f, c);
  return sums[0][0];
}

// The same for outputs of which the first one is number `first`.
inline Finishing finishing_from(Finishing f, int64_t first) {
  for (const float **part : {&f.scale, &f.bias, &f.slope, &f.factor, &f.shift})
    if (*part) *part += first;
  return f;
}

struct PanelBlock {
  int64_t first;  // panel
  int panels;
  const char *values;
  const uint16_t *masks;
  int64_t apart;  // bytes from a panel's weights to the next one's, where they do not lie input by input
};

inline int64_t blocks_of(const PanelWeight &w) { return (w.panels + WIDTH - 1) / WIDTH; }

inline PanelBlock panel_block(const PanelWeight &w, int64_t number) {
  const int64_t first = number * WIDTH;
  const int panels = int(w.panels - first < WIDTH ? w.panels - first : WIDTH);
  const int64_t before = first * w.depth * LANES_OF_A_PANEL;
  const char *values = static_cast<const char *>(w.values);
  if (w.coding == BITMAP) return {first, panels, values + w.starts[number] * 4, w.masks + first * w.depth, 0};
  const int64_t bytes = w.coding == FLOATS ? 4 : 1;
  return {first, panels, values + before * bytes, nullptr, w.depth * LANES_OF_A_PANEL * bytes};
}

// The panels that are multiplied at a time, and the vectors of inputs: as many sums as registers hold.
#if defined(FILIGREE_ISA_avx512)
constexpr bool WHOLE_BLOCKS = true;
constexpr __mmask16 ALL = 0xffff;
template <Coding C, int B>
constexpr int tile_size = B <= 2   ? 12
                          : B == 3 ? 8
                                   : 6;
#else
constexpr bool WHOLE_BLOCKS = false;
#if defined(FILIGREE_ISA_neon)
constexpr int SUMS = 24;
#else
constexpr int SUMS = 12;
#endif
template <Coding C, int B>
constexpr int tile_size = SUMS / VECTORS / B > 0 ? SUMS / VECTORS / B : 1;
#endif

#if defined(FILIGREE_ISA_avx2)
// For each mask of 8 bits which of the packed numbers each lane takes; with the sign bit where it takes none.
struct Spread {
  int32_t lanes[256][8];
  Spread() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, next = 0; lane < 8; ++lane) lanes[mask][lane] = mask >> lane & 1 ? next++ : INT32_MIN;
  }
};
inline const Spread SPREAD;
#endif

// The next weights of B panels, and on to those of the next input.
template <Coding C, int B>
class Stream {
 public:
  // the weights of the panels from `from` on
  Stream(const PanelBlock &block, int from)
      : values(block.values), masks(block.masks), first(from * block.apart), apart(block.apart) {}

  void next(V *to) {
    if constexpr (C == FLOATS) {
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
          to[b * VECTORS + v] =
              load<float, LANES<float>>(reinterpret_cast<const float *>(values + first + b * apart + v * BYTES));
      values += LANES_OF_A_PANEL * 4;
    } else if constexpr (C == SIGNED_BYTES) {
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
          to[b * VECTORS + v] =
              of_bytes(reinterpret_cast<const int8_t *>(values) + first + b * apart + v * LANES<float>);
      values += LANES_OF_A_PANEL;
    } else {
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) spread(masks[b], to + b * VECTORS);
      masks += B;
    }
  }

  // The block's weights of the inputs that are still to come.
  PanelBlock rest(const PanelBlock &block) const { return {block.first, block.panels, values, masks, apart}; }

 private:
  const char *values;
  const uint16_t *masks;
  int64_t first, apart;

  static V of_bytes(const int8_t *w) {
#if defined(FILIGREE_ISA_avx512)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(w));  // masked: GCC warns of the others
    return V(_mm512_maskz_cvtepi32_ps(ALL, _mm512_maskz_cvtepi8_epi32(ALL, bytes)));
#elif defined(FILIGREE_ISA_avx2)
    return V(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(w)))));
#else
    V all{};
    for (int i = 0; i < LANES<float>; ++i) all[i] = float(w[i]);
    return all;
#endif
  }

  void spread(uint16_t mask, V *to) {
    const float *w = reinterpret_cast<const float *>(values);
#if defined(FILIGREE_ISA_avx512)
    *to = V(_mm512_maskz_expand_ps(mask, _mm512_loadu_ps(w)));
    values += 4 * __builtin_popcount(mask);
#elif defined(FILIGREE_ISA_avx2)
    for (int v = 0; v < 2; ++v) {
      const int bits = mask >> 8 * v & 255;
      const __m256 lanes = _mm256_loadu_ps(reinterpret_cast<const float *>(SPREAD.lanes[bits]));
      const __m256 taken = _mm256_permutevar8x32_ps(_mm256_loadu_ps(w), _mm256_castps_si256(lanes));
      to[v] = V(_mm256_blendv_ps(taken, _mm256_setzero_ps(), lanes));
      w += __builtin_popcount(unsigned(bits));
    }
    values = reinterpret_cast<const char *>(w);
#else
    for (int v = 0; v < VECTORS; ++v) {
      V all{};
      for (int i = 0; i < LANES<float>; ++i, mask = uint16_t(mask >> 1)) all[i] = mask & 1 ? *w++ : 0.0f;
      to[v] = all;
    }
    values = reinterpret_cast<const char *>(w);
#endif
  }
};

// Some of a weight's inputs: from number `at` of run `run` on to before number `end` of run `last`.
struct Inputs {
  int64_t run, at, last, end;
  bool begin, complete;  // whether they are the first, the last ones
  // The first `most` of them. A run is cut at multiples of 16, so that sums that take numbers in turns go on as before.
  Inputs(const PanelWeight &w, int64_t most) : run(0), at(0), begin(true) { take(w, most); }
  void next(const PanelWeight &w, int64_t most) {
    run = last, at = end, begin = false;
    take(w, most);
  }

 private:
  void take(const PanelWeight &w, int64_t most) {
    last = run, end = at;
    for (; last < w.runs; ++last, end = 0) {
      const int64_t length = w.run[2 * last + 1] - end;
      if (length > most) {
        end += most & ~int64_t(15);
        break;
      }
      most -= length;
    }
    complete = last >= w.runs;
  }
};

// Sums of one input after another wait for each other; that their order depends on no batch, they do so for any number
// of vectors.
template <int B>
constexpr int apart_sums = B * VECTORS == 1 ? 2 : 1;

// Sums for P vectors of inputs and B panels, with some inputs: those of the inputs before are kept at `kept` between;
// after the last ones y[p] from output `c` on.
template <Coding C, int B, int P>
void multiply_tile(const PanelWeight &w, const Inputs &inputs, Stream<C, B> &stream, const float *const *x, V *kept,
                   float *const *y, const Finishing &finish, int64_t c) {
  constexpr int N = B * VECTORS, L = LANES<float>, APART_SUMS = apart_sums<B>;
  Stream<C, B> weights = stream;  // in registers
  V sum[APART_SUMS][P][N] = {};
  if (!inputs.begin)
#pragma GCC unroll 2
    for (int u = 0; u < APART_SUMS; ++u)
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int v = 0; v < N; ++v) sum[u][p][v] = kept[(u * P + p) * N + v];
  for (int64_t r = inputs.run; r < w.runs && r <= inputs.last; ++r) {
    const float *at[P];
    for (int p = 0; p < P; ++p) at[p] = x[p] + w.run[2 * r];
    const int64_t end = r == inputs.last ? inputs.end : w.run[2 * r + 1];
    const auto input = [&](int64_t k, V(&to)[P][N]) {
      V each[N] = {};
      weights.next(each);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        const float number = at[p][k];
#pragma GCC unroll 16
        for (int v = 0; v < N; ++v) to[p][v] += number * each[v];
      }
    };
    int64_t k = r == inputs.run ? inputs.at : 0;
    if constexpr (APART_SUMS > 1)
      for (; k + APART_SUMS <= end; k += APART_SUMS)
#pragma GCC unroll 4
        for (int u = 0; u < APART_SUMS; ++u) input(k + u, sum[u]);
    for (; k < end; ++k) input(k, sum[0]);
  }
  stream = weights;
  if (!inputs.complete) {
#pragma GCC unroll 2
    for (int u = 0; u < APART_SUMS; ++u)
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int v = 0; v < N; ++v) kept[(u * P + p) * N + v] = sum[u][p][v];
    return;
  }
  if constexpr (APART_SUMS > 1)
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) sum[0][p][0] += sum[1][p][0];
  finish_tile(sum[0], finish, c);
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p)
    if (y[p])
#pragma GCC unroll 16
      for (int v = 0; v < N; ++v) store<float, L>(y[p] + c + v * L, sum[0][p][v]);
}

// call(panels at a time, the first of them) for all panels of a block: as many as leave registers for the sums of
// `count` vectors of inputs. Bitmaps are streams, which are read whole.
template <Coding C, class Call>
inline void for_panels(const PanelBlock &block, int64_t count, Call call) {
  constexpr bool WHOLE = WHOLE_BLOCKS || C == BITMAP || C == INT8_BITMAP;
  const int most = WHOLE || 4 * count <= tile_size<C, 1> ? 4 : 2 * count <= tile_size<C, 1> ? 2 : 1;
  for (int panel = 0, some; panel < block.panels; panel += some) {
    some = std::min(most, block.panels - panel);
    switch (some) {
      case 1:
        call(std::integral_constant<int, 1>{}, panel);
        break;
      case 2:
        call(std::integral_constant<int, 2>{}, panel);
        break;
      case 3:
        call(std::integral_constant<int, 3>{}, panel);
        break;
      default:
        call(std::integral_constant<int, 4>{}, panel);
    }
  }
}

// `multiply_tile` for `count` vectors, 1 <= count <= tile_size.
template <Coding C, int B>
inline void multiply_some(const PanelWeight &w, const Inputs &inputs, Stream<C, B> &weights, int count,
                          const float *const *x, V *kept, float *const *y, const Finishing &finish, int64_t c) {
  constexpr int P = tile_size<C, B>;
  if (count == P) return multiply_tile<C, B, P>(w, inputs, weights, x, kept, y, finish, c);
  if (count == 1) return multiply_tile<C, B, 1>(w, inputs, weights, x, kept, y, finish, c);
  const float *from[P];
  float *to[P];
  for (int p = 0; p < P; ++p) from[p] = x[std::min(p, count - 1)], to[p] = p < count ? y[p] : nullptr;
  if constexpr (P > 3)
    if (count <= P / 2) return multiply_tile<C, B, P / 2>(w, inputs, weights, from, kept, to, finish, c);
  if constexpr (P > 5)
    if (count <= P * 2 / 3) return multiply_tile<C, B, P * 2 / 3>(w, inputs, weights, from, kept, to, finish, c);
  if constexpr (P > 1) multiply_tile<C, B, P>(w, inputs, weights, from, kept, to, finish, c);
}

constexpr int MOST_VECTORS = 96;      // of inputs at a time: a multiple of all tile sizes
constexpr int64_t MOST_INPUTS = 256;  // of a panel at a time: its weights stay in level 1 for all tiles

// y[p] = W x[p] for `count` vectors of inputs, at most MOST_VECTORS, and the panels of a block
template <Coding C>
void multiply_block(const PanelWeight &w, PanelBlock block, int count, const float *const *x, float *const *y,
                    const Finishing &finish) {
  V kept[MOST_VECTORS * WIDTH * VECTORS];
  const int64_t most = count <= tile_size<C, 1> ? w.depth : MOST_INPUTS / (WHOLE_BLOCKS ? WIDTH : 1);
  for (Inputs inputs(w, most);; inputs.next(w, most)) {
    PanelBlock rest = block;
    for_panels<C>(block, count, [&](auto width, int panel) {
      constexpr int B = decltype(width)::value, P = tile_size<C, B>;
      for (int first = 0; first < count; first += P) {
        Stream<C, B> weights(block, panel);
        multiply_some<C, B>(w, inputs, weights, std::min(P, count - first), x + first,
                            kept + (panel * MOST_VECTORS + first * B * apart_sums<B>)*VECTORS, y + first, finish,
                            (block.first + panel) * LANES_OF_A_PANEL);
        rest = weights.rest(block);
      }
    });
    if (inputs.complete) return;
    block = rest;
  }
}

// call(coding) for the coding of a weight in panels
template <class Call>
inline void with_coding(Coding coding, Call call) {
  if (coding == FLOATS) call(std::integral_constant<Coding, FLOATS>{});
  else if (coding == SIGNED_BYTES) call(std::integral_constant<Coding, SIGNED_BYTES>{});
  else call(std::integral_constant<Coding, BITMAP>{});
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
