// The sizes of this processor's caches.
#pragma once
#include <cstdint>

namespace filigree {

int64_t level2_bytes();               // of one core
void set_level2_bytes(int64_t size);  // for tests: panels are as wide as this says

}  // namespace filigree
