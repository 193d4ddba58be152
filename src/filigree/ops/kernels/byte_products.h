// Products of bytes. Inputs are integers of 0 ... 255 with a scale and a zero of their own for each vector of inputs,
// or for each image; weights are integers of -127 ... 127 with a scale for each output. Sums are whole numbers of 32
// bits, exact and the same on every instruction set: W x = scale_x scale_w (sum of w q - zero * total of w).
//
// Inputs are taken in groups of four, which are a word of 32 bits: by one instruction where the processor has it
// (VNNI), else as two products of pairs of 16 bits, or with the signs of inputs gone over to weights, neither of which
// can overflow as those of bytes would.
#pragma once
#include "byte_instructions.h"
#include "by_vector.h"

#include <algorithm>
#include <cmath>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int GROUP = 4;                               // inputs of a word
constexpr int GROUP_BYTES = GROUP * LANES_OF_A_PANEL;  // of a panel's weights for a word
constexpr int64_t BYTE_SLACK = 64;                     // bytes that may be read beyond the last ones
typedef Vec<uint32_t, LANES<float>> U;

// -- products of four ------------------------------------------------------------------------------------------------

// A vector of words that lie anywhere.
inline I words_at(const void *from) {
  return reinterpret_cast<I>(load<uint8_t, BYTES>(static_cast<const uint8_t *>(from)));
}

struct ByInstruction {  // VNNI
  static constexpr bool is_one = true;
};
struct ByPairs {
  static constexpr bool is_one = false;
};

// sum + the products of the four bytes of each word: of x without, of w with a sign
template <class How>
inline I add_fours(I sum, I x, I w) {
#if defined(FILIGREE_ISA_avx512)
  if constexpr (How::is_one) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));  // not every processor with AVX-512 has it
    return sum;
  } else {
    const __m512i low = _mm512_and_si512(__m512i(x), _mm512_set1_epi32(0x00ff00ff));
    const __m512i high = _mm512_srli_epi16(__m512i(x), 8);
    const __m512i w_low = _mm512_srai_epi16(_mm512_slli_epi16(__m512i(w), 8), 8);
    const __m512i w_high = _mm512_srai_epi16(__m512i(w), 8);
    return sum + I(_mm512_madd_epi16(low, w_low)) + I(_mm512_madd_epi16(high, w_high));
  }
#elif defined(FILIGREE_ISA_avx2)
  if constexpr (How::is_one) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));  // AVX-VNNI
    return sum;
  } else {
    const __m256i low = _mm256_and_si256(__m256i(x), _mm256_set1_epi32(0x00ff00ff));
    const __m256i high = _mm256_srli_epi16(__m256i(x), 8);
    const __m256i w_low = _mm256_srai_epi16(_mm256_slli_epi16(__m256i(w), 8), 8);
    const __m256i w_high = _mm256_srai_epi16(__m256i(w), 8);
    return sum + I(_mm256_madd_epi16(low, w_low)) + I(_mm256_madd_epi16(high, w_high));
  }
#else
  const U a = reinterpret_cast<U>(x), b = reinterpret_cast<U>(w);
  const auto product = [&](int shift) {
    const I signed_byte = reinterpret_cast<I>(b << (24 - shift)) >> 24;
    return reinterpret_cast<I>(a >> shift & 255u) * signed_byte;
  };
  return sum + ((product(0) + product(8)) + (product(16) + product(24)));
#endif
}

// Four bytes of inputs, each a word of a vector, that many weights are multiplied with. What is added up is
// w (x - Fours::zero).
template <class How, bool FEW>
struct Fours {
  static constexpr int32_t zero = 0;
  I x;
  explicit Fours(int32_t word) : x(I{} + word) {}
  I add(I sum, I w) const { return add_fours<How>(sum, x, w); }
};

#if defined(FILIGREE_ISA_avx2)
// Less 128 they have a sign, which goes over to the weights: a pair is then at most 2 * 128 * 127 and fits in 16 bits.
// For few vectors of inputs: of more the weights are taken apart once for all.
template <>
struct Fours<ByPairs, true> {
  static constexpr int32_t zero = 128;
  __m256i x, size;
  explicit Fours(int32_t word) : x(_mm256_set1_epi32(word ^ int32_t(0x80808080))), size(_mm256_abs_epi8(x)) {}
  I add(I sum, I w) const {
    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(__m256i(w), x));
    return sum + I(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};
#endif

// call(how) by the fastest way that this processor has
template <class Call>
inline void with_fours(Call call) {
#if defined(FILIGREE_ISA_avx512) || defined(FILIGREE_ISA_avx2)
  if (multiplies_fours(BYTES == 64)) return call(ByInstruction{});
#endif
  call(ByPairs{});
}

// -- inputs as bytes -------------------------------------------------------------------------------------------------

// Vectors of inputs, or images, as bytes: `stride` apart, with the scale and the zero of each.
struct Quantised {
  uint8_t *bytes;
  int64_t stride;
  float *scales;
  int32_t *zeros;
};

// How many of them a step has for each image, and the bytes of one.
inline int64_t vectors_of_bytes(const Operation &o) { return o.by_image ? 1 : o.points; }
inline int64_t bytes_of_vector(const Operation &o, int64_t by_image) {
  const int64_t numbers = o.by_image ? by_image : o.weight.depth;
  return (numbers + BYTE_SLACK + 63) / 64 * 64;
}
inline bool is_bytes(const PanelWeight &w) { return w.coding >= INT8; }

// call(first, how many) for each run of neighbours
template <class Call>
inline void for_runs(const int32_t *run, int64_t runs, Call call) {
  for (int64_t r = 0; r < runs; ++r) call(int64_t(run[2 * r]), int64_t(run[2 * r + 1]));
}

// q = round(x / scale) + zero with scale = (most - least) / 255, where 0 is among least and most. What is not finite
// makes the scale NaN, and so all outputs; numbers too small for a scale become zeros.
void quantise(const float *x, const int32_t *run, int64_t runs, const Quantised &to, int64_t number) {
  constexpr int L = LANES<float>;
  V most{}, least{}, odd{};
  float high = 0, low = 0, bad = 0;
  for_runs(run, runs, [&](int64_t first, int64_t length) {
    const float *from = x + first;
    int64_t k = 0;
    for (; k + L <= length; k += L) {
      const V v = load<float, L>(from + k);
      most = v > most ? v : most;
      least = v < least ? v : least;
      odd += v - v;  // NaN where v is not finite
    }
    for (; k < length; ++k) high = std::max(high, from[k]), low = std::min(low, from[k]), bad += from[k] - from[k];
  });
  for (int i = 0; i < L; ++i) high = std::max(high, most[i]), low = std::min(low, least[i]), bad += odd[i];
  const float range = high - low;
  float inverse = 255.0f / range, scale = range / 255.0f;
  if (!std::isfinite(range) || !(bad == 0)) scale = NAN, inverse = 0;
  else if (!std::isfinite(inverse)) scale = 0, inverse = 0;
  const int32_t zero = inverse == 0 ? 0 : int32_t(std::lrint(-low * inverse));
  to.scales[number] = scale;
  to.zeros[number] = zero;
  uint8_t *out = to.bytes + number * to.stride;
  for_runs(run, runs, [&](int64_t first, int64_t length) {
    const float *from = x + first;
    int64_t k = 0;
    for (; k + L <= length; k += L) {
      I q = rounded(load<float, L>(from + k) * inverse) + zero;
      q = q < 0 ? I{} : q;
      q = q > 255 ? I{} + 255 : q;
      store<uint8_t, L>(out + k, __builtin_convertvector(q, Vec<uint8_t, L>));
    }
    for (; k < length; ++k)
      out[k] = uint8_t(inverse == 0 ? zero : std::min(255, std::max(0, int32_t(std::lrint(from[k] * inverse)) + zero)));
    for (; k % GROUP; ++k) out[k] = 0;
    out += k;
  });
}

// Where the bytes of a step's vectors begin and how they are read: those of an image by the weight's own runs, others
// one after another.
struct ByteRuns {
  int32_t whole[2];
  const int32_t *run;
  int64_t runs;
  explicit ByteRuns(const Operation &o)
      : whole{0, int32_t(o.weight.depth)},
        run(o.by_image ? o.weight.run : whole),
        runs(o.by_image ? o.weight.runs : 1) {}
  ByteRuns(const ByteRuns &) = delete;
};

// -- weights as bytes ------------------------------------------------------------------------------------------------

#if defined(FILIGREE_ISA_avx2)
// For each mask of 8 bits which of the packed bytes each of 8 takes; with the sign bit where it takes none.
struct ByteSpread {
  uint64_t bytes[256];
  ByteSpread() {
    for (int mask = 0; mask < 256; ++mask) {
      bytes[mask] = 0;
      for (int lane = 0, next = 0; lane < 8; ++lane)
        bytes[mask] |= uint64_t(mask >> lane & 1 ? next++ : 128) << 8 * lane;
    }
  }
};
inline const ByteSpread BYTE_SPREAD;
#endif

// The bytes at `from`, in the lanes of a mask.
inline const int8_t *spread_bytes(uint64_t mask, const int8_t *from, I *to, bool by_instruction) {
#if defined(FILIGREE_ISA_avx512)
  if (by_instruction) {
    const __m512i packed = _mm512_loadu_si512(from);
    __m512i all;
    asm("vpexpandb %1, %0%{%2%}%{z%}" : "=v"(all) : "v"(packed), "Yk"(__mmask64(mask)));
    *to = I(all);
    return from + __builtin_popcountll(mask);
  }
#elif defined(FILIGREE_ISA_avx2)
  (void)by_instruction;
  __m128i eights[8];
  for (int i = 0; i < 8; ++i) {
    const unsigned bits = mask >> 8 * i & 255;
    eights[i] = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)),
                                 _mm_loadl_epi64(reinterpret_cast<const __m128i *>(BYTE_SPREAD.bytes + bits)));
    from += __builtin_popcount(bits);
  }
  for (int v = 0; v < 2; ++v)
    to[v] = I(_mm256_set_m128i(_mm_unpacklo_epi64(eights[4 * v + 2], eights[4 * v + 3]),
                               _mm_unpacklo_epi64(eights[4 * v], eights[4 * v + 1])));
  return from;
#endif
  (void)by_instruction;
  int8_t bytes[GROUP_BYTES];
  for (int i = 0; i < GROUP_BYTES; ++i, mask >>= 1) bytes[i] = mask & 1 ? *from++ : int8_t(0);
  for (int v = 0; v < VECTORS; ++v) to[v] = words_at(bytes + v * BYTES);
  return from;
}

inline PanelBlock byte_block(const PanelWeight &w, int64_t number) {
  const int64_t first = number * WIDTH;
  const int panels = int(w.panels - first < WIDTH ? w.panels - first : WIDTH);
  const char *values = static_cast<const char *>(w.values);
  if (w.coding == INT8) return {first, panels, values + first * w.depth * LANES_OF_A_PANEL, nullptr, 0};
  return {first, panels, values + w.starts[number], w.masks + first * w.depth, 0};  // 64 bits for four inputs
}

// The next weights of B panels for a word of inputs, and on to those of the next one.
template <Coding C, int B>
class ByteStream {
 public:
  ByteStream(const PanelBlock &block, int from)
      : values(reinterpret_cast<const int8_t *>(block.values)),
        masks(block.masks),
        step(block.panels * GROUP_BYTES),
        by_instruction(expands_bytes()) {
    if (C == INT8) values += from * GROUP_BYTES;
  }
  void next(I *to) {
    if constexpr (C == INT8) {
#pragma GCC unroll 16
      for (int v = 0; v < B * VECTORS; ++v) to[v] = words_at(values + v * BYTES);
      values += step;
    } else {
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        uint64_t mask;
        __builtin_memcpy(&mask, masks + b * GROUP, sizeof mask);
        values = spread_bytes(mask, values, to + b * VECTORS, by_instruction);
      }
      masks += B * GROUP;
    }
  }

 private:
  const int8_t *values;
  const uint16_t *masks;
  int64_t step;
  bool by_instruction;
};

// call(coding) for the coding of a weight in panels of bytes
template <class Call>
inline void with_byte_coding(Coding coding, Call call) {
  if (coding == INT8) call(std::integral_constant<Coding, INT8>{});
  else call(std::integral_constant<Coding, INT8_BITMAP>{});
}

// What multiplies at a time: where P vectors of bytes begin, with their scales and zeros, and where the outputs go.
template <int P>
struct ByteTile {
  const uint8_t *x[P];
  float scale[P];
  int32_t zero[P];
  float *y[P];
};

// y[p] = W x[p] for P vectors of inputs and B panels of a block from `panel` on; where y[p] is null nothing is stored
template <class How, Coding C, int B, int P, int N>
void multiply_byte_tile(const PanelWeight &w, const PanelBlock &block, int panel, const ByteRuns &runs,
                        const ByteTile<N> &t, const Finishing &finish) {
  constexpr int M = B * VECTORS, L = LANES<float>;
  constexpr int APART_SUMS = P * M < 4 ? 4 : 1;  // whole numbers: their order changes nothing
  typedef Fours<How, P <= 2> Word;
  I sum[APART_SUMS][P][M] = {};
  ByteStream<C, B> weights(block, panel);
  for_runs(runs.run, runs.runs, [&](int64_t first, int64_t length) {
    const uint8_t *at[P];
    for (int p = 0; p < P; ++p) at[p] = t.x[p] + first;
    const auto word = [&](int64_t k, I(&to)[P][M]) {
      I each[M] = {};
      weights.next(each);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        int32_t four;
        __builtin_memcpy(&four, at[p] + k, sizeof four);
        const Word x(four);
#pragma GCC unroll 16
        for (int v = 0; v < M; ++v) to[p][v] = x.add(to[p][v], each[v]);
      }
    };
    int64_t k = 0;
    if constexpr (APART_SUMS > 1)
      for (; k + APART_SUMS * GROUP <= length; k += APART_SUMS * GROUP)
#pragma GCC unroll 4
        for (int u = 0; u < APART_SUMS; ++u) word(k + u * GROUP, sum[u]);
    for (; k < length; k += GROUP) word(k, sum[0]);
  });
  const int64_t c = (block.first + panel) * LANES_OF_A_PANEL;
  V sums[P][M];
#pragma GCC unroll 16
  for (int v = 0; v < M; ++v) {
    const I totals = load<int32_t, L>(w.totals + c + v * L);
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
      I all = sum[0][p][v];
      for (int u = 1; u < APART_SUMS; ++u) all += sum[u][p][v];
      sums[p][v] = __builtin_convertvector(all - (t.zero[p] - Word::zero) * totals, V) * t.scale[p];
    }
  }
  finish_tile(sums, finish, c);
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p)
    if (t.y[p])
#pragma GCC unroll 16
      for (int v = 0; v < M; ++v) store<float, L>(t.y[p] + c + v * L, sums[p][v]);
}

// y[p] = W x[p] for `count` vectors of inputs, 1 <= count <= tile_size
template <class How, Coding C, int B, int P>
inline void multiply_some_bytes(const PanelWeight &w, const PanelBlock &block, int panel, const ByteRuns &runs,
                                int count, const ByteTile<P> &t, const Finishing &finish) {
  if (count == 1) return multiply_byte_tile<How, C, B, 1>(w, block, panel, runs, t, finish);
  if constexpr (P > 3)
    if (count <= P / 2) return multiply_byte_tile<How, C, B, P / 2>(w, block, panel, runs, t, finish);
  if constexpr (P > 5)
    if (count <= P * 2 / 3) return multiply_byte_tile<How, C, B, P * 2 / 3>(w, block, panel, runs, t, finish);
  if constexpr (P > 1) multiply_byte_tile<How, C, B, P>(w, block, panel, runs, t, finish);
}

// z[i] = W q[i] for the first `count` vectors of bytes and the blocks [from, to) of panels
inline void byte_products(const Operation &o, const Quantised &q, float *const *z, int64_t count, int64_t from,
                          int64_t to) {
  const ByteRuns runs(o);
  with_fours([&](auto how) {
    typedef decltype(how) How;
    with_byte_coding(o.weight.coding, [&](auto coding) {
      constexpr Coding C = decltype(coding)::value;
      for (int64_t number = from; number < to; ++number) {
        const PanelBlock block = byte_block(o.weight, number);
        for_panels<C>(block, count, [&](auto width, int panel) {
          constexpr int B = decltype(width)::value, P = tile_size<C, B>;
          for (int64_t first = 0; first < count; first += P) {
            ByteTile<P> t;
            for (int p = 0; p < P; ++p) {
              const int64_t i = std::min(first + p, count - 1);
              t.x[p] = q.bytes + i * q.stride, t.scale[p] = q.scales[i], t.zero[p] = q.zeros[i];
              t.y[p] = first + p < count ? z[i] : nullptr;
            }
            const int some = int(std::min<int64_t>(P, count - first));
            multiply_some_bytes<How, C, B>(o.weight, block, panel, runs, some, t, o.finish);
          }
        });
      }
    });
  });
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
