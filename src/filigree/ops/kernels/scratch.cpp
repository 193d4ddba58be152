#include "scratch.h"

#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace filigree {

void *scratch_bytes(int which, size_t bytes) {
  struct Free {
    void operator()(void *memory) const { std::free(memory); }
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };
  constexpr size_t LINE = 64, HUGE_PAGE = size_t(1) << 21, LARGE = size_t(1) << 19;
  thread_local Block blocks[SCRATCHES];
  Block &block = blocks[which];
  if (!block.memory || block.bytes < bytes) {
    block.bytes = 0;
    block.memory.reset();                                  // before the new one is taken: both together may be too much
    const size_t page = bytes < LARGE ? LINE : HUGE_PAGE;  // with small pages each random read costs a page walk
    const size_t size = (bytes / page + 1) * page;
    if (size < bytes) throw std::bad_alloc();
    block.memory.reset(std::aligned_alloc(page, size));
    if (!block.memory) throw std::bad_alloc();
#if defined(__linux__)
    if (page == HUGE_PAGE) madvise(block.memory.get(), size, MADV_HUGEPAGE);  // advice: no harm where it is not taken
#endif
    block.bytes = bytes;
  }
  return block.memory.get();
}

}  // namespace filigree
