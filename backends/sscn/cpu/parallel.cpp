// Torch's OpenMP runtime is looked up at run time instead of linked. A second runtime would have a
// second team of spinning threads.
#include "parallel.hpp"

#include <atomic>
#include <thread>
#include <vector>

#include <dlfcn.h>

namespace sscn {
namespace {

// The remaining tasks of a worker. Other workers steal from the end when they have none left.
class Share {
 public:
  void give(int64_t begin, int64_t end) { span_.store({begin, end}, std::memory_order_relaxed); }

  // Remove and return the first or the last remaining task; -1 if there is none.
  int64_t first() {
    return take([](Span& left) { return left.begin++; });
  }
  int64_t last() {
    return take([](Span& left) { return --left.end; });
  }

 private:
  struct alignas(8) Span {
    uint32_t begin, end;  // enough: the number of rows has 31 bits, and a task has many rows
    Span() = default;
    Span(int64_t first, int64_t last)
        : begin(static_cast<uint32_t>(first)), end(static_cast<uint32_t>(last)) {}
  };

  template <class Remove>
  int64_t take(Remove&& remove) {
    Span found = span_.load(std::memory_order_relaxed);
    while (found.begin < found.end) {
      Span left = found;
      const int64_t task = remove(left);
      if (span_.compare_exchange_weak(found, left, std::memory_order_relaxed)) return task;
    }
    return -1;
  }

  alignas(64) std::atomic<Span> span_;
};

constexpr int kMostShares = 64;

struct Work {
  Task task;
  void* context;
  int shares;
  std::atomic<int> workers{0};
  Share share[kMostShares];

  Work(Task t, void* c, int64_t tasks, int threads)
      : task(t), context(c), shares(threads < kMostShares ? threads : kMostShares) {
    for (int i = 0; i < shares; ++i) share[i].give(tasks * i / shares, tasks * (i + 1) / shares);
  }
};

using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();

// OpenMP's functions; null if no runtime is loaded.
const Fork fork_team = reinterpret_cast<Fork>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
const Number number_in_team =
    fork_team ? reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_thread_num")) : nullptr;

void drain(void* data) {
  Work& work = *static_cast<Work*>(data);
  const int arrived = work.workers.fetch_add(1, std::memory_order_relaxed);
  const int worker = number_in_team ? number_in_team() : arrived;
  const int own = worker % work.shares;
  for (int64_t task; (task = work.share[own].first()) >= 0;) work.task(work.context, task, worker);
  for (int i = 1; i < work.shares; ++i)
    for (int64_t task; (task = work.share[(own + i) % work.shares].last()) >= 0;)
      work.task(work.context, task, worker);
}

void fork_threads(void (*function)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(function, data);
  function(data);
  for (std::thread& other : others) other.join();
}

}  // namespace

void run_tasks(int threads, int64_t tasks, Task task, void* context) {
  // Use the whole team or one thread: a runtime rebuilds its team whenever the size changes.
  if (threads > 1 && tasks > 1) {
    Work work(task, context, tasks, threads);
    (fork_team ? fork_team : fork_threads)(drain, &work, static_cast<unsigned>(threads), 0);
  } else {
    for (int64_t i = 0; i < tasks; ++i) task(context, i, 0);
  }
}

}  // namespace sscn
