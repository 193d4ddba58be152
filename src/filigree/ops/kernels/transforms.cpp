// Structured layers as programs: diagonals, permutations and fast transforms, run one after another on a block of
// samples that stays in cache. A block holds one vector of samples for each feature, so that every step, the
// butterflies too, is plain arithmetic on vectors, whatever the transform. Sums over the batch are kept in a fixed
// number of parts: results do not depend on the number of threads.
#include "scratch.h"
#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int64_t PARTS = 16;

template <class T>
using Lane = Vec<T, LANES<T>>;

// -- Walsh-Hadamard
// ----------------------------------------------------------------------------------------------------

template <int R, class V>
inline void butterflies(V *x) {  // Walsh-Hadamard of R registers
#pragma GCC unroll 8
  for (int h = 1; h < R; h *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
      if (!(i & h)) {
        const V a = x[i], b = x[i | h];
        x[i] = a + b, x[i | h] = a - b;
      }
}

template <class T, int R>
void hadamard_pass(Lane<T> *v, int64_t n, int64_t h, T scale) {
  for (int64_t base = 0; base < n; base += R * h)
    for (int64_t i = base; i < base + h; ++i) {
      Lane<T> x[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) x[r] = v[i + r * h];
      butterflies<R>(x);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) v[i + r * h] = x[r] * scale;
    }
}

// v = H v / sqrt(n), n a power of two
template <class T>
void hadamard(Lane<T> *v, int64_t n) {
  const T scale = T(1 / std::sqrt(double(n)));
  int64_t h = 1;
  for (; n / h >= 8; h *= 8) hadamard_pass<T, 8>(v, n, h, n / h == 8 ? scale : T(1));
  if (n / h == 4) hadamard_pass<T, 4>(v, n, h, scale);
  if (n / h == 2) hadamard_pass<T, 2>(v, n, h, scale);
}

// -- cosine
// ------------------------------------------------------------------------------------------------------------

// The discrete cosine transform of n real numbers by a complex Fourier transform of n / 2, n a power of two: even
// numbers and the odd ones backwards, two neighbours as one complex number; then one rotation a frequency.
template <class T>
struct Cosine {
  int64_t n, m;                   // m = n / 2
  std::vector<T> wr, wi;          // exp(-2 pi i k / m), k < m
  std::vector<T> cr, ci;          // exp(-pi i k / 2 n), k <= m
  std::vector<T> hr, hi;          // exp(-2 pi i k / n), k <= m
  std::vector<int32_t> reversed;  // of m

  explicit Cosine(int64_t size) : n(size), m(size / 2) {
    const double turn = -2 * std::acos(-1.0);
    const auto fill = [&](std::vector<T> &re, std::vector<T> &im, int64_t count, double step) {
      for (int64_t k = 0; k < count; ++k) re.push_back(T(std::cos(step * k))), im.push_back(T(std::sin(step * k)));
    };
    fill(wr, wi, m, turn / std::max<int64_t>(m, 1));
    fill(cr, ci, m + 1, turn / (4 * n));
    fill(hr, hi, m + 1, turn / n);
    reversed.assign(m, 0);
    for (int64_t k = 1; k < m; ++k) reversed[k] = int32_t(reversed[k / 2] / 2 + (k % 2 ? m / 2 : 0));
  }

  static const Cosine &of(int64_t size) {
    static std::map<int64_t, std::unique_ptr<Cosine>> made;
    static std::mutex lock;
    const std::lock_guard<std::mutex> guard(lock);
    auto &found = made[size];
    if (!found) found.reset(new Cosine(size));
    return *found;
  }

  typedef Lane<T> V;

  // decimation in frequency, two levels at a time; the output is in bit-reversed order. Number k is at z[2k], z[2k+1].
  void fourier(V *z) const {
    int64_t len = m;
    for (; len >= 4; len /= 4) {
      const int64_t q = len / 4, step = m / len;
      for (int64_t base = 0; base < m; base += len)
        for (int64_t j = 0; j < q; ++j) {
          V *a = z + 2 * (base + j), *b = a + 2 * q, *c = b + 2 * q, *d = c + 2 * q;
          const V pr = a[0] + c[0], pi = a[1] + c[1], dr = a[0] - c[0], di = a[1] - c[1];
          const V qr = b[0] + d[0], qi = b[1] + d[1], er = b[1] - d[1], ei = d[0] - b[0];  // -i (b - d)
          const V sr = pr - qr, si = pi - qi, ur = dr + er, ui = di + ei, vr = dr - er, vi = di - ei;
          const int64_t k1 = j * step, k2 = 2 * k1, k3 = 3 * k1;
          a[0] = pr + qr, a[1] = pi + qi;
          b[0] = sr * wr[k2] - si * wi[k2], b[1] = sr * wi[k2] + si * wr[k2];
          c[0] = ur * wr[k1] - ui * wi[k1], c[1] = ur * wi[k1] + ui * wr[k1];
          d[0] = vr * wr[k3] - vi * wi[k3], d[1] = vr * wi[k3] + vi * wr[k3];
        }
    }
    if (len == 2) pairs(z);
  }

  // decimation in time with conjugate rotations: from bit-reversed order, m times the inverse of `fourier`
  void inverse_fourier(V *z) const {
    int levels = 0;
    while ((int64_t(1) << levels) < m) ++levels;
    int64_t len = 4;
    if (levels % 2) pairs(z), len = 8;
    for (; len <= m; len *= 4) {
      const int64_t q = len / 4, step = m / len;
      for (int64_t base = 0; base < m; base += len)
        for (int64_t j = 0; j < q; ++j) {
          V *a = z + 2 * (base + j), *b = a + 2 * q, *c = b + 2 * q, *d = c + 2 * q;
          const int64_t k1 = j * step, k2 = 2 * k1, k3 = 3 * k1;
          const V sr = b[0] * wr[k2] + b[1] * wi[k2], si = b[1] * wr[k2] - b[0] * wi[k2];
          const V ur = c[0] * wr[k1] + c[1] * wi[k1], ui = c[1] * wr[k1] - c[0] * wi[k1];
          const V vr = d[0] * wr[k3] + d[1] * wi[k3], vi = d[1] * wr[k3] - d[0] * wi[k3];
          const V pr = a[0] + sr, pi = a[1] + si, qr = a[0] - sr, qi = a[1] - si;
          const V dr = ur + vr, di = ui + vi, er = vi - ui, ei = ur - vr;  // i (u - v)
          a[0] = pr + dr, a[1] = pi + di, c[0] = pr - dr, c[1] = pi - di;
          b[0] = qr + er, b[1] = qi + ei, d[0] = qr - er, d[1] = qi - ei;
        }
    }
  }

  void pairs(V *z) const {
    for (int64_t k = 0; k < m; k += 2) {
      const V ar = z[2 * k], ai = z[2 * k + 1], br = z[2 * k + 2], bi = z[2 * k + 3];
      z[2 * k] = ar + br, z[2 * k + 1] = ai + bi, z[2 * k + 2] = ar - br, z[2 * k + 3] = ai - bi;
    }
  }

  // where the i-th number of the even-then-odd-backwards order comes from
  int64_t source(int64_t i) const { return i < m ? 2 * i : 2 * (n - 1 - i) + 1; }

  // x = C x, C orthonormal; `z` is room for n vectors
  void forward(V *x, V *z) const {
    if (n == 1) return;
    for (int64_t i = 0; i < n; ++i) z[i] = x[source(i)];
    fourier(z);
    const T first = T(std::sqrt(1.0 / n)), other = T(std::sqrt(2.0 / n));
    x[0] = (z[0] + z[1]) * first;
    x[m] = (z[0] - z[1]) * (cr[m] * other);
    for (int64_t k = 1; 2 * k <= m; ++k) {
      const V *a = z + 2 * int64_t(reversed[k]), *b = z + 2 * int64_t(reversed[m - k]);
      const V er = (a[0] + b[0]) * T(0.5), ei = (a[1] - b[1]) * T(0.5);
      const V orr = (a[1] + b[1]) * T(0.5), oi = (b[0] - a[0]) * T(0.5);
      const V pr = orr * hr[k] - oi * hi[k], pi = orr * hi[k] + oi * hr[k];  // rotated odd part
      const V vr = er + pr, vi = ei + pi, ur = er - pr, ui = pi - ei;        // of k, and of m - k
      const int64_t l = m - k;
      const V xk = vr * cr[k] - vi * ci[k], yk = vr * ci[k] + vi * cr[k];
      const V xl = ur * cr[l] - ui * ci[l], yl = ur * ci[l] + ui * cr[l];
      x[k] = xk * other, x[n - k] = yk * -other;
      x[l] = xl * other, x[n - l] = yl * -other;
    }
  }

  // x = C^T x
  void inverse(V *x, V *z) const {
    if (n == 1) return;
    const T first = T(1 / std::sqrt(double(n))), other = T(std::sqrt(2.0 / n) / 2);
    {
      const V v0 = x[0] * first, vm = x[m] * (T(2) * cr[m] * other);
      z[0] = v0 + vm, z[1] = v0 - vm;
    }
    for (int64_t k = 1; 2 * k <= m; ++k) {
      const int64_t l = m - k;
      const V xk = x[k], yk = x[n - k], xl = x[l], yl = x[n - l];
      const V vr = xk * cr[k] - yk * ci[k], vi = -(xk * ci[k] + yk * cr[k]);  // conj(c) (x - i y)
      const V ur = xl * cr[l] - yl * ci[l], ui = -(xl * ci[l] + yl * cr[l]);
      const V er = (vr + ur) * other, ei = (vi - ui) * other;  // even part: (V_k + conj V_l)
      const V fr = (vr - ur) * other, fi = (vi + ui) * other;
      const V orr = fr * hr[k] + fi * hi[k], oi = fi * hr[k] - fr * hi[k];  // rotated back
      V *a = z + 2 * int64_t(reversed[k]), *b = z + 2 * int64_t(reversed[l]);
      a[0] = er - oi, a[1] = ei + orr;
      b[0] = er + oi, b[1] = orr - ei;
    }
    inverse_fourier(z);
    for (int64_t i = 0; i < n; ++i) x[source(i)] = z[i];
  }
};

// -- blocks
// ------------------------------------------------------------------------------------------------------------

// samples [at, at + count) of the first `width` features into a block, the rest zero; and back
template <class T>
void load_block(const Strided &in, int64_t width, int64_t n, int64_t at, int64_t count, T *block) {
  constexpr int64_t L = LANES<T>;
  const T *x = static_cast<const T *>(in.data) + at * in.by_sample;
  if (count == L && in.by_feature == 1) {
    transpose_rows(x, in.by_sample, block, L, L, 0, width);
  } else if (count == L && in.by_sample == 1) {
    for (int64_t i = 0; i < width; ++i) store<T, L>(block + i * L, load<T, L>(x + i * in.by_feature));
  } else {
    for (int64_t i = 0; i < width; ++i)
      for (int64_t s = 0; s < L; ++s) block[i * L + s] = s < count ? x[i * in.by_feature + s * in.by_sample] : T(0);
  }
  std::fill(block + width * L, block + n * L, T(0));
}

template <class T>
void store_block(const Strided &out, int64_t width, int64_t at, int64_t count, const T *block) {
  constexpr int64_t L = LANES<T>;
  T *y = static_cast<T *>(out.data) + at * out.by_sample;
  if (count == L && out.by_feature == 1) {
    transpose_rows(block, L, y, out.by_sample, width, 0, L);
  } else if (count == L && out.by_sample == 1) {
    for (int64_t i = 0; i < width; ++i) store<T, L>(y + i * out.by_feature, load<T, L>(block + i * L));
  } else {
    for (int64_t i = 0; i < width; ++i)
      for (int64_t s = 0; s < count; ++s) y[i * out.by_feature + s * out.by_sample] = block[i * L + s];
  }
}

// sums over the samples of a block, added to `out`: of g, or of g h
template <class T>
void add_sums(const Lane<T> *g, const Lane<T> *h, int64_t n, T *out) {
  constexpr int L = LANES<T>, G = sums_at_once<L>;
  int64_t i = 0;
  for (; i + G <= n; i += G) {
    Lane<T> part[4];
    for (int k = 0; k < G; ++k) part[k] = h ? g[i + k] * h[i + k] : g[i + k];
    const Lane<T> total = sums<T, L>(part);
    for (int k = 0; k < G; ++k) out[i + k] += total[k];
  }
  for (; i < n; ++i) {
    const Lane<T> v = h ? g[i] * h[i] : g[i];
    for (int l = 0; l < L; ++l) out[i] += v[l];
  }
}

// Run the steps on a block. With `saved`, what the backward pass reads (the input of each diagonal, the output of each
// ReLU) is kept: a step's output goes to fresh memory, and saved[s] says where.
template <class T>
Lane<T> *run(const Program &p, Lane<T> *x, Lane<T> *spare, Lane<T> *fresh, Lane<T> **saved) {
  const int64_t n = p.size;
  for (int64_t s = 0; s < p.steps(); ++s) {
    const T *d = static_cast<const T *>(p.data[s]);
    switch (p.kinds[s]) {
      case DIAGONAL: {
        Lane<T> *y = x;
        if (saved) saved[s] = x, y = fresh, fresh += n;
        for (int64_t i = 0; i < n; ++i) y[i] = x[i] * d[i];
        x = y;
        break;
      }
      case BIAS:
        for (int64_t i = 0; i < n; ++i) x[i] += d[i];
        break;
      case RELU: {
        for (int64_t i = 0; i < n; ++i) x[i] = x[i] < 0 ? Lane<T>{} : x[i];  // keeps NaN
        if (saved) {
          saved[s] = x;
          std::copy(x, x + n, fresh);
          x = fresh, fresh += n;
        }
        break;
      }
      case PERMUTE: {
        const int64_t *from = static_cast<const int64_t *>(p.data[s]);
        for (int64_t i = 0; i < n; ++i) spare[i] = x[from[i]];
        std::swap(x, spare);
        break;
      }
      case HADAMARD:
        hadamard<T>(x, n);
        break;
      case COSINE:
        Cosine<T>::of(n).forward(x, spare);
        break;
      case INVERSE_COSINE:
        Cosine<T>::of(n).inverse(x, spare);
        break;
    }
  }
  return x;
}

inline int64_t kept(const Program &p) {
  return std::count_if(p.kinds.begin(), p.kinds.end(), [](int32_t kind) { return kind == DIAGONAL || kind == RELU; });
}

// What must be there before the threads start. A permutation may come from a file: what it names must exist. O(size),
// beside a batch of work.
template <class T>
void prepare(const Program &p) {
  for (int64_t s = 0; s < p.steps(); ++s) {
    if (p.kinds[s] == COSINE || p.kinds[s] == INVERSE_COSINE) Cosine<T>::of(p.size);
    if (p.kinds[s] != PERMUTE) continue;
    const int64_t *from = static_cast<const int64_t *>(p.data[s]);
    for (int64_t i = 0; i < p.size; ++i)
      if (from[i] < 0 || from[i] >= p.size)
        throw std::invalid_argument("sell: a permutation must name places in [0, " + std::to_string(p.size) +
                                    "). Got " + std::to_string(from[i]) + ".");
  }
}

inline int workers(const Program &p, int64_t batch) { return team(batch * p.size * (4 * p.steps() + 1)); }

template <class T>
void sell_(const Program &p, int64_t batch, int64_t ins, const Strided &x, int64_t outs, const Strided &y) {
  constexpr int64_t L = LANES<T>;
  const int64_t blocks = (batch + L - 1) / L, vectors = 2 * p.size;
  const int many = workers(p, batch);
  Lane<T> *const rooms = scratch<Lane<T>>(0, many * vectors);
  prepare<T>(p);
  parallel(many, [&](int thread, int threads) {
    Lane<T> *room = rooms + thread * vectors;
    for (int64_t b = blocks * thread / threads; b < blocks * (thread + 1) / threads; ++b) {
      const int64_t count = std::min(L, batch - b * L);
      load_block(x, ins, p.size, b * L, count, reinterpret_cast<T *>(room));
      const Lane<T> *out = run<T>(p, room, room + p.size, nullptr, nullptr);
      store_block(y, outs, b * L, count, reinterpret_cast<const T *>(out));
    }
  });
}

template <class T>
void sell_backward_(const Program &p, int64_t batch, int64_t ins, const Strided &x, int64_t outs, const Strided &dy,
                    const Strided &dx, const std::vector<void *> &gradients) {
  constexpr int64_t L = LANES<T>;
  const int64_t n = p.size, blocks = (batch + L - 1) / L, parts = std::min(PARTS, blocks);
  std::vector<int64_t> place(p.steps(), -1);  // of each step's gradient in a part
  int64_t width = 0;
  for (int64_t s = 0; s < p.steps(); ++s)
    if (gradients[s]) place[s] = width, width += n;
  const int many = std::min<int>(workers(p, 3 * batch), int(std::max<int64_t>(parts, 1)));
  const int64_t vectors = (kept(p) + 4) * n;
  Lane<T> *const rooms = scratch<Lane<T>>(0, many * vectors);
  std::vector<T> sums(parts * width);
  std::vector<Lane<T> *> all_saved(many * p.steps());
  prepare<T>(p);
  parallel(many, [&](int thread, int threads) {
    Lane<T> *room = rooms + thread * vectors, **saved = all_saved.data() + thread * p.steps();
    Lane<T> *g = room, *spare = g + n, *first = spare + n, *fresh = first + 2 * n;
    for (int64_t part = thread; part < parts; part += threads)
      for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
        const int64_t count = std::min(L, batch - b * L);
        load_block(x, ins, n, b * L, count, reinterpret_cast<T *>(first));
        run<T>(p, first, first + n, fresh, saved);
        g = room, spare = g + n;
        load_block(dy, outs, n, b * L, count, reinterpret_cast<T *>(g));
        for (int64_t s = p.steps() - 1; s >= 0; --s) {
          const T *d = static_cast<const T *>(p.data[s]);
          T *sum = place[s] < 0 ? nullptr : sums.data() + part * width + place[s];
          switch (p.kinds[s]) {
            case DIAGONAL:
              if (sum) add_sums<T>(g, saved[s], n, sum);
              for (int64_t i = 0; i < n; ++i) g[i] *= d[i];
              break;
            case BIAS:
              if (sum) add_sums<T>(g, nullptr, n, sum);
              break;
            case RELU:
              for (int64_t i = 0; i < n; ++i) g[i] = saved[s][i] <= 0 ? Lane<T>{} : g[i];
              break;
            case PERMUTE: {
              const int64_t *from = static_cast<const int64_t *>(p.data[s]);
              for (int64_t i = 0; i < n; ++i) spare[from[i]] = g[i];
              std::swap(g, spare);
              break;
            }
            case HADAMARD:
              hadamard<T>(g, n);
              break;
            case COSINE:
              Cosine<T>::of(n).inverse(g, spare);
              break;
            case INVERSE_COSINE:
              Cosine<T>::of(n).forward(g, spare);
              break;
          }
        }
        if (dx.data) store_block(dx, ins, b * L, count, reinterpret_cast<const T *>(g));
      }
  });
  for (int64_t s = 0; s < p.steps(); ++s)
    if (gradients[s]) {
      T *out = static_cast<T *>(gradients[s]);
      std::fill(out, out + n, T(0));
      for (int64_t part = 0; part < parts; ++part)
        for (int64_t i = 0; i < n; ++i) out[i] += sums[part * width + place[s] + i];
    }
}

}  // namespace

void sell(bool f64, const Program &p, int64_t batch, int64_t ins, Strided x, int64_t outs, Strided y) {
  f64 ? sell_<double>(p, batch, ins, x, outs, y) : sell_<float>(p, batch, ins, x, outs, y);
}
void sell_backward(bool f64, const Program &p, int64_t batch, int64_t ins, Strided x, int64_t outs, Strided dy,
                   Strided dx, const std::vector<void *> &gradients) {
  f64 ? sell_backward_<double>(p, batch, ins, x, outs, dy, dx, gradients)
      : sell_backward_<float>(p, batch, ins, x, outs, dy, dx, gradients);
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
