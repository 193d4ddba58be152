#include "scratch.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace filigree {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool EXACT = true;  // a block of its very size for each call: a step beyond its end is seen
#else
constexpr bool EXACT = false;
#endif

struct Free {
  void operator()(void *memory) const { std::free(memory); }
};
struct Block {
  std::unique_ptr<void, Free> memory;
  size_t bytes = 0;
};
thread_local Block blocks[SCRATCHES];
thread_local size_t kept = 0;  // bytes of all blocks

void free_block(Block &block) {
  kept -= block.bytes;
  block = {};
}

}  // namespace

void *scratch_bytes(int which, size_t bytes) {
  constexpr size_t LINE = 64, HUGE_PAGE = size_t(1) << 21, LARGE = size_t(1) << 19;
  Block &block = blocks[which];
  if (!block.memory || block.bytes < bytes || EXACT) {
    free_block(block);                                     // before the new one is taken: both may be too much
    const size_t page = bytes < LARGE ? LINE : HUGE_PAGE;  // with small pages each random read costs a page walk
    const size_t size = EXACT ? std::max<size_t>(bytes, 1) : (bytes / page + 1) * page;
    void *memory = nullptr;
    if (size < bytes || posix_memalign(&memory, page, size)) throw std::bad_alloc();
    block.memory.reset(memory);
#if defined(__linux__)
    if (page == HUGE_PAGE && !EXACT) madvise(memory, size, MADV_HUGEPAGE);  // advice: no harm where it is not taken
#endif
    block.bytes = bytes;
    kept += bytes;
  }
  return block.memory.get();
}

size_t kept_scratch() { return kept; }

void end_of_call() {
  if (kept > MOST_KEPT) std::for_each(blocks, blocks + SCRATCHES, free_block);
}

}  // namespace filigree
