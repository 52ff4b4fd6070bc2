// What the two shapes of loop share. Included once per instruction set, after vector.h.

#include <stdlib.h>

#include "problem.h"
#include "threads.h"

namespace truenorm {
namespace TRUENORM_ISA {

// Sizes that decide how work is cut. They are constants, so that the cut depends on the shape only.
constexpr int64_t kTaskElements = 32768;   // a task takes at least about 10 microseconds
constexpr int64_t kCacheBytes = 4 << 20;   // of a group that is read twice out of the cache
constexpr int64_t kStreamBytes = 4 << 20;   // outputs from this size on are stored past the cache
constexpr int64_t kMostLanes = 1024;        // whose sums are kept in the nearest cache
constexpr int64_t kFolded = 8;              // vectors of a row of folded stretches
constexpr int64_t kAhead = 16 << 10;        // bytes by which rows end to end are asked for
constexpr int64_t kAheadWritten = 4 << 10;  // the same while a result is written
constexpr int64_t kLongStretch = 1 << 10;    // bytes of a row, enough to be read by itself
constexpr int64_t kShortStretch = 512;      // bytes of a row, too few for what is fetched ahead
constexpr int64_t kTogether = 4;            // rows apart, whose sums are fetched once
constexpr int64_t kSomeTiles = 4;           // in a task, where it leaves kFewTasks
constexpr int64_t kFewTasks = 32;
constexpr int64_t kMostChunks = 64;         // of a tile, each of which prepares its lanes anew
constexpr int64_t kMostParts = 64;          // partial sums of the gradient of gamma
// Rows and tiles of up to so many bytes are asked for while the result of the one before is written,
// so that memory is read and written at the same time and not in turn.
constexpr int64_t kNextRow = 64 << 10;
constexpr int64_t kNextTile = 512 << 10;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that is freed at the end of a scope; `get` returns null where there is none.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    while (last_) {
      void** block = last_;
      last_ = static_cast<void**>(*block);
      free(block);
    }
  }
  template <class T>
  T* get(int64_t count) {
    const size_t bytes = sizeof(void*) * 8 + sizeof(T) * size_t(count);
    void** block = static_cast<void**>(malloc(bytes));
    if (!block) {
      failed_ = true;
      return nullptr;
    }
    *block = last_;
    last_ = block;
    return reinterpret_cast<T*>(block + 8);
  }
  // Zeros, written at once: new pages from calloc are all one page of zeros, and each is copied when
  // it is first added to, which makes the system interrupt every thread.
  template <class T>
  T* zeros(int64_t count) {
    T* found = get<T>(count);
    if (found) __builtin_memset(found, 0, sizeof(T) * size_t(count));
    return found;
  }
  bool failed() const { return failed_; }

 private:
  void** last_ = nullptr;
  bool failed_ = false;
};

struct Forward {
  const Problem& p;
  const void *x, *gamma, *beta;
  void *y, *statistics;  // y null: statistics alone
  const truenorm_executor* executor;
};
struct Backward {
  const Problem& p;
  const void *x, *gamma, *dy, *statistics;
  void *dx, *dgamma, *dbeta, *dstatistics;
  const truenorm_executor* executor;
};

// Run body(0) ... body(count - 1), which return whether there was memory enough.
template <class Body>
static bool run_all(const truenorm_executor* executor, int64_t count, const Body& body) {
  struct Shared {
    const Body* body;
    int failed;
  } shared{&body, 0};
  run_tasks(
      executor, count,
      [](void* context, int64_t index) {
        Shared* given = static_cast<Shared*>(context);
        if (!(*given->body)(index)) __atomic_store_n(&given->failed, 1, __ATOMIC_RELAXED);
      },
      &shared);
  return !__atomic_load_n(&shared.failed, __ATOMIC_RELAXED);
}

// The pivot of a group: the mean of the four elements at(i * count / 4), which is nearly always near
// enough. One element is more than two standard deviations from the mean in every twentieth group
// of normal numbers, and all groups that are computed together are summed again if any has such a
// pivot. Where all elements are equal, so is the pivot.
template <class At>
static inline auto pivot_of(int64_t count, const At& at) {
  return ((at(0) + at(count / 4)) + (at(count / 2) + at(count * 3 / 4))) * 0.25f;
}

// The sum of x - pivot and of its square.
struct Moments {
  double sum = 0, squares = 0;
};

// In float where the result is one: many small groups wait for a square root and a division each.
static inline float root(float number) { return __builtin_sqrtf(number); }
static inline double root(double number) { return __builtin_sqrt(number); }

// What x - mean is multiplied by.
template <class S>
static inline S rstd_of(const Problem& p, S variance) {
  return 1 / root(S(variance + p.epsilon));
}

// The three statistics of a group, from its moments about a pivot; and whether the pivot was so far
// from the mean that the moments lost digits: then they are taken again about the mean.
template <class S>
struct Statistics {
  S high, low, variance;
  bool far;

  // `part` is 1 / n.
  Statistics(bool centered, double part, S pivot, double sum, double squares) {
    const double rest = centered ? sum * part : 0;
    const double found = squares * part - rest * rest, v = found < 0 ? 0 : found;
    const double mean = pivot + rest, taken = mean - pivot;
    high = S(mean);
    // What rounding took from the mean; where S is double, what it took from the sum counts too.
    low = S((mean - double(high)) + ((pivot - (mean - taken)) + (rest - taken)));
    variance = S(v);
    // In float64 there is no wider type for the sums, so the pivot must be the mean, nearly.
    far = (rest * rest > (sizeof(S) == 8 ? 1e-6 : 4.0) * v) & (high != pivot);
  }
};

// The statistics of `count` groups whose pivots and moments are in line, in lines too; returns
// whether any pivot was too far. A loop that compilers turn into vectors.
template <bool centered, class S>
static inline bool in_lines(const Problem& p, int64_t count, const S* pivot, const double* sum,
                            const double* squares, S* high, S* low, S* variance) {
  const double part = 1 / double(p.count);
  int far = false;
  for (int64_t g = 0; g < count; ++g) {
    const Statistics<S> one(centered, part, pivot[g], sum[g], squares[g]);
    high[g] = one.high;
    low[g] = one.low;
    variance[g] = one.variance;
    far |= one.far;
  }
  return far;
}

// The same, written group after group.
template <bool centered, class S>
static inline bool finish_groups(const Problem& p, int64_t count, const S* pivot, const double* sum,
                                 const double* squares, S* statistics) {
  constexpr int64_t kSome = 32;
  bool far = false;
  for (int64_t from = 0; from < count; from += kSome) {
    const int64_t some = least(kSome, count - from);
    S high[kSome], low[kSome], variance[kSome];
    far |= in_lines<centered>(p, some, pivot + from, sum + from, squares + from, high, low, variance);
    S* __restrict to = statistics + 3 * from;
    for (int64_t g = 0; g < some; ++g) {
      to[3 * g] = high[g];
      to[3 * g + 1] = low[g];
      to[3 * g + 2] = variance[g];
    }
  }
  return far;
}
template <class S>
static inline bool finish(const Problem& p, int64_t count, const S* pivot, const double* sum,
                          const double* squares, S* statistics) {
  return p.centered ? finish_groups<true>(p, count, pivot, sum, squares, statistics)
                    : finish_groups<false>(p, count, pivot, sum, squares, statistics);
}
template <class S>
static inline bool finish(const Problem& p, S pivot, Moments m, S* statistics) {
  return finish(p, 1, &pivot, &m.sum, &m.squares, statistics);
}

// What follows from the sums of a group's gradient g = gamma * dy, and of g * (x - high), where high
// is the first of the group's statistics: dx = rstd * gamma * dy + slope * (x - high) + constant,
// and, where the statistics are given, the gradients in these.
struct Projection {
  double slope, constant;
};
struct Projector {
  bool given, centered;
  double part;  // 1 / n

  explicit Projector(const Problem& p)
      : given(p.given), centered(p.centered), part(1 / double(p.count)) {}

  // `low` is the second of the statistics, and `rstd` follows from the third.
  Projection operator()(double g, double gx, double low, double rstd) const {
    if (given) return {0, 0};
    const double slope = -rstd * rstd * rstd * (gx - low * g) * part;
    return {slope, centered ? -rstd * g * part - slope * low : 0};
  }

  // Write the gradients in the group's mean and variance.
  template <class S>
  void to_statistics(double g, double gx, double low, double rstd, S* to) const {
    to[0] = centered ? S(-rstd * g) : S(0);
    to[1] = S(-0.5 * rstd * rstd * rstd * (gx - low * g));
  }
};

// Sums of the gradients of gamma and beta: one set of partial sums for each part of the work,
// which are added in order at the end.
struct ParameterSums {
  int64_t parameters, parts;
  double *gamma, *beta;  // parts sets of `parameters` numbers; null where nobody asks for them

  ParameterSums(const Backward& b, int64_t parts, Scratch& scratch)
      : parameters(b.p.parameters),
        parts(parts),
        gamma(b.dgamma ? scratch.zeros<double>(parts * b.p.parameters) : nullptr),
        beta(b.dbeta ? scratch.zeros<double>(parts * b.p.parameters) : nullptr) {}

  // The number of parts whose sums take little memory beside x.
  static int64_t most_parts(const Problem& p) {
    return most(1, least(kMostParts, p.elements / (32 * most(1, p.parameters))));
  }

  void add(int64_t part, int64_t at, double to_gamma, double to_beta) const {
    if (gamma) gamma[part * parameters + at] += to_gamma;
    if (beta) beta[part * parameters + at] += to_beta;
  }

  // Add the numbers begin to end, of the parameters from `first` on, to the sums of gamma or beta,
  // and leave zeros. A loop that compilers turn into vectors.
  template <class S>
  void take(double* sums, int64_t part, int64_t first, S* numbers, int64_t begin,
            int64_t end) const {
    if (!sums || !numbers) return;
    double* to = sums + part * parameters + first;
    for (int64_t i = begin; i < end; ++i) {
      to[i] += double(numbers[i]);
      numbers[i] = 0;
    }
  }

  template <class S>
  void finish(S* dgamma, S* dbeta) const {
    total(gamma, dgamma);
    total(beta, dbeta);
  }

 private:
  // Adds all parts to the first one. A loop that compilers turn into vectors.
  template <class S>
  void total(double* sums, S* to) const {
    if (!sums) return;
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < parameters; ++i) sums[i] += sums[part * parameters + i];
    for (int64_t i = 0; i < parameters; ++i) to[i] = S(sums[i]);
  }
};

}  // namespace TRUENORM_ISA
}  // namespace truenorm
