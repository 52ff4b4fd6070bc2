// The kernels as XLA's foreign functions, for JAX.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "truenorm.h"
#include "shares.h"
#include "symbols.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// Work shared with threads of XLA's pool. One that starts late finds nothing left to do; so this
// lives until the last of them has let go of it, while the caller waits only for those at work.
struct Job {
  truenorm::Shares shares;
  std::atomic<int64_t> helpers{0};  // threads of the pool that have started
  int64_t done = 0;
  std::mutex mutex;
  std::condition_variable finished;

  Job(int64_t count, int64_t workers, truenorm_task task, void* context)
      : shares(count, workers, task, context) {}

  // Do up to so many tasks, by default all.
  void work(int64_t worker, int64_t most = INT64_MAX) {
    const int64_t here = shares.work(worker, most);
    if (!here) return;
    std::lock_guard<std::mutex> lock(mutex);
    done += here;
    if (done == shares.count()) finished.notify_all();
  }
};

void run_on_pool(void* handle, int64_t count, truenorm_task task, void* context) {
  ffi::ThreadPool& pool = *static_cast<ffi::ThreadPool*>(handle);
  const int64_t threads = std::min<int64_t>(pool.num_threads(), count);
  const auto job = std::make_shared<Job>(count, threads, task, context);
  const auto call = [&](int64_t helpers) {
    for (int64_t i = 0; i < helpers; ++i)
      pool.Schedule([job] { job->work(1 + job->helpers.fetch_add(1)); });
  };
  // The caller works too. It may be one of the pool's threads itself, so it must not wait for
  // another to start.
  call(threads - 1);
  job->work(0, 1);
  // A thread may have been woken on the caller's own processor, where it waits until the work is
  // done; so as many more are called as have not come.
  if (job->shares.any_left()) call(threads - 1 - job->helpers.load());
  job->work(0);
  std::unique_lock<std::mutex> lock(job->mutex);
  while (job->done < count) job->finished.wait(lock);
}

bool dtype_of(ffi::DataType type, int32_t* dtype) {
  switch (type) {
    case ffi::DataType::F32: *dtype = TRUENORM_FLOAT32; return true;
    case ffi::DataType::F64: *dtype = TRUENORM_FLOAT64; return true;
    case ffi::DataType::BF16: *dtype = TRUENORM_BFLOAT16; return true;
    case ffi::DataType::F16: *dtype = TRUENORM_FLOAT16; return true;
    default: return false;
  }
}

struct Attributes {
  ffi::Span<const int64_t> factors;
  int64_t groups;
  double epsilon;
  bool centered;
};

ffi::Error make_call(const ffi::AnyBuffer& x, const Attributes& a, truenorm_call* call) {
  if (!dtype_of(x.element_type(), &call->dtype))
    return ffi::Error::InvalidArgument("truenorm's kernels do not compute in this dtype");
  call->flags = a.centered ? TRUENORM_CENTERED : 0;
  call->epsilon = a.epsilon;
  call->groups = a.groups;
  call->rank = static_cast<int32_t>(x.dimensions().size());
  call->factor_count = static_cast<int32_t>(a.factors.size() / 4);
  call->shape = x.dimensions().begin();
  call->factors = a.factors.begin();
  return ffi::Error::Success();
}

// Make the call, and let `compute` pass it to a function of truenorm.h with XLA's threads.
template <class Compute>
ffi::Error run(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const Attributes& attributes,
               const Compute& compute) {
  truenorm_call call;
  if (ffi::Error error = make_call(x, attributes, &call); error.failure()) return error;
  const truenorm_executor executor{&pool, run_on_pool};
  return compute(&call, &executor)
             ? ffi::Error::Internal(std::string("truenorm: ") + truenorm_error())
             : ffi::Error::Success();
}

ffi::Error forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gamma,
                   ffi::AnyBuffer beta, ffi::Result<ffi::AnyBuffer> y,
                   ffi::Result<ffi::AnyBuffer> statistics, ffi::Span<const int64_t> factors,
                   int64_t groups, double epsilon, bool centered) {
  const auto compute = [&](truenorm_call* call, const truenorm_executor* executor) {
    return truenorm_forward(call, x.untyped_data(), gamma.untyped_data(), beta.untyped_data(),
                            y->untyped_data(), statistics->untyped_data(), executor);
  };
  return run(pool, x, {factors, groups, epsilon, centered}, compute);
}

ffi::Error backward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer dy,
                    ffi::AnyBuffer statistics, ffi::Result<ffi::AnyBuffer> dx,
                    ffi::Result<ffi::AnyBuffer> dgamma, ffi::Result<ffi::AnyBuffer> dbeta,
                    ffi::Span<const int64_t> factors, int64_t groups, double epsilon,
                    bool centered) {
  const auto compute = [&](truenorm_call* call, const truenorm_executor* executor) {
    return truenorm_backward(call, x.untyped_data(), gamma.untyped_data(), dy.untyped_data(),
                             statistics.untyped_data(), dx->untyped_data(),
                             dgamma->untyped_data(), dbeta->untyped_data(), nullptr, executor);
  };
  return run(pool, x, {factors, groups, epsilon, centered}, compute);
}

ffi::Error moments(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> statistics,
                   ffi::Span<const int64_t> factors, int64_t groups, double epsilon,
                   bool centered) {
  const auto compute = [&](truenorm_call* call, const truenorm_executor* executor) {
    return truenorm_forward(call, x.untyped_data(), nullptr, nullptr, nullptr,
                            statistics->untyped_data(), executor);
  };
  return run(pool, x, {factors, groups, epsilon, centered}, compute);
}

// y of given statistics.
ffi::Error apply(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gamma, ffi::AnyBuffer beta,
                 ffi::AnyBuffer statistics, ffi::Result<ffi::AnyBuffer> y,
                 ffi::Span<const int64_t> factors, int64_t groups, double epsilon, bool centered) {
  const auto compute = [&](truenorm_call* call, const truenorm_executor* executor) {
    call->flags |= TRUENORM_GIVEN;
    return truenorm_forward(call, x.untyped_data(), gamma.untyped_data(), beta.untyped_data(),
                            y->untyped_data(), statistics.untyped_data(), executor);
  };
  return run(pool, x, {factors, groups, epsilon, centered}, compute);
}

ffi::Error apply_backward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gamma,
                          ffi::AnyBuffer dy, ffi::AnyBuffer statistics,
                          ffi::Result<ffi::AnyBuffer> dx, ffi::Result<ffi::AnyBuffer> dgamma,
                          ffi::Result<ffi::AnyBuffer> dbeta,
                          ffi::Result<ffi::AnyBuffer> dstatistics,
                          ffi::Span<const int64_t> factors, int64_t groups, double epsilon,
                          bool centered) {
  const auto compute = [&](truenorm_call* call, const truenorm_executor* executor) {
    call->flags |= TRUENORM_GIVEN;
    return truenorm_backward(call, x.untyped_data(), gamma.untyped_data(), dy.untyped_data(),
                             statistics.untyped_data(), dx->untyped_data(),
                             dgamma->untyped_data(), dbeta->untyped_data(),
                             dstatistics->untyped_data(), executor);
  };
  return run(pool, x, {factors, groups, epsilon, centered}, compute);
}

}  // namespace

// The version of the interface that this is built for: an older JAX refuses it.
TRUENORM_EXPORT int truenorm_jax_interface_major() { return XLA_FFI_API_MAJOR; }
TRUENORM_EXPORT int truenorm_jax_interface_minor() { return XLA_FFI_API_MINOR; }

// The handler of a function with these tensors, which XLA calls.
#define TRUENORM_HANDLER(name, tensors)                                          \
  TRUENORM_EXPORT XLA_FFI_Error* truenorm_jax_##name(XLA_FFI_CallFrame* frame) { \
    static auto* handler = ffi::Ffi::Bind()                                      \
                               .Ctx<ffi::ThreadPool>() tensors                   \
                               .Attr<ffi::Span<const int64_t>>("factors")        \
                               .Attr<int64_t>("groups")                          \
                               .Attr<double>("epsilon")                          \
                               .Attr<bool>("centered")                           \
                               .To(name)                                         \
                               .release();                                       \
    return handler->Call(frame);                                                 \
  }
#define TRUENORM_IN .Arg<ffi::AnyBuffer>()
#define TRUENORM_OUT .Ret<ffi::AnyBuffer>()

TRUENORM_HANDLER(forward, TRUENORM_IN TRUENORM_IN TRUENORM_IN TRUENORM_OUT TRUENORM_OUT)
TRUENORM_HANDLER(backward, TRUENORM_IN TRUENORM_IN TRUENORM_IN TRUENORM_IN TRUENORM_OUT TRUENORM_OUT
                               TRUENORM_OUT)
TRUENORM_HANDLER(moments, TRUENORM_IN TRUENORM_OUT)
TRUENORM_HANDLER(apply, TRUENORM_IN TRUENORM_IN TRUENORM_IN TRUENORM_IN TRUENORM_OUT)
TRUENORM_HANDLER(apply_backward, TRUENORM_IN TRUENORM_IN TRUENORM_IN TRUENORM_IN TRUENORM_OUT
                                     TRUENORM_OUT TRUENORM_OUT TRUENORM_OUT)
