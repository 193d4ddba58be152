// What the compiled kernels take, and the table of them that every instruction set fills.
//
// From Python a struct is a tuple of its fields, in this order; an address is an integer, 0 for null.
#pragma once
#include <cstdint>
#include <vector>

namespace filigree {

// What activations are stored as; what is computed of 16 bits is float.
enum Number : int32_t { FLOAT, DOUBLE, BFLOAT16, FLOAT16 };

// A sparsity pattern in compressed rows. `perm`, when given, says where in `values` the k-th nonzero
// lives: it is how the transposed pattern reads the one array of values.
struct Pattern {
  bool wide;  // int64 indices; else int32
  int64_t rows;
  const void *indptr, *indices, *perm;

  int64_t nnz() const {
    return wide ? static_cast<const int64_t *>(indptr)[rows] : static_cast<const int32_t *>(indptr)[rows];
  }
};

// The pattern of a sparse layer, that of its transpose, and `place`, the inverse of the latter's perm.
struct Index {
  Pattern w, wt;
  const void *place;
};

enum Curve : int32_t { NO_CURVE, GELU, GELU_TANH, SILU, TANH, SIGMOID, HARD_SIGMOID, HARD_SWISH, RELU6 };

// A sparse layer y = W x (+ bias), then ReLU or a smooth curve, then dropout with probability `drop`, whose numbers are
// `seed`'s; and where its gradients go, `bias` may be null.
struct Layer {
  Index index;
  const void *values, *bias;
  bool relu;
  Curve curve;
  double drop;
  uint64_t seed;
};
struct Gradients {
  void *values, *bias;
};

// Some rows of a layer, ascending.
struct Chosen {
  const int64_t *rows;
  int64_t count;
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

// A matrix of samples and features in any order, of which one side is contiguous or both are strided.
struct Strided {
  void *data;
  int64_t by_sample, by_feature;
};

// Images in any memory order.
struct Images {
  void *data;
  int64_t by_image, by_channel, by_row, by_column;
};

// The flat planes that images are packed into: an image's row i, column j lie in the plane of their phases, at
// ((i + lead) / step, (j + lead) / step), rows and images `pitch` apart. All else is zero.
struct Axis {
  int64_t lead, step, phases, pitch;
};
struct Planes {
  int64_t count, channels, height, width;  // of the images
  Axis rows, cols;
};

// A convolution as products of shifted planes: `w` has the output channels as rows and addresses in the planes of the
// input as indices, `wt` the planes as rows and addresses in the planes of the output's gradient.
struct Convolution {
  Planes x, y;
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

// A structured layer: steps on vectors of `size` numbers. Data: numbers of a diagonal or a bias, int64 of a
// permutation.
enum Step : int32_t { DIAGONAL, BIAS, RELU, PERMUTE, HADAMARD, COSINE, INVERSE_COSINE };
struct Program {
  int64_t size;
  std::vector<int32_t> kinds;
  std::vector<const void *> data;

  int64_t steps() const { return int64_t(kinds.size()); }
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

// Inference (inference.cpp). Numbers of each image: at `data`, or `offset` numbers into the scratch memory; `size`
// apart.
struct Span {
  void *data;
  int64_t offset, size;
};

// What becomes of sums, by output: times scale, plus bias, then ReLU (with a slope for numbers below zero) or another
// curve, then times factor plus shift. Each may be null; those of a weight in panels are padded with zeros to whole
// panels.
struct Finishing {
  const float *scale, *bias, *slope, *factor, *shift;
  bool relu;
  Curve curve;
};

// A weight in panels of 16 outputs (panel_weights.h). `depth` inputs in `runs` runs of neighbours: pairs of where one
// begins, from the first number that is read, and how long it is. ROWS and TILES: the nonzeros by rows, which begin at
// `starts`; `masks` are columns, of TILES as numbers of inputs, else as positions. WINDOWS: words (by_vector.h) of each
// panel, which begin at `starts`, whose last entry is how many nonzeros each has; `totals` are where windows begin.
// NARROW_WINDOWS: the same of each half of a panel; `masks` are bytes.
// INT8 and those after it: inputs and weights are bytes (byte_products.h), of each run in groups of four, the last one
// filled with zeros; `depth` counts those too, and `totals` are the sums of each output's weights.
// FLOATS in several groups: as many panels of each read the inputs `shift` numbers after those of the group before.
enum Coding : int32_t {
  FLOATS,
  SIGNED_BYTES,
  BITMAP,
  ROWS,
  TILES,
  WINDOWS,
  NARROW_WINDOWS,
  INT8,
  INT8_BITMAP,
  INT8_TILES
};
struct PanelWeight {
  Coding coding;
  int64_t depth, panels;
  const void *values;
  const uint16_t *masks;
  const int64_t *starts;
  const int32_t *run;
  int64_t runs;
  const int32_t *totals;
  int64_t groups, shift;
};

// What heads that attend have besides: how many keys each, how many numbers a value, and what is added to the products
// with the keys, `(biases, queries, keys)` with the last ones in whole panels: the same for all heads, or for each one.
struct Attention {
  int64_t keys, width;
  const float *bias;
  int64_t biases;
};

// A step from span `from` (and `other`) to span `to`, for `points` pixels of each image: where each one's inputs begin
// (`reads`, of ADD, TIMES and MINUS `others` too; of MAXIMUM and MEAN `taps` of them for each pixel) and where its
// outputs go (`writes`). MEAN with `others`: sums divided by these; the last taps of a pixel may be -1, which are none.
// DEPTHWISE: weights `(taps, channels)`; `others` are where the taps lie from there. NORM: layer norms of
// the first `taps` channels, `number` is added to the variance. ATTENTION: of `taps` heads, each with `points`
// queries of `channels` numbers; queries begin at `reads`, keys (of span `other`) and values (of `third`) at the first
// and the second half of `others`, head by head, and `number` scales the products.
enum OperationKind : int32_t {
  GATHER,
  MULTIPLY,
  MAXIMUM,
  MEAN,
  ADD,
  LSTM,
  GRU,
  NORM,
  ATTENTION,
  DEPTHWISE,
  TIMES,
  MINUS
};
struct Operation {
  OperationKind kind;
  int64_t from, other, third, to, points, taps, channels;
  const int32_t *reads, *others, *writes;
  bool clear;     // zeros all of `to` before
  bool by_image;  // bytes: one scale for all numbers of an image, not one for each pixel's inputs
  double number;
  PanelWeight weight;
  Finishing finish;
  Attention attention;
};

// The kernels of one instruction set.
struct Kernels {
#define KERNEL(result, name, arguments) result(*name) arguments;
#include "list.h"
};

#ifdef FILIGREE_ISA
namespace FILIGREE_ISA {
#define KERNEL(result, name, arguments) result name arguments;
#include "list.h"
}  // namespace FILIGREE_ISA
#endif

}  // namespace filigree
