// Torch's OpenMP runtime is found at run time instead of linked: a second runtime beside torch's
// would bring a second team of spinning threads.
#include "parallel.hpp"

#include <atomic>
#include <thread>
#include <vector>

#include <dlfcn.h>

namespace sscn {
namespace {

struct Work {
  Task task;
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int> workers{0};
};

void drain(void* data) {
  Work& work = *static_cast<Work*>(data);
  const int worker = work.workers.fetch_add(1, std::memory_order_relaxed);
  for (int64_t index; (index = work.next.fetch_add(1, std::memory_order_relaxed)) < work.tasks;)
    work.task(work.context, index, worker);
}

using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);

void fork_threads(void (*function)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(function, data);
  function(data);
  for (std::thread& other : others) other.join();
}

Fork find_fork() {
  void* symbol = dlsym(RTLD_DEFAULT, "GOMP_parallel");
  return symbol ? reinterpret_cast<Fork>(symbol) : fork_threads;
}

}  // namespace

void run_tasks(int threads, int64_t tasks, Task task, void* context) {
  static const Fork fork = find_fork();
  Work work{task, context, tasks};
  // The whole team or one thread: a runtime rebuilds its team whenever the size changes.
  if (threads > 1 && tasks > 1)
    fork(drain, &work, static_cast<unsigned>(threads), 0);
  else
    drain(&work);
}

}  // namespace sscn
