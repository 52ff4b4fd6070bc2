// Tasks that several threads do together.

#ifndef TRUENORM_SHARES_H
#define TRUENORM_SHARES_H

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "truenorm.h"

namespace truenorm {

// task(context, 0 ... count - 1), in a share for each worker. A worker does its own share
// first, the same part of the work in every call, which is where its core's cache still has what the
// last call read or wrote; then it helps with the shares of others, so that one that is late delays
// no other.
class Shares {
 public:
  Shares(int64_t count, int64_t workers, truenorm_task task, void* context)
      : count_(count),
        shares_(std::max<int64_t>(1, std::min({workers, count, kMost}))),
        task_(task),
        context_(context) {
    for (int64_t share = 0; share < shares_; ++share)
      next_[share].store(start(share), std::memory_order_relaxed);
  }

  // Do up to `most` tasks, as worker number 0, 1, ...; by default all; returns how many there were.
  int64_t work(int64_t worker, int64_t most = INT64_MAX) {
    int64_t done = 0;
    for (int64_t i = 0; i < shares_ && done < most; ++i) {
      const int64_t share = (worker + i) % shares_, end = start(share + 1);
      while (done < most) {
        const int64_t index = next_[share].fetch_add(1, std::memory_order_relaxed);
        if (index >= end) break;
        task_(context_, index);
        ++done;
      }
    }
    return done;
  }

  // Whether there is a task that nobody has begun.
  bool any_left() const {
    for (int64_t share = 0; share < shares_; ++share)
      if (next_[share].load(std::memory_order_relaxed) < start(share + 1)) return true;
    return false;
  }

  int64_t count() const { return count_; }

 private:
  static constexpr int64_t kMost = 64;  // workers beyond these help with the others' shares

  int64_t start(int64_t share) const { return count_ * share / shares_; }

  const int64_t count_, shares_;
  const truenorm_task task_;
  void* const context_;
  std::atomic<int64_t> next_[kMost];
};

}  // namespace truenorm

#endif
