// The products of a sparse layer in plain intrinsics, one function each, 128 samples a row: what the kernels are
// measured against. Rows are divided among the threads; nothing is tiled, packed or chosen by the machine. `ahead`: how
// many nonzeros ahead rows are prefetched, 0 (not at all), 4 or 8.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

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
}
