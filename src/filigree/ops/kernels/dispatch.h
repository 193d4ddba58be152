// From the types that a call names to the templates that are compiled for them.
#pragma once
#include <cstdint>
#include <stdexcept>

#include "storage.h"

namespace filigree {
namespace FILIGREE_ISA {
namespace {

// body(a number of the type in which it is to compute)
template <class Body>
inline auto with_number(bool f64, Body body) {
  return f64 ? body(double()) : body(float());
}

// body(a number, an index)
template <class Body>
inline void with_types(bool f64, bool wide, Body body) {
  with_number(f64, [&](auto number) { wide ? body(number, int64_t()) : body(number, int32_t()); });
}

// body(a number of the type that is computed in, one of the type that is stored)
template <class Body>
inline void with_storage(Number stored, Body body) {
  switch (stored) {
    case FLOAT:
      return body(float(), float());
    case DOUBLE:
      return body(double(), double());
    case BFLOAT16:
      return body(float(), bfloat16());
    case FLOAT16:
      return body(float(), float16());
  }
  throw std::invalid_argument("kernels: no such type of numbers");
}

// body(these, an index)
template <class Body>
inline void with_storage(Number stored, bool wide, Body body) {
  with_storage(stored, [&](auto t, auto s) { wide ? body(t, s, int64_t()) : body(t, s, int32_t()); });
}

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
