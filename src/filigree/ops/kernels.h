// What the compiled kernels take. Every instruction set implements the same functions in its own namespace.
#pragma once
#include <cstdint>

namespace filigree {

// A sparsity pattern in compressed rows. `perm`, when given, says where in `values` the k-th nonzero
// lives: it is how the transposed pattern reads the one array of values.
struct Pattern {
  int64_t rows;
  const void *indptr, *indices, *perm;
  bool wide;  // int64 indices; else int32
};

// A feature-major matrix: `features` rows of `batch` contiguous numbers, `stride` numbers apart.
struct Matrix {
  void *data;
  int64_t stride;
};

// Images in any memory order, and the flat planes that they are packed into: an image's row i, column j lie in the
// plane of their phases, at ((i + lead) / step, (j + lead) / step), rows and images `pitch` apart. All else is zero.
struct Axis {
  int64_t lead, step, phases, pitch;
};
struct Images {
  int64_t count, channels, height, width;                   // sizes
  int64_t by_image, by_channel, by_row, by_column;          // strides
  Axis rows, cols;
};

// A convolution as products of shifted planes: `w` has the output channels as rows and addresses in the planes of the
// input as indices, `wt` the planes as rows and addresses in the planes of the output's gradient.
struct Convolution {
  Images x, y;
  Pattern w, wt;
  int64_t stride, reach;  // from plane to plane; of the farthest tap
  int64_t images;         // packed at a time
};

// clang-format off
#define FILIGREE_DECLARE(ISA)                                                                                       \
  namespace ISA {                                                                                                   \
  /* y = W x (+ bias) (then ReLU); values may be null: all ones */                                                  \
  void spmm(bool f64, Pattern w, const void *values, Matrix x, Matrix y, int64_t batch, const void *bias, bool relu);\
  /* dvalues[k] = sum_b dy[row(k), b] x[col(k), b] */                                                               \
  void sddmm(bool f64, Pattern w, Matrix dy, Matrix x, void *dvalues, int64_t batch);                               \
  /* by the transposed pattern, in one pass over dy: dx = W^T dy, and dvalues as sddmm */                           \
  void backward(bool f64, Pattern wt, const void *values, Matrix dy, Matrix x, Matrix dx, void *dvalues, int64_t batch); \
  /* `place` is the inverse of wt.perm. A layer's backward pass: dz = dy where y > 0 (where y is null: dy; where dz is null: dy is used as it is), dbias =  \
     row sums of dz (unless null), then `backward`, or `sddmm` where dx is null. dy is read by its strides: feature f,  \
     sample b at f * dy_feature + b * dy_sample */                                                                  \
  void linear_backward(bool f64, Pattern w, Pattern wt, const void *place, const void *values, const void *dy,      \
                       int64_t dy_feature, int64_t dy_sample, Matrix y, Matrix dz, void *dbias, Matrix x, Matrix dx, \
                       void *dvalues, int64_t batch);                                                               \
  /* out[j, i] = in[i, j] */                                                                                        \
  void transpose(bool f64, int64_t rows, int64_t cols, Matrix in, Matrix out);                                      \
  /* y = conv(x) (+ bias) */                                                                                        \
  void conv(bool f64, const Convolution &c, const void *values, const void *bias, const void *x, void *y);          \
  /* its gradients; dx and dbias may be null */                                                                     \
  void conv_backward(bool f64, const Convolution &c, const void *values, const void *x, const void *dy,             \
                     void *dvalues, void *dbias, void *dx);                                                         \
  /* out[i] = in[i] * scale where the i-th random number of `seed` is at least `threshold`, else 0 */               \
  void dropout(bool f64, int64_t size, uint64_t seed, uint32_t threshold, double scale, const void *in, void *out); \
  }
// clang-format on
FILIGREE_DECLARE(portable)
FILIGREE_DECLARE(avx2)
FILIGREE_DECLARE(avx512)

}  // namespace filigree
