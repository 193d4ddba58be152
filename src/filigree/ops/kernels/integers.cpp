// Products with sparse matrices of small integers, on feature-major matrices: what sampling makes of a layer's weights.
// The batch is taken so many numbers at a time that the input's part of it stays in level 2: with a tenth of all places
// connected each input is read hundreds of times.
#include "vectors.h"

#include <algorithm>

namespace filigree {
namespace FILIGREE_ISA {
namespace {

constexpr int64_t CACHE = 640 << 10;  // bytes of a core's level 2 that the input may fill

template <class T, class I>
struct IntegerRows {
  Integers c;
  Matrix x, y;
  const T *scale, *bias;
  bool relu;
  int64_t from, to;

  template <int L, int NV>
  void run(const Block &block) {
    typedef Vec<T, L> V;
    constexpr int U = NV >= 4   ? 1
                      : NV == 1 ? 4
                                : 2;  // nonzeros side by side, where few vectors would leave adders waiting
    const At<T, L, NV> at(block);
    const T *xd = static_cast<const T *>(x.data);
    const I *indices = static_cast<const I *>(c.indices);
    for (int64_t r = from; r < to; ++r) {
      V acc[U][NV] = {};
      int32_t k = c.indptr[r];
      const int32_t end = c.indptr[r + 1];
      const auto add = [&](V *sum, int32_t place) {
        const T *row = xd + int64_t(indices[place]) * x.stride;
        const T count = T(c.counts[place]);
        for (int v = 0; v < NV; ++v) sum[v] += count * load<T, L>(row + at.offset[v]);
      };
      for (; k + U <= end; k += U)
        for (int u = 0; u < U; ++u) add(acc[u], k + u);
      for (; U > 1 && k < end; ++k) add(acc[0], k);
      for (int v = 0; v < NV; ++v) {
        V sum = acc[0][v];
        for (int u = 1; u < U; ++u) sum += acc[u][v];
        sum = sum * scale[r] + (bias ? bias[r] : T(0));
        if (relu) sum = sum < 0 ? V{} : sum;
        store<T, L>(static_cast<T *>(y.data) + r * y.stride + at.offset[v], sum);
      }
    }
  }
};

template <class T, class I>
void integer_spmm_(Integers c, int64_t cols, Matrix x, Matrix y, int64_t batch, const void *scale, const void *bias,
                   bool relu) {
  constexpr int L = LANES<T>;
  const int64_t fits = std::max<int64_t>(L, CACHE / int64_t(sizeof(T)) / std::max<int64_t>(cols, 1) / L * L);
  parallel(team((c.indptr[c.rows] + c.rows) * batch), [&](int thread, int threads) {
    const int64_t from = share(c.indptr, c.rows, thread, threads), to = share(c.indptr, c.rows, thread + 1, threads);
    for (int64_t b = 0; b < batch; b += fits) {
      const Matrix part_x{static_cast<T *>(x.data) + b, x.stride}, part_y{static_cast<T *>(y.data) + b, y.stride};
      blocks<L, FORWARD>(std::min(fits, batch - b), IntegerRows<T, I>{c, part_x, part_y, static_cast<const T *>(scale),
                                                                      static_cast<const T *>(bias), relu, from, to});
    }
  });
}

}  // namespace

void integer_spmm(bool f64, Integers c, int64_t cols, Matrix x, Matrix y, int64_t batch, const void *scale,
                  const void *bias, bool relu) {
#define ARGS (c, cols, x, y, batch, scale, bias, relu)
  if (f64) return c.narrow ? integer_spmm_<double, int16_t> ARGS : integer_spmm_<double, int32_t> ARGS;
  return c.narrow ? integer_spmm_<float, int16_t> ARGS : integer_spmm_<float, int32_t> ARGS;
#undef ARGS
}

}  // namespace FILIGREE_ISA
}  // namespace filigree
