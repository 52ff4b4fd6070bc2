// The kernels as operations of TensorFlow, through its C interface for operations and kernels,
// whose functions are declared here and looked up when the library is loaded.
//
//     TruenormForward(x: T, gamma: S, beta: S) -> y: T, statistics: S
//     TruenormBackward(x: T, gamma: S, dy: T, statistics: S) -> dx: T, dgamma: S, dbeta: S
//     TruenormMoments(x: T) -> statistics: S
//     TruenormApply(x: T, gamma: S, beta: S, statistics: S) -> y: T
//     TruenormApplyBackward(x: T, gamma: S, dy: T, statistics: S)
//         -> dx: T, dgamma: S, dbeta: S, dstatistics: S
//
// with the attributes factors, groups, epsilon (the bits of a double, since an attribute of type
// float has fewer) and centered. Shapes are filled in when a kernel runs, so unknown ones need
// nothing.

#include <cstring>
#include <string>
#include <vector>

#include "truenorm.h"
#include "symbols.h"

// TensorFlow's opaque types, and the part of its interface that is used.
struct TF_Status;
struct TF_Tensor;
struct TF_OpDefinitionBuilder;
struct TF_KernelBuilder;
struct TF_OpKernelConstruction;
struct TF_OpKernelContext;
struct TF_ShapeInferenceContext;
struct TF_ShapeHandle;

namespace {

enum { kFloat = 1, kDouble = 2, kBFloat16 = 14, kHalf = 19 };  // TF_DataType
enum { kOk = 0, kInternal = 13 };                              // TF_Code

using ShapeFunction = void (*)(TF_ShapeInferenceContext*, TF_Status*);

struct Api {
  TF_Status* (*new_status)();
  void (*delete_status)(TF_Status*);
  void (*set_status)(TF_Status*, int code, const char* message);
  int (*get_code)(const TF_Status*);
  TF_OpDefinitionBuilder* (*new_op)(const char* name);
  void (*add_input)(TF_OpDefinitionBuilder*, const char*);
  void (*add_output)(TF_OpDefinitionBuilder*, const char*);
  void (*add_attribute)(TF_OpDefinitionBuilder*, const char*);
  void (*set_shape_function)(TF_OpDefinitionBuilder*, ShapeFunction);
  void (*register_op)(TF_OpDefinitionBuilder*, TF_Status*);
  TF_ShapeHandle* (*new_shape)();
  void (*delete_shape)(TF_ShapeHandle*);
  void (*input_shape)(TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*);
  void (*set_output_shape)(TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*);
  TF_KernelBuilder* (*new_kernel)(const char* op, const char* device,
                                  void* (*create)(TF_OpKernelConstruction*),
                                  void (*compute)(void*, TF_OpKernelContext*),
                                  void (*destroy)(void*));
  void (*constrain)(TF_KernelBuilder*, const char* attribute, int type, TF_Status*);
  void (*register_kernel)(const char* name, TF_KernelBuilder*, TF_Status*);
  void (*attribute_size)(TF_OpKernelConstruction*, const char*, int32_t* list, int32_t* total,
                         TF_Status*);
  void (*integers)(TF_OpKernelConstruction*, const char*, int64_t*, int most, TF_Status*);
  void (*integer)(TF_OpKernelConstruction*, const char*, int64_t*, TF_Status*);
  void (*boolean)(TF_OpKernelConstruction*, const char*, unsigned char*, TF_Status*);
  void (*fail_construction)(TF_OpKernelConstruction*, TF_Status*);
  void (*get_input)(TF_OpKernelContext*, int, TF_Tensor**, TF_Status*);
  TF_Tensor* (*allocate)(TF_OpKernelContext*, int, int type, const int64_t* shape, int rank,
                         size_t bytes, TF_Status*);
  void (*fail)(TF_OpKernelContext*, TF_Status*);
  void* (*data)(const TF_Tensor*);
  int (*rank)(const TF_Tensor*);
  int64_t (*size)(const TF_Tensor*, int axis);
  int (*type)(const TF_Tensor*);
  void (*delete_tensor)(TF_Tensor*);
} api;

const char* look_up() {
  static const char* const names[] = {"libtensorflow_framework.so.2",
                                      "libtensorflow_framework.2.dylib",
                                      "_pywrap_tensorflow_common.dll",
                                      "_pywrap_tensorflow_internal.pyd", nullptr};
  static truenorm::LoadedLibrary tensorflow(names);
  tensorflow.find("TF_NewStatus", &api.new_status);
  tensorflow.find("TF_DeleteStatus", &api.delete_status);
  tensorflow.find("TF_SetStatus", &api.set_status);
  tensorflow.find("TF_GetCode", &api.get_code);
  tensorflow.find("TF_NewOpDefinitionBuilder", &api.new_op);
  tensorflow.find("TF_OpDefinitionBuilderAddInput", &api.add_input);
  tensorflow.find("TF_OpDefinitionBuilderAddOutput", &api.add_output);
  tensorflow.find("TF_OpDefinitionBuilderAddAttr", &api.add_attribute);
  tensorflow.find("TF_OpDefinitionBuilderSetShapeInferenceFunction", &api.set_shape_function);
  tensorflow.find("TF_RegisterOpDefinition", &api.register_op);
  tensorflow.find("TF_NewShapeHandle", &api.new_shape);
  tensorflow.find("TF_DeleteShapeHandle", &api.delete_shape);
  tensorflow.find("TF_ShapeInferenceContextGetInput", &api.input_shape);
  tensorflow.find("TF_ShapeInferenceContextSetOutput", &api.set_output_shape);
  tensorflow.find("TF_NewKernelBuilder", &api.new_kernel);
  tensorflow.find("TF_KernelBuilder_TypeConstraint", &api.constrain);
  tensorflow.find("TF_RegisterKernelBuilder", &api.register_kernel);
  tensorflow.find("TF_OpKernelConstruction_GetAttrSize", &api.attribute_size);
  tensorflow.find("TF_OpKernelConstruction_GetAttrInt64List", &api.integers);
  tensorflow.find("TF_OpKernelConstruction_GetAttrInt64", &api.integer);
  tensorflow.find("TF_OpKernelConstruction_GetAttrBool", &api.boolean);
  tensorflow.find("TF_OpKernelConstruction_Failure", &api.fail_construction);
  tensorflow.find("TF_GetInput", &api.get_input);
  tensorflow.find("TF_AllocateOutput", &api.allocate);
  tensorflow.find("TF_OpKernelContext_Failure", &api.fail);
  tensorflow.find("TF_TensorData", &api.data);
  tensorflow.find("TF_NumDims", &api.rank);
  tensorflow.find("TF_Dim", &api.size);
  tensorflow.find("TF_TensorType", &api.type);
  tensorflow.find("TF_DeleteTensor", &api.delete_tensor);
  return tensorflow.missing();
}

class Status {
 public:
  Status() : status_(api.new_status()) {}
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;
  ~Status() { api.delete_status(status_); }
  operator TF_Status*() { return status_; }
  bool good() const { return api.get_code(status_) == kOk; }

 private:
  TF_Status* status_;
};

// The attributes of an operation.
struct Attributes {
  std::vector<int64_t> factors;
  int64_t groups = -1, epsilon_bits = 0;
  unsigned char centered = 0;
};

void* create(TF_OpKernelConstruction* construction) {
  Status status;
  auto* found = new Attributes;
  int32_t length = 0, total = 0;
  api.attribute_size(construction, "factors", &length, &total, status);
  if (status.good()) {
    found->factors.resize(static_cast<size_t>(length));
    api.integers(construction, "factors", found->factors.data(), length, status);
  }
  if (status.good()) api.integer(construction, "groups", &found->groups, status);
  if (status.good()) api.integer(construction, "epsilon", &found->epsilon_bits, status);
  if (status.good()) api.boolean(construction, "centered", &found->centered, status);
  if (!status.good()) api.fail_construction(construction, status);
  return found;
}

void destroy(void* attributes) { delete static_cast<Attributes*>(attributes); }

// The tensors of a call of a kernel; the first failure is told to TensorFlow, and skips the rest.
class Tensors {
 public:
  explicit Tensors(TF_OpKernelContext* context) : context_(context) {}
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;
  ~Tensors() {
    for (TF_Tensor* one : owned_) api.delete_tensor(one);
  }

  TF_Tensor* input(int index) {
    if (failed_) return nullptr;
    TF_Tensor* found = nullptr;
    api.get_input(context_, index, &found, status_);
    return keep(found);
  }

  TF_Tensor* output(int index, int type, const std::vector<int64_t>& shape) {
    if (failed_) return nullptr;
    size_t bytes = type == kDouble ? 8 : type == kFloat ? 4 : 2;
    for (int64_t size : shape) bytes *= static_cast<size_t>(size);
    return keep(api.allocate(context_, index, type, shape.data(), static_cast<int>(shape.size()),
                             bytes, status_));
  }

  // Whether all went well so far; `wrong` is a status of truenorm's functions.
  bool good(int wrong = 0) {
    if (wrong && !failed_) {
      api.set_status(status_, kInternal, (std::string("truenorm: ") + truenorm_error()).c_str());
      api.fail(context_, status_);
      failed_ = true;
    }
    return !failed_;
  }

 private:
  TF_Tensor* keep(TF_Tensor* tensor) {
    if (tensor) owned_.push_back(tensor);
    if (!tensor || !status_.good()) {
      api.fail(context_, status_);
      failed_ = true;
      return nullptr;
    }
    return tensor;
  }

  TF_OpKernelContext* context_;
  Status status_;
  std::vector<TF_Tensor*> owned_;
  bool failed_ = false;
};

std::vector<int64_t> shape_of(const TF_Tensor* tensor) {
  std::vector<int64_t> shape(static_cast<size_t>(api.rank(tensor)));
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = api.size(tensor, static_cast<int>(i));
  return shape;
}

truenorm_call make_call(const Attributes& a, int type, const std::vector<int64_t>& shape) {
  truenorm_call call;
  call.dtype = type == kDouble     ? TRUENORM_FLOAT64
               : type == kFloat    ? TRUENORM_FLOAT32
               : type == kBFloat16 ? TRUENORM_BFLOAT16
                                   : TRUENORM_FLOAT16;
  call.flags = a.centered ? TRUENORM_CENTERED : 0;
  std::memcpy(&call.epsilon, &a.epsilon_bits, sizeof call.epsilon);
  call.groups = a.groups;
  call.rank = static_cast<int32_t>(shape.size());
  call.factor_count = static_cast<int32_t>(a.factors.size() / 4);
  call.shape = shape.data();
  call.factors = a.factors.data();
  return call;
}

void forward(void* attributes, TF_OpKernelContext* context) {
  Tensors tensors(context);
  TF_Tensor *x = tensors.input(0), *gamma = tensors.input(1), *beta = tensors.input(2);
  if (!tensors.good()) return;
  const std::vector<int64_t> shape = shape_of(x);
  const int type = api.type(x);
  const truenorm_call call = make_call(*static_cast<Attributes*>(attributes), type, shape);
  int64_t groups = 0, parameters = 0;
  if (!tensors.good(truenorm_sizes(&call, &groups, &parameters))) return;
  TF_Tensor* y = tensors.output(0, type, shape);
  TF_Tensor* statistics = tensors.output(1, type == kDouble ? kDouble : kFloat, {groups, 3});
  if (!tensors.good()) return;
  tensors.good(truenorm_forward(&call, api.data(x), api.data(gamma), api.data(beta), api.data(y),
                                api.data(statistics), nullptr));
}

void backward(void* attributes, TF_OpKernelContext* context) {
  Tensors tensors(context);
  TF_Tensor *x = tensors.input(0), *gamma = tensors.input(1), *dy = tensors.input(2);
  TF_Tensor* statistics = tensors.input(3);
  if (!tensors.good()) return;
  const std::vector<int64_t> shape = shape_of(x), parameters = shape_of(gamma);
  const int type = api.type(x);
  TF_Tensor* dx = tensors.output(0, type, shape);
  TF_Tensor* dgamma = tensors.output(1, api.type(gamma), parameters);
  TF_Tensor* dbeta = tensors.output(2, api.type(gamma), parameters);
  if (!tensors.good()) return;
  const truenorm_call call = make_call(*static_cast<Attributes*>(attributes), type, shape);
  tensors.good(truenorm_backward(&call, api.data(x), api.data(gamma), api.data(dy),
                                 api.data(statistics), api.data(dx), api.data(dgamma),
                                 api.data(dbeta), nullptr, nullptr));
}

void moments(void* attributes, TF_OpKernelContext* context) {
  Tensors tensors(context);
  TF_Tensor* x = tensors.input(0);
  if (!tensors.good()) return;
  const std::vector<int64_t> shape = shape_of(x);
  const int type = api.type(x), compute = type == kDouble ? kDouble : kFloat;
  const truenorm_call call = make_call(*static_cast<Attributes*>(attributes), type, shape);
  int64_t groups = 0, parameters = 0;
  if (!tensors.good(truenorm_sizes(&call, &groups, &parameters))) return;
  TF_Tensor* statistics = tensors.output(0, compute, {groups, 3});
  if (!tensors.good()) return;
  tensors.good(truenorm_forward(&call, api.data(x), nullptr, nullptr, nullptr,
                                api.data(statistics), nullptr));
}

// y of given statistics.
void apply(void* attributes, TF_OpKernelContext* context) {
  Tensors tensors(context);
  TF_Tensor *x = tensors.input(0), *gamma = tensors.input(1), *beta = tensors.input(2);
  TF_Tensor* statistics = tensors.input(3);
  if (!tensors.good()) return;
  const std::vector<int64_t> shape = shape_of(x);
  truenorm_call call = make_call(*static_cast<Attributes*>(attributes), api.type(x), shape);
  call.flags |= TRUENORM_GIVEN;
  TF_Tensor* y = tensors.output(0, api.type(x), shape);
  if (!tensors.good()) return;
  tensors.good(truenorm_forward(&call, api.data(x), api.data(gamma), api.data(beta), api.data(y),
                                api.data(statistics), nullptr));
}

void apply_backward(void* attributes, TF_OpKernelContext* context) {
  Tensors tensors(context);
  TF_Tensor *x = tensors.input(0), *gamma = tensors.input(1), *dy = tensors.input(2);
  TF_Tensor* statistics = tensors.input(3);
  if (!tensors.good()) return;
  const std::vector<int64_t> shape = shape_of(x), parameters = shape_of(gamma);
  const int compute = api.type(gamma);
  truenorm_call call = make_call(*static_cast<Attributes*>(attributes), api.type(x), shape);
  call.flags |= TRUENORM_GIVEN;
  TF_Tensor* dx = tensors.output(0, api.type(x), shape);
  TF_Tensor* dgamma = tensors.output(1, compute, parameters);
  TF_Tensor* dbeta = tensors.output(2, compute, parameters);
  TF_Tensor* dstatistics = tensors.output(3, compute, {api.size(statistics, 0), 2});
  if (!tensors.good()) return;
  tensors.good(truenorm_backward(&call, api.data(x), api.data(gamma), api.data(dy),
                                 api.data(statistics), api.data(dx), api.data(dgamma),
                                 api.data(dbeta), api.data(dstatistics), nullptr));
}

void same_shape(TF_ShapeInferenceContext* context, int input, int output, TF_Status* status) {
  TF_ShapeHandle* shape = api.new_shape();
  api.input_shape(context, input, shape, status);
  if (api.get_code(status) == kOk) api.set_output_shape(context, output, shape, status);
  api.delete_shape(shape);
}

void forward_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  same_shape(context, 0, 0, status);
}

void backward_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  same_shape(context, 0, 0, status);
  same_shape(context, 1, 1, status);
  same_shape(context, 1, 2, status);
}

void moments_shapes(TF_ShapeInferenceContext*, TF_Status*) {}  // known when it runs

bool define(const char* name, const std::vector<const char*>& inputs,
            const std::vector<const char*>& outputs, ShapeFunction shapes,
            void (*compute)(void*, TF_OpKernelContext*)) {
  Status status;
  TF_OpDefinitionBuilder* op = api.new_op(name);
  for (const char* one : inputs) api.add_input(op, one);
  for (const char* one : outputs) api.add_output(op, one);
  for (const char* one : {"T: {float, double, bfloat16, half}", "S: {float, double}",
                          "factors: list(int)", "groups: int", "epsilon: int", "centered: bool"})
    api.add_attribute(op, one);
  api.set_shape_function(op, shapes);
  api.register_op(op, status);
  for (int type : {kFloat, kDouble, kBFloat16, kHalf}) {
    if (!status.good()) return false;
    TF_KernelBuilder* kernel = api.new_kernel(name, "CPU", create, compute, destroy);
    api.constrain(kernel, "T", type, status);
    if (status.good()) api.register_kernel(name, kernel, status);
  }
  return status.good();
}

const char* define_all() {
  if (const char* missing = look_up()) return missing;
  const bool defined =
      define("TruenormForward", {"x: T", "gamma: S", "beta: S"}, {"y: T", "statistics: S"},
             forward_shapes, forward) &&
      define("TruenormBackward", {"x: T", "gamma: S", "dy: T", "statistics: S"},
             {"dx: T", "dgamma: S", "dbeta: S"}, backward_shapes, backward) &&
      define("TruenormMoments", {"x: T"}, {"statistics: S"}, moments_shapes, moments) &&
      define("TruenormApply", {"x: T", "gamma: S", "beta: S", "statistics: S"}, {"y: T"},
             forward_shapes, apply) &&
      define("TruenormApplyBackward", {"x: T", "gamma: S", "dy: T", "statistics: S"},
             {"dx: T", "dgamma: S", "dbeta: S", "dstatistics: S"}, backward_shapes,
             apply_backward);
  return defined ? nullptr : "room for the operations";
}

// While the library is loaded: TensorFlow reads then which operations came with it.
const char* const missing = define_all();

}  // namespace

// Null, or the name of what this TensorFlow lacks.
TRUENORM_EXPORT const char* truenorm_tensorflow_missing() { return missing; }
