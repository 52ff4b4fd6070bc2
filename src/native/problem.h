// A call with its sizes filled in: the four-axis view, and where each element's gamma is.

#ifndef TRUENORM_PROBLEM_H
#define TRUENORM_PROBLEM_H

#include "truenorm.h"

namespace truenorm {

// How far a step along an axis of the view moves in gamma: an axis is merged from factors, of
// which neighbours that move alike are one.
struct Strides {
  static constexpr int kMost = 16;
  int count = 0;
  int64_t size[kMost];
  int64_t stride[kMost] = {};

  // The offset in gamma of the index-th place along the axis.
  int64_t offset(int64_t index) const {
    return count <= 1 ? index * stride[0] : offset_in_several(index);
  }
  // A function of its own: unrolled to kMost divisions, it would slow down callers that never need it.
  int64_t offset_in_several(int64_t index) const;

  // Whether no two places along the axis have the same offset.
  bool distinct() const {
    for (int i = 0; i < count; ++i)
      if (stride[i] == 0) return false;
    return true;
  }

  bool varies() const {
    for (int i = 0; i < count; ++i)
      if (stride[i] != 0) return true;
    return false;
  }
};

struct Problem {
  int dtype;
  bool centered;
  bool given;
  double epsilon;
  int64_t size[4];     // K0, R0, K1, R1
  Strides strides[4];  // of gamma along them
  int64_t groups;      // K0 * K1
  int64_t count;       // elements in each: R0 * R1
  int64_t elements;
  int64_t parameters;  // elements of gamma
};

// Fill in a problem. Returns null, or what is wrong with the call.
const char* make_problem(const truenorm_call& call, Problem* problem);

}  // namespace truenorm

#endif
