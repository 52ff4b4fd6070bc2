// The C interface of truenorm's kernels: normalization of CPU tensors, forward and backward.
//
//     y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
//
// Tensors are contiguous, in row-major order, and aligned to their element size. Statistics and
// parameters are float32, or float64 where x is float64. Every function is thread-safe, and its
// result depends on the shape and the instruction set alone: not on the number of threads, nor on
// the addresses.

#ifndef TRUENORM_H
#define TRUENORM_H

#include <stdint.h>

#if defined(_WIN32)
#if defined(TRUENORM_BUILDING)
#define TRUENORM_API __declspec(dllexport)
#else
#define TRUENORM_API __declspec(dllimport)
#endif
#else
#define TRUENORM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum truenorm_dtype { TRUENORM_FLOAT32, TRUENORM_FLOAT64, TRUENORM_BFLOAT16, TRUENORM_FLOAT16 };

// Flags of a call.
enum {
  TRUENORM_CENTERED = 1,  // subtract the mean; else the statistic is the root mean square
  TRUENORM_GIVEN = 2      // `statistics` is an input, and constant to the gradient in x
};

// Which elements share statistics: the recipe of `truenorm/view.py` and the shape to fill in.
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
} truenorm_call;

// How to run task(context, 0) ... task(context, count - 1) on several threads: `run` returns when
// all have ended. Pass NULL where an executor is asked for to use the library's own threads.
typedef void (*truenorm_task)(void* context, int64_t index);
typedef struct {
  void* handle;
  void (*run)(void* handle, int64_t count, truenorm_task task, void* context);
} truenorm_executor;

// All functions below that return an int return 0, or 1 after an error, which truenorm_error()
// then describes to the same thread.
TRUENORM_API const char* truenorm_error(void);

// The number of groups of elements that share statistics, into *groups, and of elements of gamma,
// into *parameters.
TRUENORM_API int truenorm_sizes(const truenorm_call* call, int64_t* groups, int64_t* parameters);

// y, of x's shape and dtype, and for each group three statistics: the mean rounded, what the
// rounding left of it, and the variance. gamma and beta may be NULL; so may y, where the statistics
// are not given: then nothing else is computed.
TRUENORM_API int truenorm_forward(const truenorm_call* call, const void* x, const void* gamma,
                                  const void* beta, void* y, void* statistics,
                                  const truenorm_executor* executor);

// The gradient of sum(dy * y) in x, gamma and beta; and, where the statistics are given, in each
// group's mean and variance (two numbers for each group). gamma, dgamma, dbeta and dstatistics may
// be NULL.
TRUENORM_API int truenorm_backward(const truenorm_call* call, const void* x, const void* gamma,
                                   const void* dy, const void* statistics, void* dx, void* dgamma,
                                   void* dbeta, void* dstatistics,
                                   const truenorm_executor* executor);

// The instruction set in use ("avx512", "avx2", "baseline", "neon"); a list, separated by spaces,
// of those that this build has and this machine can run; and one to use from now on, for tests.
TRUENORM_API const char* truenorm_isa(void);
TRUENORM_API const char* truenorm_isas(void);
TRUENORM_API int truenorm_set_isa(const char* name);

// The number of threads that the library's own pool uses, at least 1, and how to set it.
TRUENORM_API int truenorm_threads(void);
TRUENORM_API int truenorm_set_threads(int count);

#ifdef __cplusplus
}
#endif

#endif
