// Panels: the batch cut into a few samples at a time. A panel holds its samples' numbers unit by unit, in rows of
// `width` contiguous numbers, one or two pairs of cache lines each. What a sparse product reads at random then stays in
// a core's own level-2 cache, whatever the batch and the memory order of the tensors. Rows are padded with zeros.
#pragma once
#include "caches.h"
#include "loops.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// The widest panels that a product uses which reads `units` numbers of each sample: 256 bytes a row where vectors are
// as wide as a cache line and a panel fills at most half of the level-2 cache, else 128 bytes.
template <class T>
inline int64_t panel_width(int64_t units) {
  const bool fits = units * 256 <= level2_bytes() / 2;
  return (BYTES == 64 && fits ? 256 : 128) / int64_t(sizeof(T));
}

// Whether a panel of so many units is so large that its rows are worth fetching ahead of their use: to widen 16 bits
// takes instructions beside which a prefetch costs nothing.
template <class S>
inline bool is_far(int64_t units, int64_t width) {
  return units * width * int64_t(sizeof(S)) > level2_bytes() / (is_short<S> ? 4 : 2);
}

struct Panel {
  int64_t first, count;  // of the batch's samples
  int64_t width;         // a power of two, at least `count`
  int64_t at;            // the widths of the panels before it
};

class Panels {
 public:
  Panels(int64_t batch, int64_t wide) : wide(wide), full(batch / wide), pieces(0) {
    Panel next{full * wide, 0, 0, full * wide};
    for (int64_t rest = batch - next.first; rest > 0; rest -= next.count) {
      next.width = wide;
      while (next.width / 2 >= rest) next.width /= 2;
      // a pass over the nonzeros costs about as much as 16 numbers of the batch
      if (next.width > 32 && rest <= next.width - 32) next.width /= 2;
      next.count = std::min(rest, next.width);
      tail[pieces++] = next;
      next.first += next.count, next.at += next.width;
    }
  }
  int64_t count() const { return full + pieces; }
  int64_t padded() const { return pieces ? tail[pieces - 1].at + tail[pieces - 1].width : full * wide; }
  Panel operator[](int64_t i) const { return i < full ? Panel{i * wide, wide, wide, i * wide} : tail[i - full]; }

 private:
  int64_t wide, full, pieces;
  Panel tail[8];
};

// Whether a panel of `m` is already in rows of `width` contiguous numbers.
inline bool is_packed(const Strided &m, const Panel &panel) { return m.by_sample == 1 && panel.count == panel.width; }

// call(lanes, vectors, column) for the blocks of a panel's rows, each of at most MOST vectors.
template <class T, int MOST, int L = LANES<T>, int NV = MOST, class Call>
inline void panel_blocks(int64_t width, Call call) {
  if constexpr (L > 1)
    if (width < L) return panel_blocks<T, MOST, L / 2, 1>(width, call);
  if constexpr (NV > 1)
    if (width < L * NV) return panel_blocks<T, MOST, L, NV / 2>(width, call);
  for (int64_t column = 0; column < width; column += L * NV)
    call(std::integral_constant<int, L>{}, std::integral_constant<int, NV>{}, column);
}

// Units [from, to) of a panel of `m`, to rows of `out`: unit `from` comes first.
template <class T, std::enable_if_t<!is_short<T>, int> = 0>
void pack(const Strided &m, const Panel &panel, int64_t from, int64_t to, T *out) {
  const T *in = static_cast<const T *>(m.data) + panel.first * m.by_sample + from * m.by_feature;
  const int64_t units = to - from, width = panel.width, count = panel.count;
  if (is_packed(m, panel)) {
    constexpr int64_t AHEAD_ROWS = 16;  // rows lie too far apart for the processor to see what comes
    panel_blocks<T, 4>(width, [&](auto lanes, auto vectors, int64_t column) {
      constexpr int L = decltype(lanes)::value, NV = decltype(vectors)::value;
      for (int64_t u = 0; u < units; ++u) {
        const T *row = in + u * m.by_feature + column;
        if (u + AHEAD_ROWS < units) prefetch(row + AHEAD_ROWS * m.by_feature, L * NV);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store<T, L>(out + u * width + column + v * L, load<T, L>(row + v * L));
      }
    });
    return;
  }
  if (m.by_sample != 1 && m.by_feature == 1) transpose_rows(in, m.by_sample, out, width, count, 0, units);
  else
    for (int64_t u = 0; u < units; ++u)
      for (int64_t i = 0; i < count; ++i) out[u * width + i] = in[u * m.by_feature + i * m.by_sample];
  if (count < width)
    for (int64_t u = 0; u < units; ++u) std::fill(out + u * width + count, out + (u + 1) * width, T(0));
}

// The inverse: rows to units [from, to) of a panel of `m`.
template <class T, std::enable_if_t<!is_short<T>, int> = 0>
void unpack(const T *in, const Panel &panel, int64_t from, int64_t to, const Strided &m) {
  T *out = static_cast<T *>(m.data) + panel.first * m.by_sample + from * m.by_feature;
  const int64_t units = to - from, width = panel.width, count = panel.count;
  if (m.by_sample != 1 && m.by_feature == 1) return transpose_rows(in, width, out, m.by_sample, units, 0, count);
  for (int64_t u = 0; u < units; ++u)
    for (int64_t i = 0; i < count; ++i) out[u * m.by_feature + i * m.by_sample] = in[u * width + i];
}

// Numbers of 16 bits are moved as they are.
template <class S, std::enable_if_t<is_short<S>, int> = 0>
void pack(const Strided &m, const Panel &panel, int64_t from, int64_t to, S *out) {
  pack<uint16_t>(m, panel, from, to, &out->bits);
}
template <class S, std::enable_if_t<is_short<S>, int> = 0>
void unpack(const S *in, const Panel &panel, int64_t from, int64_t to, const Strided &m) {
  unpack<uint16_t>(&in->bits, panel, from, to, m);
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
