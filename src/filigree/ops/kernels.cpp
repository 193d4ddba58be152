// The kernels of sparse layers, on feature-major matrices: every nonzero is a fused multiply-add over a contiguous
// vector of the batch. Compiled once per instruction set; GCC's vector extension turns into that set's registers.
//
// A batch is cut into blocks of at most NV vectors, held in registers while a row's nonzeros stream by. A last,
// partial vector is moved back so that it ends with the batch: it overlaps its neighbour, computes the same numbers
// twice, and where numbers are summed over the batch its repeated lanes are zeroed (`Fresh`).
//
// Threads share out rows by their nonzeros, and no sum crosses threads: results do not depend on their number.
#include "vectors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

template <class T, class I>
struct Rows {
  const I *indptr, *indices, *perm;
  const T *values;
  const T *bias;
  bool relu;
  T *dvalues;
  const I *to;  // where in dvalues each sum goes; null: in order
  const int64_t *chosen;  // the rows that are meant; null: all
};

// y[r] = sum_k value[k] x[col[k]]; U nonzeros at a time where few vectors would leave the adders waiting. Ordered: one by
// one, so that a column's bits do not depend on the block that it is in.
template <class T, class I, int L, int NV, bool ORDERED>
void spmm_rows(const Rows<T, I> &w, Matrix x, Matrix y, const Block &block, int64_t from, int64_t to) {
  typedef Vec<T, L> V;
  constexpr int U = ORDERED || NV >= 4 ? 1 : NV == 1 ? 4 : 2;
  const At<T, L, NV> at(block);
  const T *xd = static_cast<const T *>(x.data);
  T *yd = static_cast<T *>(y.data);
  for (int64_t s = from; s < to; ++s) {
    const int64_t r = w.chosen ? w.chosen[s] : s;
    V acc[U][NV];
    for (int u = 0; u < U; ++u)
      for (int v = 0; v < NV; ++v) acc[u][v] = V{} + (u == 0 && w.bias ? w.bias[r] : T(0));
    int64_t k = w.indptr[r];
    const int64_t end = w.indptr[r + 1];
    for (; k + U <= end; k += U)
      for (int u = 0; u < U; ++u) {
        const T value = w.perm ? w.values[w.perm[k + u]] : w.values[k + u];
        const T *row = xd + int64_t(w.indices[k + u]) * x.stride;
        for (int v = 0; v < NV; ++v) acc[u][v] += value * load<T, L>(row + at.offset[v]);
      }
    for (; U > 1 && k < end; ++k) {
      const T value = w.perm ? w.values[w.perm[k]] : w.values[k];
      const T *row = xd + int64_t(w.indices[k]) * x.stride;
      for (int v = 0; v < NV; ++v) acc[0][v] += value * load<T, L>(row + at.offset[v]);
    }
    for (int v = 0; v < NV; ++v) {
      V sum = acc[0][v];
      for (int u = 1; u < U; ++u) sum += acc[u][v];
      if (w.relu) sum = sum < 0 ? V{} : sum;  // keeps NaN, as torch does
      store<T, L>(yd + r * y.stride + at.offset[v], sum);
    }
  }
}

// dvalues[k] = dy[r] . x[col[k]]; of chosen rows dy holds only those
template <class T, class I, int L, int NV>
void sddmm_rows(const Rows<T, I> &w, Matrix dy, Matrix x, const Block &block, int64_t from, int64_t to) {
  typedef Vec<T, L> V;
  constexpr int G = sums_at_once<L>;
  const At<T, L, NV> at(block);
  const Fresh<T, L> fresh(block);
  const T *xd = static_cast<const T *>(x.data), *dyd = static_cast<const T *>(dy.data);
  for (int64_t s = from; s < to; ++s) {
    const int64_t r = w.chosen ? w.chosen[s] : s;
    V d[NV];
    for (int v = 0; v < NV; ++v) d[v] = load<T, L>(dyd + s * dy.stride + at.offset[v]);
    d[NV - 1] = fresh(d[NV - 1]);
    const auto group = [&](int64_t k, auto many) {
      constexpr int N = decltype(many)::value;
      V s[G] = {};
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) {
        const T *row = xd + int64_t(w.indices[k + g]) * x.stride;
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const V xv = load<T, L>(row + at.offset[v]);
          s[g] += d[v] * (v == NV - 1 ? fresh(xv) : xv);  // zero times infinity would be NaN
        }
      }
      const V total = sums<T, L>(s);
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) w.dvalues[k + g] = lane<L>(total, g) + (block.begins ? T(0) : w.dvalues[k + g]);
    };
    int64_t k = w.indptr[r];
    const int64_t end = w.indptr[r + 1];
    for (; k + G <= end; k += G) group(k, std::integral_constant<int, G>{});
    for (; k < end; ++k) group(k, std::integral_constant<int, 1>{});
  }
}

// By columns of W (rows of the transposed pattern): a vector of dy is loaded once and serves both products.
template <class T, class I, int L, int NV>
void backward_rows(const Rows<T, I> &w, Matrix dy, Matrix x, Matrix dx, const Block &block, int64_t from, int64_t to) {
  typedef Vec<T, L> V;
  constexpr int G = sums_at_once<L>;
  const At<T, L, NV> at(block);
  const Fresh<T, L> fresh(block);
  const T *xd = static_cast<const T *>(x.data), *dyd = static_cast<const T *>(dy.data);
  T *dxd = static_cast<T *>(dx.data);
  for (int64_t c = from; c < to; ++c) {
    V xs[NV], acc[NV] = {};
    for (int v = 0; v < NV; ++v) xs[v] = load<T, L>(xd + c * x.stride + at.offset[v]);
    xs[NV - 1] = fresh(xs[NV - 1]);
    const auto group = [&](int64_t k, auto many) {
      constexpr int N = decltype(many)::value;
      V s[G] = {};
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) {
        const T value = w.values[w.perm[k + g]];
        const T *row = dyd + int64_t(w.indices[k + g]) * dy.stride;
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          const V d = load<T, L>(row + at.offset[v]);
          acc[v] += value * d;
          s[g] += xs[v] * (v == NV - 1 ? fresh(d) : d);
        }
      }
      const V total = sums<T, L>(s);
#pragma GCC unroll 4
      for (int g = 0; g < N; ++g) {
        T &out = w.dvalues[w.to ? w.to[k + g] : k + g];
        out = lane<L>(total, g) + (block.begins ? T(0) : out);
      }
    };
    int64_t k = w.indptr[c];
    const int64_t end = w.indptr[c + 1];
    for (; k + G <= end; k += G) group(k, std::integral_constant<int, G>{});
    for (; k < end; ++k) group(k, std::integral_constant<int, 1>{});
    for (int v = 0; v < NV; ++v) store<T, L>(dxd + c * dx.stride + at.offset[v], acc[v]);
  }
}

template <class T, class I, bool ORDERED = false>
struct Spmm {
  Rows<T, I> w;
  Matrix x, y;
  int64_t from, to;
  template <int L, int NV>
  void run(const Block &block) { spmm_rows<T, I, L, NV, ORDERED>(w, x, y, block, from, to); }
};
template <class T, class I>
struct Sddmm {
  Rows<T, I> w;
  Matrix dy, x;
  int64_t from, to;
  template <int L, int NV>
  void run(const Block &block) { sddmm_rows<T, I, L, NV>(w, dy, x, block, from, to); }
};
template <class T, class I>
struct Backward {
  Rows<T, I> w;
  Matrix dy, x, dx;
  int64_t from, to;
  template <int L, int NV>
  void run(const Block &block) { backward_rows<T, I, L, NV>(w, dy, x, dx, block, from, to); }
};

template <class T, class I>
Rows<T, I> rows_of(Pattern w, const void *values) {
  return {static_cast<const I *>(w.indptr), static_cast<const I *>(w.indices), static_cast<const I *>(w.perm),
          static_cast<const T *>(values), nullptr, false, nullptr, static_cast<const I *>(w.perm), nullptr};
}

template <class T, class I>
void spmm_(Pattern p, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias, bool relu) {
  Rows<T, I> w = rows_of<T, I>(p, values);
  w.bias = static_cast<const T *>(bias);
  w.relu = relu;
  parallel(team((w.indptr[p.rows] + p.rows) * batch), [&](int thread, int threads) {
    const int64_t from = share(w.indptr, p.rows, thread, threads), to = share(w.indptr, p.rows, thread + 1, threads);
    blocks<LANES<T>, FORWARD>(batch, Spmm<T, I>{w, x, y, from, to});
  });
}

// y[chosen] = relu(W[chosen] x + bias[chosen]); other rows of y are left as they are
template <class T, class I>
void rows_spmm_(Pattern p, const int64_t *chosen, int64_t count, const void *values, Matrix x, Matrix y, int64_t batch,
                const void *bias, bool relu) {
  Rows<T, I> w = rows_of<T, I>(p, values);
  w.bias = static_cast<const T *>(bias);
  w.relu = relu;
  w.chosen = chosen;
  const int64_t about = w.indptr[p.rows] / (p.rows > 0 ? p.rows : 1) + 1;  // nonzeros of a row
  parallel(team(about * count * batch), [&](int thread, int threads) {
    const int64_t from = count * thread / threads, to = count * (thread + 1) / threads;
    blocks<LANES<T>, FORWARD>(batch, Spmm<T, I>{w, x, y, from, to});
  });
}

template <class T>
T *scratch(int which, int64_t size) {  // a thread's own memory, kept for the next call
  thread_local std::vector<T> held[4];
  if (int64_t(held[which].size()) < size) held[which].resize(size);
  return held[which].data();
}

// One thread's part of a team's work.
template <class T, class I>
void sddmm_part(const Rows<T, I> &w, int64_t rows, Matrix dy, Matrix x, int64_t batch, int thread, int threads) {
  const int64_t from = share(w.indptr, rows, thread, threads), to = share(w.indptr, rows, thread + 1, threads);
  if (batch == 0)
    for (int64_t k = w.indptr[from]; k < int64_t(w.indptr[to]); ++k) w.dvalues[k] = 0;
  blocks<LANES<T>, FORWARD>(batch, Sddmm<T, I>{w, dy, x, from, to});
}

template <class T, class I>
void backward_part(const Rows<T, I> &wt, int64_t cols, Matrix dy, Matrix x, Matrix dx, int64_t batch, int thread,
                   int threads) {
  const int64_t from = share(wt.indptr, cols, thread, threads), to = share(wt.indptr, cols, thread + 1, threads);
  if (batch == 0)
    for (int64_t k = wt.indptr[from]; k < int64_t(wt.indptr[to]); ++k) wt.dvalues[wt.to ? wt.to[k] : k] = 0;
  blocks<LANES<T>, BACKWARD>(batch, Backward<T, I>{wt, dy, x, dx, from, to});
}

template <class T, class I>
void sddmm_(Pattern p, Matrix dy, Matrix x, void *dvalues, int64_t batch) {
  Rows<T, I> w = rows_of<T, I>(p, nullptr);
  w.dvalues = static_cast<T *>(dvalues);
  parallel(team((w.indptr[p.rows] + p.rows) * batch),
           [&](int thread, int threads) { sddmm_part(w, p.rows, dy, x, batch, thread, threads); });
}

template <class T, class I>
void backward_(Pattern p, const void *values, Matrix dy, Matrix x, Matrix dx, void *dvalues, int64_t batch) {
  Rows<T, I> w = rows_of<T, I>(p, values);
  w.dvalues = static_cast<T *>(dvalues);
  parallel(team(2 * (w.indptr[p.rows] + p.rows) * batch),
           [&](int thread, int threads) { backward_part(w, p.rows, dy, x, dx, batch, thread, threads); });
}

// dz = dy where y > 0, and its sums over the batch, for features [from, to); dy by its strides
template <class T>
void delta_rows(const T *dy, int64_t dy_feature, int64_t dy_sample, Matrix y, Matrix dz, T *dbias, int64_t batch,
                int64_t from, int64_t to) {
  constexpr int L = LANES<T>;
  typedef Vec<T, L> V;
  const T *yd = static_cast<const T *>(y.data);
  T *zd = static_cast<T *>(dz.data);
  const bool batch_major = dy_feature == 1 && dy_sample != 1;
  if (batch_major) transpose_rows(dy, dy_sample, zd, dz.stride, batch, from, to);
  for (int64_t f = from; f < to; ++f) {
    T *z = zd + f * dz.stride;
    const T *d = batch_major ? z : dy + f * dy_feature;
    const int64_t step = batch_major ? 1 : dy_sample;
    V sum = {};
    T tail = 0;
    int64_t b = 0;
    if (step == 1)
      for (; b + L <= batch; b += L) {
        V v = load<T, L>(d + b);
        if (yd) v = load<T, L>(yd + f * y.stride + b) <= 0 ? V{} : v;
        sum += v;
        store<T, L>(z + b, v);
      }
    for (; b < batch; ++b) {
      const T v = yd && yd[f * y.stride + b] <= 0 ? T(0) : d[b * step];
      tail += v;
      z[b] = v;
    }
    if (dbias) {
      for (int i = 0; i < L; ++i) tail += sum[i];
      dbias[f] = tail;
    }
  }
}

// A layer's whole backward pass in one go: the threads stay together.
template <class T, class I>
void linear_backward_(Pattern p, Pattern pt, const void *place, const void *values, const void *dy,
                      int64_t dy_feature, int64_t dy_sample, Matrix y, Matrix dz, void *dbias, Matrix x, Matrix dx, void *dvalues, int64_t batch) {
  Rows<T, I> w = rows_of<T, I>(p, values), wt = rows_of<T, I>(pt, values);
  w.dvalues = wt.dvalues = static_cast<T *>(dvalues);
  const T *d = static_cast<const T *>(dy);
  const int64_t nnz = w.indptr[p.rows];
  const int many = team(2 * (nnz + p.rows) * batch);
  const bool sorted = dx.data && many > 1;  // sums of a column lie in many rows: threads would write to the same lines
  if (sorted) wt.dvalues = scratch<T>(0, nnz), wt.to = nullptr;
  parallel(many, [&](int thread, int threads) {
    Matrix ready{const_cast<T *>(d), dy_feature};
    if (dz.data || dbias) {  // by the rows that the thread made in the forward pass
      const int64_t from = share(w.indptr, p.rows, thread, threads), to = share(w.indptr, p.rows, thread + 1, threads);
      delta_rows(d, dy_feature, dy_sample, y, dz, static_cast<T *>(dbias), batch, from, to);
      ready = dz;
      wait_for(threads);
    }
    if (dx.data)
      backward_part(wt, pt.rows, ready, x, dx, batch, thread, threads);
    else
      sddmm_part(w, p.rows, ready, x, batch, thread, threads);
    if (sorted) {
      wait_for(threads);
      const I *from = static_cast<const I *>(place);
      for (int64_t k = nnz * thread / threads; k < nnz * (thread + 1) / threads; ++k) w.dvalues[k] = wt.dvalues[from[k]];
    }
  });
}

// The same of some rows of W alone: each thread takes their nonzeros out of its columns, and runs on those. Where dz is
// given, dy holds all rows, and its chosen ones go there first, masked by y; else dy holds only the chosen ones.
template <class T, class I>
void rows_backward_(Pattern p, Pattern pt, const int64_t *chosen, int64_t count, const void *values, Matrix dy, Matrix y,
                    Matrix dz, void *dbias, Matrix x, Matrix dx, const void *t_place, void *dvalues, int64_t batch) {
  const Rows<T, I> w = rows_of<T, I>(p, values), wt = rows_of<T, I>(pt, values);
  T *dv = static_cast<T *>(dvalues);
  const I *place = static_cast<const I *>(t_place);
  const int64_t nnz = w.indptr[p.rows];
  T *sums = scratch<T>(0, nnz);
  std::vector<int32_t> row_of(p.rows, -1);  // where in dy
  for (int64_t s = 0; s < count; ++s) row_of[chosen[s]] = int32_t(s);
  const int many = team(2 * (nnz / (p.rows > 0 ? p.rows : 1) * count + pt.rows) * batch);
  parallel(many, [&](int thread, int threads) {
    const int64_t from = share(wt.indptr, pt.rows, thread, threads), to = share(wt.indptr, pt.rows, thread + 1, threads);
    const int64_t first = wt.indptr[from], most = int64_t(wt.indptr[to]) - first;
    thread_local std::vector<I> indptr, indices, number, at;
    indptr.resize(to - from + 1), indices.resize(most + 1), number.resize(most + 1), at.resize(most + 1);
    if (dx.data) std::fill(sums + first, sums + first + most, T(0));
    else std::fill(dv + nnz * thread / threads, dv + nnz * (thread + 1) / threads, T(0));
    int64_t n = 0;
    for (int64_t c = from; dx.data && c < to; ++c) {
      indptr[c - from] = I(n);
      for (int64_t k = wt.indptr[c]; k < int64_t(wt.indptr[c + 1]); ++k) {
        const int32_t row = row_of[wt.indices[k]];
        indices[n] = I(row), number[n] = wt.perm[k], at[n] = I(k);
        n += row >= 0;
      }
    }
    indptr[to - from] = I(n);
    if (dz.data) {
      for (int64_t s = count * thread / threads; s < count * (thread + 1) / threads; ++s) {
        const Matrix row{static_cast<T *>(dz.data) + (s - chosen[s]) * dz.stride, dz.stride};
        delta_rows(static_cast<const T *>(dy.data), dy.stride, 1, y, row, static_cast<T *>(dbias), batch, chosen[s],
                   chosen[s] + 1);
      }
    }
    wait_for(threads);
    const Matrix ready = dz.data ? dz : dy;
    if (!dx.data) {  // only dvalues, by rows
      Rows<T, I> part = w;
      part.dvalues = dv, part.chosen = chosen;
      blocks<LANES<T>, FORWARD>(batch, Sddmm<T, I>{part, ready, x, count * thread / threads, count * (thread + 1) / threads});
      return;
    }
    const Rows<T, I> kept{indptr.data(), indices.data(), number.data(), w.values, nullptr, false, sums, at.data(), nullptr};
    const Matrix its_x{static_cast<T *>(x.data) + from * x.stride, x.stride};
    const Matrix its_dx{static_cast<T *>(dx.data) + from * dx.stride, dx.stride};
    blocks<LANES<T>, BACKWARD>(batch, Backward<T, I>{kept, ready, its_x, its_dx, 0, to - from});
    wait_for(threads);  // sums of a column lie in many rows: threads would write to the same lines
    for (int64_t k = nnz * thread / threads; k < nnz * (thread + 1) / threads; ++k) dv[k] = sums[place[k]];
  });
}

template <class T>
void transpose_(int64_t rows, int64_t cols, Matrix in, Matrix out) {
  parallel(team(rows * cols), [&](int thread, int threads) {
    constexpr int64_t L = LANES<T>;
    const int64_t strips = (cols + L - 1) / L;
    const int64_t from = strips * thread / threads * L, to = strips * (thread + 1) / threads * L;
    transpose_rows(static_cast<const T *>(in.data), in.stride, static_cast<T *>(out.data), out.stride, rows, from,
                   to < cols ? to : cols);
  });
}

inline int64_t up(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : 0; }

// Columns [first, last) of a plane's row that hold the phase's pixels; the first of them is pixel `pixel`.
struct Run {
  int64_t first, last, pixel;
  Run(const Axis &a, int64_t phase, int64_t size) {
    first = up(a.lead - phase, a.step);
    last = up(size + a.lead - phase, a.step);
    last = last < a.pitch ? last : a.pitch;
    pixel = first * a.step + phase - a.lead;
  }
};

template <class T>
void pack_(const Images &s, const T *in, T *out, int64_t stride, int64_t front) {
  const int64_t phases = s.rows.phases * s.cols.phases, planes = s.channels * phases;
  parallel(team(planes * stride), [&](int thread, int threads) {
    for (int64_t plane = planes * thread / threads; plane < planes * (thread + 1) / threads; ++plane) {
      const int64_t channel = plane / phases, above = plane % phases / s.cols.phases, left = plane % s.cols.phases;
      const Run run(s.cols, left, s.width);
      T *to = out + plane * stride, *const end = to + stride;
      const auto zeros = [&](int64_t n) { std::fill(to, to + n, T(0)), to += n; };
      zeros(front);
      for (int64_t image = 0; image < s.count; ++image)
        for (int64_t i = 0; i < s.rows.pitch; ++i) {
          const int64_t row = i * s.rows.step + above - s.rows.lead;
          if (row < 0 || row >= s.height) {
            zeros(s.cols.pitch);
            continue;
          }
          const T *from = in + image * s.by_image + channel * s.by_channel + row * s.by_row + run.pixel * s.by_column;
          const int64_t step = s.by_column * s.cols.step, n = run.last - run.first;
          zeros(run.first);
          if (step == 1)
            std::copy(from, from + n, to);
          else
            for (int64_t j = 0; j < n; ++j) to[j] = from[j * step];
          to += n;
          zeros(s.cols.pitch - run.last);
        }
      zeros(end - to);
    }
  });
}

template <class T>
void unpack_(const Images &s, const T *in, int64_t stride, T *out) {
  const int64_t phases = s.rows.phases * s.cols.phases;
  parallel(team(s.channels * s.count * s.height * s.width), [&](int thread, int threads) {
    for (int64_t channel = s.channels * thread / threads; channel < s.channels * (thread + 1) / threads; ++channel)
      for (int64_t image = 0; image < s.count; ++image)
        for (int64_t row = 0; row < s.height; ++row) {
          const int64_t i = (row + s.rows.lead) / s.rows.step, above = (row + s.rows.lead) % s.rows.step;
          T *to = out + image * s.by_image + channel * s.by_channel + row * s.by_row;
          for (int64_t left = 0; left < s.cols.step; ++left) {
            const Run run(s.cols, left, s.width);
            const int64_t step = s.by_column * s.cols.step, n = run.last - run.first;
            T *pixels = to + run.pixel * s.by_column;
            const int64_t plane = channel * phases + above * s.cols.phases + left;
            const T *from = in + plane * stride + (image * s.rows.pitch + i) * s.cols.pitch + run.first;
            const bool there = above < s.rows.phases && left < s.cols.phases;  // else no tap reads it
            if (step == 1 && there)
              std::copy(from, from + n, pixels);
            else
              for (int64_t j = 0; j < n; ++j) pixels[j * step] = there ? from[j] : T(0);
          }
        }
  });
}

// The images of a convolution, a few at a time: packed, multiplied and unpacked by one thread in its own cache. Sums
// over images are kept in GROUPS parts, so that they do not depend on the number of threads. Where there are fewer
// parts than threads, the threads share out each product's rows instead.
constexpr int GROUPS = 16;

template <class Work>
void by_images(const Convolution &c, Work work) {
  const int64_t chunks = (c.x.count + c.images - 1) / c.images;
  const int groups = chunks < GROUPS ? int(chunks) : GROUPS, most = omp_in_parallel() ? 1 : omp_get_max_threads();
  parallel(groups < most ? 1 : most, [&](int thread, int threads) {
    for (int group = thread; group < groups; group += threads)
      for (int64_t chunk = chunks * group / groups; chunk < chunks * (group + 1) / groups; ++chunk) {
        const int64_t first = chunk * c.images, rest = c.x.count - first;
        work(group, first, rest < c.images ? rest : c.images);
      }
  });
}

inline Images some(Images all, int64_t count) {
  all.count = count;
  return all;
}

inline int64_t last_output(const Convolution &c, int64_t images) {
  return ((images - 1) * c.y.rows.pitch + c.y.height - 1) * c.y.cols.pitch + c.y.width;
}

template <class T, class I>
void conv_(const Convolution &c, const void *values, const void *bias, const void *x, void *y) {
  const int64_t planes = c.wt.rows, outs = c.w.rows;
  by_images(c, [&](int, int64_t first, int64_t count) {
    T *packed = scratch<T>(0, planes * c.stride), *products = scratch<T>(1, outs * c.stride);
    pack_(some(c.x, count), static_cast<const T *>(x) + first * c.x.by_image, packed, c.stride, 0);
    spmm_<T, I>(c.w, values, Matrix{packed, 1}, Matrix{products, c.stride}, last_output(c, count), bias, false);
    unpack_(some(c.y, count), products, c.stride, static_cast<T *>(y) + first * c.y.by_image);
  });
}

template <class T, class I>
void conv_backward_(const Convolution &c, const void *values, const void *x, const void *dy, void *dvalues, void *dbias,
                    void *dx) {
  const int64_t planes = c.wt.rows, outs = c.w.rows, nnz = static_cast<const I *>(c.w.indptr)[outs], part = nnz + outs;
  std::vector<T> parts(GROUPS * part);
  Images ys = c.y;  // the gradient's strides are in c.y
  by_images(c, [&](int group, int64_t first, int64_t count) {
    T *packed = scratch<T>(0, planes * c.stride), *grads = scratch<T>(1, outs * c.stride);
    T *sums = parts.data() + group * part, *one = scratch<T>(2, nnz);
    pack_(some(c.x, count), static_cast<const T *>(x) + first * c.x.by_image, packed, c.stride, 0);
    pack_(some(ys, count), static_cast<const T *>(dy) + first * ys.by_image, grads, c.stride, c.reach);
    if (dx) {
      T *back = scratch<T>(3, planes * c.stride);
      backward_<T, I>(c.wt, values, Matrix{grads, 1}, Matrix{packed, c.stride}, Matrix{back, c.stride}, one,
                      count * c.x.rows.pitch * c.x.cols.pitch);
      Images to = some(c.x, count);  // channel-major, as the output
      to.by_column = 1, to.by_row = to.width, to.by_image = to.height * to.width, to.by_channel = c.x.count * to.by_image;
      unpack_(to, back, c.stride, static_cast<T *>(dx) + first * to.by_image);
    } else {
      sddmm_<T, I>(c.w, Matrix{grads + c.reach, c.stride}, Matrix{packed, 1}, one, last_output(c, count));
    }
    for (int64_t k = 0; k < nnz; ++k) sums[k] += one[k];
    if (dbias)
      for (int64_t o = 0; o < outs; ++o)
        sums[nnz + o] += std::accumulate(grads + o * c.stride, grads + (o + 1) * c.stride, T(0));
  });
  T *to = static_cast<T *>(dvalues), *bias = static_cast<T *>(dbias);
  for (int64_t k = 0; k < part; ++k) {
    T sum = 0;
    for (int group = 0; group < GROUPS; ++group) sum += parts[group * part + k];
    if (k < nnz) to[k] = sum; else if (bias) bias[k - nnz] = sum;
  }
}

template <class T, int L>
inline Vec<T, L> kept(Vec<T, L> v, Vec<uint32_t, L> number, uint32_t threshold, T scale) {
  if constexpr (sizeof(T) == 8)
    return __builtin_convertvector(number >= threshold, Vec<int64_t, L>) ? v * scale : Vec<T, L>{};
  else
    return number >= threshold ? v * scale : Vec<T, L>{};
}

template <class T>
void dropout_(int64_t size, uint64_t seed, uint32_t first, uint32_t threshold, T scale, const T *in, T *out) {
  constexpr int L = LANES<T>;
  const int64_t vectors = size / L;
  parallel(team(size / 2), [&](int thread, int threads) {
    Vec<uint32_t, L> lane;
    for (int i = 0; i < L; ++i) lane[i] = i;
    const auto numbers = [&](int64_t at) {
      const uint32_t high = uint32_t(seed >> 32) + uint32_t(at >> 32) * 0x9e3779b9u;
      return random<L>(lane + uint32_t(at), uint32_t(seed), high) - first;
    };
    for (int64_t v = vectors * thread / threads; v < vectors * (thread + 1) / threads; ++v)
      store<T, L>(out + v * L, kept<T, L>(load<T, L>(in + v * L), numbers(v * L), threshold, scale));
    if (thread == threads - 1) {
      const Vec<uint32_t, L> last = numbers(vectors * L);
      for (int64_t i = vectors * L; i < size; ++i) out[i] = last[i - vectors * L] >= threshold ? in[i] * scale : T(0);
    }
  });
}

// -- the largest entries of each row ---------------------------------------------------------------------------------

// An entry's magnitude as an integer that orders as the number does: its bits without the sign.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
template <class T>
constexpr Bits<T> UNSIGNED = std::numeric_limits<Bits<T>>::max();

template <class T>
inline Bits<T> magnitude(T x) {
  Bits<T> bits;
  std::memcpy(&bits, &x, sizeof(T));
  return bits & UNSIGNED<T>;
}
template <class T>
inline Vec<Bits<T>, LANES<T>> magnitudes(const T *x) {
  return load<Bits<T>, LANES<T>>(reinterpret_cast<const Bits<T> *>(x)) & UNSIGNED<T>;
}

// How many of `n` entries are larger than `bound`.
template <class T>
int64_t count_above(const T *x, int64_t n, Bits<T> bound) {
  constexpr int L = LANES<T>;
  Vec<Bits<T>, L> some{}, more{};
  int64_t i = 0, found = 0;
  for (; i + 2 * L <= n; i += 2 * L) some -= magnitudes<T>(x + i) > bound, more -= magnitudes<T>(x + i + L) > bound;
  some += more;
  for (int l = 0; l < L; ++l) found += some[l];
  for (; i < n; ++i) found += magnitude(x[i]) > bound;
  return found;
}

template <class T>
Bits<T> largest(const T *x, int64_t n) {
  constexpr int L = LANES<T>;
  Vec<Bits<T>, L> top{};
  Bits<T> most = 0;
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<Bits<T>, L> here = magnitudes<T>(x + i);
    top = here > top ? here : top;
  }
  for (int l = 0; l < L; ++l) most = std::max(most, top[l]);
  for (; i < n; ++i) most = std::max(most, magnitude(x[i]));
  return most;
}

// What a row keeps: entries above `bound`, and the first `ties` of those equal to it.
template <class T>
struct Kept {
  Bits<T> bound;
  int64_t count, ties;
};

// Find the k largest by narrowing the interval that holds the k-th: by halves and by interpolating the counts at its
// ends in turn, from a guess. A row with at most k nonzeros needs no search. Zeros are never kept.
template <class T>
Kept<T> find_largest(const T *x, int64_t n, int64_t k, Bits<T> guess) {
  const int64_t nonzero = count_above(x, n, Bits<T>(0));
  if (nonzero <= k) return {0, nonzero, 0};
  Bits<T> low = 0, high = largest(x, n);  // more than k above low, fewer than k above high
  int64_t above_low = nonzero, above_high = 0;
  for (int turn = 0; high - low > 1; ++turn) {
    Bits<T> middle = low + (high - low) / 2;
    if (turn == 0 && guess > low && guess < high) {
      middle = guess;
    } else if (turn % 3) {
      const double share = double(above_low - k) / double(above_low - above_high);
      middle = std::clamp(Bits<T>(low + share * double(high - low)), Bits<T>(low + 1), Bits<T>(high - 1));
    }
    const int64_t above = count_above(x, n, middle);
    if (above == k) return {middle, k, 0};
    if (above > k) low = middle, above_low = above; else high = middle, above_high = above;
  }
  return {high, k, k - above_high};
}

// Bit l of the result: whether x[l] is larger than the bound.
template <class T>
inline uint32_t above(const T *x, Bits<T> bound) {
#if defined(FILIGREE_ISA_avx512)
  if constexpr (sizeof(T) == 4)
    return _mm512_cmpgt_epi32_mask((__m512i)magnitudes<T>(x), _mm512_set1_epi32(bound));
  else
    return _mm512_cmpgt_epi64_mask((__m512i)magnitudes<T>(x), _mm512_set1_epi64(bound));
#elif defined(FILIGREE_ISA_avx2)
  const auto greater = magnitudes<T>(x) > bound;
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps((__m256)greater); else return _mm256_movemask_pd((__m256d)greater);
#elif defined(FILIGREE_ISA_neon)
  const auto greater = magnitudes<T>(x) > bound;
  if constexpr (sizeof(T) == 4) return vaddvq_u32((uint32x4_t)greater & uint32x4_t{1, 2, 4, 8});
  else return uint32_t(vaddvq_u64((uint64x2_t)greater & uint64x2_t{1, 2}));
#else
  uint32_t mask = 0;
  for (int l = 0; l < LANES<T>; ++l) mask |= uint32_t(magnitude(x[l]) > bound) << l;
  return mask;
#endif
}

template <class T>
void keep(const T *x, int64_t n, Kept<T> row, int32_t *indices, T *values) {
  constexpr int L = LANES<T>;
  int64_t ties = row.ties, i = 0;
  const auto take = [&](int64_t at) { *indices++ = int32_t(at), *values++ = x[at]; };
  if (ties == 0)
    for (; i + L <= n; i += L)
      for (uint32_t mask = above(x + i, row.bound); mask; mask &= mask - 1) take(i + __builtin_ctz(mask));
  for (; i < n; ++i) {
    const Bits<T> m = magnitude(x[i]);
    if (m > row.bound) take(i);
    else if (ties && m == row.bound) take(i), --ties;
  }
}

// A matrix by rows, with the index of its transpose; `next` is room for `cols` numbers.
template <class T>
struct Entries {
  int32_t *indptr, *indices;
  T *values;
  int32_t *t_indptr, *t_indices, *t_perm, *next;
};

template <class T>
void transpose_index(int64_t rows, int64_t cols, const Entries<T> &e, T *sums) {
  std::fill(e.t_indptr, e.t_indptr + cols + 1, 0);
  if (sums) std::fill(sums, sums + cols, T(0));
  for (int32_t i = 0; i < e.indptr[rows]; ++i) ++e.t_indptr[e.indices[i] + 1];
  std::partial_sum(e.t_indptr, e.t_indptr + cols + 1, e.t_indptr);
  std::copy(e.t_indptr, e.t_indptr + cols, e.next);
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t i = e.indptr[r]; i < e.indptr[r + 1]; ++i) {
      const int32_t column = e.indices[i], at = e.next[column]++;
      e.t_indices[at] = int32_t(r), e.t_perm[at] = i;
      if (sums) sums[column] += e.values[i];
    }
}

// The largest entries of each row, by a team of threads.
template <class T>
void top_part(int64_t rows, int64_t cols, int64_t k, const T *x, int64_t stride, Kept<T> *kept, const Entries<T> &e,
              int thread, int threads) {
  const int64_t from = rows * thread / threads, to = rows * (thread + 1) / threads;
  Bits<T> guess = 0;
  for (int64_t r = from; r < to; ++r) {
    kept[r] = find_largest(x + r * stride, cols, k, guess);
    guess = kept[r].bound;
  }
  wait_for(threads);
  int32_t at = 0;  // each thread adds up for itself: cheaper than another wait
  for (int64_t r = 0; r < to; ++r) {
    if (r >= from) e.indptr[r] = at;
    at += int32_t(kept[r].count);
  }
  if (to == rows) e.indptr[rows] = at;
  for (int64_t r = from; r < to; ++r) keep(x + r * stride, cols, kept[r], e.indices + e.indptr[r], e.values + e.indptr[r]);
}

template <class T>
int64_t top_(int64_t rows, int64_t cols, int64_t k, const T *x, int64_t stride, Top out) {
  std::vector<Kept<T>> kept(rows);
  std::vector<int32_t> next(out.t_indptr ? cols : 0);
  const Entries<T> e{out.indptr, out.indices, static_cast<T *>(out.values), out.t_indptr, out.t_indices, out.t_perm, next.data()};
  parallel(team(rows * cols / 2), [&](int thread, int threads) {
    top_part(rows, cols, k, x, stride, kept.data(), e, thread, threads);
  });
  if (out.t_indptr) transpose_index(rows, cols, e, static_cast<T *>(out.sums));
  return rows ? e.indptr[rows] : 0;
}

// A layer's backward pass from the k largest of each row of delta, in one go: dx = S W, dW = S^T X, db = sums of S.
// Threads share out the columns of W and X, of which a part fits a core's cache; each column is summed in order, so that
// results do not depend on their number.
template <class T>
void top_backward_(int64_t batch, int64_t outs, int64_t ins, int64_t k, Matrix delta, Matrix x, Matrix w, Matrix dx,
                   Matrix dw, T *db) {
  const int64_t room = batch * k;
  thread_local std::vector<Kept<T>> kept;
  thread_local std::vector<int32_t> ints;
  thread_local std::vector<T> numbers;
  kept.resize(batch), ints.resize(batch + 1 + 3 * room + 2 * (outs + 1)), numbers.resize(room);
  int32_t *at = ints.data();
  const auto next = [&](int64_t count) { return std::exchange(at, at + count); };
  const Entries<T> e{next(batch + 1), next(room), numbers.data(), next(outs + 1), next(room), next(room), next(outs)};
  Kept<T> *rows = kept.data();
  e.indptr[0] = 0;
  parallel(team(room * ins), [&](int thread, int threads) {
    top_part(batch, outs, k, static_cast<const T *>(delta.data), delta.stride, rows, e, thread, threads);
    const int64_t vectors = (ins + LANES<T> - 1) / LANES<T>;
    const int64_t from = vectors * thread / threads * LANES<T>, to = std::min(ins, vectors * (thread + 1) / threads * LANES<T>);
    const auto part = [&](Matrix m) { return Matrix{static_cast<T *>(m.data) + from, m.stride}; };
    wait_for(threads);
    if (thread == 0) transpose_index(batch, outs, e, db);
    if (dx.data) {
      const Rows<T, int32_t> s{e.indptr, e.indices, nullptr, e.values, nullptr, false, nullptr, nullptr};
      blocks<LANES<T>, FORWARD>(to - from, Spmm<T, int32_t, true>{s, part(w), part(dx), 0, batch});
    }
    wait_for(threads);
    if (dw.data) {
      const Rows<T, int32_t> s{e.t_indptr, e.t_indices, e.t_perm, e.values, nullptr, false, nullptr, nullptr};
      blocks<LANES<T>, FORWARD>(to - from, Spmm<T, int32_t, true>{s, part(x), part(dw), 0, outs});
    }
  });
}

// c[i] = sum_k a[i, k] b[k]: a few rows at a time, so that each vector of b is read for all of them. Rows of b and c go
// by their index where there is one; a lies by its strides.
template <class T>
struct Small {
  int64_t rows, depth;
  const T *a;
  int64_t by_row, by_depth;
  Matrix b;
  const int32_t *b_index;
  Matrix c;
  const int32_t *c_index;

  template <int L, int NV>
  void run(const Block &block) const {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) tile<L, NV, 4>(block, i);
    for (; i < rows; ++i) tile<L, NV, 1>(block, i);
  }
  template <int L, int NV, int R>
  void tile(const Block &block, int64_t i) const {
    typedef Vec<T, L> V;
    const At<T, L, NV> at(block);
    V acc[R][NV];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) acc[r][v] = V{};
    const T *ai = a + i * by_row;
    for (int64_t d = 0; d < depth; ++d) {
      const T *row = static_cast<const T *>(b.data) + (b_index ? b_index[d] : d) * b.stride;
      V bv[NV];
      for (int v = 0; v < NV; ++v) bv[v] = load<T, L>(row + at.offset[v]);
      for (int r = 0; r < R; ++r) {
        const T scale = ai[r * by_row + d * by_depth];
        for (int v = 0; v < NV; ++v) acc[r][v] += scale * bv[v];
      }
    }
    for (int r = 0; r < R; ++r) {
      T *out = static_cast<T *>(c.data) + (c_index ? c_index[i + r] : i + r) * c.stride;
      for (int v = 0; v < NV; ++v) store<T, L>(out + at.offset[v], acc[r][v]);
    }
  }
};

// The same with one choice for all rows: the k columns of delta with the largest sums of magnitudes.
template <class T>
void unified_backward_(int64_t batch, int64_t outs, int64_t ins, int64_t k, Matrix delta, Matrix x, Matrix w, Matrix dx,
                       Matrix dw, T *db) {
  constexpr int NV = BYTES == 64 ? 4 : 2;
  thread_local std::vector<int32_t> places;
  thread_local std::vector<T> sums, gathered;
  places.resize(k), sums.resize(outs), gathered.resize(k + batch * k);
  int32_t *chosen = places.data();
  T *sum = sums.data(), *values = gathered.data();  // the chosen sums, then the chosen columns
  const T *d = static_cast<const T *>(delta.data);
  int64_t many = 0;
  const auto split = [](int64_t n, int thread, int threads) {
    constexpr int64_t L = LANES<T>;
    return std::min(n, (n + L - 1) / L * thread / threads * L);
  };
  parallel(team(batch * k * ins), [&](int thread, int threads) {
    int64_t from = split(outs, thread, threads), to = split(outs, thread + 1, threads);
    std::fill(sum + from, sum + to, T(0));
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t j = from; j < to; ++j) sum[j] += std::abs(d[b * delta.stride + j]);
    wait_for(threads);
    if (thread == 0) {
      const Kept<T> kept = find_largest(sum, outs, k, Bits<T>(0));
      keep(sum, outs, kept, chosen, values);
      many = kept.count;
    }
    wait_for(threads);
    T *few = values + k;
    for (int64_t b = batch * thread / threads; b < batch * (thread + 1) / threads; ++b)
      for (int64_t s = 0; s < many; ++s) few[b * many + s] = d[b * delta.stride + chosen[s]];
    if (db && thread == 0) std::fill(db, db + outs, T(0));
    wait_for(threads);
    if (db && thread == 0)
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t s = 0; s < many; ++s) db[chosen[s]] += few[b * many + s];
    from = split(ins, thread, threads), to = split(ins, thread + 1, threads);
    const auto part = [&](Matrix m) { return Matrix{static_cast<T *>(m.data) + from, m.stride}; };
    if (dx.data)
      blocks<LANES<T>, NV>(to - from, Small<T>{batch, many, few, many, 1, part(w), chosen, part(dx), nullptr});
    if (dw.data) {
      const Matrix mine = part(dw);
      for (int64_t j = 0, s = 0; j < outs; ++j) {
        if (s < many && chosen[s] == j) ++s;
        else std::memset(static_cast<T *>(mine.data) + j * mine.stride, 0, (to - from) * sizeof(T));
      }
      blocks<LANES<T>, NV>(to - from, Small<T>{many, batch, few, 1, many, part(x), nullptr, mine, chosen});
    }
  });
}

// The matrix with its zeros.
template <class T>
void spread_(int64_t rows, int64_t cols, const int32_t *indptr, const int32_t *indices, const T *values, T *out) {
  const int threads = team(rows * cols / 8);
  parallel(threads, [&](int thread, int team) {
    for (int64_t r = rows * thread / team; r < rows * (thread + 1) / team; ++r) {
      std::fill(out + r * cols, out + (r + 1) * cols, T(0));
      for (int32_t i = indptr[r]; i < indptr[r + 1]; ++i) out[r * cols + indices[i]] = values[i];
    }
  });
}

// y = A^T B of two sparse matrices with the same rows: A by its transposed index, each row of y summed up in cache.
template <class T>
void outer_(int64_t a_cols, const int32_t *t_indptr, const int32_t *t_indices, const int32_t *t_perm, const T *a,
            const int32_t *indptr, const int32_t *indices, const T *b, int64_t b_cols, Matrix y) {
  const int64_t nnz = t_indptr[a_cols];
  parallel(team(nnz * (indptr[1] + 1) + a_cols * b_cols / 16), [&](int thread, int threads) {
    for (int64_t j = a_cols * thread / threads; j < a_cols * (thread + 1) / threads; ++j) {
      T *out = static_cast<T *>(y.data) + j * y.stride;
      std::fill(out, out + b_cols, T(0));
      for (int32_t e = t_indptr[j]; e < t_indptr[j + 1]; ++e) {
        const T scale = a[t_perm[e]];
        const int32_t row = t_indices[e];
        for (int32_t i = indptr[row]; i < indptr[row + 1]; ++i) out[indices[i]] += scale * b[i];
      }
    }
  });
}

}  // namespace

#define FILIGREE_DISPATCH(call)                                                                    \
  if (f64)                                                                                         \
    return w.wide ? call<double, int64_t> ARGS : call<double, int32_t> ARGS;                       \
  return w.wide ? call<float, int64_t> ARGS : call<float, int32_t> ARGS

void spmm(bool f64, Pattern w, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias, bool relu) {
#define ARGS (w, values, x, y, batch, bias, relu)
  FILIGREE_DISPATCH(spmm_);
#undef ARGS
}
void sddmm(bool f64, Pattern w, Matrix dy, Matrix x, void *dvalues, int64_t batch) {
#define ARGS (w, dy, x, dvalues, batch)
  FILIGREE_DISPATCH(sddmm_);
#undef ARGS
}
void backward(bool f64, Pattern w, const void *values, Matrix dy, Matrix x, Matrix dx, void *dvalues, int64_t batch) {
#define ARGS (w, values, dy, x, dx, dvalues, batch)
  FILIGREE_DISPATCH(backward_);
#undef ARGS
}
void linear_backward(bool f64, Pattern w, Pattern wt, const void *place, const void *values, const void *dy,
                     int64_t dy_feature, int64_t dy_sample, Matrix y, Matrix dz, void *dbias, Matrix x, Matrix dx, void *dvalues,
                     int64_t batch) {
#define ARGS (w, wt, place, values, dy, dy_feature, dy_sample, y, dz, dbias, x, dx, dvalues, batch)
  FILIGREE_DISPATCH(linear_backward_);
#undef ARGS
}
void rows_backward(bool f64, Pattern w, Pattern wt, const int64_t *chosen, int64_t count, const void *values, Matrix dy,
                   Matrix y, Matrix dz, void *dbias, Matrix x, Matrix dx, const void *place, void *dvalues,
                   int64_t batch) {
#define ARGS (w, wt, chosen, count, values, dy, y, dz, dbias, x, dx, place, dvalues, batch)
  FILIGREE_DISPATCH(rows_backward_);
#undef ARGS
}
void rows_spmm(bool f64, Pattern w, const int64_t *chosen, int64_t count, const void *values, Matrix x, Matrix y,
               int64_t batch, const void *bias, bool relu) {
#define ARGS (w, chosen, count, values, x, y, batch, bias, relu)
  FILIGREE_DISPATCH(rows_spmm_);
#undef ARGS
}
void transpose(bool f64, int64_t rows, int64_t cols, Matrix in, Matrix out) {
  f64 ? transpose_<double>(rows, cols, in, out) : transpose_<float>(rows, cols, in, out);
}

void conv(bool f64, const Convolution &c, const void *values, const void *bias, const void *x, void *y) {
  const Pattern &w = c.w;
#define ARGS (c, values, bias, x, y)
  FILIGREE_DISPATCH(conv_);
#undef ARGS
}
void conv_backward(bool f64, const Convolution &c, const void *values, const void *x, const void *dy, void *dvalues,
                   void *dbias, void *dx) {
  const Pattern &w = c.w;
#define ARGS (c, values, x, dy, dvalues, dbias, dx)
  FILIGREE_DISPATCH(conv_backward_);
#undef ARGS
}

int64_t top(bool f64, int64_t rows, int64_t cols, int64_t k, Matrix x, Top out) {
  return f64 ? top_(rows, cols, k, static_cast<const double *>(x.data), x.stride, out)
             : top_(rows, cols, k, static_cast<const float *>(x.data), x.stride, out);
}
void top_backward(bool f64, bool unified, int64_t batch, int64_t outs, int64_t ins, int64_t k, Matrix delta, Matrix x,
                  Matrix w, Matrix dx, Matrix dw, void *db) {
#define ARGS(T) (batch, outs, ins, k, delta, x, w, dx, dw, static_cast<T *>(db))
  if (unified) return f64 ? unified_backward_<double> ARGS(double) : unified_backward_<float> ARGS(float);
  return f64 ? top_backward_<double> ARGS(double) : top_backward_<float> ARGS(float);
#undef ARGS
}
void spread(bool f64, int64_t rows, int64_t cols, Top in, void *out) {
  f64 ? spread_(rows, cols, in.indptr, in.indices, static_cast<const double *>(in.values), static_cast<double *>(out))
      : spread_(rows, cols, in.indptr, in.indices, static_cast<const float *>(in.values), static_cast<float *>(out));
}
void outer(bool f64, int64_t a_cols, Top a, int64_t b_cols, Top b, Matrix y) {
#define ARGS(T)                                                                                                \
  a_cols, a.t_indptr, a.t_indices, a.t_perm, static_cast<const T *>(a.values), b.indptr, b.indices, \
      static_cast<const T *>(b.values), b_cols, y
  f64 ? outer_<double>(ARGS(double)) : outer_<float>(ARGS(float));
#undef ARGS
}

void dropout(bool f64, int64_t size, uint64_t seed, uint32_t first, uint32_t threshold, double scale, const void *in,
             void *out) {
#define ARGS(T) (size, seed, first, threshold, scale, static_cast<const T *>(in), static_cast<T *>(out))
  f64 ? dropout_<double> ARGS(double) : dropout_<float> ARGS(float);
#undef ARGS
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
