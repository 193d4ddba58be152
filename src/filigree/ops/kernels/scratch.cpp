#include "scratch.h"

#include <memory>

namespace filigree {

void *scratch_bytes(int which, size_t bytes) {
  struct Block {
    std::unique_ptr<char[]> memory;
    size_t bytes = 0;
  };
  constexpr size_t LINE = 64;
  thread_local Block blocks[SCRATCHES];
  Block &block = blocks[which];
  if (!block.memory || block.bytes < bytes) {
    block.bytes = 0;
    block.memory.reset();  // before the new one is taken: both together may be too much
    block.memory.reset(new char[bytes + LINE]);
    block.bytes = bytes;
  }
  return reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(block.memory.get()) + LINE - 1) / LINE * LINE);
}

}  // namespace filigree
