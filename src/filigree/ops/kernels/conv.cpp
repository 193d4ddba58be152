// Sparse convolutions: images are packed into flat planes, on which a convolution is a product with shifted rows.
#include "dispatch.h"
#include "scratch.h"
#include "vectors.h"

#include <algorithm>
#include <numeric>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

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
void pack_(const Planes &s, const Images &in, T *out, int64_t stride, int64_t front) {
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
          const T *from = static_cast<const T *>(in.data) + image * in.by_image + channel * in.by_channel +
                          row * in.by_row + run.pixel * in.by_column;
          const int64_t step = in.by_column * s.cols.step, n = run.last - run.first;
          zeros(run.first);
          if (step == 1) {
            std::copy(from, from + n, to);
          } else {
            for (int64_t j = 0; j < n; ++j) to[j] = from[j * step];
          }
          to += n;
          zeros(s.cols.pitch - run.last);
        }
      zeros(end - to);
    }
  });
}

template <class T>
void unpack_(const Planes &s, const T *in, int64_t stride, const Images &out) {
  const int64_t phases = s.rows.phases * s.cols.phases;
  parallel(team(s.channels * s.count * s.height * s.width), [&](int thread, int threads) {
    for (int64_t channel = s.channels * thread / threads; channel < s.channels * (thread + 1) / threads; ++channel)
      for (int64_t image = 0; image < s.count; ++image)
        for (int64_t row = 0; row < s.height; ++row) {
          const int64_t i = (row + s.rows.lead) / s.rows.step, above = (row + s.rows.lead) % s.rows.step;
          T *to = static_cast<T *>(out.data) + image * out.by_image + channel * out.by_channel + row * out.by_row;
          for (int64_t left = 0; left < s.cols.step; ++left) {
            const Run run(s.cols, left, s.width);
            const int64_t step = out.by_column * s.cols.step, n = run.last - run.first;
            T *pixels = to + run.pixel * out.by_column;
            const int64_t plane = channel * phases + above * s.cols.phases + left;
            const T *from = in + plane * stride + (image * s.rows.pitch + i) * s.cols.pitch + run.first;
            const bool there = above < s.rows.phases && left < s.cols.phases;  // else no tap reads it
            if (step == 1 && there) {
              std::copy(from, from + n, pixels);
            } else {
              for (int64_t j = 0; j < n; ++j) pixels[j * step] = there ? from[j] : T(0);
            }
          }
        }
  });
}

// The images of a convolution, a few at a time: packed, multiplied and unpacked by one thread in its own cache. Sums
// over images are kept in groups, so that they do not depend on the number of threads. Where there are fewer groups
// than threads, the threads share out each product's rows instead.
struct Work {
  int64_t chunks;  // of images packed at a time
  int groups;      // of chunks
  int threads;     // that take groups

  explicit Work(const Convolution &c) : chunks((c.x.count + c.images - 1) / c.images) {
    constexpr int MOST = 16;
    groups = chunks < MOST ? int(chunks) : MOST;
    threads = omp_in_parallel() || groups < omp_get_max_threads() ? 1 : omp_get_max_threads();
  }
};

// body(thread, group, whether its first images, first image, how many)
template <class Body>
void by_images(const Convolution &c, const Work &all, Body body) {
  parallel(all.threads, [&](int thread, int threads) {
    for (int group = thread; group < all.groups; group += threads) {
      const int64_t begin = all.chunks * group / all.groups, end = all.chunks * (group + 1) / all.groups;
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * c.images, rest = c.x.count - first;
        body(thread, group, chunk == begin, first, rest < c.images ? rest : c.images);
      }
    }
  });
}

inline Planes some(Planes all, int64_t count) {
  all.count = count;
  return all;
}

template <class T>
Images from(Images all, int64_t image) {
  all.data = static_cast<T *>(all.data) + image * all.by_image;
  return all;
}

inline int64_t last_output(const Convolution &c, int64_t images) {
  return ((images - 1) * c.y.rows.pitch + c.y.height - 1) * c.y.cols.pitch + c.y.width;
}

// out[k] = sum over groups of their part's k-th number, for k in [from, to)
template <class T>
void add_parts(int groups, int64_t part, const T *parts, T *out, int64_t from, int64_t to) {
  std::fill(out + from, out + to, T(0));
  for (int group = 0; group < groups; ++group)
    for (int64_t k = from; k < to; ++k) out[k] += parts[group * part + k];
}

template <class T>
void conv_(const Convolution &c, const void *values, const void *bias, Images x, Images y) {
  const Work all(c);
  const int64_t ins = c.wt.rows * c.stride, outs = c.w.rows * c.stride;
  T *inputs = scratch<T>(0, all.threads * ins), *outputs = scratch<T>(1, all.threads * outs);
  by_images(c, all, [&](int thread, int, bool, int64_t first, int64_t count) {
    T *packed = inputs + thread * ins, *products = outputs + thread * outs;
    pack_<T>(some(c.x, count), from<T>(x, first), packed, c.stride, 0);
    spmm(sizeof(T) == 8, c.w, values, {packed, 1}, {products, c.stride}, last_output(c, count), bias, false);
    unpack_<T>(some(c.y, count), products, c.stride, from<T>(y, first));
  });
}

template <class T>
void conv_backward_(const Convolution &c, const void *values, Images x, Images dy, T *dvalues, T *dbias, void *dx) {
  const Work all(c);
  const int64_t ins = c.wt.rows * c.stride, outs = c.w.rows * c.stride, nnz = c.w.nnz(), part = nnz + c.w.rows;
  T *inputs = scratch<T>(0, all.threads * ins), *gradients = scratch<T>(1, all.threads * outs);
  T *backs = scratch<T>(2, dx ? all.threads * ins : 0);
  T *parts = scratch<T>(3, all.groups * part), *more = scratch<T>(4, all.threads * nnz);
  constexpr bool f64 = sizeof(T) == 8;
  by_images(c, all, [&](int thread, int group, bool begins, int64_t first, int64_t count) {
    T *packed = inputs + thread * ins, *grads = gradients + thread * outs;
    T *sums = parts + group * part, *products = begins ? sums : more + thread * nnz;
    pack_<T>(some(c.x, count), from<T>(x, first), packed, c.stride, 0);
    pack_<T>(some(c.y, count), from<T>(dy, first), grads, c.stride, c.reach);
    if (dx) {
      T *back = backs + thread * ins;
      backward(f64, c.wt, values, {grads, 1}, {packed, c.stride}, {back, c.stride}, products,
               count * c.x.rows.pitch * c.x.cols.pitch);
      const int64_t image = c.x.height * c.x.width;  // channel-major, as the output
      unpack_<T>(some(c.x, count), back, c.stride, from<T>({dx, image, c.x.count * image, c.x.width, 1}, first));
    } else {
      sddmm(f64, c.w, {grads + c.reach, c.stride}, {packed, 1}, products, last_output(c, count));
    }
    for (int64_t k = 0; !begins && k < nnz; ++k) sums[k] += products[k];
    for (int64_t o = 0; dbias && o < c.w.rows; ++o) {
      const T sum = std::accumulate(grads + o * c.stride, grads + (o + 1) * c.stride, T(0));
      sums[nnz + o] = begins ? sum : sums[nnz + o] + sum;
    }
  });
  parallel(team(all.groups * nnz), [&](int thread, int threads) {
    add_parts(all.groups, part, parts, dvalues, nnz * thread / threads, nnz * (thread + 1) / threads);
  });
  if (dbias) add_parts(all.groups, part, parts + nnz, dbias, 0, c.w.rows);
}

}  // namespace

void conv(bool f64, const Convolution &c, const void *values, const void *bias, Images x, Images y) {
  with_number(f64, [&](auto number) { conv_<decltype(number)>(c, values, bias, x, y); });
}
void conv_backward(bool f64, const Convolution &c, const void *values, Images x, Images dy, void *dvalues, void *dbias,
                   void *dx) {
  with_number(f64, [&](auto number) {
    typedef decltype(number) T;
    conv_backward_(c, values, x, dy, static_cast<T *>(dvalues), static_cast<T *>(dbias), dx);
  });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
