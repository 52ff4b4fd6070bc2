// The C interface of evenkeel's kernels: normalization of CPU tensors, forward and backward.
//
//     y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
//
// Tensors are contiguous, in row-major order, and aligned to their element size. Statistics and
// parameters are float32, or float64 where x is float64. Every function is thread-safe, and its
// result depends on the shape and the instruction set alone: not on the number of threads, nor on
// the addresses.

#ifndef EVENKEEL_H
#define EVENKEEL_H

#include <stdint.h>

#if defined(_WIN32)
#if defined(EVENKEEL_BUILDING)
#define EVENKEEL_API __declspec(dllexport)
#else
#define EVENKEEL_API __declspec(dllimport)
#endif
#else
#define EVENKEEL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum evenkeel_dtype { EVENKEEL_FLOAT32, EVENKEEL_FLOAT64, EVENKEEL_BFLOAT16, EVENKEEL_FLOAT16 };

// Flags of a call.
enum {
  EVENKEEL_CENTERED = 1,  // subtract the mean; else the statistic is the root mean square
  EVENKEEL_GIVEN = 2      // `statistics` is an input, and constant to the gradient
};

// Which elements share statistics: the recipe of `evenkeel/view.py` and the shape to fill in.
// A factor is four numbers: the axis of x; the part of that axis (0 the whole, 1 its groups, 2 the
// channels within a group); the run that it is merged into (0 to 3: K0, R0, K1, R1); and whether
// gamma and beta vary along it (0 or 1). Factors come outermost first, so the axes ascend. The
// shape of gamma and beta is that of the axes along which they vary.
typedef struct {
  int32_t dtype;
  int32_t flags;
  double epsilon;
  int64_t groups;  // along the axis that is cut; -1: one per channel
  int32_t rank;
  int32_t factor_count;
  const int64_t* shape;    // rank numbers
  const int64_t* factors;  // four times factor_count numbers
} evenkeel_call;

// How to run task(context, 0) ... task(context, count - 1) on several threads: `run` returns when
// all have ended. Pass NULL where an executor is asked for to use the library's own threads.
typedef void (*evenkeel_task)(void* context, int64_t index);
typedef struct {
  void* handle;
  void (*run)(void* handle, int64_t count, evenkeel_task task, void* context);
} evenkeel_executor;

// All functions below that return an int return 0, or 1 after an error, which evenkeel_error()
// then describes to the same thread.
EVENKEEL_API const char* evenkeel_error(void);

// The number of groups of elements that share statistics, into *groups, and of elements of gamma,
// into *parameters.
EVENKEEL_API int evenkeel_sizes(const evenkeel_call* call, int64_t* groups, int64_t* parameters);

// y, of x's shape and dtype, and for each group three statistics: the mean rounded, what the
// rounding left of it, and 1 / sqrt(variance + epsilon). gamma, beta and variance (one number for
// each group) may be NULL.
EVENKEEL_API int evenkeel_forward(const evenkeel_call* call, const void* x, const void* gamma,
                                  const void* beta, void* y, void* statistics, void* variance,
                                  const evenkeel_executor* executor);

// The gradient of sum(dy * y) in x, gamma and beta. gamma, and dgamma and dbeta, may be NULL.
EVENKEEL_API int evenkeel_backward(const evenkeel_call* call, const void* x, const void* gamma,
                                   const void* dy, const void* statistics, void* dx, void* dgamma,
                                   void* dbeta, const evenkeel_executor* executor);

// The instruction set in use ("avx512", "avx2", "baseline", "neon"); a list, separated by spaces,
// of those that this build has and this machine can run; and one to use from now on, for tests.
EVENKEEL_API const char* evenkeel_isa(void);
EVENKEEL_API const char* evenkeel_isas(void);
EVENKEEL_API int evenkeel_set_isa(const char* name);

// The number of threads that the library's own pool uses, at least 1, and how to set it.
EVENKEEL_API int evenkeel_threads(void);
EVENKEEL_API int evenkeel_set_threads(int count);

#ifdef __cplusplus
}
#endif

#endif
