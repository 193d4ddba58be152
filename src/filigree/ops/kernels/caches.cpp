#include "caches.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <unistd.h>

#include <cstdio>
#endif

namespace filigree {
namespace {

int64_t measured() {
  int64_t size = 0;
#if defined(__APPLE__)
  size_t length = sizeof(size);
  sysctlbyname("hw.perflevel0.l2cachesize", &size, &length, nullptr, 0);  // shared by a cluster of cores
  size /= 4;
#elif defined(__linux__)
#if defined(_SC_LEVEL2_CACHE_SIZE)
  size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  if (size <= 0)
    if (FILE *file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index2/size", "r")) {
      long long kilobytes = 0;
      if (std::fscanf(file, "%lldK", &kilobytes) == 1) size = kilobytes << 10;
      std::fclose(file);
    }
#endif
  return size > 0 ? size : 512 << 10;
}

int64_t size = measured();

}  // namespace

int64_t level2_bytes() { return size; }
void set_level2_bytes(int64_t bytes) { size = bytes; }

}  // namespace filigree
