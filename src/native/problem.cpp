#include "problem.h"

namespace truenorm {
namespace {

constexpr int kMostAxes = 32;
enum Part { kWhole, kGroup, kWithin };

struct Factor {
  int64_t axis, part, run, varies;
};

// Put a factor behind the others of its run, as one with the last where both move alike.
bool append(Strides* strides, int64_t size, int64_t stride) {
  if (size == 1) return true;
  int& count = strides->count;
  if (count && strides->stride[count - 1] == stride * size) {
    strides->size[count - 1] *= size;
    strides->stride[count - 1] = stride;
    return true;
  }
  if (count == Strides::kMost) return false;
  strides->size[count] = size;
  strides->stride[count++] = stride;
  return true;
}

}  // namespace

int64_t Strides::offset_in_several(int64_t index) const {
  int64_t sum = 0;
  for (int i = count - 1; i >= 0; --i) {
    sum += index % size[i] * stride[i];
    index /= size[i];
  }
  return sum;
}

const char* make_problem(const truenorm_call& call, Problem* problem) {
  if (call.dtype < TRUENORM_FLOAT32 || call.dtype > TRUENORM_FLOAT16) return "unknown dtype";
  if (call.rank < 1 || call.rank > kMostAxes) return "the rank of x must be 1 to 32";
  if (call.factor_count < call.rank || call.factor_count > call.rank + 1)
    return "the factors do not fit the rank of x";
  if (!(call.epsilon >= 0)) return "epsilon must be zero or more";

  int64_t elements = 1;
  for (int axis = 0; axis < call.rank; ++axis) {
    const int64_t length = call.shape[axis];
    if (length < 0) return "x has an axis of negative length";
    if (length && elements > INT64_MAX / 16 / length) return "x has too many elements";
    elements *= length;
  }

  const Factor* factors = reinterpret_cast<const Factor*>(call.factors);
  int64_t sizes[kMostAxes + 1];
  int64_t axis = -1, run = 0;
  for (int i = 0; i < call.factor_count; ++i) {
    const Factor& f = factors[i];
    const bool opens = f.part != kWithin;  // every axis is one factor, or a group and a within
    if (f.part < kWhole || f.part > kWithin || f.axis != axis + opens || f.axis >= call.rank)
      return "the factors must list each axis once, in order";
    if (!opens && (i == 0 || factors[i - 1].part != kGroup || factors[i - 1].varies != f.varies))
      return "an axis that is cut needs both halves, of which gamma varies along both or neither";
    if (f.part == kGroup && (i + 1 == call.factor_count || factors[i + 1].part != kWithin))
      return "an axis that is cut needs both halves";
    if (f.run < run || f.run > 3) return "the runs must ascend from 0 to 3";
    if (f.varies != 0 && f.varies != 1) return "a factor must vary (1) or not (0)";
    axis = f.axis;
    run = f.run;
    const int64_t length = call.shape[axis];
    sizes[i] = length;
    if (f.part != kWhole) {
      const int64_t groups = call.groups == -1 ? length : call.groups;
      if (groups < 0 || (groups == 0 && length) || (groups && length % groups))
        return "the groups do not divide the channels";
      sizes[i] = f.part == kGroup ? groups : groups ? length / groups : 1;
    }
  }
  if (axis != call.rank - 1) return "the factors must list each axis once, in order";

  problem->dtype = call.dtype;
  problem->centered = call.flags & TRUENORM_CENTERED;
  problem->given = call.flags & TRUENORM_GIVEN;
  problem->epsilon = call.epsilon;
  problem->elements = elements;
  int64_t strides[kMostAxes + 1];
  int64_t stride = 1;
  for (int i = call.factor_count - 1; i >= 0; --i) {
    strides[i] = factors[i].varies ? stride : 0;
    if (factors[i].varies) stride *= sizes[i];
  }
  problem->parameters = stride;
  for (int r = 0; r < 4; ++r) {
    problem->size[r] = 1;
    problem->strides[r].count = 0;
  }
  for (int i = 0; i < call.factor_count; ++i) {
    const int64_t r = factors[i].run;
    problem->size[r] *= sizes[i];
    if (!append(&problem->strides[r], sizes[i], strides[i])) return "too many factors";
  }
  problem->groups = problem->size[0] * problem->size[2];
  problem->count = problem->size[1] * problem->size[3];
  return nullptr;
}

}  // namespace truenorm
