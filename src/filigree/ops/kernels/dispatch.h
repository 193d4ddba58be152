// From the types that a call names to the templates that are compiled for them.
#pragma once
#include <cstdint>

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

}  // namespace
}  // namespace FILIGREE_ISA
}  // namespace filigree
