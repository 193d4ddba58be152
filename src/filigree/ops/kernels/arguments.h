// From Python's objects to what the kernels take: a number, an address (an integer), a struct (a tuple of its fields),
// a vector (a list). An integer costs a hundredth of a microsecond; a tensor read through DLPack would cost five.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace filigree {

template <class T>
struct Argument {
  T value;
};

class Reader {
 public:
  Reader(uint32_t flags, nanobind::detail::cleanup_list *cleanup) : flags(flags), cleanup(cleanup) {}

  template <class T>
  bool read(PyObject *from, T &to) {
    if constexpr (std::is_pointer_v<T>) {
      uintptr_t address = 0;
      const bool is_integer = read(from, address);
      to = reinterpret_cast<T>(address);
      return is_integer;
    } else if constexpr (std::is_enum_v<T>) {
      return read(from, reinterpret_cast<std::underlying_type_t<T> &>(to));
    } else if constexpr (std::is_arithmetic_v<T>) {
      nanobind::detail::make_caster<T> caster;
      if (!caster.from_python(from, flags, cleanup)) return false;
      to = caster.value;
      return true;
    } else {
      return PyTuple_CheckExact(from) && read_fields(from, to);
    }
  }

  template <class T>
  bool read(PyObject *from, std::vector<T> &to) {
    if (!PyList_CheckExact(from)) return false;
    to.resize(size_t(NB_LIST_GET_SIZE(from)));
    for (size_t i = 0; i < to.size(); ++i)
      if (!read(NB_LIST_GET_ITEM(from, Py_ssize_t(i)), to[i])) return false;
    return true;
  }

 private:
  // Stands for any field of a struct: `T{field, field, ...}` makes each read its own.
  struct Field {
    Reader &reader;
    PyObject *from;
    bool &good;
    template <class F>
    operator F() const {
      F value{};
      good = reader.read(from, value) && good;
      return value;
    }
  };

  template <class T, size_t... I>
  static auto made_of(std::index_sequence<I...>) -> decltype(T{(void(I), std::declval<Field>())...}, true);
  template <class T>
  static void made_of(...);

  template <class T, size_t N = 16>
  static constexpr size_t fields() {
    if constexpr (std::is_void_v<decltype(made_of<T>(std::make_index_sequence<N>()))>) return fields<T, N - 1>();
    else return N;
  }

  template <class T>
  bool read_fields(PyObject *from, T &to) {
    constexpr size_t count = fields<T>();
    return NB_TUPLE_GET_SIZE(from) == Py_ssize_t(count) && read_fields(from, to, std::make_index_sequence<count>());
  }
  template <class T, size_t... I>
  bool read_fields(PyObject *from, T &to, std::index_sequence<I...>) {
    bool good = true;
    to = T{Field{*this, NB_TUPLE_GET_ITEM(from, Py_ssize_t(I)), good}...};
    return good;
  }

  uint32_t flags;
  nanobind::detail::cleanup_list *cleanup;
};

}  // namespace filigree

namespace nanobind::detail {

template <class T>
struct type_caster<filigree::Argument<T>> {
  NB_TYPE_CASTER(filigree::Argument<T>, const_name("object"))

  bool from_python(handle source, uint32_t flags, cleanup_list *cleanup) noexcept {
    return filigree::Reader(flags, cleanup).read(source.ptr(), value.value);
  }
};

}  // namespace nanobind::detail
