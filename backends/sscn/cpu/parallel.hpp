// Runs tasks on the OpenMP threads that torch already has.
#pragma once

#include <cstdint>

namespace sscn {

using Task = void (*)(void* context, int64_t index, int worker);

// Call task(context, i, worker) for every i below `tasks`, on at most `threads` threads; `worker`
// is below `threads`. A worker first runs its own share in ascending order, which is the same share
// of every range: the memory that it wrote in one layer is in its cache for the next. Then it
// steals tasks from other workers.
void run_tasks(int threads, int64_t tasks, Task task, void* context);

namespace {

template <class Function>
void parallel_for(int threads, int64_t tasks, Function&& function) {
  run_tasks(
      threads, tasks,
      [](void* context, int64_t index, int worker) {
        (*static_cast<Function*>(context))(index, worker);
      },
      &function);
}

}  // namespace
}  // namespace sscn
