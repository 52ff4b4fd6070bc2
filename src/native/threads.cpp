#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "shares.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace truenorm {
namespace {

// Work that a caller has posted; it lies on the caller's stack.
struct Job {
  Shares shares;
  int limit;         // of pool threads that work on it at a time
  int helpers = 0;   // those that do; this and what follows is guarded by the pool's mutex
  int64_t came = 0;  // those that ever did
  Job* following = nullptr;

  bool wants_help() const { return helpers < limit && shares.any_left(); }
};

struct Pool {
  static constexpr int kSpare = 1;  // threads beyond those that work, for when one is late
  std::mutex mutex;
  std::condition_variable posted;    // pool threads wait for jobs
  std::condition_variable finished;  // callers wait for helpers
  Job* jobs = nullptr;
  int threads = 0;  // started

  static void help(Pool* pool) {
    std::unique_lock<std::mutex> lock(pool->mutex);
    for (;;) {
      Job* job = pool->jobs;
      while (job && !job->wants_help()) job = job->following;
      if (!job) {
        pool->posted.wait(lock);
        continue;
      }
      ++job->helpers;
      const int64_t worker = ++job->came;
      lock.unlock();
      job->shares.work(worker);
      lock.lock();
      if (--job->helpers == 0) pool->finished.notify_all();
    }
  }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      for (; threads < job.limit + kSpare; ++threads) {
        try {
          std::thread(help, this).detach();
        } catch (...) {  // no more threads: the caller and those there are do the work
          break;
        }
      }
      job.following = jobs;
      jobs = &job;
    }
    for (int i = 0; i < job.limit && i + 1 < job.shares.count(); ++i) posted.notify_one();
    job.shares.work(0, 1);
    // A thread may have been woken on this thread's own processor, where it waits until the work is
    // done; so as many more are woken as have not come.
    std::unique_lock<std::mutex> lock(mutex);
    const int missing = job.wants_help() ? job.limit - job.helpers : 0;
    lock.unlock();
    for (int i = 0; i < missing; ++i) posted.notify_one();
    job.shares.work(0);
    lock.lock();
    Job** link = &jobs;
    while (*link != &job) link = &(*link)->following;
    *link = job.following;
    while (job.helpers) finished.wait(lock);
  }
};

int default_thread_count() {
  if (const char* text = std::getenv("TRUENORM_NUM_THREADS")) {
    const int count = std::atoi(text);
    if (count > 0) return count;
  }
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  const int count = static_cast<int>(std::thread::hardware_concurrency());
  return count > 0 ? count : 1;
}

std::atomic<int> wanted_threads{0};

// Never destroyed: its threads may still wait on it while the process ends.
std::atomic<Pool*> pool{nullptr};

Pool* the_pool() {
  Pool* found = pool.load(std::memory_order_acquire);
  if (found) return found;
  static std::once_flag once;
  std::call_once(once, [] {
#if !defined(_WIN32)
    // A child has none of the threads, and locks that may never open: it starts anew.
    pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
#endif
  });
  Pool* made = new Pool;
  if (pool.compare_exchange_strong(found, made)) return made;
  delete made;
  return found;
}

}  // namespace

int thread_count() {
  int count = wanted_threads.load(std::memory_order_relaxed);
  if (count == 0) {
    count = default_thread_count();
    wanted_threads.store(count, std::memory_order_relaxed);
  }
  return count;
}

bool set_thread_count(int count) {
  if (count < 1 || count > 4096) return false;
  wanted_threads.store(count, std::memory_order_relaxed);
  return true;
}

void run_tasks(const truenorm_executor* executor, int64_t count, truenorm_task task,
               void* context) {
  if (count > 1 && executor) {
    executor->run(executor->handle, count, task, context);
    return;
  }
  const int threads = thread_count();
  if (count > 1 && threads > 1) {
    Job job{{count, threads, task, context}, threads - 1};
    the_pool()->run(job);
    return;
  }
  for (int64_t index = 0; index < count; ++index) task(context, index);
}

}  // namespace truenorm
