// Memory for one call of a kernel, which the calling thread keeps for its next one, up to a limit.
//
// It is taken before a team of threads starts, for all of them: an exception that left one of its threads would end the
// process, while `std::bad_alloc` from here reaches Python as MemoryError.
#pragma once
#include <cstddef>
#include <cstdint>

namespace filigree {

constexpr int SCRATCHES = 8;  // that a call may hold at a time
constexpr size_t MOST_KEPT =
    size_t(256) << 20;  // bytes: beyond it, taking them anew costs little beside the call itself

void *scratch_bytes(int which, size_t bytes);  // aligned to a cache line, not initialised
size_t kept_scratch();                         // bytes that this thread holds
void end_of_call();                            // frees them where they are more than `MOST_KEPT`

template <class T>
static T *scratch(int which, int64_t count) {
  return static_cast<T *>(scratch_bytes(which, size_t(count) * sizeof(T)));
}

}  // namespace filigree
