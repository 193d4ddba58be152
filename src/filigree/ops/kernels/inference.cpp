// A whole network, or a part of one, as one call for inference: steps on float numbers of images, which lie pixel by
// pixel, the channels of each beside one another.
//
// Convolutions and linear layers are one step, MULTIPLY. Where a pixel's inputs begin and which numbers after that it
// reads is given by two short tables, so that no patch is ever copied; weights are packed in panels of 16 outputs, as
// floats, as bytes, or as the numbers that are not zero with a mask of 16 bits for each input. Where inputs are to be
// bytes too, they are rounded first, each pixel's or all of an image.
#include "amx.h"
#include "attention.h"
#include "caches.h"
#include "point_tiles.h"
#include "recurrent.h"
#include "scratch.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

class Memory {
 public:
  Memory(const std::vector<Span> &spans, float *scratch, int64_t chunk) : spans(spans), own(scratch), chunk(chunk) {}
  Area operator()(int64_t number, int64_t first) const {
    const Span &span = spans[size_t(number)];
    return {span.data ? static_cast<float *>(span.data) + first * span.size : own + chunk * span.offset, span.size};
  }

 private:
  const std::vector<Span> &spans;
  float *own;
  int64_t chunk;
};

struct Part {  // of the work of a step, for one of a team's threads
  int64_t from, to;
  Part(int64_t count, int thread, int threads) : from(count * thread / threads), to(count * (thread + 1) / threads) {}
};

void gather(const Operation &o, Area in, Area out, int64_t images, int thread, int threads) {
  const Part part(o.points, thread, threads);
  for (int64_t i = 0; i < images; ++i) {
    const float *x = in.data + i * in.by_image;
    float *y = out.data + i * out.by_image;
    for (int64_t p = part.from; p < part.to; ++p) y[p] = o.reads[p] < 0 ? 0.0f : x[o.reads[p]];
  }
}

// The pixels [from, to) of all images, in tiles of at most P: call(tile size, inputs, outputs) for each; the place of
// its output is null for what the last tile repeats.
template <int P, class Call>
inline void tiles(const Operation &o, Area in, Area out, int64_t from, int64_t to, Call call) {
  int64_t image = from / o.points, point = from % o.points;
  for (int64_t first = from; first < to; first += P) {
    const int count = int(std::min<int64_t>(P, to - first));
    const float *x[P];
    float *y[P];
    for (int p = 0; p < count; ++p) {
      x[p] = in.data + image * in.by_image + o.reads[point];
      y[p] = out.data + image * out.by_image + o.writes[point];
      if (++point == o.points) point = 0, ++image;
    }
    for (int p = count; p < P; ++p) x[p] = x[count - 1], y[p] = nullptr;
    call(count, x, y);
  }
}

void multiply_vectors(const Operation &o, Area in, Area out, int64_t images, int thread, int threads) {
  const Part part(o.weight.panels, thread, threads);
  for (int64_t i = 0; i < images; ++i)
    for (int64_t p = 0; p < o.points; ++p)
      multiply_vector(o.weight, in.data + i * in.by_image + o.reads[p], out.data + i * out.by_image + o.writes[p],
                      o.finish, part.from, part.to);
}

// call(the first and the end of some pixels, a block of panels) for a thread's part of all pixels and blocks
template <class Call>
inline void pixels_and_blocks(const Operation &o, int64_t images, int thread, int threads, Call call) {
  const int64_t points = images * o.points, blocks = blocks_of(o.weight);
  const Part part(points * blocks, thread, threads);
  for (int64_t unit = part.from, to; unit < part.to; unit += to - unit % points) {
    const int64_t from = unit % points;
    to = std::min(points, from + part.to - unit);
    call(from, to, unit / points);
  }
}

void multiply(const Operation &o, Area in, Area out, int64_t images, int thread, int threads, float *tile) {
  if (o.weight.groups > 1) {
    Operation group = o;
    PanelWeight &w = group.weight;
    w.groups = 1, w.panels /= o.weight.groups;
    const int64_t outputs = w.panels * LANES_OF_A_PANEL;
    for (int64_t g = 0; g < o.weight.groups; ++g, in.data += w.shift, out.data += outputs) {
      group.finish = finishing_from(o.finish, g * outputs);
      multiply(group, in, out, images, thread, threads, tile);
      w.values = static_cast<const float *>(w.values) + outputs * w.depth;
    }
    return;
  }
  if (is_by_vector(o.weight)) return multiply_vectors(o, in, out, images, thread, threads);
  if (o.weight.coding == TILES) {
    const Part part(images * o.points, thread, threads);
    tiles<TILE>(o, in, out, part.from, part.to, [&](int count, const float *const *x, float *const *y) {
      const char *words[TILE];
      for (int p = 0; p < TILE; ++p) words[p] = reinterpret_cast<const char *>(x[p]);
      multiply_point_tile<FloatWords>(o.weight, count, words, y, o.finish, tile, nullptr, nullptr, nullptr);
    });
    return;
  }
  with_coding(o.weight.coding, [&](auto coding) {
    constexpr Coding C = decltype(coding)::value;
    pixels_and_blocks(o, images, thread, threads, [&](int64_t from, int64_t to, int64_t number) {
      tiles<MOST_VECTORS>(o, in, out, from, to, [&](int count, const float *const *x, float *const *y) {
        multiply_block<C>(o.weight, panel_block(o.weight, number), count, x, y, o.finish);
      });
    });
  });
}

// -- with inputs as bytes --------------------------------------------------------------------------------------------

// All vectors of inputs (or images) of a step as bytes; a team shares the work.
void quantise_inputs(const Operation &o, Area in, int64_t images, const Quantised &to, int thread, int threads) {
  const int64_t each = vectors_of_bytes(o);
  const int32_t all[] = {0, int32_t(in.by_image)};
  const Part part(images * each, thread, threads);
  for (int64_t g = part.from; g < part.to; ++g) {
    const float *x = in.data + g / each * in.by_image;
    if (o.by_image) quantise(x, all, 1, to, g);
    else quantise(x + o.reads[g % each], o.weight.run, o.weight.runs, to, g);
  }
}

// The pixels [from, to) of all images, in tiles of at most P: call(tile size, tile) for each.
template <int P, class Call>
inline void byte_tiles(const Operation &o, const Quantised &in, Area out, int64_t from, int64_t to, Call call) {
  int64_t image = from / o.points, point = from % o.points;
  for (int64_t first = from; first < to; first += P) {
    const int count = int(std::min<int64_t>(P, to - first));
    ByteTile<P> t;
    for (int p = 0; p < P; ++p) {
      if (p >= count) {
        t.x[p] = t.x[count - 1], t.scale[p] = 0, t.zero[p] = 0, t.y[p] = nullptr;
        continue;
      }
      const int64_t number = o.by_image ? image : image * o.points + point;
      t.x[p] = in.bytes + number * in.stride + (o.by_image ? o.reads[point] : 0);
      t.scale[p] = in.scales[number], t.zero[p] = in.zeros[number];
      t.y[p] = out.data + image * out.by_image + o.writes[point];
      if (++point == o.points) point = 0, ++image;
    }
    call(count, t);
  }
}

#if defined(FILIGREE_ISA_avx512)
void multiply_by_amx(const Operation &o, const Quantised &in, Area out, int64_t images, int thread, int threads,
                     float *own) {
  const PanelWeight &w = o.weight;
  const ByteRuns runs(o);
  const Amx registers;
  int8_t *own_weights = reinterpret_cast<int8_t *>((reinterpret_cast<uintptr_t>(own) + 63) / 64 * 64);
  uint8_t *own_inputs = reinterpret_cast<uint8_t *>(own_weights) + whole_amx(w.depth) * WIDTH * LANES_OF_A_PANEL;
  const bool as_they_lie = !o.by_image && w.depth % AMX_INPUTS == 0;
  with_byte_coding(w.coding, [&](auto coding) {
    constexpr Coding C = decltype(coding)::value;
    pixels_and_blocks(o, images, thread, threads, [&](int64_t from, int64_t to, int64_t number) {
      const PanelBlock block = byte_block(w, number);
      for_panels<C>(block, to - from, [&](auto width, int) {
        constexpr int B = decltype(width)::value;
        const int8_t *weights = amx_weights<C, B>(w, block, own_weights);
        const int64_t rounds = (to - from + AMX_VECTORS - 1) / AMX_VECTORS * ((B + 1) / 2);
        Ahead ahead(number + 1 < blocks_of(w) ? byte_block(w, number + 1) : block,
                    C == INT8 ? w.depth * B * LANES_OF_A_PANEL : 0, rounds * whole_amx(w.depth) / AMX_INPUTS);
        byte_tiles<AMX_VECTORS>(o, in, out, from, to, [&](int count, const ByteTile<AMX_VECTORS> &t) {
          const bool direct = as_they_lie && count % AMX_ROWS == 0;
          if (!direct) pack_for_amx(runs, t.x, count, amx_stride(w), own_inputs);
          const int64_t stride = direct ? in.stride : amx_stride(w);
          multiply_amx_tile<B>(w, block, weights, direct ? t.x[0] : own_inputs, stride, count, ahead, t, o.finish);
        });
      });
    });
  });
}
#endif

void multiply_bytes(const Operation &o, const Quantised &in, Area out, int64_t images, int thread, int threads,
                    float *tile) {
#if defined(FILIGREE_ISA_avx512)
  if (pays_amx(o.weight, images * o.points, threads)) return multiply_by_amx(o, in, out, images, thread, threads, tile);
#endif
  const ByteRuns runs(o);
  with_fours([&](auto how) {
    typedef decltype(how) How;
    if (o.weight.coding == INT8_TILES) {
      const Part part(images * o.points, thread, threads);
      byte_tiles<TILE>(o, in, out, part.from, part.to, [&](int count, const ByteTile<TILE> &t) {
        const char *words[TILE];
        for (int p = 0; p < TILE; ++p) words[p] = reinterpret_cast<const char *>(t.x[p]);
        multiply_point_tile<ByteWords<How>>(o.weight, count, words, t.y, o.finish, tile, &runs, t.scale, t.zero);
      });
      return;
    }
    with_byte_coding(o.weight.coding, [&](auto coding) {
      constexpr Coding C = decltype(coding)::value;
      pixels_and_blocks(o, images, thread, threads, [&](int64_t from, int64_t to, int64_t number) {
        const PanelBlock block = byte_block(o.weight, number);
        for_panels<C>(block, to - from, [&](auto width, int panel) {
          constexpr int B = decltype(width)::value;
          byte_tiles<tile_size<C, B>>(o, in, out, from, to, [&](int count, const auto &t) {
            multiply_some_bytes<How, C, B>(o.weight, block, panel, runs, count, t, o.finish);
          });
        });
      });
    });
  });
}

// call(image, point) for a thread's part of all points
template <class Call>
inline void for_points(const Operation &o, int64_t images, int thread, int threads, Call call) {
  const Part part(images * o.points, thread, threads);
  int64_t image = part.from / std::max<int64_t>(1, o.points), point = part.from - image * o.points;
  for (int64_t g = part.from; g < part.to; ++g) {
    call(image, point);
    if (++point == o.points) point = 0, ++image;
  }
}

// call(channel, registers) for all channels, several registers at a time
template <class Call>
inline void channel_blocks(int64_t channels, Call call) {
  constexpr int L = LANES<float>, MOST = 4;
  int64_t c = 0;
  for (; c + MOST * L <= channels; c += MOST * L) call(c, std::integral_constant<int, MOST>{});
  for (; c < channels; c += L) call(c, std::integral_constant<int, 1>{});
}

// The last ones may be less than a register.
template <int N>
inline void finish_and_store(V (&all)[1][N], const Operation &o, int64_t c, float *y) {
  constexpr int L = LANES<float>;
  finish_tile(all, o.finish, c);
  if (N == 1 && c + L > o.channels) return void(__builtin_memcpy(y + c, all[0], size_t(o.channels - c) * 4));
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) store<float, L>(y + c + v * L, all[0][v]);
}

// The largest, or the mean, of some numbers for each channel of a pixel.
template <bool MOST>
void pool(const Operation &o, Area in, Area out, int64_t images, int thread, int threads) {
  constexpr int L = LANES<float>;
  for_points(o, images, thread, threads, [&](int64_t image, int64_t point) {
    const float *x = in.data + image * in.by_image;
    float *y = out.data + image * out.by_image + o.writes[point];
    const int32_t *reads = o.reads + point * o.taps;
    int64_t taps = o.taps;
    if constexpr (!MOST)
      while (o.others && taps > 1 && reads[taps - 1] < 0) --taps;
    const int64_t divisor = !MOST && o.others ? o.others[point] : taps;
    channel_blocks(o.channels, [&](int64_t c, auto registers) {
      constexpr int N = decltype(registers)::value;
      V all[1][N];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) all[0][v] = load<float, L>(x + reads[0] + c + v * L);
      for (int64_t t = 1; t < taps; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          const V each = load<float, L>(x + reads[t] + c + v * L);
          V &to = all[0][v];
          if constexpr (MOST) to = each > to || each != each ? each : to;  // keeps NaN, as torch does
          else to += each;
        }
      if constexpr (!MOST)
        if (divisor != 1)
#pragma GCC unroll 4
          for (int v = 0; v < N; ++v) all[0][v] *= 1.0f / float(divisor);
      finish_and_store(all, o, c, y);
    });
  });
}

// Each channel's numbers at the taps of a pixel, times weights of its own: what a depthwise convolution is. Pixels are
// taken some at a time, so that a weight is loaded once for them.
template <int B, int P>
void depthwise_tile(const Operation &o, const float *const *x, float *const *y, int64_t first) {
  constexpr int L = LANES<float>, N = B * VECTORS;
  const float *weights = static_cast<const float *>(o.weight.values) + first;
  V sum[P][N] = {};
  for (int64_t t = 0; t < o.taps; ++t, weights += o.channels) {
    const int64_t tap = o.others[t] + first;
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const V weight = load<float, L>(weights + v * L);
#pragma GCC unroll 6
      for (int p = 0; p < P; ++p) sum[p][v] += load<float, L>(x[p] + tap + v * L) * weight;
    }
  }
  finish_tile(sum, o.finish, first);
#pragma GCC unroll 6
  for (int p = 0; p < P; ++p)
    if (y[p])
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) store<float, L>(y[p] + first + v * L, sum[p][v]);
}

void depthwise(const Operation &o, Area in, Area out, int64_t images, int thread, int threads) {
  // neighbouring pixels' numbers of a few channels lie in few sets of level 1, those of all are too many for it
  constexpr int P = 6, CHANNELS = 4 * LANES_OF_A_PANEL;
  const Part part(images * o.points, thread, threads);
  tiles<MOST_VECTORS>(o, in, out, part.from, part.to, [&](int count, const float *const *x, float *const *y) {
    for (int64_t first = 0; first < o.channels; first += CHANNELS)
      for (int p = 0; p < count; p += P) {
        const int64_t end = std::min(first + CHANNELS, o.channels);
        int64_t c = first;
        const auto some = [&](auto panels) {
          constexpr int B = decltype(panels)::value;
          for (; c + B * LANES_OF_A_PANEL <= end; c += B * LANES_OF_A_PANEL) depthwise_tile<B, P>(o, x + p, y + p, c);
        };
        if constexpr (VECTORS == 1) some(std::integral_constant<int, 2>{});
        some(std::integral_constant<int, 1>{});
      }
  });
}

// Sums, products or differences of the numbers of two pixels.
template <OperationKind KIND>
void combine(const Operation &o, Area in, Area other, Area out, int64_t images, int thread, int threads) {
  constexpr int L = LANES<float>;
  for_points(o, images, thread, threads, [&](int64_t image, int64_t point) {
    const float *a = in.data + image * in.by_image + o.reads[point];
    const float *b = other.data + image * other.by_image + o.others[point];
    float *y = out.data + image * out.by_image + o.writes[point];
    channel_blocks(o.channels, [&](int64_t c, auto registers) {
      constexpr int N = decltype(registers)::value;
      V all[1][N];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        const V one = load<float, L>(a + c + v * L), two = load<float, L>(b + c + v * L);
        all[0][v] = KIND == TIMES ? one * two : KIND == MINUS ? one - two : one + two;
      }
      finish_and_store(all, o, c, y);
    });
  });
}

void run_step(const Operation &o, const Memory &memory, int64_t first, int64_t images, int thread, int threads,
              float *tile, Quantised bytes) {
  const Area in = memory(o.from, first), out = memory(o.to, first);
  if (o.clear)  // what lies around the pixels is zero
    for (int64_t i = thread; i < images; i += threads)
      std::fill(out.data + i * out.by_image, out.data + (i + 1) * out.by_image, 0.0f);
  const bool rounds = is_bytes(o.weight) && !is_recurrent(o);
  if (rounds) {
    bytes.stride = bytes_of_vector(o, in.by_image);
    quantise_inputs(o, in, images, bytes, thread, threads);
  }
  if (o.clear || rounds) wait_for(threads);
  switch (o.kind) {
    case GATHER:
      return gather(o, in, out, images, thread, threads);
    case MULTIPLY:
      if (is_bytes(o.weight)) return multiply_bytes(o, bytes, out, images, thread, threads, tile);
      return multiply(o, in, out, images, thread, threads, tile);
    case MAXIMUM:
      return pool<true>(o, in, out, images, thread, threads);
    case MEAN:
      return pool<false>(o, in, out, images, thread, threads);
    case ADD:
      return combine<ADD>(o, in, memory(o.other, first), out, images, thread, threads);
    case TIMES:
      return combine<TIMES>(o, in, memory(o.other, first), out, images, thread, threads);
    case MINUS:
      return combine<MINUS>(o, in, memory(o.other, first), out, images, thread, threads);
    case DEPTHWISE:
      return depthwise(o, in, out, images, thread, threads);
    case NORM: {
      const Part part(images * o.points, thread, threads);
      return normalise(o, in, out, part.from, part.to);
    }
    case ATTENTION: {
      const Part part(images * o.taps, thread, threads);
      return attend(o, in, memory(o.other, first), memory(o.third, first), out, part.from, part.to, tile);
    }
    case LSTM:
    case GRU:
      return recur(o, in, memory(o.other, first), out, images, thread, threads, tile);
  }
}

}  // namespace

void inference(const std::vector<Span> &spans, const std::vector<Operation> &steps, int64_t images, int64_t chunk,
               int64_t numbers, int64_t work) {
  const int threads = team(work * images);
  const bool apart = images >= 2 * threads;  // each thread has images of its own; else all have parts of each step
  if (apart) chunk = std::max<int64_t>(1, std::min(chunk, images / threads));
  const int64_t each = chunk * numbers + 64;  // vectors may be read beyond the last number
  float *own = scratch<float>(0, apart ? each * threads : each);
  int64_t tile = 0;
  for (const Operation &step : steps)
    tile = std::max({tile, tile_scratch(step.weight) + 64, attention_scratch(step) + 64, recurrent_scratch(step) + 64,
                     amx_scratch(step.weight) + 64});
  float *tiles_of_threads = scratch<float>(1, tile * threads);
  int64_t bytes = 0, vectors = 0;  // of a chunk of images
  for (const Operation &step : steps)
    if (is_bytes(step.weight) && !is_recurrent(step)) {
      const int64_t count = chunk * vectors_of_bytes(step);
      bytes = std::max(bytes, count * bytes_of_vector(step, spans[size_t(step.from)].size));
      vectors = std::max(vectors, count);
    }
  const int teams = apart ? threads : 1;
  uint8_t *all_bytes = scratch<uint8_t>(2, bytes * teams);
  float *scales = scratch<float>(3, vectors * teams);
  int32_t *zeros = scratch<int32_t>(4, vectors * teams);
  parallel(threads, [&](int thread, int count) {
    const Part part(images, apart ? thread : 0, apart ? count : 1);
    const int64_t team = apart ? thread : 0;
    const Memory memory(spans, own + team * each, chunk);
    const Quantised quantised{all_bytes + team * bytes, 0, scales + team * vectors, zeros + team * vectors};
    for (int64_t first = part.from; first < part.to; first += chunk)
      for (const Operation &step : steps) {
        run_step(step, memory, first, std::min(chunk, part.to - first), apart ? 0 : thread, apart ? 1 : count,
                 tiles_of_threads + thread * tile, quantised);
        if (!apart) wait_for(count);
      }
  });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
