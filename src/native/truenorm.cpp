// The C interface: check a call, and pass it to the kernels of the instruction set in use.

#include "truenorm.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "problem.h"
#include "threads.h"

namespace truenorm {

#define TRUENORM_DECLARE(ISA)                                                                   \
  namespace ISA {                                                                               \
  bool forward(const Problem&, const void* x, const void* gamma, const void* beta, void* y,     \
               void* statistics, const truenorm_executor*);                                     \
  bool backward(const Problem&, const void* x, const void* gamma, const void* dy,               \
                const void* statistics, void* dx, void* dgamma, void* dbeta, void* dstatistics, \
                const truenorm_executor*);                                                      \
  }

#if defined(__aarch64__)
TRUENORM_DECLARE(neon)
#else
TRUENORM_DECLARE(baseline)
#endif
#if defined(TRUENORM_X86)
TRUENORM_DECLARE(avx2)
TRUENORM_DECLARE(avx512)
#endif

namespace {

struct Kernels {
  const char* name;
  bool (*usable)();
  decltype(&TRUENORM_FIRST::forward) forward;
  decltype(&TRUENORM_FIRST::backward) backward;
};

// Fastest first.
const Kernels kKernels[] = {
#if defined(TRUENORM_X86)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     },
     avx512::forward, avx512::backward},
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     },
     avx2::forward, avx2::backward},
#endif
#if defined(__aarch64__)
    {"neon", [] { return true; }, neon::forward, neon::backward},
#else
    {"baseline", [] { return true; }, baseline::forward, baseline::backward},
#endif
};

thread_local std::string error;

int fail(const std::string& what) {
  error = what;
  return 1;
}

std::atomic<const Kernels*> in_use{nullptr};

const Kernels* find(const char* name) {
  for (const Kernels& one : kKernels)
    if (one.usable() && (!name || std::strcmp(one.name, name) == 0)) return &one;
  return nullptr;
}

// The kernels in use; null where TRUENORM_ISA names none that can be.
const Kernels* kernels() {
  const Kernels* found = in_use.load(std::memory_order_acquire);
  if (!found) {
    const char* name = std::getenv("TRUENORM_ISA");
    found = find(name && *name ? name : nullptr);
    if (found) in_use.store(found, std::memory_order_release);
  }
  return found;
}

int fail_isa(const char* name) {
  return fail(std::string("the instruction set '") + (name ? name : "") +
              "' is none of those that this machine can run: " + truenorm_isas());
}

bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

int64_t bytes_of(int dtype) {
  return dtype == TRUENORM_FLOAT64 ? 8 : dtype == TRUENORM_FLOAT32 ? 4 : 2;
}

// Results of so many bytes are asked for in huge pages. NumPy does so from the same size on.
constexpr int64_t kHuge = 4 << 20;

// Ask for huge pages for memory that is about to be written whole. New memory comes in pages that
// the system fills with zeros, one interrupt each: of 4 KiB they take longer than a normalization.
void prefer_huge_pages(void* to, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  if (!to || bytes < kHuge) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(to) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(to) + uintptr_t(bytes)) / page * page;
  // It is a wish: where it fails, pages are small.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)to, (void)bytes;
#endif
}

int check(const truenorm_call* call, Problem* problem) {
  if (!call || !call->shape || !call->factors) return fail("a null pointer was passed");
  const char* wrong = make_problem(*call, problem);
  if (wrong) return fail(wrong);
  return kernels() ? 0 : fail_isa(std::getenv("TRUENORM_ISA"));
}

}  // namespace
}  // namespace truenorm

using namespace truenorm;

const char* truenorm_error(void) { return error.c_str(); }

int truenorm_sizes(const truenorm_call* call, int64_t* groups, int64_t* parameters) {
  Problem problem;
  if (check(call, &problem)) return 1;
  *groups = problem.groups;
  *parameters = problem.parameters;
  return 0;
}

int truenorm_forward(const truenorm_call* call, const void* x, const void* gamma, const void* beta,
                     void* y, void* statistics, const truenorm_executor* executor) {
  Problem p;
  if (check(call, &p)) return 1;
  const int64_t storage = bytes_of(p.dtype), compute = storage == 8 ? 8 : 4;
  if (p.elements == 0) {
    if (!p.given && statistics) std::memset(statistics, 0, size_t(p.groups * 3 * compute));
    return 0;
  }
  if (!x || !statistics || (!y && p.given)) return fail("a null pointer was passed");
  if (!aligned(x, storage) || !aligned(y, storage) || !aligned(gamma, compute) ||
      !aligned(beta, compute) || !aligned(statistics, compute))
    return fail("a pointer is not aligned to its element size");
  prefer_huge_pages(y, p.elements * storage);
  return kernels()->forward(p, x, gamma, beta, y, statistics, executor)
             ? 0
             : fail("out of memory");
}

int truenorm_backward(const truenorm_call* call, const void* x, const void* gamma, const void* dy,
                      const void* statistics, void* dx, void* dgamma, void* dbeta,
                      void* dstatistics, const truenorm_executor* executor) {
  Problem p;
  if (check(call, &p)) return 1;
  const int64_t storage = bytes_of(p.dtype), compute = storage == 8 ? 8 : 4;
  if (dstatistics && !p.given)
    return fail("dstatistics was passed, and the statistics are not given: pass NULL");
  if (p.elements == 0) {
    for (void* sum : {dgamma, dbeta})
      if (sum) std::memset(sum, 0, size_t(p.parameters * compute));
    if (dstatistics) std::memset(dstatistics, 0, size_t(p.groups * 2 * compute));
    return 0;
  }
  if (!x || !dy || !statistics || !dx) return fail("a null pointer was passed");
  if (!aligned(x, storage) || !aligned(dy, storage) || !aligned(dx, storage) ||
      !aligned(gamma, compute) || !aligned(dgamma, compute) || !aligned(dbeta, compute) ||
      !aligned(statistics, compute) || !aligned(dstatistics, compute))
    return fail("a pointer is not aligned to its element size");
  prefer_huge_pages(dx, p.elements * storage);
  return kernels()->backward(p, x, gamma, dy, statistics, dx, dgamma, dbeta, dstatistics, executor)
             ? 0
             : fail("out of memory");
}

const char* truenorm_isa(void) {
  const Kernels* found = kernels();
  return found ? found->name : "";
}

const char* truenorm_isas(void) {
  static const std::string names = [] {
    std::string all;
    for (const Kernels& one : kKernels)
      if (one.usable()) all += (all.empty() ? "" : " ") + std::string(one.name);
    return all;
  }();
  return names.c_str();
}

int truenorm_set_isa(const char* name) {
  const Kernels* found = name ? find(name) : nullptr;
  if (!found) return fail_isa(name);
  in_use.store(found, std::memory_order_release);
  return 0;
}

int truenorm_threads(void) { return thread_count(); }

int truenorm_set_threads(int count) {
  return set_thread_count(count) ? 0 : fail("the number of threads must be 1 to 4096");
}
