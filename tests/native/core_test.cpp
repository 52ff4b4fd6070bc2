// The core on random problems, for a build with sanitizers: core_test [PROBLEMS] [SEED].
//
// Every array is a heap block of its own that ends where the array ends, so that a sanitizer sees
// any access outside of it. Results are compared with sums in double, element by element. Numbers
// to the promise are tests/kernels/test_core.py's matter; this is about memory and threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../../src/native/truenorm.h"
#include "../../src/native/shares.h"

namespace {

struct Random {
  uint64_t state;
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
  int64_t below(int64_t n) { return int64_t(next() % uint64_t(n)); }
  double normal() {  // nearly: the sum of twelve uniform numbers
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += double(next() >> 11) / 9007199254740992.0;
    return sum;
  }
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "core_test: %s (last error of the core: %s)\n", what.c_str(),
               truenorm_error());
  std::exit(1);
}

// `count` elements that begin `offset` elements into a heap block and end with it.
class Array {
 public:
  Array(int64_t count, int64_t bytes, int64_t offset)
      : block_(static_cast<char*>(std::malloc(size_t((count + offset) * bytes)))),
        data_(block_ + offset * bytes) {
    std::memset(block_, 0xff, size_t((count + offset) * bytes));  // NaN, if anyone reads it
  }
  Array(const Array&) = delete;
  ~Array() { std::free(block_); }
  template <class T>
  T* as() const { return reinterpret_cast<T*>(data_); }

 private:
  char *block_, *data_;
};

float of_bfloat16(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// A call with its arrays of numbers.
struct Problem {
  std::vector<int64_t> shape, factors;
  truenorm_call call{};
  int64_t elements = 1, groups = 0, parameters = 0;
  std::vector<int64_t> group, parameter;  // of each element

  explicit Problem(Random& random) {
    const int64_t rank = 1 + random.below(5), longest = rank < 3 ? 400 : rank < 4 ? 60 : 14;
    const int64_t cut = random.below(2) ? random.below(rank) : -1;
    int64_t run = 0;
    for (int64_t axis = 0; axis < rank; ++axis) {
      const bool long_one = axis + 1 == rank && elements < 400 && !random.below(3);
      int64_t length = 1 + random.below(long_one ? 900 : random.below(3) ? longest : 3);
      if (random.below(50) == 0) length = 0;
      const int64_t varies = random.below(2);
      const auto add = [&](int64_t part) {
        while (run < 3 && random.below(2)) ++run;
        factors.insert(factors.end(), {axis, part, run, varies});
      };
      if (axis == cut) {
        call.groups = random.below(3) ? 1 + random.below(4) : -1;
        if (call.groups > 0) length *= call.groups;
        add(1);
        add(2);
      } else {
        add(0);
      }
      shape.push_back(length);
      elements *= length;
    }
    call.dtype = int32_t(random.below(4));
    call.flags = random.below(4) ? TRUENORM_CENTERED : 0;
    call.epsilon = 1e-3;
    call.rank = int32_t(rank);
    call.factor_count = int32_t(factors.size() / 4);
    call.shape = shape.data();
    call.factors = factors.data();
    if (truenorm_sizes(&call, &groups, &parameters)) fail("a sound call was refused");
    place();
  }
  Problem(const Problem&) = delete;

 private:
  // By definition: the group counts the kept factors, the parameter those that vary.
  void place() {
    for (int64_t e = 0; e < elements; ++e) {
      int64_t rest = e, to_group = 0, to_parameter = 0, group_step = 1, parameter_step = 1;
      for (int64_t i = call.factor_count - 1; i >= 0; --i) {
        const int64_t* f = &factors[size_t(4 * i)];
        const int64_t length = shape[size_t(f[0])];
        const int64_t cut = call.groups == -1 ? length : call.groups;
        const int64_t size = f[1] == 0 ? length : f[1] == 1 ? cut : length / cut;
        const int64_t at = rest % size;
        rest /= size;
        if (f[2] % 2 == 0) {
          to_group += at * group_step;
          group_step *= size;
        }
        if (f[3]) {
          to_parameter += at * parameter_step;
          parameter_step *= size;
        }
      }
      group.push_back(to_group);
      parameter.push_back(to_parameter);
    }
  }
};

// Compute a random problem on one instruction set after the other; the results agree with `place`.
void one(Random& random) {
  const Problem p(random);
  const int64_t bytes = p.call.dtype == TRUENORM_FLOAT32 ? 4 : p.call.dtype == TRUENORM_FLOAT64 ? 8 : 2;
  const int64_t compute = bytes == 8 ? 8 : 4, offset = random.below(4);
  const bool scaled = random.below(4), shifted = random.below(4), asked = random.below(4);
  Array x(p.elements, bytes, offset), dy(p.elements, bytes, offset);
  Array y(p.elements, bytes, offset), dx(p.elements, bytes, offset);
  Array gamma(p.parameters, compute, offset), beta(p.parameters, compute, offset);
  Array dgamma(p.parameters, compute, offset), dbeta(p.parameters, compute, offset);
  Array statistics(3 * p.groups, compute, offset);

  const auto number = [&](const Array& a, int64_t i, int64_t size) -> double {
    if (size == 8) return a.as<double>()[i];
    if (size == 4) return a.as<float>()[i];
    // float16 is only run for its memory accesses: small integers as bits are subnormal numbers.
    return p.call.dtype == TRUENORM_BFLOAT16 ? of_bfloat16(a.as<uint16_t>()[i])
                                             : a.as<uint16_t>()[i] * 0x1p-24;
  };
  const auto draw = [&](const Array& a, int64_t i, int64_t size) {
    const float value = float(random.normal());
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    if (size == 8)
      a.as<double>()[i] = value;
    else if (size == 4)
      a.as<float>()[i] = value;
    else
      a.as<uint16_t>()[i] = uint16_t(p.call.dtype == TRUENORM_BFLOAT16 ? word >> 16 : word >> 23);
  };
  for (int64_t i = 0; i < p.elements; ++i) draw(x, i, bytes), draw(dy, i, bytes);
  for (int64_t i = 0; i < p.parameters; ++i) draw(gamma, i, compute), draw(beta, i, compute);

  if (truenorm_forward(&p.call, x.as<void>(), scaled ? gamma.as<void>() : nullptr,
                       shifted ? beta.as<void>() : nullptr, y.as<void>(), statistics.as<void>(),
                       nullptr))
    fail("forward failed");
  // The halves: the statistics alone, and y and its gradient where these are given.
  Array alone(3 * p.groups, compute, offset), dstatistics(2 * p.groups, compute, offset);
  Array again(p.elements, bytes, offset), dgiven(p.elements, bytes, offset);
  if (truenorm_forward(&p.call, x.as<void>(), nullptr, nullptr, nullptr, alone.as<void>(), nullptr))
    fail("forward without y failed");
  if (std::memcmp(alone.as<void>(), statistics.as<void>(), size_t(3 * p.groups * compute)))
    fail("statistics alone are not those beside y");
  truenorm_call given = p.call;
  given.flags |= TRUENORM_GIVEN;
  if (truenorm_forward(&given, x.as<void>(), scaled ? gamma.as<void>() : nullptr,
                       shifted ? beta.as<void>() : nullptr, again.as<void>(), alone.as<void>(),
                       nullptr))
    fail("forward with given statistics failed");
  if (std::memcmp(again.as<void>(), y.as<void>(), size_t(p.elements * bytes)))
    fail("y of given statistics is not y");
  if (truenorm_backward(&given, x.as<void>(), scaled ? gamma.as<void>() : nullptr, dy.as<void>(),
                        statistics.as<void>(), dgiven.as<void>(),
                        asked ? dgamma.as<void>() : nullptr, asked ? dbeta.as<void>() : nullptr,
                        dstatistics.as<void>(), nullptr))
    fail("backward with given statistics failed");
  if (truenorm_backward(&p.call, x.as<void>(), scaled ? gamma.as<void>() : nullptr,
                        dy.as<void>(), statistics.as<void>(), dx.as<void>(),
                        asked ? dgamma.as<void>() : nullptr, asked ? dbeta.as<void>() : nullptr,
                        nullptr, nullptr))
    fail("backward failed");
  if (p.call.dtype == TRUENORM_FLOAT16 || !p.elements) return;

  const bool centered = p.call.flags & TRUENORM_CENTERED;
  const double n = double(p.elements / p.groups);
  std::vector<double> mean(size_t(p.groups)), square(mean), g(mean), gx(mean);
  std::vector<double> to_gamma(size_t(p.parameters)), to_beta(to_gamma);
  const auto parameter = [&](int64_t e) { return p.parameter[size_t(e)]; };
  const auto in = [&](std::vector<double>& sums, int64_t e) -> double& {
    return sums[size_t(p.group[size_t(e)])];
  };
  for (int64_t e = 0; e < p.elements && centered; ++e) in(mean, e) += number(x, e, bytes) / n;
  for (int64_t e = 0; e < p.elements; ++e)
    in(square, e) += std::pow(number(x, e, bytes) - in(mean, e), 2) / n;
  const auto hat = [&](int64_t e) {
    return (number(x, e, bytes) - in(mean, e)) / std::sqrt(in(square, e) + p.call.epsilon);
  };
  const auto scale = [&](int64_t e) { return scaled ? number(gamma, parameter(e), compute) : 1; };
  for (int64_t e = 0; e < p.elements; ++e) {
    const double d = number(dy, e, bytes);
    in(g, e) += scale(e) * d / n;
    in(gx, e) += scale(e) * d * hat(e) / n;
    to_gamma[size_t(parameter(e))] += d * hat(e);
    to_beta[size_t(parameter(e))] += d;
  }
  const double slack = bytes == 2 ? 2e-2 : bytes == 4 ? 4e-6 : 1e-13;
  const auto agree = [&](const char* what, double found, double wanted, double size) {
    if (!(std::fabs(found - wanted) <= slack * (1 + std::fabs(wanted) + size)))
      fail(std::string(what) + " is " + std::to_string(found) + ", not " + std::to_string(wanted));
  };
  for (int64_t e = 0; e < p.elements; ++e) {
    const double shift = shifted ? number(beta, parameter(e), compute) : 0;
    agree("y", number(y, e, bytes), scale(e) * hat(e) + shift, 1);
    const double rstd = 1 / std::sqrt(in(square, e) + p.call.epsilon);
    agree("dx", number(dx, e, bytes),
          rstd * (scale(e) * number(dy, e, bytes) - (centered ? in(g, e) : 0) - hat(e) * in(gx, e)),
          4 * rstd);
    agree("dx of given statistics", number(dgiven, e, bytes),
          rstd * scale(e) * number(dy, e, bytes), 4 * rstd);
  }
  for (int64_t i = 0; i < p.groups; ++i) {
    const double rstd = 1 / std::sqrt(square[size_t(i)] + p.call.epsilon);
    agree("dmean", number(dstatistics, 2 * i, compute),
          centered ? -rstd * n * g[size_t(i)] : 0, 4 * rstd * std::sqrt(n));
    agree("dvariance", number(dstatistics, 2 * i + 1, compute),
          -0.5 * rstd * rstd * n * gx[size_t(i)], 4 * rstd * rstd * std::sqrt(n));
  }
  for (int64_t i = 0; i < p.parameters && asked; ++i) {
    const double terms = std::sqrt(double(p.elements) / double(p.parameters));
    agree("dgamma", number(dgamma, i, compute), to_gamma[size_t(i)], terms);
    agree("dbeta", number(dbeta, i, compute), to_beta[size_t(i)], terms);
  }
}

// A call of random integers is refused, or computed; it never touches what is not there.
void nonsense(Random& random) {
  std::vector<int64_t> shape, factors;
  const int64_t rank = random.below(4), count = random.below(6);
  for (int64_t i = 0; i < rank; ++i) shape.push_back(random.below(6) - 1);
  for (int64_t i = 0; i < 4 * count; ++i) factors.push_back(random.below(5) - 1);
  const truenorm_call call{int32_t(random.below(6) - 1), int32_t(random.below(4)), 1e-3,
                           random.below(5) - 1, int32_t(rank), int32_t(count), shape.data(),
                           factors.data()};
  int64_t groups, parameters;
  truenorm_sizes(&call, &groups, &parameters);
}

// A worker begins with its own share, and every task is done once whoever comes.
void shares(int64_t count, int64_t workers) {
  std::vector<int64_t> done;
  truenorm::Shares tasks(
      count, workers,
      [](void* list, int64_t index) { static_cast<std::vector<int64_t>*>(list)->push_back(index); },
      &done);
  const int64_t used = std::min(count, workers);
  for (int64_t worker = 0; worker < used; ++worker)
    if (tasks.work(worker, 1) != 1 || done.back() != count * worker / used)
      fail("worker " + std::to_string(worker) + " does not begin with its own share");
  if (tasks.any_left() != (count > used)) fail("it is not known whether there are tasks left");
  if (tasks.work(used - 1) != count - used || tasks.any_left()) fail("tasks are left");
  std::sort(done.begin(), done.end());
  for (int64_t index = 0; index < count; ++index)
    if (done.size() != size_t(count) || done[size_t(index)] != index) fail("tasks not done once");
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t problems = count > 1 ? std::atoll(arguments[1]) : 200;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  for (int64_t tasks : {1, 2, 7, 64, 100})
    for (int64_t workers : {1, 2, 5, 64}) shares(tasks, workers);
  const std::string isas = truenorm_isas();
  for (size_t from = 0; from < isas.size();) {
    const size_t end = std::min(isas.find(' ', from), isas.size());
    const std::string isa = isas.substr(from, end - from);
    from = end + 1;
    if (truenorm_set_isa(isa.c_str())) fail("cannot choose " + isa);
    for (int threads : {1, 2, 5}) {
      if (truenorm_set_threads(threads)) fail("cannot set the threads");
      Random random{0x9e3779b97f4a7c15u * (seed + uint64_t(threads))};
      for (int64_t i = 0; i < problems; ++i) one(random), nonsense(random);
    }
    // Two threads at once.
    std::thread other([&] {
      Random random{0x2545f4914f6cdd1du * seed};
      for (int64_t i = 0; i < problems; ++i) one(random);
    });
    Random random{0x9e3779b97f4a7c15u * seed};
    for (int64_t i = 0; i < problems; ++i) one(random);
    other.join();
    std::printf("%s: %lld problems\n", isa.c_str(), static_cast<long long>(5 * problems));
  }
}
