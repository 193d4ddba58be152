// Sparse layers one after another, with their activations: the forward and the backward pass of all of them in one
// call.
//
// Each thread takes panels of the batch through all layers, so that what a layer writes is in the thread's own cache
// when the next one reads it, and threads do not wait for one another. Where there are fewer panels than threads,
// several threads share a panel and divide the rows of each product.
//
// Sums over the batch are kept in groups of panels, which only the batch determines, so that results do not depend on
// the number of threads.
#include "chain_curves.h"
#include "dispatch.h"
#include "scratch.h"

#include <atomic>
#include <memory>
#include <numeric>
#include <thread>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// Samples up to which putting values into the order of the transposed pattern, and their gradients back, costs more
// than it saves: both products of the backward pass are computed apart then, each by its own pattern.
constexpr int64_t FEW = 4;
constexpr int64_t STRIP = 64;  // units that are computed before they are written to a tensor in another order

// Threads that share panels. `wait` returns when all of them have called it.
struct alignas(64) Meeting {
  std::atomic<int> here{0}, number{0};

  void wait(int members) {
    if (members == 1) return;
    const int now = number.load(std::memory_order_acquire);
    if (here.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
      here.store(0, std::memory_order_relaxed);
      number.store(now + 1, std::memory_order_release);
    } else {
      for (int turns = 0; number.load(std::memory_order_acquire) == now; ++turns)
        if (turns > 2000) std::this_thread::yield();
    }
  }
};

// A thread's place among `teams` teams of `members` threads each; those left over have nothing to do.
struct Member {
  int teams, members, team, member;
  Member(int thread, int threads, int64_t most_teams) {
    teams = int(std::min<int64_t>(threads, most_teams));
    members = threads / teams;
    team = thread / members, member = thread % members;
  }
  bool idle() const { return team >= teams; }
  int64_t from(int64_t all) const { return all * member / members; }
  int64_t to(int64_t all) const { return all * (member + 1) / members; }
};

template <class T, class I>
Rows<T, I> rows_from(const Pattern &w, const T *values, int64_t first) {
  return {static_cast<const I *>(w.indptr) + first, static_cast<const I *>(w.indices), static_cast<const I *>(w.perm),
          values};
}

// Dropout follows a curve: `through_curve`.
template <class T>
Finish<T> finish_of(const Layer &layer, int64_t batch) {
  return {static_cast<const T *>(layer.bias), layer.relu, Drop<T>(layer.curve ? 0 : layer.drop, layer.seed, batch)};
}

// Rows [first, first + count) of a layer's product on a panel x, to rows of `y`.
template <class T, class I, class S>
void multiply(const Layer &layer, int64_t batch, const Panel &panel, bool far, const S *x, int64_t first, int64_t count,
              S *y, int64_t y_stride) {
  const Rows<T, I> w = rows_from<T, I>(layer.index.w, static_cast<const T *>(layer.values), first);
  Finish<T> finish = finish_of<T>(layer, batch);
  if (finish.bias) finish.bias += first;
  finish.drop.first_row = first;
  panel_blocks<T, FORWARD>(panel.width, [&](auto lanes, auto vectors, int64_t column) {
    constexpr int L = decltype(lanes)::value, NV = decltype(vectors)::value;
    const auto run = [&](auto is_far) {
      multiply_rows<T, I, L, NV, false, decltype(is_far)::value, false>(w, x + column, panel.width, y + column,
                                                                        y_stride, Place{(NV - 1) * L}, finish,
                                                                        panel.first + column, 0, count);
    };
    if (L == LANES<T> && far) run(std::true_type{});
    else run(std::false_type{});
  });
}

inline int64_t widest(const std::vector<Layer> &layers) {
  int64_t most = 1;
  for (const Layer &layer : layers) most = std::max({most, layer.index.w.rows, layer.index.wt.rows});
  return most;
}

// Whether indices are int64: all of them, or none.
inline bool wide_indices(const std::vector<Layer> &layers) {
  for (const Layer &layer : layers)
    if (layer.index.w.wide != layers[0].index.w.wide)
      throw std::invalid_argument("chain: the indices of all layers must be of one type");
  return layers[0].index.w.wide;
}

// Refuses curves that are not smooth or that no layer follows: what the backward pass needs is kept between layers.
inline void check_curves(const std::vector<Layer> &layers) {
  for (size_t i = 0; i < layers.size(); ++i)
    if (layers[i].curve && (!is_smooth(layers[i].curve) || layers[i].relu || i + 1 == layers.size()))
      throw std::invalid_argument("chain: only smooth curves between layers, in place of ReLU");
}

inline int64_t work_of(const std::vector<Layer> &layers, int64_t batch) {
  int64_t work = 0;
  for (const Layer &layer : layers) work += (layer.index.w.nnz() + layer.index.w.rows) * batch;
  return work;
}

template <class T, class S, class I>
void forward_(const std::vector<Layer> &layers, int64_t batch, const Strided &x, const Strided &y, S *kept) {
  const int64_t most = widest(layers), wide = panel_width<S>(most), number = int64_t(layers.size());
  const Panels panels(batch, wide);
  check_curves(layers);
  if (batch == 0) return;
  const int threads = team(work_of(layers, batch));
  const int64_t teams = std::min<int64_t>(threads, panels.count());
  const bool far = is_far<S>(most, wide);
  S *buffers = scratch<S>(0, 2 * teams * most * wide), *strips = scratch<S>(1, threads * STRIP * wide);
  std::unique_ptr<Meeting[]> meetings(new Meeting[teams]);
  parallel(threads, [&](int thread, int all) {
    const Member me(thread, all, panels.count());
    if (me.idle()) return;
    const auto wait = [&] { meetings[me.team].wait(me.members); };
    S *const mine = buffers + 2 * me.team * most * wide, *strip = strips + thread * STRIP * wide;
    for (int64_t p = panels.count() * me.team / me.teams; p < panels.count() * (me.team + 1) / me.teams; ++p) {
      const Panel panel = panels[p];
      const int64_t ins = layers[0].index.wt.rows;
      const S *from = mine;
      pack<S>(x, panel, me.from(ins), me.to(ins), mine + me.from(ins) * panel.width);
      wait();
      S *place = kept;
      for (int64_t i = 0; i < number; ++i) {
        const Layer &layer = layers[i];
        const I *indptr = static_cast<const I *>(layer.index.w.indptr);
        const int64_t rows = layer.index.w.rows;
        const int64_t begin = share(indptr, rows, me.member, me.members),
                      end = share(indptr, rows, me.member + 1, me.members);
        if (i < number - 1) {
          S *to = kept ? place + panel.at * rows : mine + (i + 1) % 2 * most * wide;
          multiply<T, I>(layer, batch, panel, far, from, begin, end - begin, to + begin * panel.width, panel.width);
          if (panel.count < panel.width)  // so that an infinity there meets no zero of a gradient
            for (int64_t r = begin; r < end; ++r)
              std::fill(to + r * panel.width + panel.count, to + (r + 1) * panel.width, S{});
          S *const next = layer.curve ? mine + (i + 1) % 2 * most * wide : to;
          if (layer.curve)
            through_curve<T>(layer, batch, panel, to + begin * panel.width, next + begin * panel.width, begin, end);
          if (kept) place += rows * panels.padded();
          from = next;
        } else if (is_packed(y, panel)) {
          S *to = static_cast<S *>(y.data) + begin * y.by_feature + panel.first;
          multiply<T, I>(layer, batch, panel, far, from, begin, end - begin, to, y.by_feature);
        } else {
          for (int64_t r = begin; r < end; r += STRIP) {
            const int64_t some = std::min(STRIP, end - r);
            multiply<T, I>(layer, batch, panel, far, from, r, some, strip, panel.width);
            unpack<S>(strip, panel, r, r + some, y);
          }
        }
        wait();
      }
    }
  });
}

// Rows [first, first + count) of backward_rows on a panel: a dot product a nonzero, and `out` unless null.
template <class T, class I, class S>
void backward_part(const Rows<T, I> &w, const Panel &panel, bool far, const S *own, int64_t own_stride, const S *other,
                   T *dots, bool begins, S *out, int64_t out_stride, const Through<T> &through, int64_t count) {
  panel_blocks<T, BACKWARD>(panel.width, [&](auto lanes, auto vectors, int64_t column) {
    constexpr int L = decltype(lanes)::value, NV = decltype(vectors)::value;
    const bool first = begins && column == 0;
    const Place place{(NV - 1) * L};
    const auto run = [&](auto sum, auto is_far) {
      backward_rows<T, I, L, NV, decltype(sum)::value, false, decltype(is_far)::value>(
          w, own + column, own_stride, other + column, panel.width, dots, first, out + column, out_stride, place,
          through, 0, count);
    };
    const auto with_sum = [&](auto is_far) { out ? run(std::true_type{}, is_far) : run(std::false_type{}, is_far); };
    if (L == LANES<T> && far) with_sum(std::true_type{});
    else with_sum(std::false_type{});
  });
}

// The gradient of a layer's input for a panel of few samples: rows [first, first + count) of W^T, through `own`.
template <class T, class I, class S>
void multiply_few(const Layer &layer, const Panel &panel, const S *d, const S *own, S *out, const Through<T> &through,
                  int64_t first, int64_t count) {
  const Rows<T, I> wt = rows_from<T, I>(layer.index.wt, static_cast<const T *>(layer.values), first);
  const int64_t width = panel.width;
  panel_blocks<T, 1>(width, [&](auto lanes, auto, int64_t column) {
    constexpr int L = decltype(lanes)::value;
    if constexpr (L <= FEW) {
      multiply_rows<T, I, L, 1>(wt, d + column, width, out + column, width, Place{0}, Finish<T>{}, 0, 0, count);
      for (int64_t r = 0; r < count; ++r) {
        Vec<T, L> v = load<T, L>(out + r * width + column);
        if (through.relu) v = load<T, L>(own + r * width + column) <= 0 ? Vec<T, L>{} : v * through.scale;
        store<T, L>(out + r * width + column, v);
        if (through.sums) through.sums[r] = total<T, L>(v) + (column > 0 ? through.sums[r] : T(0));
      }
    }
  });
}

// dz = dy where y > 0, times the scale of dropout, for units [from, to) of a panel; their sums are added to `sums`.
template <class T, class S>
void take_up(const Layer &layer, const Strided &dy, const Strided &y, const Panel &panel, int64_t from, int64_t to,
             S *strip, S *dz, T *sums, bool first) {
  const T scale = Drop<T>(layer.drop, layer.seed, 0).scale;
  const int64_t width = panel.width;
  for (int64_t unit = from; unit < to; unit += STRIP) {
    const int64_t units = std::min(STRIP, to - unit);
    S *const out = dz + unit * width;
    const auto rows_of = [&](const Strided &m, S *packed) {  // where they are, or packed
      if (is_packed(m, panel))
        return Strided{static_cast<S *>(m.data) + unit * m.by_feature + panel.first, 1, m.by_feature};
      pack<S>(m, panel, unit, unit + units, packed);
      return Strided{packed, 1, width};
    };
    const Strided in = rows_of(dy, out), output = layer.relu ? rows_of(y, strip) : Strided{};
    panel_blocks<T, 1>(width, [&](auto lanes, auto, int64_t column) {
      constexpr int L = decltype(lanes)::value;
      for (int64_t u = 0; u < units; ++u) {
        const S *row = static_cast<const S *>(in.data) + u * in.by_feature + column;
        if (u + 16 < units) prefetch(row + 16 * in.by_feature, L);
        Vec<T, L> v = load<T, L>(row);
        if (layer.relu)
          v = load<T, L>(static_cast<const S *>(output.data) + u * output.by_feature + column) <= 0 ? Vec<T, L>{}
                                                                                                    : v * scale;
        store<T, L>(out + u * width + column, v);
        if (sums) {
          const T sum = total<T, L>(v);
          T &its = sums[unit + u];
          its = first && column == 0 ? sum : its + sum;
        }
      }
    });
  }
}

template <class T, class S, class I>
void backward_(const std::vector<Layer> &layers, int64_t batch, const Strided &x, const S *kept, const Strided &y,
               const Strided &dy, const Strided &dx, const std::vector<Gradients> &gradients) {
  const int64_t most = widest(layers), wide = panel_width<S>(most), number = int64_t(layers.size());
  const Panels panels(batch, wide);
  check_curves(layers);
  int64_t sums = 0;  // numbers that are summed over the batch
  for (const Layer &layer : layers) sums += layer.index.w.nnz() + layer.index.w.rows;
  if (batch == 0) {
    for (int64_t i = 0; i < number; ++i) {
      std::fill_n(static_cast<T *>(gradients[i].values), layers[i].index.w.nnz(), T(0));
      if (gradients[i].bias) std::fill_n(static_cast<T *>(gradients[i].bias), layers[i].index.w.rows, T(0));
    }
    return;
  }
  const int64_t groups = std::min<int64_t>({panels.count(), 8, (batch + 63) / 64});
  const auto first_panel = [&](int64_t group) { return (group * panels.count() + groups - 1) / groups; };
  const auto group_of = [&](int64_t panel) { return panel * groups / panels.count(); };
  const int threads = team(2 * work_of(layers, batch));
  const int64_t teams = std::min<int64_t>(threads, groups);
  int64_t ins = layers[0].index.wt.rows;  // the most inputs of a layer that reads them from `packed`
  for (const Layer &layer : layers)
    if (layer.curve) ins = std::max(ins, layer.index.w.rows);
  const bool far = is_far<S>(most, wide);
  T *parts = scratch<T>(0, groups * sums), *ordered = scratch<T>(4, sums);  // by the transposed patterns
  S *deltas = scratch<S>(1, 2 * most * panels.padded());
  S *inputs = scratch<S>(2, teams * ins * wide), *strips = scratch<S>(3, threads * STRIP * wide);
  std::unique_ptr<Meeting[]> meetings(new Meeting[teams]);
  const auto with_input = [&](int64_t i) { return i > 0 || dx.data; };  // whether the gradient of its input is wanted
  const auto apart = [&](int64_t i) { return i > 0 && batch <= FEW && !is_short<S>; };
  parallel(threads, [&](int thread, int all) {
    const Member me(thread, all, groups);
    const auto wait = [&] { meetings[me.team].wait(me.members); };
    const auto mine = [&](int64_t n, int which) { return n * (thread + which) / all; };
    T *in_order = ordered;
    for (int64_t i = 0; i < number; ++i) {
      const int64_t nnz = layers[i].index.w.nnz();
      const T *values = static_cast<const T *>(layers[i].values);
      const I *perm = static_cast<const I *>(layers[i].index.wt.perm);
      for (int64_t k = mine(nnz, 0); with_input(i) && !apart(i) && k < mine(nnz, 1); ++k) in_order[k] = values[perm[k]];
      in_order += nnz + layers[i].index.w.rows;
    }
    wait_for(all);
    const auto work = [&] {
      const int64_t begin = first_panel(groups * me.team / me.teams),
                    end = first_panel(groups * (me.team + 1) / me.teams);
      const int64_t before = panels[begin].at, width = panels[end - 1].at + panels[end - 1].width - before;
      S *delta = deltas + 2 * most * before, *next = delta + most * width;
      S *const packed = inputs + me.team * ins * wide, *const strip = strips + thread * STRIP * wide;
      const auto begins = [&](int64_t p) { return p == begin || group_of(p) != group_of(p - 1); };
      const Layer &last = layers[number - 1];
      int64_t at = sums - last.index.w.rows;  // where a part holds the sums at hand: a layer's dots, then its bias's
      const S *activations = kept;
      for (int64_t i = 0; i + 1 < number; ++i) activations += layers[i].index.w.rows * panels.padded();
      for (int64_t p = begin; p < end; ++p) {
        const int64_t rows = last.index.w.rows;
        T *its_sums = gradients[number - 1].bias ? parts + group_of(p) * sums + at : nullptr;
        take_up<T, S>(last, dy, y, panels[p], me.from(rows), me.to(rows), strip, delta + (panels[p].at - before) * rows,
                      its_sums, begins(p));
      }
      for (int64_t i = number - 1; i >= 0; --i) {
        const Layer &layer = layers[i];
        const int64_t rows = layer.index.w.rows, cols = layer.index.wt.rows;
        at -= layer.index.w.nnz();
        const Pattern &by = with_input(i) ? layer.index.wt : layer.index.w;
        const I *indptr = static_cast<const I *>(by.indptr);
        const T *const values = ordered + at;
        const int64_t from = share(indptr, by.rows, me.member, me.members);
        const int64_t to = share(indptr, by.rows, me.member + 1, me.members);
        if (i > 0) activations -= cols * panels.padded();
        wait();
        for (int64_t p = begin; p < end; ++p) {
          const Panel panel = panels[p];
          T *const part = parts + group_of(p) * sums;
          const S *input = activations + panel.at * cols, *d = delta + (panel.at - before) * rows;
          int64_t stride = panel.width;
          const S *const before_curve = i > 0 && layers[i - 1].curve ? input : nullptr;
          if (i == 0 && dx.data && is_packed(x, panel)) {
            input = static_cast<const S *>(x.data) + panel.first, stride = x.by_feature;
          } else if (i == 0 || before_curve) {
            if (p > begin) wait();
            const int64_t first = me.from(cols), end = me.to(cols), place = first * panel.width;
            if (i == 0) pack<S>(x, panel, first, end, packed + place);
            else through_curve<T>(layers[i - 1], batch, panel, input + place, packed + place, first, end);
            wait();
            input = packed;
          }
          const auto run = [&](int64_t first, int64_t count, S *out, int64_t out_stride, const Through<T> &through) {
            const Rows<T, I> w = rows_from<T, I>(by, values, first);
            if (with_input(i))
              backward_part<T, I>(w, panel, far, input + first * stride, stride, d, part + at, begins(p), out,
                                  out_stride, through, count);
            else
              backward_part<T, I>(w, panel, far, d + first * panel.width, panel.width, input, part + at, begins(p), out,
                                  out_stride, through, count);
          };
          if (!with_input(i)) {
            run(from, to - from, nullptr, 0, {});
          } else if (i > 0) {
            const Layer &previous = layers[i - 1];
            T *its_sums = gradients[i - 1].bias ? part + at - cols + from : nullptr;
            S *const out = next + (panel.at - before) * cols + from * panel.width;
            const bool padded = panel.count < panel.width && !previous.relu;  // zero times an infinite value is NaN
            const Through<T> through{previous.relu, Drop<T>(previous.drop, previous.seed, 0).scale,
                                     padded || before_curve ? nullptr : its_sums};
            if (apart(i)) {
              multiply_few<T, I>(layer, panel, d, input + from * panel.width, out, through, from, to - from);
              const I *by_row = static_cast<const I *>(layer.index.w.indptr);
              const int64_t first = share(by_row, rows, me.member, me.members),
                            last_row = share(by_row, rows, me.member + 1, me.members);
              backward_part<T, I>(rows_from<T, I>(layer.index.w, values, first), panel, far, d + first * panel.width,
                                  panel.width, input, static_cast<T *>(gradients[i].values), true,
                                  static_cast<S *>(nullptr), 0, {}, last_row - first);
            } else {
              run(from, to - from, out, panel.width, through);
            }
            if (before_curve)
              back_through_curve<T>(previous, batch, panel, before_curve + from * panel.width, out,
                                    padded ? nullptr : its_sums, begins(p), from, to);
            for (int64_t c = 0; padded && c < to - from; ++c) {
              S *const row = out + c * panel.width;
              std::fill(row + panel.count, row + panel.width, S{});
              if (!its_sums) continue;
              T sum = begins(p) ? T(0) : its_sums[c];
              for (int64_t b = 0; b < panel.count; ++b) sum += load<T, 1>(row + b);
              its_sums[c] = sum;
            }
          } else if (is_packed(dx, panel)) {
            run(from, to - from, static_cast<S *>(dx.data) + from * dx.by_feature + panel.first, dx.by_feature, {});
          } else {
            for (int64_t c = from; c < to; c += STRIP) {
              const int64_t some = std::min(STRIP, to - c);
              run(c, some, strip, panel.width, {});
              unpack<S>(strip, panel, c, c + some, dx);
            }
          }
        }
        if (i > 0) at -= cols;
        wait();
        std::swap(delta, next);
      }
    };
    if (!me.idle()) work();
    wait_for(all);
    for (int64_t k = mine(sums, 0); groups > 1 && k < mine(sums, 1);) {  // a cache's worth at a time
      const int64_t end = std::min(k + 2048, mine(sums, 1));
      for (int64_t g = 1; g < groups; ++g)
        for (int64_t j = k; j < end; ++j) parts[j] += parts[g * sums + j];
      k = end;
    }
    if (groups > 1) wait_for(all);
    const T *part = parts;
    for (int64_t i = 0; i < number; ++i) {
      const int64_t rows = layers[i].index.w.rows, nnz = layers[i].index.w.nnz();
      T *values = static_cast<T *>(gradients[i].values), *bias = static_cast<T *>(gradients[i].bias);
      const int64_t from = mine(nnz, 0), to = mine(nnz, 1);
      if (apart(i)) {  // they are there
      } else if (with_input(i)) {
        const I *place = static_cast<const I *>(layers[i].index.place);
        for (int64_t k = from; k < to; ++k) values[k] = part[place[k]];
      } else {
        std::copy(part + from, part + to, values + from);
      }
      if (bias) std::copy(part + nnz + mine(rows, 0), part + nnz + mine(rows, 1), bias + mine(rows, 0));
      part += nnz + rows;
    }
  });
}

}  // namespace

int64_t kept_numbers(Number stored, const std::vector<Layer> &layers, int64_t batch) {
  int64_t padded = 0, units = 0;
  with_storage(stored,
               [&](auto, auto s) { padded = Panels(batch, panel_width<decltype(s)>(widest(layers))).padded(); });
  for (size_t i = 0; i + 1 < layers.size(); ++i) units += layers[i].index.w.rows;
  return units * padded;
}
void chain(Number stored, const std::vector<Layer> &layers, int64_t batch, Strided x, Strided y, void *kept) {
  with_storage(stored, wide_indices(layers), [&](auto t, auto s, auto index) {
    typedef decltype(s) S;
    forward_<decltype(t), S, decltype(index)>(layers, batch, x, y, static_cast<S *>(kept));
  });
}
void chain_backward(Number stored, const std::vector<Layer> &layers, int64_t batch, Strided x, const void *kept,
                    Strided y, Strided dy, Strided dx, const std::vector<Gradients> &gradients) {
  with_storage(stored, wide_indices(layers), [&](auto t, auto s, auto index) {
    typedef decltype(s) S;
    backward_<decltype(t), S, decltype(index)>(layers, batch, x, static_cast<const S *>(kept), y, dy, dx, gradients);
  });
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
