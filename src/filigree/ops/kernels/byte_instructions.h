// Instructions on bytes that only some of the processors of an instruction set have.
#pragma once

namespace filigree {

bool multiplies_fours(bool of_512_bits);  // sums of four products of bytes are one instruction (VNNI, AVX-VNNI)
void set_multiplies_fours(bool on);       // for tests: false as on a processor without any of these
bool uses_amx();                          // 16 by 16 sums of 64 products are one (AMX), which the system allows
bool always_amx();                        // also where it does not pay, for tests
void set_amx(bool on, bool always);
bool expands_bytes();  // bytes are spread over the lanes of a mask by one (VBMI2)

}  // namespace filigree
