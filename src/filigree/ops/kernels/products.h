// Products with sparse matrices on feature-major matrices as they lie, without panels: where rows are long, or read
// only a few times.
//
// A batch is cut into blocks of at most NV vectors, held in registers while a row's nonzeros stream by. A last, partial
// vector is moved back so that it ends with the batch: it overlaps its neighbour, computes the same numbers twice, and
// where numbers are summed over the batch its repeated lanes are zeroed (`Fresh`).
#pragma once
#include "loops.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

template <class T>
inline T *at(Matrix m, const Block &block) {
  return static_cast<T *>(m.data) + block.first;
}
inline Place place(const Block &block) { return {block.last - block.first, block.repeated}; }

template <class T, class I, bool ORDERED = false>
struct Multiply {
  Rows<T, I> w;
  Matrix x, y;
  Finish<T> finish;
  int64_t from, to;
  template <int L, int NV>
  void run(const Block &block) {
    multiply_rows<T, I, L, NV, ORDERED>(w, at<T>(x, block), x.stride, at<T>(y, block), y.stride, place(block), finish,
                                        block.first, from, to);
  }
};

// `backward_rows` without (out.data null) or with the sum.
template <class T, class I>
struct Backward {
  Rows<T, I> w;
  Matrix own, other, out;
  T *dots;
  int64_t from, to;
  template <int L, int NV>
  void run(const Block &block) {
    if (out.data) run_with<L, NV, true>(block);
    else run_with<L, NV, false>(block);
  }

 private:
  template <int L, int NV, bool SUM>
  void run_with(const Block &block) {
    T *to_out = SUM ? at<T>(out, block) : nullptr;
    if (block.repeated)
      backward_rows<T, I, L, NV, SUM, true>(w, at<T>(own, block), own.stride, at<T>(other, block), other.stride, dots,
                                            block.begins, to_out, out.stride, place(block), {}, from, to);
    else
      backward_rows<T, I, L, NV, SUM>(w, at<T>(own, block), own.stride, at<T>(other, block), other.stride, dots,
                                      block.begins, to_out, out.stride, place(block), {}, from, to);
  }
};

template <class T, class I>
Rows<T, I> rows_of(Pattern w, const void *values) {
  return {static_cast<const I *>(w.indptr), static_cast<const I *>(w.indices), static_cast<const I *>(w.perm),
          static_cast<const T *>(values)};
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
