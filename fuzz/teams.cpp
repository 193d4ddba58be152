// The few calls of an OpenMP runtime that the kernels make, on plain threads: linked into the build for
// ThreadSanitizer. That tool does not see the barriers of libgomp, which is not built for it, and would report races
// that are none.
#include <pthread.h>

#include <cstdlib>
#include <thread>
#include <vector>

namespace {
thread_local int number = 0, members = 1;
thread_local bool inside = false;
thread_local pthread_barrier_t *meeting = nullptr;
int most() {
  const char *given = std::getenv("TEAM");
  return given ? std::atoi(given) : 4;
}
}  // namespace

extern "C" {
int omp_get_max_threads() { return most(); }
int omp_get_thread_num() { return number; }
int omp_get_num_threads() { return members; }
int omp_in_parallel() { return inside; }
void GOMP_barrier() {
  if (meeting) pthread_barrier_wait(meeting);
}
void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned) {
  if (threads == 0) threads = most();
  pthread_barrier_t all;
  pthread_barrier_init(&all, nullptr, threads);
  const auto run = [&](int mine) {
    number = mine, members = int(threads), inside = true, meeting = &all;
    work(data);
    number = 0, members = 1, inside = false, meeting = nullptr;
  };
  std::vector<std::thread> team;
  for (unsigned i = 1; i < threads; ++i) team.emplace_back(run, int(i));
  run(0);
  for (std::thread &each : team) each.join();
  pthread_barrier_destroy(&all);
}
}
