// Whether this processor adds up the products of bfloat16s in pairs, in one instruction for sixteen pairs.
#pragma once

namespace filigree {

bool multiplies_pairs();
void set_multiplies_pairs(bool on);  // for tests: false as on a processor that does not

}  // namespace filigree
