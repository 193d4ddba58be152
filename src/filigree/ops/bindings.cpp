// Python's door to the kernels: addresses and sizes in, nothing out. Tensors are checked on the Python side, where
// their lifetime is held; passing addresses costs a tenth of a microsecond an argument, a DLPack cast five.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "openmp.h"

namespace nb = nanobind;
using filigree::Matrix;
using filigree::Noisy;
using filigree::NoisyKind;
using filigree::Pattern;

namespace {

struct Kernels {
  const char *name;
  decltype(&filigree::portable::spmm) spmm;
  decltype(&filigree::portable::sddmm) sddmm;
  decltype(&filigree::portable::backward) backward;
  decltype(&filigree::portable::linear_backward) linear_backward;
  decltype(&filigree::portable::rows_backward) rows_backward;
  decltype(&filigree::portable::rows_spmm) rows_spmm;
  decltype(&filigree::portable::integer_spmm) integer_spmm;
  decltype(&filigree::portable::transpose) transpose;
  decltype(&filigree::portable::conv) conv;
  decltype(&filigree::portable::conv_backward) conv_backward;
  decltype(&filigree::portable::top) top;
  decltype(&filigree::portable::top_backward) top_backward;
  decltype(&filigree::portable::spread) spread;
  decltype(&filigree::portable::outer) outer;
  decltype(&filigree::portable::sell) sell;
  decltype(&filigree::portable::sell_backward) sell_backward;
  decltype(&filigree::portable::dropout) dropout;
  decltype(&filigree::portable::normals) normals;
  decltype(&filigree::portable::noisy) noisy;
  decltype(&filigree::portable::noisy_backward) noisy_backward;
  decltype(&filigree::portable::noisy_lstm) noisy_lstm;
  decltype(&filigree::portable::noisy_lstm_backward) noisy_lstm_backward;
  decltype(&filigree::portable::noisy_gru) noisy_gru;
  decltype(&filigree::portable::noisy_gru_backward) noisy_gru_backward;
};

#define KERNELS(ISA)                                                                             \
  Kernels {                                                                                      \
    #ISA, filigree::ISA::spmm, filigree::ISA::sddmm, filigree::ISA::backward, \
        filigree::ISA::linear_backward, filigree::ISA::rows_backward, filigree::ISA::rows_spmm, \
        filigree::ISA::integer_spmm, filigree::ISA::transpose, filigree::ISA::conv, \
        filigree::ISA::conv_backward, filigree::ISA::top, filigree::ISA::top_backward, \
        filigree::ISA::spread, filigree::ISA::outer, \
        filigree::ISA::sell, filigree::ISA::sell_backward, filigree::ISA::dropout, \
        filigree::ISA::normals, filigree::ISA::noisy, filigree::ISA::noisy_backward, \
        filigree::ISA::noisy_lstm, filigree::ISA::noisy_lstm_backward, filigree::ISA::noisy_gru, \
        filigree::ISA::noisy_gru_backward \
  }

// what this processor can run, the fastest first
std::vector<Kernels> runnable() {
  std::vector<Kernels> found;
#ifdef FILIGREE_HAVE_avx512
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(KERNELS(avx512));
#endif
#ifdef FILIGREE_HAVE_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(KERNELS(avx2));
#endif
#ifdef FILIGREE_HAVE_neon
  found.push_back(KERNELS(neon));  // every 64-bit ARM has it
#endif
  found.push_back(KERNELS(portable));
  return found;
}

const std::vector<Kernels> kernels = runnable();
const Kernels *now = &kernels.front();

// of this thread
void flush_denormals(bool on) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(on ? __builtin_ia32_stmxcsr() | 0x8040u : __builtin_ia32_stmxcsr() & ~0x8040u);
#elif defined(__aarch64__)
  constexpr uint64_t FLUSH = uint64_t(1) << 24;
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" : : "r"(on ? control | FLUSH : control & ~FLUSH));
#else
  (void)on;
#endif
}

void *at(uintptr_t address) { return reinterpret_cast<void *>(address); }
Matrix matrix(uintptr_t address, int64_t stride) { return {at(address), stride}; }

// A permutation may come from a file: what it names must be there. O(size), beside a batch of work.
void check_permutations(int64_t size, const std::vector<int32_t> &kinds, const std::vector<uintptr_t> &data) {
  for (size_t step = 0; step < kinds.size(); ++step)
    if (kinds[step] == filigree::PERMUTE) {
      const int64_t *from = reinterpret_cast<const int64_t *>(data[step]);
      for (int64_t i = 0; i < size; ++i)
        if (from[i] < 0 || from[i] >= size)
          throw std::invalid_argument("sell: a permutation must name places in [0, " + std::to_string(size) +
                                      "). Got " + std::to_string(from[i]) + ".");
    }
}

filigree::Top top(uintptr_t indptr, uintptr_t indices, uintptr_t values, uintptr_t t_indptr, uintptr_t t_indices,
                  uintptr_t t_perm, uintptr_t sums) {
  const auto ints = [](uintptr_t address) { return reinterpret_cast<int32_t *>(address); };
  return {ints(indptr), ints(indices), at(values), ints(t_indptr), ints(t_indices), ints(t_perm), at(sums)};
}

typedef std::array<int64_t, 4> Four;
filigree::Images images(Four size, Four stride, Four rows, Four cols) {
  return {size[0],   size[1],   size[2],   size[3],   stride[0],
          stride[1], stride[2], stride[3], {rows[0], rows[1], rows[2], rows[3]}, {cols[0], cols[1], cols[2], cols[3]}};
}

filigree::Convolution strided(filigree::Convolution c, Four x, Four y) {
  c.x.by_image = x[0], c.x.by_channel = x[1], c.x.by_row = x[2], c.x.by_column = x[3];
  c.y.by_image = y[0], c.y.by_channel = y[1], c.y.by_row = y[2], c.y.by_column = y[3];
  return c;
}

}  // namespace

NB_MODULE(_kernels, m) {
  typedef uintptr_t P;
  typedef nb::call_guard<nb::gil_scoped_release> no_gil;
  m.def("spmm", [](bool f64, bool wide, int64_t rows, P indptr, P indices, P perm, P values, P x, int64_t ldx, P y,
                   int64_t ldy, int64_t batch, P bias, bool relu) {
    now->spmm(f64, Pattern{rows, at(indptr), at(indices), at(perm), wide}, at(values), matrix(x, ldx), matrix(y, ldy),
              batch, at(bias), relu);
  }, no_gil());
  m.def("sddmm", [](bool f64, bool wide, int64_t rows, P indptr, P indices, P dy, int64_t lddy, P x, int64_t ldx,
                    P dvalues, int64_t batch) {
    now->sddmm(f64, Pattern{rows, at(indptr), at(indices), nullptr, wide}, matrix(dy, lddy), matrix(x, ldx),
               at(dvalues), batch);
  }, no_gil());
  m.def("backward", [](bool f64, bool wide, int64_t rows, P indptr, P indices, P perm, P values, P dy, int64_t lddy,
                       P x, int64_t ldx, P dx, int64_t lddx, P dvalues, int64_t batch) {
    now->backward(f64, Pattern{rows, at(indptr), at(indices), at(perm), wide}, at(values), matrix(dy, lddy),
                  matrix(x, ldx), matrix(dx, lddx), at(dvalues), batch);
  }, no_gil());
  m.def("linear_backward", [](bool f64, bool wide, int64_t rows, P indptr, P indices, int64_t cols, P t_indptr,
                              P t_indices, P t_perm, P t_place, P values, P dy, int64_t dy_feature, int64_t dy_sample, P y,
                              int64_t ldy, P dz, int64_t lddz, P dbias, P x, int64_t ldx, P dx, int64_t lddx,
                              P dvalues, int64_t batch) {
    now->linear_backward(f64, Pattern{rows, at(indptr), at(indices), nullptr, wide},
                         Pattern{cols, at(t_indptr), at(t_indices), at(t_perm), wide}, at(t_place), at(values), at(dy), dy_feature,
                         dy_sample, matrix(y, ldy), matrix(dz, lddz), at(dbias), matrix(x, ldx), matrix(dx, lddx),
                         at(dvalues), batch);
  }, no_gil());
  m.def("rows_backward", [](bool f64, bool wide, int64_t rows, P indptr, P indices, int64_t cols, P t_indptr,
                            P t_indices, P t_perm, P chosen, int64_t count, P values, P dy, int64_t lddy, P y,
                            int64_t ldy, P dz, P dbias, P x, int64_t ldx, P dx, P place, P dvalues, int64_t batch) {
    now->rows_backward(f64, Pattern{rows, at(indptr), at(indices), nullptr, wide},
                       Pattern{cols, at(t_indptr), at(t_indices), at(t_perm), wide},
                       static_cast<const int64_t *>(at(chosen)), count, at(values), matrix(dy, lddy), matrix(y, ldy),
                       matrix(dz, batch), at(dbias), matrix(x, ldx), matrix(dx, batch), at(place), at(dvalues), batch);
  }, no_gil());
  m.def("rows_spmm", [](bool f64, bool wide, int64_t rows, P indptr, P indices, P chosen, int64_t count, P values, P x,
                        int64_t ldx, P y, int64_t batch, P bias, bool relu) {
    now->rows_spmm(f64, Pattern{rows, at(indptr), at(indices), nullptr, wide}, static_cast<const int64_t *>(at(chosen)),
                   count, at(values), matrix(x, ldx), matrix(y, batch), batch, at(bias), relu);
  }, no_gil());
  m.def("integer_spmm", [](bool f64, int64_t rows, int64_t cols, P indptr, bool narrow, P indices, P counts, P x, int64_t ldx, P y,
                           int64_t batch, P scale, P bias, bool relu) {
    now->integer_spmm(f64, {rows, static_cast<const int32_t *>(at(indptr)), at(indices),
                            static_cast<const int8_t *>(at(counts)), narrow}, cols,
                      matrix(x, ldx), matrix(y, batch), batch, at(scale), at(bias), relu);
  }, no_gil());
  m.def("transpose", [](bool f64, int64_t rows, int64_t cols, P in, int64_t ldin, P out, int64_t ldout) {
    now->transpose(f64, rows, cols, matrix(in, ldin), matrix(out, ldout));
  }, no_gil());
  nb::class_<filigree::Convolution>(m, "Convolution")
      .def("__init__", [](filigree::Convolution *self, bool wide, int64_t outs, P indptr, P offsets, int64_t planes,
                          P t_indptr, P t_offsets, P t_perm, Four x_size, Four y_size, Four rows, Four cols,
                          int64_t stride, int64_t reach, int64_t chunk) {
        const Four out_rows{0, 1, 1, rows[3]}, out_cols{0, 1, 1, cols[3]}, none{};
        new (self) filigree::Convolution{images(x_size, none, rows, cols), images(y_size, none, out_rows, out_cols),
                                         Pattern{outs, at(indptr), at(offsets), nullptr, wide},
                                         Pattern{planes, at(t_indptr), at(t_offsets), at(t_perm), wide}, stride, reach,
                                         chunk};
      });
  m.def("conv", [](filigree::Convolution c, bool f64, P values, P bias, P x, Four x_stride, P y, Four y_stride) {
    now->conv(f64, strided(c, x_stride, y_stride), at(values), at(bias), at(x), at(y));
  }, no_gil());
  m.def("conv_backward", [](filigree::Convolution c, bool f64, P values, P x, Four x_stride, P dy, Four dy_stride,
                            P dvalues, P dbias, P dx) {
    now->conv_backward(f64, strided(c, x_stride, dy_stride), at(values), at(x), at(dy), at(dvalues), at(dbias), at(dx));
  }, no_gil());
  m.def("top", [](bool f64, int64_t rows, int64_t cols, int64_t k, P x, int64_t ldx, P indptr, P indices, P values,
                  P t_indptr, P t_indices, P t_perm, P sums) {
    return now->top(f64, rows, cols, k, matrix(x, ldx),
                    top(indptr, indices, values, t_indptr, t_indices, t_perm, sums));
  }, no_gil());
  m.def("top_backward", [](bool f64, bool unified, int64_t batch, int64_t outs, int64_t ins, int64_t k, P delta,
                           int64_t lddelta, P x, int64_t ldx, P w, int64_t ldw, P dx, P dw, P db) {
    now->top_backward(f64, unified, batch, outs, ins, k, matrix(delta, lddelta), matrix(x, ldx), matrix(w, ldw),
                      matrix(dx, ins), matrix(dw, ins), at(db));
  }, no_gil());
  m.def("spread", [](bool f64, int64_t rows, int64_t cols, P indptr, P indices, P values, P out) {
    now->spread(f64, rows, cols, top(indptr, indices, values, 0, 0, 0, 0), at(out));
  }, no_gil());
  m.def("outer", [](bool f64, int64_t a_cols, P a_t_indptr, P a_t_indices, P a_t_perm, P a_values, int64_t b_cols,
                    P b_indptr, P b_indices, P b_values, P y, int64_t ldy) {
    now->outer(f64, a_cols, top(0, 0, a_values, a_t_indptr, a_t_indices, a_t_perm, 0), b_cols,
               top(b_indptr, b_indices, b_values, 0, 0, 0, 0), matrix(y, ldy));
  }, no_gil());
  m.def("sell", [](bool f64, int64_t size, const std::vector<int32_t> &kinds, const std::vector<P> &data, int64_t batch,
                   int64_t ins, P x, int64_t x_sample, int64_t x_feature, int64_t outs, P y, int64_t y_sample,
                   int64_t y_feature) {
    check_permutations(size, kinds, data);
    std::vector<const void *> at_data;
    for (P address : data) at_data.push_back(at(address));
    now->sell(f64, {size, int64_t(kinds.size()), kinds.data(), at_data.data()}, batch, ins, {at(x), x_sample, x_feature},
              outs, {at(y), y_sample, y_feature});
  }, no_gil());
  m.def("sell_backward", [](bool f64, int64_t size, const std::vector<int32_t> &kinds, const std::vector<P> &data,
                            int64_t batch, int64_t ins, P x, int64_t x_sample, int64_t x_feature, int64_t outs, P dy,
                            int64_t dy_sample, int64_t dy_feature, P dx, int64_t dx_sample, int64_t dx_feature,
                            const std::vector<P> &gradients) {
    check_permutations(size, kinds, data);
    std::vector<const void *> at_data;
    std::vector<void *> at_gradients;
    for (P address : data) at_data.push_back(at(address));
    for (P address : gradients) at_gradients.push_back(at(address));
    now->sell_backward(f64, {size, int64_t(kinds.size()), kinds.data(), at_data.data()}, batch, ins,
                       {at(x), x_sample, x_feature}, outs, {at(dy), dy_sample, dy_feature},
                       {at(dx), dx_sample, dx_feature}, at_gradients.data());
  }, no_gil());
  m.def("dropout", [](bool f64, int64_t size, uint64_t seed, uint32_t first, uint32_t threshold, double scale, P in,
                        P out) {
    now->dropout(f64, size, seed, first, threshold, scale, at(in), at(out));
  }, no_gil());
  nb::class_<Noisy>(m, "Noisy").def(
      "__init__", [](Noisy *made, int kind, double alpha, double c, double sigma, bool random, double value, uint64_t seed) {
        new (made) Noisy{NoisyKind(kind), alpha, c, sigma, random, value, seed};
      });
  m.def("normals", [](bool f64, int64_t size, uint64_t seed, P out) { now->normals(f64, size, seed, at(out)); }, no_gil());
  m.def("noisy", [](bool f64, const Noisy &n, bool tanh, int64_t outer, int64_t units, int64_t inner, P x, P p, P y,
                    P kept) {
    now->noisy(f64, n, tanh, {outer, units, inner}, at(x), at(p), at(y), at(kept));
  }, no_gil());
  m.def("noisy_backward", [](bool f64, const Noisy &n, bool tanh, int64_t outer, int64_t units, int64_t inner, P x, P p,
                             P kept, P dy, P dx, P dp) {
    now->noisy_backward(f64, n, tanh, {outer, units, inner}, at(x), at(p), at(kept), at(dy), at(dx), at(dp));
  }, no_gil());
  m.def("noisy_lstm", [](bool f64, const Noisy &n, int64_t samples,
                         int64_t hidden, P pre, P p, P state, P h, P before) {
    now->noisy_lstm(f64, n, samples, hidden, at(pre), at(p), at(state), at(h),
                    at(before));
  }, no_gil());
  m.def("noisy_lstm_backward", [](bool f64, const Noisy &n,
                                  int64_t samples, int64_t hidden, P pre, P p, P before, P dh, P dc, P dpre, P dp) {
    now->noisy_lstm_backward(f64, n, samples, hidden, at(pre), at(p),
                             at(before), at(dh), at(dc), at(dpre), at(dp));
  }, no_gil());
  m.def("noisy_gru", [](bool f64, const Noisy &n, int64_t samples,
                        int64_t hidden, P px, P ph, P p, P h, P before) {
    now->noisy_gru(f64, n, samples, hidden, at(px), at(ph), at(p), at(h),
                   at(before));
  }, no_gil());
  m.def("noisy_gru_backward", [](bool f64, const Noisy &n,
                                 int64_t samples, int64_t hidden, P px, P ph, P p, P before, P dh, P dpx, P dph, P dp) {
    now->noisy_gru_backward(f64, n, samples, hidden, at(px), at(ph), at(p),
                            at(before), at(dh), at(dpx), at(dph), at(dp));
  }, no_gil());
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Kernels &k : kernels) names.push_back(k.name);
    return names;
  }, "The instruction sets that this processor can run, the fastest first.");
  m.def("isa", [] { return std::string(now->name); }, "The instruction set in use.");
  m.def("set_isa", [](const std::string &name) {
    for (const Kernels &k : kernels)
      if (name == k.name) {
        now = &k;
        return;
      }
    throw std::invalid_argument("set_isa: this processor has no kernels for '" + name + "'.");
  });
  m.def("flush_denormals", [](bool on) {
    // the control word belongs to a thread: every thread of the pool (torch's own function sets the caller's only)
    filigree::by_team(omp_get_max_threads(), [on] { flush_denormals(on); });
  }, "Treat denormal numbers as zero (or not) in all threads of the pool that torch and the kernels share.");
  m.def("advise_huge_pages", [](P address, int64_t bytes) {
#if defined(__linux__)
    const P page = P(1) << 21, first = (address + page - 1) / page * page, last = (address + bytes) / page * page;
    if (last > first) madvise(at(first), last - first, MADV_HUGEPAGE);  // advice: no harm where it is not taken
#else
    (void)address, (void)bytes;
#endif
  }, "Ask the system to back a fresh block of memory with pages of 2 MB.");
  m.def("max_threads", &omp_get_max_threads, "Threads a kernel may use: torch.get_num_threads().");
}
