// What kernels call of an OpenMP runtime, without OpenMP's syntax: GCC makes these calls of it too, but Clang others
// that only LLVM's runtime has. Torch brings GNU's on Linux and LLVM's on macOS, and both have these; neither is
// linked.
#pragma once

extern "C" {
int omp_get_max_threads();
int omp_get_num_threads();
int omp_get_thread_num();
int omp_in_parallel();
void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);
void GOMP_barrier();
}

namespace filigree {

// body() by each of a team of threads
template <class Body>
inline void by_team(int threads, Body body) {
  GOMP_parallel([](void *data) noexcept { (*static_cast<Body *>(data))(); }, &body, unsigned(threads), 0);
}

// Until all threads of a team have come here.
inline void wait_for(int threads) {
  if (threads > 1) GOMP_barrier();
}

}  // namespace filigree
