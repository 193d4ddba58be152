#include "byte_instructions.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace filigree {
namespace {

#if defined(__x86_64__)
// A bit of what leaf 7 says: AVX-VNNI is too new for compilers' own list.
bool leaf7(unsigned sub, bool of_eax, int bit) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, sub, &eax, &ebx, &ecx, &edx)) return false;
  return (of_eax ? eax : ecx) >> bit & 1;
}
const bool wide = leaf7(0, false, 11), narrow = leaf7(1, true, 4), expands = leaf7(0, false, 6);
#else
const bool wide = false, narrow = false, expands = false;
#endif
bool used = true, amx_used = true, amx_always = false;

// AMX's registers are 8 KiB, which Linux saves for those processes only that have asked for it.
bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long ask = 0x1023, registers = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!wide || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool of_bytes = edx >> 24 & 1 && edx >> 25 & 1;
  return of_bytes && syscall(SYS_arch_prctl, ask, registers) == 0;
#else
  return false;
#endif
}

}  // namespace

bool multiplies_fours(bool of_512_bits) { return used && (of_512_bits ? wide : narrow); }
void set_multiplies_fours(bool on) { used = on; }
bool uses_amx() {
  static const bool has = has_amx();
  return used && amx_used && has;
}
bool always_amx() { return amx_always; }
void set_amx(bool on, bool always) { amx_used = on, amx_always = always; }
bool expands_bytes() { return used && expands; }

}  // namespace filigree
