// Threads for the kernels: a pool whose idle threads sleep, which is made again after a fork.

#ifndef EVENKEEL_THREADS_H
#define EVENKEEL_THREADS_H

#include "evenkeel.h"

namespace evenkeel {

// Run task(context, 0 ... count - 1) on the executor's threads, or on the pool's where it is null.
void run_tasks(const evenkeel_executor* executor, int64_t count, evenkeel_task task, void* context);

int thread_count();
bool set_thread_count(int count);

}  // namespace evenkeel

#endif
