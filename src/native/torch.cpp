// The kernels as operations of PyTorch, through its stable C interface (the "AOTI shim"), whose
// functions are declared here and looked up when truenorm_torch_register is called.
//
//     truenorm::forward(x, gamma, beta, recipe, groups, epsilon, centered) -> (y, statistics)
//     truenorm::backward(x, gamma, dy, statistics, recipe, groups, epsilon, centered)
//         -> (dx, dgamma, dbeta)
//     truenorm::moments(x, recipe, groups, epsilon, centered) -> statistics
//     truenorm::apply(x, gamma, beta, statistics, recipe, groups, epsilon, centered) -> y
//     truenorm::apply_backward(x, gamma, dy, statistics, recipe, groups, epsilon, centered)
//         -> (dx, dgamma, dbeta, dstatistics)
//
// `statistics` are three numbers for each group, and `dstatistics` two, as in truenorm.h.
// All tensors are on the CPU; the Python side sees to that. However they lie in memory, the kernels
// get them contiguous and aligned: `Owned` copies those that are not. `recipe` packs the factors of
// truenorm.h into one integer, five bits each, the outermost lowest: 1 + part + 3 * run +
// 12 * varies. Their axes follow from the parts.

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "truenorm.h"
#include "shares.h"
#include "symbols.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace {

using Tensor = struct AtenTensorOpaque*;
using Library = struct TorchLibraryOpaque*;
using Value = uint64_t;  // an argument or a result: an owned tensor, or the bytes of a number
using Kernel = void (*)(Value* stack, uint64_t arguments, uint64_t results);

struct Api {
  int32_t (*library_fragment)(const char* ns, const char* file, uint32_t line, Library*);
  int32_t (*library_define)(Library, const char* schema);
  int32_t (*library_of_key)(const char* ns, const char* key, const char* file, uint32_t line,
                            Library*);
  int32_t (*library_implement)(Library, const char* name, Kernel);
  int32_t (*data)(Tensor, void**);
  int32_t (*rank)(Tensor, int64_t*);
  int32_t (*shape)(Tensor, int64_t**);
  int32_t (*dtype)(Tensor, int32_t*);
  int32_t (*empty)(int64_t rank, const int64_t* shape, const int64_t* strides, int32_t dtype,
                   int32_t device_type, int32_t device_index, Tensor*);
  int32_t (*release)(Tensor);
  int32_t (*is_contiguous)(Tensor, bool*);
  int32_t (*copy)(Tensor to, Tensor from, int32_t non_blocking);
  // Null before PyTorch 2.10.
  int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain,
                          void (*body)(int64_t begin, int64_t end, void* context), void* context);
  int32_t (*thread_count)(uint32_t*);
} api;

void check(int32_t status) {
  if (status) throw std::runtime_error("truenorm: a call of PyTorch's C interface failed");
}

// PyTorch's numbers for the dtypes that the kernels take; they never change.
enum { kFloat16 = 5, kFloat32 = 6, kFloat64 = 7, kBFloat16 = 15 };

// A contiguous tensor that this function owns, as it does its arguments.
class Owned {
 public:
  // An argument, or a copy of it where the kernels cannot read its memory: PyTorch's tensors begin
  // at any byte, and what holds none, such as the gradient of an output that nobody used, comes as
  // one zero that all elements share.
  explicit Owned(Value value) : Owned() {
    std::memcpy(&tensor_, &value, sizeof tensor_);
    if (is_contiguous() && reinterpret_cast<uintptr_t>(data()) % element_size() == 0) return;
    Owned readable(rank(), shape(), dtype());
    check(api.copy(readable.tensor_, tensor_, 0));
    std::swap(tensor_, readable.tensor_);
  }
  Owned(int64_t rank, const int64_t* shape, int32_t dtype) {
    int64_t strides[64], stride = 1;
    if (rank > 64) throw std::runtime_error("truenorm: x has too many axes");
    for (int64_t i = rank - 1; i >= 0; --i) {
      strides[i] = stride;
      stride *= shape[i] > 0 ? shape[i] : 1;
    }
    check(api.empty(rank, shape, strides, dtype, 0, -1, &tensor_));
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (tensor_) api.release(tensor_);
  }

  void* data() const {
    void* found;
    check(api.data(tensor_, &found));
    return found;
  }
  int64_t rank() const {
    int64_t found;
    check(api.rank(tensor_, &found));
    return found;
  }
  const int64_t* shape() const {
    int64_t* found;
    check(api.shape(tensor_, &found));
    return found;
  }
  int32_t dtype() const {
    int32_t found;
    check(api.dtype(tensor_, &found));
    return found;
  }
  // Hand it over as a result.
  Value give() {
    Value value = 0;
    std::memcpy(&value, &tensor_, sizeof tensor_);
    tensor_ = nullptr;
    return value;
  }

 private:
  Owned() = default;

  bool is_contiguous() const {
    bool found;
    check(api.is_contiguous(tensor_, &found));
    return found;
  }
  uintptr_t element_size() const {
    switch (dtype()) {
      case kFloat64: return 8;
      case kFloat32: return 4;
      default: return 2;
    }
  }

  Tensor tensor_ = nullptr;
};

// A forked child must not use PyTorch's threads: under GNU OpenMP it would wait for its parent's.
std::atomic<bool> forked{false};

// PyTorch cuts the range of its workers as it cuts the elements of its own operations, so a worker
// finds in its cache what it computed there.
void run_on_pool(void* handle, int64_t count, truenorm_task task, void* context) {
  const int64_t threads = *static_cast<uint32_t*>(handle);
  truenorm::Shares shares(count, threads, task, context);
  const auto body = [](int64_t worker, int64_t, void* all) {
    static_cast<truenorm::Shares*>(all)->work(worker);
  };
  if (threads > 1) api.parallel_for(0, threads < count ? threads : count, 1, body, &shares);
  shares.work(0);
}

// PyTorch's own threads, as many as torch.set_num_threads says, or null for those of truenorm.
struct Executor {
  uint32_t threads = 1;
  truenorm_executor executor{&threads, run_on_pool};

  const truenorm_executor* get() {
    if (!api.parallel_for || !api.thread_count || api.thread_count(&threads)) return nullptr;
    return threads > 1 && forked ? nullptr : &executor;
  }
};

template <class T>
T number(Value value) {
  T found;
  std::memcpy(&found, &value, sizeof found);
  return found;
}

// The call that the last four arguments and x describe.
struct Call : truenorm_call {
  int64_t unpacked[4 * 12];

  Call(const Call& other) : truenorm_call(other) {
    std::memcpy(unpacked, other.unpacked, sizeof unpacked);
    factors = unpacked;
  }
  Call& operator=(const Call&) = delete;

  Call(const Owned& x, const Value* arguments) {
    switch (x.dtype()) {
      case kFloat32: dtype = TRUENORM_FLOAT32; break;
      case kFloat64: dtype = TRUENORM_FLOAT64; break;
      case kBFloat16: dtype = TRUENORM_BFLOAT16; break;
      case kFloat16: dtype = TRUENORM_FLOAT16; break;
      default: throw std::runtime_error("truenorm: x is of a dtype that the kernels do not take");
    }
    flags = number<bool>(arguments[3]) ? TRUENORM_CENTERED : 0;
    epsilon = number<double>(arguments[2]);
    groups = number<int64_t>(arguments[1]);
    rank = static_cast<int32_t>(x.rank());
    shape = x.shape();
    factors = unpacked;
    factor_count = 0;
    int64_t axis = -1;
    for (uint64_t code = number<uint64_t>(arguments[0]); code && factor_count < 12; code >>= 5) {
      const int64_t one = static_cast<int64_t>(code % 32) - 1;
      int64_t* factor = unpacked + 4 * factor_count++;
      axis += one % 3 != 2;  // the second half of an axis that is cut
      factor[0] = axis;
      factor[1] = one % 3;
      factor[2] = one / 3 % 4;
      factor[3] = one / 12;
    }
  }

  int32_t compute_dtype() const { return dtype == TRUENORM_FLOAT64 ? kFloat64 : kFloat32; }
};

void raise(int status) {
  if (status) throw std::runtime_error(std::string("truenorm: ") + truenorm_error());
}

int64_t group_count(const Call& call) {
  int64_t groups, parameters;
  raise(truenorm_sizes(&call, &groups, &parameters));
  return groups;
}

void forward(Value* stack, uint64_t, uint64_t) {
  const Owned x(stack[0]), gamma(stack[1]), beta(stack[2]);
  const Call call(x, stack + 3);
  const int64_t shape[] = {group_count(call), 3};
  Owned y(call.rank, call.shape, x.dtype()), statistics(2, shape, call.compute_dtype());
  raise(truenorm_forward(&call, x.data(), gamma.data(), beta.data(), y.data(), statistics.data(),
                         Executor().get()));
  stack[0] = y.give();
  stack[1] = statistics.give();
}

void moments(Value* stack, uint64_t, uint64_t) {
  const Owned x(stack[0]);
  const Call call(x, stack + 1);
  const int64_t shape[] = {group_count(call), 3};
  Owned statistics(2, shape, call.compute_dtype());
  raise(truenorm_forward(&call, x.data(), nullptr, nullptr, nullptr, statistics.data(),
                         Executor().get()));
  stack[0] = statistics.give();
}

// A call whose statistics are given: as many as x has groups.
Call given(Call call, const Owned& statistics) {
  const int64_t groups = group_count(call), found = statistics.rank() ? statistics.shape()[0] : 1;
  if (found != groups)
    throw std::runtime_error("truenorm: the statistics are of " + std::to_string(found) +
                             " groups; x has " + std::to_string(groups));
  call.flags |= TRUENORM_GIVEN;
  return call;
}

void apply(Value* stack, uint64_t, uint64_t) {
  const Owned x(stack[0]), gamma(stack[1]), beta(stack[2]), statistics(stack[3]);
  const Call call = given(Call(x, stack + 4), statistics);
  Owned y(call.rank, call.shape, x.dtype());
  raise(truenorm_forward(&call, x.data(), gamma.data(), beta.data(), y.data(), statistics.data(),
                         Executor().get()));
  stack[0] = y.give();
}

template <bool given_statistics>
void backward(Value* stack, uint64_t, uint64_t) {
  const Owned x(stack[0]), gamma(stack[1]), dy(stack[2]), statistics(stack[3]);
  const Call as_passed(x, stack + 4);
  const Call call = given_statistics ? given(as_passed, statistics) : as_passed;
  const int64_t shape[] = {given_statistics ? statistics.shape()[0] : 0, 2};
  Owned dstatistics(2, shape, call.compute_dtype());
  Owned dx(call.rank, call.shape, x.dtype());
  Owned dgamma(gamma.rank(), gamma.shape(), gamma.dtype());
  Owned dbeta(gamma.rank(), gamma.shape(), gamma.dtype());
  raise(truenorm_backward(&call, x.data(), gamma.data(), dy.data(), statistics.data(), dx.data(),
                          dgamma.data(), dbeta.data(),
                          given_statistics ? dstatistics.data() : nullptr, Executor().get()));
  stack[0] = dx.give();
  stack[1] = dgamma.give();
  stack[2] = dbeta.give();
  if (given_statistics) stack[3] = dstatistics.give();
}

}  // namespace

// Define the operations. Returns null, or what is missing. To be called once.
TRUENORM_EXPORT const char* truenorm_torch_register() {
  static const char* const names[] = {"libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll",
                                      nullptr};
  static truenorm::LoadedLibrary torch(names);
  torch.find("aoti_torch_library_init_fragment", &api.library_fragment);
  torch.find("aoti_torch_library_def", &api.library_define);
  torch.find("aoti_torch_library_init_impl", &api.library_of_key);
  torch.find("aoti_torch_library_impl", &api.library_implement);
  torch.find("aoti_torch_get_data_ptr", &api.data);
  torch.find("aoti_torch_get_dim", &api.rank);
  torch.find("aoti_torch_get_sizes", &api.shape);
  torch.find("aoti_torch_get_dtype", &api.dtype);
  torch.find("aoti_torch_empty_strided", &api.empty);
  torch.find("aoti_torch_delete_tensor_object", &api.release);
  torch.find("aoti_torch_is_contiguous", &api.is_contiguous);
  torch.find("aoti_torch_copy_", &api.copy);
  if (torch.missing()) return torch.missing();
  torch.find("torch_parallel_for", &api.parallel_for);
  torch.find("torch_get_num_threads", &api.thread_count);
#if !defined(_WIN32)
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

  const char* const options = "int recipe, int groups, float epsilon, bool centered";
  const std::string schemas[] = {
      std::string("forward(Tensor x, Tensor gamma, Tensor beta, ") + options +
          ") -> (Tensor, Tensor)",
      std::string("backward(Tensor x, Tensor gamma, Tensor dy, Tensor statistics, ") + options +
          ") -> (Tensor, Tensor, Tensor)",
      std::string("moments(Tensor x, ") + options + ") -> Tensor",
      std::string("apply(Tensor x, Tensor gamma, Tensor beta, Tensor statistics, ") + options +
          ") -> Tensor",
      std::string("apply_backward(Tensor x, Tensor gamma, Tensor dy, Tensor statistics, ") +
          options + ") -> (Tensor, Tensor, Tensor, Tensor)"};
  Library definitions, kernels;  // kept: the operations end with the process
  if (api.library_fragment("truenorm", __FILE__, __LINE__, &definitions))
    return "room for the operations";
  for (const std::string& schema : schemas)
    if (api.library_define(definitions, schema.c_str())) return "the operations' definition";
  if (api.library_of_key("truenorm", "CPU", __FILE__, __LINE__, &kernels) ||
      api.library_implement(kernels, "forward", forward) ||
      api.library_implement(kernels, "backward", backward<false>) ||
      api.library_implement(kernels, "moments", moments) ||
      api.library_implement(kernels, "apply", apply) ||
      api.library_implement(kernels, "apply_backward", backward<true>))
    return "the operations' kernels";
  return nullptr;
}
