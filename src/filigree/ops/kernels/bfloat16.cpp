#include "bfloat16.h"

namespace filigree {
namespace {

bool available() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const bool has = available();
bool used = has;

}  // namespace

bool multiplies_pairs() { return used; }
void set_multiplies_pairs(bool on) { used = on && has; }

}  // namespace filigree
