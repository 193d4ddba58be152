// Noisy activations (Moczulski 2019, 4.3): hard saturating functions with noise where they saturate, and the cells of
// recurrent networks made of them. The i-th number of a tensor in memory has the i-th normal number of a seed: any
// number of threads finds the same noise, and so does the backward pass of a cell.
#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// Normal numbers from random ones: the sum of three uniform numbers (of 11, 11 and 10 bits), stretched by an odd
// polynomial that fits the normal quantiles: their mean squared error is 1e-6, the largest number 4.74.
template <int L>
inline Vec<float, L> normal(Vec<uint32_t, L> number) {
  typedef Vec<float, L> V;
  const auto sum = (number & 0x7ffu) + ((number >> 11) & 0x7ffu) + ((number >> 22) << 1);
  const V t = __builtin_convertvector((Vec<int32_t, L>)sum, V) * (1 / 3070.0f) - 1.0f, t2 = t * t;
  V f = t2 * 12.980541f - 26.483062f;
  f = f * t2 + 21.318427f;
  f = f * t2 - 7.2732172f;
  f = f * t2 + 1.3905271f;
  f = f * t2 + 2.8093073f;
  return t * f;
}

struct Numbers {
  uint64_t seed;
  bool drawn = true;
  double value = 0;
  explicit Numbers(const Noisy &n) : seed(n.seed), drawn(n.random), value(n.value) {}
  explicit Numbers(uint64_t seed) : seed(seed) {}
  template <class T, int L>
  __attribute__((always_inline)) Vec<T, L> at(
      int64_t place) const {  // the normal numbers of L places, or the value that stands for them
    if (!drawn) return Vec<T, L>{} + T(value);
    Vec<uint32_t, L> lane;
    for (int i = 0; i < L; ++i) lane[i] = i;
    const uint32_t high = uint32_t(seed >> 32) + uint32_t(place >> 32) * 0x9e3779b9u;
    const Vec<float, L> found = normal<L>(random<L>(lane + uint32_t(place), uint32_t(seed), high));
    return __builtin_convertvector(found, Vec<T, L>);
  }
};

// u in [low, high]; a NaN stays one
template <class V, class T>
inline V clipped(V u, T low, T high) {
  const V bottom = V{} + low, top = V{} + high, above = bottom > u ? bottom : u;
  return top < above ? top : above;
}

// (sigmoid(z) - 1 / 2)^2 = tanh(z / 2)^2 / 4, and its slope: in float by a quotient of polynomials in z^2 fitted up to
// |z| = 14, error of both below 1e-6; beyond, the slope is 0
template <class T, int L>
inline Vec<T, L> scale(Vec<T, L> z, Vec<T, L> &slope) {
  typedef Vec<T, L> V;
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < L; ++i) z[i] = 0.5 * std::tanh(0.5 * z[i]);
    slope = z * (0.5 - 2 * z * z);
    return z * z;
  } else {
    const V end = V{} + 196.0f, z2 = z * z, u = end < z2 ? end : z2;  // a NaN stays one
    V above = u * 1.53150937e-8f + 3.55450485e-5f, below = u * 2.22075122e-6f + 1.31638796e-3f;
    above = above * u + 7.68736298e-3f;
    below = below * u + 0.114079082f;
    const V ratio = (above * u + 0.249998949f) / (below * u + 1.0f), s2 = u * ratio * ratio;
    slope = end <= z2 ? V{} : z * ratio * (0.5f - 2 * s2);
    return s2;
  }
}

template <class T>
using SignBits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
template <class T>
constexpr SignBits<T> SIGN = std::numeric_limits<SignBits<T>>::min();

template <class T, int L>
inline Vec<T, L> absolute(Vec<T, L> x) {
  typedef Vec<SignBits<T>, L> B;
  const B bits = (B)x & ~SIGN<T>;
  return (Vec<T, L>)bits;
}
// x with its sign changed where that of `other` is set
template <class T, int L>
inline Vec<T, L> along(Vec<T, L> x, Vec<T, L> other) {
  typedef Vec<SignBits<T>, L> B;
  const B bits = (B)x ^ ((B)other & SIGN<T>);
  return (Vec<T, L>)bits;
}

template <class T, int L>
struct Values {
  Vec<T, L> y, dx, dp;  // the function and its derivatives by x and by p
};

// The activation at x, with xi its normal numbers and u = slope x + offset, h = u clipped to [low, high].
template <class T>
struct Activation {
  T slope, offset, low, high, alpha, c, sigma, direction;

  Activation(const Noisy &n, bool tanh)
      : slope(tanh ? 1 : 0.25),
        offset(tanh ? 0 : 0.5),
        low(tanh ? -1 : 0),
        high(1),
        alpha(n.alpha),
        c(n.c),
        sigma(n.sigma),
        direction(1 - n.alpha >= 0 ? -1 : 1) {}

  // The function, and in `kept` what its derivatives need beside x and p: of noise at the output its derivative by p
  // Delta; of NANIL that of the input's noise, infinite where the function is flat; of the others that by x.
  template <int K, int L>
  __attribute__((always_inline)) Vec<T, L> at(Vec<T, L> x, Vec<T, L> p, Vec<T, L> xi, Vec<T, L> &kept) const {
    typedef Vec<T, L> V;
    const V zero{};
    V u = slope * x + offset;
    if constexpr (K == NANI || K == NANIS) {
      const V noise = (slope * sigma) * xi;
      if constexpr (K == NANI) u += noise;
      else u += ((u <= low) | (u >= high)) ? noise : zero;
      const V h = clipped(u, low, high);
      kept = (h == u) ? zero + slope : zero;
      return h;
    }
    const V delta = clipped(u, low, high) - u;
    V steep;
    const V s2 = scale<T, L>(p * delta, steep);
    if constexpr (K == NANIL) {
      const V v = u + (slope * c) * s2 * xi, h = clipped(v, low, high);
      kept = (h == v) ? c * steep * xi : zero + std::numeric_limits<T>::infinity();
      return h;
    }
    const V e = along<T, L>(K == NAH ? absolute<T, L>(xi) : xi, x) * (direction * c);  // c d(x) epsilon
    kept = e * steep;
    return (alpha == 1 ? clipped(u, low, high) : u + alpha * delta) + e * s2;  // sums would cancel at large x
  }

  // Its derivatives by x and by p.
  template <int K, int L>
  __attribute__((always_inline)) void gradients(Vec<T, L> x, Vec<T, L> p, Vec<T, L> kept, Vec<T, L> &dx,
                                                Vec<T, L> &dp) const {
    typedef Vec<T, L> V;
    const V zero{};
    if constexpr (K == NANI || K == NANIS) {
      dx = kept, dp = zero;
      return;
    }
    const V u = slope * x + offset, delta = clipped(u, low, high) - u;
    if constexpr (K == NANIL) {
      const auto flat = kept == std::numeric_limits<T>::infinity();
      dx = flat ? zero : (delta == zero) ? zero + slope : slope - (slope * slope) * kept * p;
      dp = flat ? zero : slope * kept * delta;
      return;
    }
    dx = ((delta == zero) ? zero + slope : zero + slope * (1 - alpha)) - kept * (slope * p);
    dp = kept * delta;
  }

  template <int K, int L>
  __attribute__((always_inline)) Values<T, L> all(Vec<T, L> x, Vec<T, L> p, Vec<T, L> xi) const {
    Values<T, L> v;
    Vec<T, L> kept;
    v.y = at<K, L>(x, p, xi, kept);
    gradients<K, L>(x, p, kept, v.dx, v.dp);
    return v;
  }
};

// body(kind) with the kind as a constant
template <class Body>
inline void with_kind(NoisyKind kind, Body body) {
  switch (kind) {
    case NAN_:
      return body(std::integral_constant<int, NAN_>{});
    case NAH:
      return body(std::integral_constant<int, NAH>{});
    case NANI:
      return body(std::integral_constant<int, NANI>{});
    case NANIL:
      return body(std::integral_constant<int, NANIL>{});
    default:
      return body(std::integral_constant<int, NANIS>{});
  }
}

// Numbers [from, to) in vectors; the last ones through a vector of their own.
template <class T, class Body>
inline void vectors(int64_t from, int64_t to, Body body) {
  constexpr int L = LANES<T>;
  int64_t i = from;
  for (; i + L <= to; i += L) body(i, L);
  if (i < to) body(i, int(to - i));
}
template <class T, int L>
inline Vec<T, L> some(const T *at, int count) {
  if (count == L) return load<T, L>(at);
  Vec<T, L> v{};
  for (int i = 0; i < count; ++i) v[i] = at[i];
  return v;
}
template <class T, int L>
inline void put(T *at, int count, Vec<T, L> v) {
  if (count == L) return store<T, L>(at, v);
  for (int i = 0; i < count; ++i) at[i] = v[i];
}

// Rows of equal length in [0, size), of which a thread has numbers [from, to): body(row, place of its begin, from, to)
template <class Body>
inline void segments(int64_t length, int64_t from, int64_t to, Body body) {
  for (int64_t at = from; at < to;) {
    const int64_t row = at / length, begin = row * length, end = begin + length < to ? begin + length : to;
    body(row, begin, at, end);
    at = end;
  }
}

// p of the numbers of a row: their own (units == row's length) or one for the row
template <class T>
struct Parameters {
  const T *own;
  T shared;
  Parameters(const Layout &l, const T *p, int64_t row)
      : own(l.by_column() ? p : nullptr), shared(own ? T(0) : p[row % l.units]) {}
  template <int L>
  Vec<T, L> at(int64_t in_row, int count) const {
    return own ? some<T, L>(own + in_row, count) : Vec<T, L>{} + shared;
  }
};

template <class T, class K>
void noisy_(K, const Noisy &n, bool tanh, const Layout &l, const T *x, const T *p, T *y, T *kept) {
  constexpr int L = LANES<T>;
  const Activation<T> f(n, tanh);
  const Numbers numbers(n);
  const int64_t size = l.size();
  parallel(team(size * 4), [=](int thread, int threads) {  // copies, that what is written cannot be them
    segments(l.row(), size * thread / threads, size * (thread + 1) / threads,
             [=](int64_t row, int64_t begin, int64_t from, int64_t to) {
               const Parameters<T> of_row(l, p, row);
               vectors<T>(from, to, [=](int64_t i, int count) {
                 Vec<T, L> keep;
                 const Vec<T, L> at_p = of_row.template at<L>(i - begin, count);
                 put<T, L>(y + i, count,
                           f.template at<K::value, L>(some<T, L>(x + i, count), at_p, numbers.at<T, L>(i), keep));
                 if (kept) put<T, L>(kept + i, count, keep);
               });
             });
  });
}

template <class T, class K>
void noisy_backward_(K, const Noisy &n, bool tanh, const Layout &l, const T *x, const T *p, const T *kept, const T *dy,
                     T *dx, T *dp) {
  constexpr int L = LANES<T>;
  const Activation<T> f(n, tanh);
  const int64_t size = l.size();
  // p's sums: in pieces that the shape alone decides, so that results do not depend on the number of threads, of
  // columns whose sums the first cache holds, and of rows
  constexpr int64_t PIECES = 16, GRAIN = 16384, WIDE = 512;
  const int most = team(size);
  const bool by_column = dp && l.by_column();
  const int64_t width = by_column ? WIDE : std::max<int64_t>(l.row(), 1),
                across = by_column ? (l.units + WIDE - 1) / WIDE : 1;
  const int64_t down = dp ? std::max<int64_t>(1, std::min(PIECES / across, size / GRAIN)) : most;
  std::vector<T> parts(dp ? (down - 1) * l.units : 0);  // of all rows but the first ones, whose sums are put into dp
  T *const others = parts.data();
  if (dp) std::fill_n(dp, l.units, T(0));
  parallel(int(std::min<int64_t>(most, down * across)), [=](int thread, int threads) {
    for (int64_t number = thread; number < down * across; number += threads) {
      const int64_t at = number / across, column = number % across * width;
      T *const part = !dp ? nullptr : at ? others + (at - 1) * l.units : dp;
      const auto rows = [=](int64_t row, int64_t begin, int64_t from, int64_t to) {
        const Parameters<T> of_row(l, p, row);
        Vec<T, L> total{};
        vectors<T>(from, to, [=, &total](int64_t i, int count) {
          Vec<T, L> by_x, by_p;
          const Vec<T, L> at_p = of_row.template at<L>(i - begin, count), at_dy = some<T, L>(dy + i, count);
          f.template gradients<K::value, L>(some<T, L>(x + i, count), at_p, some<T, L>(kept + i, count), by_x, by_p);
          put<T, L>(dx + i, count, at_dy * by_x);
          if (!part) return;
          if (l.by_column()) put<T, L>(part + (i - begin), count, some<T, L>(part + (i - begin), count) + at_dy * by_p);
          else total += at_dy * by_p;
        });
        if (part && !l.by_column())
          for (int i = 0; i < L; ++i) part[row % l.units] += lane<L>(total, i);
      };
      segments(l.row(), size * at / down, size * (at + 1) / down,
               [=](int64_t row, int64_t begin, int64_t from, int64_t to) {
                 from = std::max(from, begin + column), to = std::min(to, begin + column + width);
                 if (from < to) rows(row, begin, from, to);
               });
    }
  });
  for (int64_t at = 1; dp && at < down; ++at)
    for (int64_t u = 0; u < l.units; ++u) dp[u] += others[(at - 1) * l.units + u];
}

// A cell's numbers (n, j), j in [0, hidden), column blocks shared out among threads. Gate g of a sample lies at
// pre[(n * GATES + g) * hidden + j] and has the normal numbers of that place; c's function those behind all gates.
template <class T, class Body>
inline void columns(int64_t samples, int64_t hidden, Body body) {
  constexpr int L = LANES<T>;
  const int64_t blocks = (hidden + L - 1) / L;
  parallel(team(samples * hidden * 16), [&](int thread, int threads) {
    for (int64_t b = blocks * thread / threads; b < blocks * (thread + 1) / threads; ++b)
      body(b * L, int(hidden - b * L < L ? hidden - b * L : L));
  });
}

template <class T, class K>
void noisy_lstm_(K, const Noisy &n, int64_t samples, int64_t hidden, const T *pre, const T *p, T *c, T *h, T *before) {
  constexpr int L = LANES<T>;
  typedef Vec<T, L> V;
  const Activation<T> gate(n, false), tanh(n, true);
  const Numbers numbers(n);
  columns<T>(samples, hidden, [&](int64_t j, int count) {
    V ps[5];
    for (int g = 0; g < 5; ++g) ps[g] = some<T, L>(p + g * hidden + j, count);
    for (int64_t s = 0; s < samples; ++s) {
      V y[4];
      for (int g = 0; g < 4; ++g) {
        const int64_t place = (s * 4 + g) * hidden + j;
        y[g] = (g == 2 ? tanh : gate)
                   .template all<K::value, L>(some<T, L>(pre + place, count), ps[g], numbers.at<T, L>(place))
                   .y;
      }
      const int64_t at = s * hidden + j;
      const V old = some<T, L>(c + at, count), now = y[1] * old + y[0] * y[2];
      put<T, L>(before + at, count, old);
      put<T, L>(c + at, count, now);
      const V out = tanh.template all<K::value, L>(now, ps[4], numbers.at<T, L>(samples * 4 * hidden + at)).y;
      put<T, L>(h + at, count, y[3] * out);
    }
  });
}

// dh and dc are those of h and of the cell state after the step; dc becomes that of the state before it, dpre is
// written
template <class T, class K>
void noisy_lstm_backward_(K, const Noisy &n, int64_t samples, int64_t hidden, const T *pre, const T *p, const T *before,
                          const T *dh, T *dc, T *dpre, T *dp) {
  constexpr int L = LANES<T>;
  typedef Vec<T, L> V;
  const Activation<T> gate(n, false), tanh(n, true);
  const Numbers numbers(n);
  columns<T>(samples, hidden, [&](int64_t j, int count) {
    V ps[5], totals[5] = {};
    for (int g = 0; g < 5; ++g) ps[g] = some<T, L>(p + g * hidden + j, count);
    for (int64_t s = 0; s < samples; ++s) {
      Values<T, L> v[4];
      for (int g = 0; g < 4; ++g) {
        const int64_t place = (s * 4 + g) * hidden + j;
        v[g] = (g == 2 ? tanh : gate)
                   .template all<K::value, L>(some<T, L>(pre + place, count), ps[g], numbers.at<T, L>(place));
      }
      const int64_t at = s * hidden + j;
      const V old = some<T, L>(before + at, count), now = v[1].y * old + v[0].y * v[2].y;
      const Values<T, L> out = tanh.template all<K::value, L>(now, ps[4], numbers.at<T, L>(samples * 4 * hidden + at));
      const V of_h = some<T, L>(dh + at, count), of_out = of_h * v[3].y;
      const V of_c = some<T, L>(dc + at, count) + of_out * out.dx;
      const V of[4] = {of_c * v[2].y, of_c * old, of_c * v[0].y, of_h * out.y};
      put<T, L>(dc + at, count, of_c * v[1].y);
      for (int g = 0; g < 4; ++g) {
        put<T, L>(dpre + (s * 4 + g) * hidden + j, count, of[g] * v[g].dx);
        totals[g] += of[g] * v[g].dp;
      }
      totals[4] += of_out * out.dp;
    }
    for (int g = 0; dp && g < 5; ++g)
      put<T, L>(dp + g * hidden + j, count, some<T, L>(dp + g * hidden + j, count) + totals[g]);
  });
}

// r, z, n of a GRU from the products with the input and with the state
template <class T, class K, int L>
struct GRU {
  Activation<T> gate, tanh;
  Numbers numbers;
  int64_t hidden;
  explicit GRU(const Noisy &n, int64_t hidden) : gate(n, false), tanh(n, true), numbers(n), hidden(hidden) {}

  void at(int64_t s, int64_t j, int count, const T *px, const T *ph, const Vec<T, L> *ps, Values<T, L> *v,
          Vec<T, L> &candidate) const {
    for (int g = 0; g < 3; ++g) {
      const int64_t place = (s * 3 + g) * hidden + j;
      const Vec<T, L> of_x = some<T, L>(px + place, count), of_h = some<T, L>(ph + place, count);
      if (g == 2) candidate = of_h;
      v[g] = g == 2 ? tanh.template all<K::value, L>(of_x + v[0].y * of_h, ps[g], numbers.at<T, L>(place))
                    : gate.template all<K::value, L>(of_x + of_h, ps[g], numbers.at<T, L>(place));
    }
  }
};

template <class T, class K>
void noisy_gru_(K, const Noisy &n, int64_t samples, int64_t hidden, const T *px, const T *ph, const T *p, T *h,
                T *before) {
  constexpr int L = LANES<T>;
  const GRU<T, K, L> cell(n, hidden);
  columns<T>(samples, hidden, [&](int64_t j, int count) {
    Vec<T, L> ps[3], candidate;
    for (int g = 0; g < 3; ++g) ps[g] = some<T, L>(p + g * hidden + j, count);
    for (int64_t s = 0; s < samples; ++s) {
      Values<T, L> v[3];
      cell.at(s, j, count, px, ph, ps, v, candidate);
      const int64_t at = s * hidden + j;
      const Vec<T, L> old = some<T, L>(h + at, count);
      put<T, L>(before + at, count, old);
      put<T, L>(h + at, count, (1 - v[1].y) * v[2].y + v[1].y * old);
    }
  });
}

// dh is that of the state after the step and becomes that part of the state before it which does not go through ph
template <class T, class K>
void noisy_gru_backward_(K, const Noisy &n, int64_t samples, int64_t hidden, const T *px, const T *ph, const T *p,
                         const T *before, T *dh, T *dpx, T *dph, T *dp) {
  constexpr int L = LANES<T>;
  typedef Vec<T, L> V;
  const GRU<T, K, L> cell(n, hidden);
  columns<T>(samples, hidden, [&](int64_t j, int count) {
    V ps[3], totals[3] = {}, candidate{};
    for (int g = 0; g < 3; ++g) ps[g] = some<T, L>(p + g * hidden + j, count);
    for (int64_t s = 0; s < samples; ++s) {
      Values<T, L> v[3];
      cell.at(s, j, count, px, ph, ps, v, candidate);
      const int64_t at = s * hidden + j;
      const V of_h = some<T, L>(dh + at, count), old = some<T, L>(before + at, count);
      const V of_n = of_h * (1 - v[1].y), inner = of_n * v[2].dx, of_z = of_h * (old - v[2].y),
              of_r = inner * candidate;
      const V at_x[3] = {of_r * v[0].dx, of_z * v[1].dx, inner};
      for (int g = 0; g < 3; ++g) {
        put<T, L>(dpx + (s * 3 + g) * hidden + j, count, at_x[g]);
        put<T, L>(dph + (s * 3 + g) * hidden + j, count, g == 2 ? inner * v[0].y : at_x[g]);
      }
      put<T, L>(dh + at, count, of_h * v[1].y);
      totals[0] += of_r * v[0].dp;
      totals[1] += of_z * v[1].dp;
      totals[2] += of_n * v[2].dp;
    }
    for (int g = 0; dp && g < 3; ++g)
      put<T, L>(dp + g * hidden + j, count, some<T, L>(dp + g * hidden + j, count) + totals[g]);
  });
}

template <class T>
void normals_(int64_t size, uint64_t seed, T *out) {
  constexpr int L = LANES<T>;
  const Numbers numbers(seed);
  vectors<T>(0, size, [&](int64_t i, int count) { put<T, L>(out + i, count, numbers.at<T, L>(i)); });
}

}  // namespace

#define IN(T) static_cast<const T *>
#define OUT(T) static_cast<T *>
void normals(bool f64, int64_t size, uint64_t seed, void *out) {
  f64 ? normals_(size, seed, OUT(double)(out)) : normals_(size, seed, OUT(float)(out));
}
void noisy(bool f64, const Noisy &n, bool tanh, const Layout &l, const void *x, const void *p, void *y, void *kept) {
#define ARGS(T) (kind, n, tanh, l, IN(T)(x), IN(T)(p), OUT(T)(y), OUT(T)(kept))
  with_kind(n.kind, [&](auto kind) { f64 ? noisy_<double> ARGS(double) : noisy_<float> ARGS(float); });
#undef ARGS
}
void noisy_backward(bool f64, const Noisy &n, bool tanh, const Layout &l, const void *x, const void *p,
                    const void *kept, const void *dy, void *dx, void *dp) {
#define ARGS(T) (kind, n, tanh, l, IN(T)(x), IN(T)(p), IN(T)(kept), IN(T)(dy), OUT(T)(dx), OUT(T)(dp))
  with_kind(n.kind,
            [&](auto kind) { f64 ? noisy_backward_<double> ARGS(double) : noisy_backward_<float> ARGS(float); });
#undef ARGS
}
void noisy_lstm(bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *pre, const void *p, void *c,
                void *h, void *before) {
#define ARGS(T) (kind, n, samples, hidden, IN(T)(pre), IN(T)(p), OUT(T)(c), OUT(T)(h), OUT(T)(before))
  with_kind(n.kind, [&](auto kind) { f64 ? noisy_lstm_<double> ARGS(double) : noisy_lstm_<float> ARGS(float); });
#undef ARGS
}
void noisy_lstm_backward(bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *pre, const void *p,
                         const void *before, const void *dh, void *dc, void *dpre, void *dp) {
#define ARGS(T) \
  (kind, n, samples, hidden, IN(T)(pre), IN(T)(p), IN(T)(before), IN(T)(dh), OUT(T)(dc), OUT(T)(dpre), OUT(T)(dp))
  with_kind(n.kind, [&](auto kind) {
    f64 ? noisy_lstm_backward_<double> ARGS(double) : noisy_lstm_backward_<float> ARGS(float);
  });
#undef ARGS
}
void noisy_gru(bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *px, const void *ph, const void *p,
               void *h, void *before) {
#define ARGS(T) (kind, n, samples, hidden, IN(T)(px), IN(T)(ph), IN(T)(p), OUT(T)(h), OUT(T)(before))
  with_kind(n.kind, [&](auto kind) { f64 ? noisy_gru_<double> ARGS(double) : noisy_gru_<float> ARGS(float); });
#undef ARGS
}
void noisy_gru_backward(bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *px, const void *ph,
                        const void *p, const void *before, void *dh, void *dpx, void *dph, void *dp) {
#define ARGS(T)                                                                                                   \
  (kind, n, samples, hidden, IN(T)(px), IN(T)(ph), IN(T)(p), IN(T)(before), OUT(T)(dh), OUT(T)(dpx), OUT(T)(dph), \
   OUT(T)(dp))
  with_kind(n.kind, [&](auto kind) {
    f64 ? noisy_gru_backward_<double> ARGS(double) : noisy_gru_backward_<float> ARGS(float);
  });
#undef ARGS
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
