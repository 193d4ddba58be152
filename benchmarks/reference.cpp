// The products of sparse layers, whole or of chosen rows, of sparse convolutions and of a batch's largest gradients in
// plain intrinsics: what the kernels are measured against. A layer's rows are 128 samples long. Rows, samples or images
// are divided among the threads; nothing else is chosen by shape or machine. `ahead`: how many nonzeros ahead rows are
// prefetched, 0 (not at all), 4 or 8.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 V;
constexpr int LANES = 16, FORWARD = 8, BACKWARD = 8;  // vectors of a row at a time, by registers to hold the sums
static inline V load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, V v) { _mm512_storeu_ps(p, v); }
static inline V all(float v) { return _mm512_set1_ps(v); }
static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline __m256 half(V a) { return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)); }
static inline void sums(const V *dot, float *out) {
  const __m256 a = half(dot[0]), b = half(dot[1]), c = half(dot[2]), d = half(dot[3]);
  const __m256 q = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  const __m128 sum = _mm_add_ps(_mm256_castps256_ps128(q), _mm256_extractf128_ps(q, 1));
  _mm_storeu_ps(out, _mm_add_ps(sum, _mm_loadu_ps(out)));
}
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256 V;
constexpr int LANES = 8, FORWARD = 8, BACKWARD = 4;
static inline V load(const float *p) { return _mm256_loadu_ps(p); }
static inline void store(float *p, V v) { _mm256_storeu_ps(p, v); }
static inline V all(float v) { return _mm256_set1_ps(v); }
static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
static inline void sums(const V *dot, float *out) {
  const V q = _mm256_hadd_ps(_mm256_hadd_ps(dot[0], dot[1]), _mm256_hadd_ps(dot[2], dot[3]));
  const __m128 sum = _mm_add_ps(_mm256_castps256_ps128(q), _mm256_extractf128_ps(q, 1));
  _mm_storeu_ps(out, _mm_add_ps(sum, _mm_loadu_ps(out)));
}
#elif defined(__ARM_NEON)
#include <arm_neon.h>
typedef float32x4_t V;
constexpr int LANES = 4, FORWARD = 8, BACKWARD = 8;
static inline V load(const float *p) { return vld1q_f32(p); }
static inline void store(float *p, V v) { vst1q_f32(p, v); }
static inline V all(float v) { return vdupq_n_f32(v); }
static inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
static inline void sums(const V *dot, float *out) {
  const V sum = vpaddq_f32(vpaddq_f32(dot[0], dot[1]), vpaddq_f32(dot[2], dot[3]));
  vst1q_f32(out, vaddq_f32(sum, vld1q_f32(out)));
}
#endif

namespace {

constexpr int BATCH = 128, GROUP = 4;  // samples; nonzeros whose dot products are summed up together

template <int NV, int AHEAD>
inline const float *row_of(const float *matrix, const int32_t *indices, int64_t k, int64_t end) {
  if (AHEAD) {
    const float *later = matrix + int64_t(indices[std::min(k + AHEAD, end - 1)]) * BATCH;
    for (int i = 0; i < NV * LANES; i += 16) __builtin_prefetch(later + i);
  }
  return matrix + int64_t(indices[k]) * BATCH;
}

template <class Body>
void parallel_rows(int64_t rows, Body body) {
#pragma omp parallel
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    body(rows * thread / threads, rows * (thread + 1) / threads);
  }
}

template <int AHEAD>
void multiply(int64_t rows, const int32_t *indptr, const int32_t *indices, const int32_t *perm, const float *values,
              const float *x, float *y) {
  constexpr int NV = FORWARD;
  parallel_rows(rows, [=](int64_t from, int64_t to) {
    for (int block = 0; block < BATCH; block += NV * LANES)
      for (int64_t r = from; r < to; ++r) {
        V sum[NV];
        for (int v = 0; v < NV; ++v) sum[v] = all(0);
        for (int64_t k = indptr[r], end = indptr[r + 1]; k < end; ++k) {
          const float *row = row_of<NV, AHEAD>(x + block, indices, k, end);
          const V value = all(perm ? values[perm[k]] : values[k]);
          for (int v = 0; v < NV; ++v) sum[v] = fma(value, load(row + v * LANES), sum[v]);
        }
        for (int v = 0; v < NV; ++v) store(y + r * BATCH + block + v * LANES, sum[v]);
      }
  });
}

// dots[k] = own[r] . other[column[k]] and, with SUM, out[r] = sum_k value[k] other[column[k]]
template <int AHEAD, bool SUM>
void dot_products(int64_t rows, const int32_t *indptr, const int32_t *indices, const int32_t *perm, const float *values,
                  const float *own, const float *other, float *out, float *dots) {
  constexpr int NV = BACKWARD;
  parallel_rows(rows, [=](int64_t from, int64_t to) {
    std::fill(dots + indptr[from], dots + indptr[to], 0.f);
    for (int block = 0; block < BATCH; block += NV * LANES)
      for (int64_t r = from; r < to; ++r) {
        V mine[NV], sum[NV];
        for (int v = 0; v < NV; ++v) mine[v] = load(own + r * BATCH + block + v * LANES), sum[v] = all(0);
        const int64_t end = indptr[r + 1];
        const auto one = [&](int64_t k, V &dot) {
          const float *row = row_of<NV, AHEAD>(other + block, indices, k, end);
          const V value = SUM ? all(values[perm[k]]) : all(0);
          dot = all(0);
          for (int v = 0; v < NV; ++v) {
            const V theirs = load(row + v * LANES);
            if (SUM) sum[v] = fma(value, theirs, sum[v]);
            dot = fma(mine[v], theirs, dot);
          }
        };
        int64_t k = indptr[r];
        for (; k + GROUP <= end; k += GROUP) {
          V dot[GROUP];
          for (int g = 0; g < GROUP; ++g) one(k + g, dot[g]);
          sums(dot, dots + k);
        }
        for (; k < end; ++k) {
          V dot[GROUP] = {all(0), all(0), all(0), all(0)};
          one(k, dot[0]);
          float four[GROUP] = {};
          sums(dot, four);
          dots[k] += four[0];
        }
        for (int v = 0; SUM && v < NV; ++v) store(out + r * BATCH + block + v * LANES, sum[v]);
      }
  });
}

// body(vectors, first) for the blocks of `n` numbers, which are rounded up to whole vectors
template <int MOST, class Body>
void blocks(int64_t n, Body body) {
  int64_t first = 0;
  for (; first + MOST * LANES <= n; first += MOST * LANES) body(std::integral_constant<int, MOST>{}, first);
  for (; first < n; first += LANES) body(std::integral_constant<int, 1>{}, first);
}

// y[s] = sum_k value[k] x[indices[k] * scale ...] for rows [from, to), `chosen` ones if given, and n numbers of each
void multiply_some(int64_t from, int64_t to, const int64_t *chosen, const int32_t *indptr, const int32_t *indices,
                   const int32_t *perm, const float *values, const float *x, int64_t scale, float *y, int64_t stride,
                   int64_t n) {
  blocks<FORWARD>(n, [=](auto many, int64_t first) {
    constexpr int NV = decltype(many)::value;
    for (int64_t s = from; s < to; ++s) {
      const int64_t r = chosen ? chosen[s] : s;
      V sum[NV];
      for (int v = 0; v < NV; ++v) sum[v] = all(0);
      for (int64_t k = indptr[r]; k < indptr[r + 1]; ++k) {
        const float *row = x + int64_t(indices[k]) * scale + first;
        const V value = all(perm ? values[perm[k]] : values[k]);
        for (int v = 0; v < NV; ++v) sum[v] = fma(value, load(row + v * LANES), sum[v]);
      }
      for (int v = 0; v < NV; ++v) store(y + r * stride + first + v * LANES, sum[v]);
    }
  });
}

// A 3 x 3 convolution's images, packed a few at a time: planes that share the zeros at their sides, so that a tap is a
// shift. `stride` from plane to plane, rounded up by MARGIN for blocks that run over the end.
struct Images {
  int64_t count, channels, height, width;
  int64_t pitch() const { return width + 1; }
  int64_t size() const { return (height + 1) * pitch(); }
};
constexpr int64_t MARGIN = 256;

// images [first, first + some) of channel-major x to planes, whose row i begins at (i + top) * pitch + left
void pack(const Images &m, int64_t first, int64_t some, const float *x, int64_t front, float *planes, int64_t stride) {
  std::fill(planes, planes + m.channels * stride, 0.f);
  for (int64_t c = 0; c < m.channels; ++c)
    for (int64_t n = 0; n < some; ++n)
      for (int64_t i = 0; i < m.height; ++i) {
        const float *row = x + ((c * m.count + first + n) * m.height + i) * m.width;
        std::copy(row, row + m.width, planes + c * stride + front + n * m.size() + i * m.pitch());
      }
}
void unpack(const Images &m, int64_t first, int64_t some, const float *planes, int64_t front, int64_t stride,
            float *x) {
  for (int64_t c = 0; c < m.channels; ++c)
    for (int64_t n = 0; n < some; ++n)
      for (int64_t i = 0; i < m.height; ++i) {
        const float *row = planes + c * stride + front + n * m.size() + i * m.pitch();
        std::copy(row, row + m.width, x + ((c * m.count + first + n) * m.height + i) * m.width);
      }
}

template <class Body>
void parallel_images(int64_t count, int64_t some, Body body) {
  parallel_rows((count + some - 1) / some,
                [=](int64_t from, int64_t to) { body(from * some, std::min(count, to * some)); });
}

template <class Body>
void with_ahead(int ahead, Body body) {
  if (ahead == 8) body(std::integral_constant<int, 8>{});
  else if (ahead == 4) body(std::integral_constant<int, 4>{});
  else body(std::integral_constant<int, 0>{});
}

}  // namespace

extern "C" {

// y = W x; perm: which of `values` each nonzero is, null: they are in order
void multiply(int ahead, int64_t rows, const int32_t *indptr, const int32_t *indices, const int32_t *perm,
              const float *values, const float *x, float *y) {
  with_ahead(ahead, [=](auto a) { multiply<decltype(a)::value>(rows, indptr, indices, perm, values, x, y); });
}

// dvalues[k] = dy[row(k)] . x[column(k)]
void sddmm(int ahead, int64_t rows, const int32_t *indptr, const int32_t *indices, const float *dy, const float *x,
           float *dvalues) {
  with_ahead(ahead, [=](auto a) {
    dot_products<decltype(a)::value, false>(rows, indptr, indices, nullptr, nullptr, dy, x, nullptr, dvalues);
  });
}

// Both in one pass over dy, by the transposed pattern: dx = W^T dy, and dvalues by way of `ordered`, their values in
// the transposed order. place: where each is there.
void fused(int ahead, int64_t columns, int64_t nnz, const int32_t *t_indptr, const int32_t *t_indices,
           const int32_t *t_perm, const int32_t *place, const float *values, const float *x, const float *dy, float *dx,
           float *ordered, float *dvalues) {
  with_ahead(ahead, [=](auto a) {
    dot_products<decltype(a)::value, true>(columns, t_indptr, t_indices, t_perm, values, x, dy, dx, ordered);
  });
  parallel_rows(nnz, [=](int64_t from, int64_t to) {
    for (int64_t k = from; k < to; ++k) dvalues[k] = ordered[place[k]];
  });
}

// y[chosen] = W[chosen] x
void rows_multiply(int64_t count, const int64_t *chosen, const int32_t *indptr, const int32_t *indices,
                   const float *values, const float *x, float *y) {
  parallel_rows(count, [=](int64_t from, int64_t to) {
    multiply_some(from, to, chosen, indptr, indices, nullptr, values, x, BATCH, y, BATCH, BATCH);
  });
}

// dx = W[chosen]^T dy and dvalues[k] = dy[row(k)] . x[column(k)], 0 in other rows; dy holds the chosen rows only. Each
// thread takes a part of the samples; its dot products go to its part of `parts` (2 * nnz numbers).
void rows_backward(int64_t count, const int64_t *chosen, int64_t columns, int64_t nnz, const int32_t *indptr,
                   const int32_t *indices, const float *values, const float *dy, const float *x, float *dx,
                   float *parts, float *dvalues) {
  constexpr int NV = 4, PARTS = 2, PART = BATCH / PARTS;
  parallel_rows(PARTS, [=](int64_t from, int64_t to) {
    for (int64_t part = from; part < to; ++part) {
      float *dots = parts + part * nnz;
      for (int64_t c = 0; c < columns; ++c) std::fill_n(dx + c * BATCH + part * PART, PART, 0.f);
      for (int64_t s = 0; s < count; ++s) std::fill(dots + indptr[chosen[s]], dots + indptr[chosen[s] + 1], 0.f);
      for (int64_t block = part * PART; block < (part + 1) * PART; block += NV * LANES)
        for (int64_t s = 0; s < count; ++s) {
          V mine[NV];
          for (int v = 0; v < NV; ++v) mine[v] = load(dy + s * BATCH + block + v * LANES);
          const auto one = [&](int64_t k) {
            const int64_t row = int64_t(indices[k]) * BATCH + block;
            const V value = all(values[k]);
            V dot = all(0);
            for (int v = 0; v < NV; ++v) {
              dot = fma(mine[v], load(x + row + v * LANES), dot);
              store(dx + row + v * LANES, fma(value, mine[v], load(dx + row + v * LANES)));
            }
            return dot;
          };
          int64_t k = indptr[chosen[s]];
          const int64_t end = indptr[chosen[s] + 1];
          for (; k + GROUP <= end; k += GROUP) {
            const V dot[GROUP] = {one(k), one(k + 1), one(k + 2), one(k + 3)};
            sums(dot, dots + k);
          }
          for (; k < end; ++k) {
            const V dot[GROUP] = {one(k), all(0), all(0), all(0)};
            float four[GROUP] = {};
            sums(dot, four);
            dots[k] += four[0];
          }
        }
    }
  });
  parallel_rows(nnz, [=](int64_t from, int64_t to) { std::fill(dvalues + from, dvalues + to, 0.f); });
  parallel_rows(count, [=](int64_t from, int64_t to) {
    for (int64_t s = from; s < to; ++s)
      for (int64_t k = indptr[chosen[s]]; k < indptr[chosen[s] + 1]; ++k) dvalues[k] = parts[k] + parts[nnz + k];
  });
}

// y = A B, A in compressed rows, B dense with rows of `width` numbers, a multiple of 16; threads take rows or columns
void entries_times(int by_columns, int64_t rows, const int32_t *indptr, const int32_t *indices, const int32_t *perm,
                   const float *values, const float *b, int64_t width, float *y) {
  if (!by_columns)
    parallel_rows(rows, [=](int64_t from, int64_t to) {
      multiply_some(from, to, nullptr, indptr, indices, perm, values, b, width, y, width, width);
    });
  else
    parallel_rows(width / 16, [=](int64_t from, int64_t to) {
      multiply_some(0, rows, nullptr, indptr, indices, perm, values, b + 16 * from, width, y + 16 * from, width,
                    16 * (to - from));
    });
}

// A 3 x 3 convolution with padding 1, x and y channel-major, `some` images at a time; `indices` are addresses in the
// planes of the input, `stride` numbers apart
void conv(int64_t count, int64_t channels, int64_t outs, int64_t height, int64_t width, int64_t some, int64_t stride,
          const int32_t *indptr, const int32_t *indices, const float *values, const float *x, float *y) {
  const Images in{count, channels, height, width}, out{count, outs, height, width};
  const int64_t out_stride = some * in.size() + MARGIN;
  parallel_images(count, some, [=](int64_t from, int64_t to) {
    static thread_local std::vector<float> planes, products;
    planes.resize(channels * stride + MARGIN), products.resize(outs * out_stride);
    for (int64_t first = from; first < to; first += some) {
      const int64_t n = std::min(some, to - first);
      pack(in, first, n, x, in.pitch() + 1, planes.data(), stride);
      multiply_some(0, outs, nullptr, indptr, indices, nullptr, values, planes.data(), 1, products.data(), out_stride,
                    n * in.size());
      unpack(out, first, n, products.data(), 0, out_stride, y);
    }
  });
}

// Its gradients by the transposed pattern, whose indices are addresses in the planes of dy; `parts`: nnz numbers for
// each thread
void conv_backward(int64_t count, int64_t channels, int64_t outs, int64_t height, int64_t width, int64_t some,
                   int64_t stride, int64_t nnz, const int32_t *t_indptr, const int32_t *t_indices,
                   const int32_t *t_perm, const float *values, const float *x, const float *dy, float *dx, float *parts,
                   float *dvalues) {
  const Images in{count, channels, height, width}, out{count, outs, height, width};
  const int64_t reach = 2 * in.pitch() + 2, dx_stride = some * in.size() + MARGIN;
  const int threads = omp_get_max_threads();
  std::fill(parts, parts + threads * nnz, 0.f);
  parallel_images(count, some, [=](int64_t from, int64_t to) {
    static thread_local std::vector<float> planes, deltas, products;
    planes.resize(channels * dx_stride), products.resize(channels * dx_stride);
    deltas.resize(outs * stride + MARGIN);
    float *dots = parts + omp_get_thread_num() * nnz;
    for (int64_t first = from; first < to; first += some) {
      const int64_t n = std::min(some, to - first);
      pack(in, first, n, x, in.pitch() + 1, planes.data(), dx_stride);
      pack(out, first, n, dy, reach, deltas.data(), stride);
      blocks<BACKWARD>(n * in.size(), [&](auto many, int64_t block) {
        constexpr int NV = decltype(many)::value;
        for (int64_t c = 0; c < channels; ++c) {
          V mine[NV], sum[NV];
          for (int v = 0; v < NV; ++v) {
            mine[v] = load(planes.data() + c * dx_stride + block + v * LANES);
            sum[v] = all(0);
          }
          const auto one = [&](int64_t k) {
            const float *row = deltas.data() + t_indices[k] + block;
            const V value = all(values[t_perm[k]]);
            V dot = all(0);
            for (int v = 0; v < NV; ++v) {
              const V theirs = load(row + v * LANES);
              sum[v] = fma(value, theirs, sum[v]);
              dot = fma(mine[v], theirs, dot);
            }
            return dot;
          };
          int64_t k = t_indptr[c];
          const int64_t end = t_indptr[c + 1];
          for (; k + GROUP <= end; k += GROUP) {
            const V dot[GROUP] = {one(k), one(k + 1), one(k + 2), one(k + 3)};
            sums(dot, dots + k);
          }
          for (; k < end; ++k) {
            const V dot[GROUP] = {one(k), all(0), all(0), all(0)};
            float four[GROUP] = {};
            sums(dot, four);
            dots[k] += four[0];
          }
          for (int v = 0; v < NV; ++v) store(products.data() + c * dx_stride + block + v * LANES, sum[v]);
        }
      });
      unpack(in, first, n, products.data(), in.pitch() + 1, dx_stride, dx);
    }
  });
  parallel_rows(nnz, [=](int64_t from, int64_t to) {
    for (int64_t k = from; k < to; ++k) {
      float sum = 0;
      for (int t = 0; t < threads; ++t) sum += parts[t * nnz + k];
      dvalues[t_perm[k]] = sum;
    }
  });
}
}
