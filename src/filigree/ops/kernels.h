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

// Small integers in compressed rows: counts in [-127, 127], int16 columns (`narrow`) or int32.
struct Integers {
  int64_t rows;
  const int32_t *indptr;
  const void *indices;
  const int8_t *counts;
  bool narrow;
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

// A sparse matrix by rows, with the transposed index and the sums of its columns where those are wanted (else null).
struct Top {
  int32_t *indptr, *indices;
  void *values;
  int32_t *t_indptr, *t_indices, *t_perm;
  void *sums;
};

// A matrix of samples and features in any order, of which one side is contiguous or both are strided.
struct Strided {
  void *data;
  int64_t by_sample, by_feature;
};

// A structured layer: steps on vectors of `size` numbers. Data: numbers of a diagonal or a bias, int64 of a permutation.
enum Step : int32_t { DIAGONAL, BIAS, RELU, PERMUTE, HADAMARD, COSINE, INVERSE_COSINE };
struct Program {
  int64_t size, steps;
  const int32_t *kinds;
  const void *const *data;
};

// A noisy activation; `seed` of its normal numbers, for all of which `value` stands where they are not random.
enum NoisyKind : int32_t { NAN_, NAH, NANI, NANIL, NANIS };
struct Noisy {
  NoisyKind kind;
  double alpha, c, sigma;
  bool random;
  double value;
  uint64_t seed;
};
// A tensor in memory as (outer, units, inner); each unit has a p.
struct Layout {
  int64_t outer, units, inner;
  int64_t size() const { return outer * units * inner; }
  bool by_column() const { return inner == 1 && units > 1; }
  int64_t row() const { return by_column() ? units : units > 1 ? inner : outer * inner; }  // numbers that are alike
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
  /* dx = W[chosen]^T dy and dvalues (zero in other rows). dy holds the chosen rows only, or, where dz is given, all: \
     the chosen ones, zero where y <= 0 (unless null), go to dz, and their sums to dbias[chosen] (unless null) */   \
  void rows_backward(bool f64, Pattern w, Pattern wt, const int64_t *chosen, int64_t count, const void *values,     \
                     Matrix dy, Matrix y, Matrix dz, void *dbias, Matrix x, Matrix dx, const void *place,           \
                     void *dvalues, int64_t batch);                                                                 \
  /* y[chosen] = W[chosen] x (+ bias) (then ReLU); other rows of y stay as they are */                               \
  void rows_spmm(bool f64, Pattern w, const int64_t *chosen, int64_t count, const void *values, Matrix x, Matrix y,  \
                 int64_t batch, const void *bias, bool relu);                                                       \
  /* y = scale C x (+ bias) (then ReLU), C of small integers by rows; `scale` and `bias` by row */                   \
  void integer_spmm(bool f64, Integers c, int64_t cols, Matrix x, Matrix y, int64_t batch, const void *scale,       \
                    const void *bias, bool relu);                                                                   \
  /* out[j, i] = in[i, j] */                                                                                        \
  void transpose(bool f64, int64_t rows, int64_t cols, Matrix in, Matrix out);                                      \
  /* y = conv(x) (+ bias) */                                                                                        \
  void conv(bool f64, const Convolution &c, const void *values, const void *bias, const void *x, void *y);          \
  /* its gradients; dx and dbias may be null */                                                                     \
  void conv_backward(bool f64, const Convolution &c, const void *values, const void *x, const void *dy,             \
                     void *dvalues, void *dbias, void *dx);                                                         \
  /* of each row of x (rows, cols) the k largest magnitudes but no zeros, ties by lower index; how many they are */   \
  int64_t top(bool f64, int64_t rows, int64_t cols, int64_t k, Matrix x, Top out);                                  \
  /* backward pass of a dense layer from the k largest of each row of delta (batch, outs), or by one choice for the   \
     batch: dx = S W, dW = S^T X, db = sums of S; dx, dw and db may be null */                                      \
  void top_backward(bool f64, bool unified, int64_t batch, int64_t outs, int64_t ins, int64_t k, Matrix delta,      \
                    Matrix x, Matrix w, Matrix dx, Matrix dw, void *db);                                            \
  void spread(bool f64, int64_t rows, int64_t cols, Top in, void *out); /* the matrix with its zeros */             \
  /* y = A^T B, dense */                                                                                            \
  void outer(bool f64, int64_t a_cols, Top a, int64_t b_cols, Top b, Matrix y);                                     \
  /* run a program on x (batch, ins), padded with zeros to its size, and keep the first `outs` numbers */           \
  void sell(bool f64, const Program &p, int64_t batch, int64_t ins, Strided x, int64_t outs, Strided y);           \
  /* its gradients: dx (may be null), and one for each step (null where it has none or none is wanted) */          \
  void sell_backward(bool f64, const Program &p, int64_t batch, int64_t ins, Strided x, int64_t outs, Strided dy,  \
                     Strided dx, void *const *gradients);                                                          \
  /* out[i] = 0 where the i-th random number of `seed` lies in [first, first + threshold), else in[i] * scale */    \
  void dropout(bool f64, int64_t size, uint64_t seed, uint32_t first, uint32_t threshold, double scale,             \
               const void *in, void *out);                                                                          \
  /* the normal numbers of a seed */                                                                                \
  void normals(bool f64, int64_t size, uint64_t seed, void *out);                                                   \
  /* y = a noisy hard tanh, or hard sigmoid, of x; `kept`, unless null, is what its gradients need beside x and p */ \
  void noisy(bool f64, const Noisy &n, bool tanh, const Layout &l, const void *x, const void *p, void *y,           \
             void *kept);                                                                                           \
  /* dx, and dp summed over each unit, unless null */                                                               \
  void noisy_backward(bool f64, const Noisy &n, bool tanh, const Layout &l, const void *x, const void *p,           \
                      const void *kept, const void *dy, void *dx, void *dp);                                        \
  /* a step of an LSTM from the gates' pre-activations (samples, 4, hidden) and p (5, hidden), the last of c's      \
     function: c becomes the new state, `before` what it was. Its gradients: dc becomes that of `before`, dp is     \
     added to, unless null */                                                                                       \
  void noisy_lstm(bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *pre, const void *p,        \
                  void *c, void *h, void *before);                                                                  \
  void noisy_lstm_backward(bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *pre,              \
                           const void *p, const void *before, const void *dh, void *dc, void *dpre, void *dp);      \
  /* a step of a GRU from the products (samples, 3, hidden) with input and state, p (3, hidden); likewise */        \
  void noisy_gru(bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *px, const void *ph,         \
                 const void *p, void *h, void *before);                                                             \
  void noisy_gru_backward(bool f64, const Noisy &n, int64_t samples, int64_t hidden, const void *px,                \
                          const void *ph, const void *p, const void *before, void *dh, void *dpx, void *dph,        \
                          void *dp);                                                                                \
  }
// clang-format on
FILIGREE_DECLARE(portable)
FILIGREE_DECLARE(avx2)
FILIGREE_DECLARE(avx512)
FILIGREE_DECLARE(neon)

}  // namespace filigree
