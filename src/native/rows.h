// Rows: every group of elements that share statistics is contiguous in memory (R0 is 1).
//
// A row is cut into segments along which gamma is one number, or moves on by one with x. A row
// that stays in the cache is read, and written, by one task; a longer one by several, which
// need a pass for the statistics and one for the result.

namespace truenorm {
namespace TRUENORM_ISA {

// A stretch of a row, and the place of its gamma: one number, or as many as elements.
struct Segment {
  int64_t begin, end, parameter;
};

struct RowShape {
  int64_t length;    // of a row
  int64_t segment;   // of a segment, but where a range cuts it
  bool each;         // gamma moves on with x inside a segment
  const Strides &outer, &inner, &within;

  explicit RowShape(const Problem& p)
      : length(p.size[3]), outer(p.strides[0]), inner(p.strides[2]), within(p.strides[3]) {
    kept_ = p.size[2];
    by_row_ = outer.varies() || inner.varies();
    segment = length;
    each = false;
    if (within.varies()) {
      const int last = within.count - 1;
      each = within.stride[last] == 1;
      segment = within.stride[last] <= 1 ? within.size[last] : 1;
    }
  }

  // The first of a row's parameters.
  int64_t offset(int64_t row) const {
    if (!by_row_) return 0;
    return outer.offset(row / kept_) + inner.offset(row % kept_);
  }

  // One more than the largest offset of a parameter within a row.
  int64_t span() const {
    int64_t most = 0;
    for (int i = 0; i < within.count; ++i) most += (within.size[i] - 1) * within.stride[i];
    return most + 1;
  }

  // Whether two segments never have a parameter in common.
  bool distinct() const {
    for (int i = 0; i + !each < within.count; ++i)
      if (within.stride[i] == 0) return false;
    return within.varies();
  }

  // Call body for each segment of the elements begin to end of a row.
  template <class Body>
  void segments(int64_t begin, int64_t end, const Body& body) const {
    const bool one = segment == length;  // for which nothing is divided
    while (begin < end) {
      const int64_t stop = one ? end : least(end, (begin / segment + 1) * segment);
      body(Segment{begin, stop, one ? begin * each : within.offset(begin)});
      begin = stop;
    }
  }

 private:
  int64_t kept_;
  bool by_row_;  // whether gamma changes from row to row
};

// How far it is from a row to the one that is read next, or 0 where this is not to be asked for
// while the result is written: after the last one, and where the rows of `reads` tensors are large.
template <class T>
static int64_t to_next(int64_t row, int64_t end, int64_t length, int reads) {
  return row + 1 < end && reads * length * int64_t(sizeof(T)) <= kNextRow ? length : 0;
}

// Whether every segment of a row starts where a vector may be stored past the cache.
template <class T>
static bool row_streams(const Problem& p, const RowShape& shape, const T* to) {
  return p.elements * int64_t(sizeof(T)) >= kStreamBytes && can_stream(to, shape.length) &&
         (shape.segment == shape.length || can_stream(to, shape.segment));
}

}  // namespace TRUENORM_ISA
}  // namespace truenorm
