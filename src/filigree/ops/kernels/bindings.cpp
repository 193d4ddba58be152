// Python's functions: one for each kernel, run by the instruction set in use. Tensors are checked on the Python side,
// where their lifetime is held.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"
#include "bfloat16.h"
#include "byte_instructions.h"
#include "caches.h"
#include "kernels.h"
#include "openmp.h"
#include "scratch.h"

namespace filigree {
#define INSTRUCTION_SET(name, runs) \
  namespace name {                  \
  extern const Kernels kernels;     \
  }
#include "instruction_sets.h"
}  // namespace filigree

namespace nb = nanobind;
using filigree::Kernels;

namespace {

struct InstructionSet {
  const char *name;
  const Kernels *kernels;
};

#if defined(__x86_64__)
bool has_f16c() {  // Clang's __builtin_cpu_supports does not know it
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// what this processor can run, the fastest first
std::vector<InstructionSet> runnable() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  std::vector<InstructionSet> found;
#define INSTRUCTION_SET(name, runs) \
  if (runs) found.push_back({#name, &filigree::name::kernels});
#include "instruction_sets.h"
  return found;
}

const std::vector<InstructionSet> instruction_sets = runnable();
const InstructionSet *now = &instruction_sets.front();

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

// Whether each dict of (dict, key, object) holds that very object at the key; None is also what it does not hold.
bool all_hold(nb::tuple entries) {
  for (Py_ssize_t i = 0; i < NB_TUPLE_GET_SIZE(entries.ptr()); ++i) {
    PyObject *const entry = NB_TUPLE_GET_ITEM(entries.ptr(), i);
    PyObject *const held = PyDict_GetItemWithError(NB_TUPLE_GET_ITEM(entry, 0), NB_TUPLE_GET_ITEM(entry, 1));
    if ((held ? held : Py_None) != NB_TUPLE_GET_ITEM(entry, 2)) return false;
  }
  return true;
}

// What `Function` names, as a function in Python; its definition lives as long as the process.
template <class Function, class Result, class... Arguments>
void bind(nb::module_ &m, const char *name, Result (*Kernels::*)(Arguments...)) {
  PyObject *(*const function)(PyObject *, PyObject *const *, Py_ssize_t) =
      filigree::call<Function, Result, Arguments...>;
  static PyMethodDef definition{name, reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(function)), METH_FASTCALL,
                                nullptr};
  m.attr(name) = nb::steal(PyCFunction_New(&definition, nullptr));
}

#define KERNEL(result, name, arguments)                                 \
  struct bound_##name {                                                 \
    static constexpr const char *expected = #name " takes " #arguments; \
    static auto get() { return now->kernels->name; }                    \
  };
#include "list.h"

}  // namespace

NB_MODULE(_kernels, m) {
#define KERNEL(result, name, arguments) bind<bound_##name>(m, #name, &Kernels::name);
#include "list.h"
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const InstructionSet &each : instruction_sets) names.push_back(each.name);
        return names;
      },
      "The instruction sets that this processor can run, the fastest first.");
  m.def("isa", [] { return std::string(now->name); }, "The instruction set in use.");
  m.def("set_isa", [](const std::string &name) {
    for (const InstructionSet &each : instruction_sets)
      if (name == each.name) {
        now = &each;
        return;
      }
    throw std::invalid_argument("set_isa: this processor has no kernels for '" + name + "'.");
  });
  m.def("level2_bytes", &filigree::level2_bytes,
        "The bytes of a core's level-2 cache, which decide the panels' width.");
  m.def("set_level2_bytes", &filigree::set_level2_bytes, "For tests: let panels be as wide as with such a cache.");
  m.def("kept_scratch", &filigree::kept_scratch,
        "The bytes of scratch memory that this thread keeps for its next call of a kernel.");
  m.def("multiplies_pairs", &filigree::multiplies_pairs,
        "Whether dot products of bfloat16s are one instruction for two, which AVX-512 has on some processors.");
  m.def("set_multiplies_pairs", &filigree::set_multiplies_pairs, "For tests: false as on a processor without it.");
  m.def(
      "multiplies_fours", [] { return filigree::multiplies_fours(true) || filigree::multiplies_fours(false); },
      "Whether sums of four products of bytes are one instruction, which AVX-512 and AVX2 have on some processors.");
  m.def("set_multiplies_fours", &filigree::set_multiplies_fours, "For tests: false as on a processor without it.");
  m.def("uses_amx", &filigree::uses_amx,
        "Whether 16 by 16 sums of 64 products of bytes are one instruction (AMX), which some processors have beside "
        "AVX-512.");
  m.def("set_amx", &filigree::set_amx, nb::arg("on"), nb::arg("always") = false,
        "False as on a processor without it; for tests: also where it does not pay.");
  m.def(
      "flush_denormals",
      [](bool on) {
        // the control word belongs to a thread: every thread of the pool (torch's own function sets the caller's only)
        filigree::by_team(omp_get_max_threads(), [on] { flush_denormals(on); });
      },
      "Treat denormal numbers as zero (or not) in all threads of the pool that torch and the kernels share.");
  m.def(
      "advise_huge_pages",
      [](uintptr_t address, int64_t bytes) {
#if defined(__linux__)
        const uintptr_t page = uintptr_t(1) << 21, first = (address + page - 1) / page * page,
                        last = (address + bytes) / page * page;
        if (last > first)
          madvise(reinterpret_cast<void *>(first), last - first,
                  MADV_HUGEPAGE);  // advice: no harm where it is not taken
#else
        (void)address, (void)bytes;
#endif
      },
      "Ask the system to back a fresh block of memory with pages of 2 MB.");
  m.def("all_hold", &all_hold,
        "Whether each dict of the tuples (dict, key, object) holds that very object, or has no key where it is None.");
  m.def("max_threads", &omp_get_max_threads, "Threads a kernel may use: torch.get_num_threads().");
}
