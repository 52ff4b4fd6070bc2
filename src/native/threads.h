// Threads for the kernels: a pool whose idle threads sleep, which is made again after a fork.

#ifndef TRUENORM_THREADS_H
#define TRUENORM_THREADS_H

#include "truenorm.h"

namespace truenorm {

// Run task(context, 0 ... count - 1) on the executor's threads, or on the pool's where it is null.
void run_tasks(const truenorm_executor* executor, int64_t count, truenorm_task task, void* context);

int thread_count();
bool set_thread_count(int count);

}  // namespace truenorm

#endif
