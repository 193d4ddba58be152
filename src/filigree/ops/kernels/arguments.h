// From Python's objects to what a function takes: a number, an address (an integer), a struct (a tuple of its fields),
// a vector (a list). Calls go past nanobind, whose dispatch costs as much as all of this.
#pragma once
#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "scratch.h"

namespace filigree {

// Where an object is not what is read, `read` is false, and a Python error may be set.
struct Reader {
  template <class T>
  bool read(PyObject *from, T &to) {
    if constexpr (std::is_pointer_v<T>) {
      uintptr_t address = 0;
      const bool is_integer = read(from, address);
      to = reinterpret_cast<T>(address);
      return is_integer;
    } else if constexpr (std::is_enum_v<T>) {
      return read(from, reinterpret_cast<std::underlying_type_t<T> &>(to));
    } else if constexpr (std::is_same_v<T, bool>) {
      to = from == Py_True;
      return to || from == Py_False;
    } else if constexpr (std::is_floating_point_v<T>) {
      to = PyFloat_AsDouble(from);
      return to != -1 || !PyErr_Occurred();
    } else if constexpr (std::is_integral_v<T>) {
      const auto whole = [from] {
        if constexpr (std::is_signed_v<T>) return PyLong_AsLongLong(from);
        else return PyLong_AsUnsignedLongLong(from);
      }();
      to = T(whole);
      return to == whole && (whole != decltype(whole)(-1) || !PyErr_Occurred());
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

  template <class T, size_t N = 20>
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
};

struct EndOfCall {
  ~EndOfCall() { end_of_call(); }
};

// The function in Python that runs `Function::call` without the interpreter's lock.
template <class Function, class Result, class... Arguments>
PyObject *call(PyObject *, PyObject *const *given, Py_ssize_t count) {
  std::tuple<std::decay_t<Arguments>...> values;
  const auto read = [&](auto &...value) {
    Reader reader;
    return count == Py_ssize_t(sizeof...(value)) && (reader.read(*given++, value) && ...);
  };
  PyThreadState *held = nullptr;
  try {
    if (!std::apply(read, values)) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, Function::expected);
      return nullptr;
    }
    held = PyEval_SaveThread();
    const auto run = [&] {
      const EndOfCall end;
      return std::apply(Function::get(), values);
    };
    if constexpr (std::is_void_v<Result>) {
      run();
      PyEval_RestoreThread(held);
      Py_RETURN_NONE;
    } else {
      const Result result = run();
      PyEval_RestoreThread(held);
      return PyLong_FromLongLong(result);
    }
  } catch (const std::exception &error) {
    if (held) PyEval_RestoreThread(held);
    if (dynamic_cast<const std::bad_alloc *>(&error)) return PyErr_NoMemory();
    const bool refused = dynamic_cast<const std::invalid_argument *>(&error);
    PyErr_SetString(refused ? PyExc_ValueError : PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

}  // namespace filigree
