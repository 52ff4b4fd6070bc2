// Columns: the elements of a group lie in R0 stretches of lanes, K1 * R1 of them to a stretch, of
// which R1 neighbours belong to one group. Sums are taken for each lane and folded into groups.
//
// Short stretches are folded: several of them, end on end, make one row of lanes that fills
// vectors. Long ones are cut into tiles, so that a tile of all R0 stretches stays in the cache, if
// such a tile is not too narrow.

namespace truenorm {
namespace TRUENORM_ISA {

// How the lanes of one K0 slice are cut, and its rows.
struct ColumnShape {
  int64_t lanes;    // K1 * R1
  int64_t lengths;  // R0
  int64_t fold;     // stretches in a row
  int64_t width;    // lanes of a tile, in all stretches of a row; a multiple of R1
  int64_t tiles;    // in a K0 slice
  bool by_row;      // gamma varies along R0

  // Elements are of so many bytes.
  ColumnShape(const Problem& p, int64_t bytes, int vector_lanes)
      : lanes(p.size[2] * p.size[3]), lengths(p.size[1]), fold(1), by_row(p.strides[1].varies()) {
    // Tiles are whole groups and, but for the last, whole cache lines.
    const int64_t together = p.size[3], line = 64 / bytes;
    const int64_t unit = together / common_divisor(together, line) * line;
    const int64_t fitting = kCacheBytes / (lengths * bytes) / unit * unit;
    width = lanes;
    if (lanes > most(fitting, unit) || lanes > kMostLanes) {
      // Where what fits of a row is short, memory is read in crumbs: whole rows, twice, are faster.
      const bool crumbs = fitting * bytes < kShortStretch;
      const int64_t widest = (crumbs ? kMostLanes : least(kMostLanes, fitting)) / unit * unit;
      const int64_t count = ceil_div(lanes, most(unit, widest));
      width = least(lanes, ceil_div(ceil_div(lanes, count), unit) * unit);
    }
    if (width == lanes && !by_row) {
      // Stretches that make rows of whole vectors, and of a few of them.
      const int64_t step = 2 * vector_lanes;
      const int64_t whole = step / common_divisor(lanes, step);
      if (whole * lanes <= kMostLanes && whole * 4 <= lengths) fold = whole;
      while (fold * lanes < kFolded * vector_lanes && fold * 8 <= lengths) fold *= 2;
    }
    tiles = ceil_div(lanes, width);
  }

  static int64_t common_divisor(int64_t a, int64_t b) {
    while (b) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }
};

// One tile of one K0 slice.
struct Tile {
  int64_t slice;     // of K0
  int64_t first;     // lane
  int64_t lanes;     // of a stretch
  int64_t width;     // lanes * fold
  int64_t stride;    // elements from row to row
  int64_t rows;      // complete ones
  int64_t rest;      // elements in the incomplete last row, fewer than width
  int64_t begin;     // the first element, in x
  int64_t group;     // the first group
  int64_t groups;

  Tile(const Problem& p, const ColumnShape& shape, int64_t unit) {
    slice = unit / shape.tiles;
    first = unit % shape.tiles * shape.width;
    lanes = least(shape.width, shape.lanes - first);
    width = lanes * shape.fold;
    stride = shape.lanes * shape.fold;
    rows = shape.lengths / shape.fold;
    rest = shape.lengths % shape.fold * lanes;
    begin = slice * shape.lengths * shape.lanes + first;
    group = slice * p.size[2] + first / p.size[3];
    groups = lanes / p.size[3];
  }
};

// Rows begin to end of a tile, of which the last may be incomplete.
struct RowRange {
  int64_t begin, end;
};

template <class T>
class Columns {
 public:
  using S = typename Compute<T>::type;
  using V = Vector<T>;

  // `reads` tensors are read twice.
  Columns(const Problem& p, const void* x, const void* gamma, const truenorm_executor* executor,
          int reads)
      : p_(p),
        shape_(p, sizeof(T), kLanes<T>),
        units_(p.size[0] * shape_.tiles),
        x_(static_cast<const T*>(x)),
        gamma_(static_cast<const S*>(gamma)),
        executor_(executor) {
    const int64_t in_unit = shape_.lengths * least(shape_.width, shape_.lanes);
    const bool fits = in_unit * reads * int64_t(sizeof(T)) <= 2 * kCacheBytes;
    const int64_t rows = all_rows();
    per_task_ = most(most(1, kTaskElements / in_unit), least(kSomeTiles, units_ / kFewTasks));
    ask_ = in_unit * reads * int64_t(sizeof(T)) <= kNextTile;
    chunk_ = rows;
    if ((!fits || units_ < 8) && p.elements >= 2 * kTaskElements)
      chunk_ = least(rows, most(most(kShortSum, kTaskElements / (shape_.fold * shape_.width)),
                                ceil_div(rows, kMostChunks)));
    chunks_ = ceil_div(rows, chunk_);
  }

  // Rows of a tile, with the incomplete one.
  int64_t all_rows() const { return ceil_div(shape_.lengths, shape_.fold); }
  RowRange all() const { return {0, all_rows()}; }
  RowRange chunk(int64_t i) const { return {i * chunk_, least(all_rows(), (i + 1) * chunk_)}; }
  Tile tile(int64_t unit) const { return Tile(p_, shape_, unit); }
  int64_t widest() const { return shape_.fold * shape_.width; }

  // The elements of the incomplete row if the range has it, and the end of the complete ones.
  int64_t rest_of(const Tile& t, RowRange range) const { return range.end > t.rows ? t.rest : 0; }

  // Whether a result there is stored past the cache.
  bool streams(const T* to) const {
    return p_.elements * int64_t(sizeof(T)) >= kStreamBytes &&
           can_stream(to, shape_.lanes * shape_.fold) && can_stream(to, shape_.lanes) &&
           can_stream(to, shape_.width);
  }

  // How far on x is asked for while the results of a tile are written: where tiles are small, that
  // of the next unit, which may be the next task's; else rows end to end a little before they are
  // read; and 0, which asks for nothing, where there is neither.
  int64_t to_next(const Tile& t, int64_t unit) const {
    return ask_ ? unit + 1 < units_ ? tile(unit + 1).begin - t.begin : 0 : to_next(t);
  }
  int64_t to_next(const Tile& t) const {
    return t.stride == t.width ? kAheadWritten / int64_t(sizeof(T)) : 0;
  }

  // How many elements before it is read a row of a tile is asked for: far, where rows are end to end;
  // where the processor does not see in time which lines come next, as far as it reads together.
  int64_t ahead(const Tile& t) const {
    return t.stride == t.width ? kAhead / int64_t(sizeof(T)) : kTogether * t.stride;
  }

  // Nothing to do before a row.
  struct Nothing {
    void operator()(int64_t) const {}
  };

  // Call body(j) for the lanes begin to end in steps of a vector, and one(j) for those left.
  template <class Body, class One>
  static void for_lanes(int64_t begin, int64_t end, const Body& body, const One& one) {
    int64_t j = begin;
    for (; j + kLanes<T> <= end; j += kLanes<T>) body(j);
    for (; j < end; ++j) one(j);
  }

  // What one element of a row adds to the sums of its lane: u, and u * v.
  template <class N>
  struct Term {
    N u, v;
  };

  // Add to each lane the sums over a range of rows of the terms of each. of(i) gives what row i adds:
  // vector(j) for the vector from lane j on, one(j) for a single lane. It is called once for each
  // row that is passed over, not in the inner loop, out of which stores keep compilers from taking
  // anything; before(i) comes before row i. vector(j) asks for what is read `ahead` elements on. Sums
  // are short, in the compute type, before they go to double.
  //
  // Memory is read in its order, row after row: read column after column, it takes twice as long.
  // The sums wait in registers where a row is as short as rows are folded to be, else in the
  // nearest cache, where they are fetched once for several rows that are long.
  template <class Before, class Of>
  void lane_sums(const Tile& t, RowRange range, double* sum, double* product, const Before& before,
                 const Of& of) const {
    constexpr bool kInOrder = !__is_same(Before, Nothing);
    const int64_t stop = least(range.end, t.rows);
    for (int64_t from = 0; from < t.width; from += kMostLanes) {
      const int64_t lanes = least(kMostLanes, t.width - from), whole = lanes / kLanes<T> * kLanes<T>;
      const bool folded = lanes == kFolded * kLanes<T>;
      const int64_t together = kInOrder || t.stride == t.width ? 1 : kTogether;
      alignas(64) S a[kMostLanes], b[kMostLanes];
      for (int64_t r = range.begin; r < stop; r += kShortSum) {
        const int64_t last = least(stop, r + kShortSum);
        if (folded && !kInOrder) {
          V to_a[kFolded] = {}, to_b[kFolded] = {};
          for (int64_t i = r; i < last; ++i) {
            const auto row = of(i);
            for (int k = 0; k < kFolded; ++k) {
              const Term<V> term = row.vector(from + k * kLanes<T>);
              to_a[k] += term.u;
              to_b[k] = madd(term.u, term.v, to_b[k]);
            }
          }
          __builtin_memcpy(a, to_a, sizeof to_a);
          __builtin_memcpy(b, to_b, sizeof to_b);
        } else {
          __builtin_memset(a, 0, size_t(whole) * sizeof(S));
          __builtin_memset(b, 0, size_t(whole) * sizeof(S));
          for (int64_t i = r; i < last;) {
            before(i);
            const int64_t next = i + together <= last ? i + together : i + 1;
            if (next - i == kTogether)
              add_rows(from, whole, a, b, of(i), of(i + 1), of(i + 2), of(i + 3));
            else
              add_rows(from, whole, a, b, of(i));
            add_rest(i, next, from + whole, from + lanes, sum, product, of);
            i = next;
          }
        }
        for (int64_t j = 0; j < whole; j += kLanes<T>) {
          add_to(sum + from + j, read<V>(a + j));
          add_to(product + from + j, read<V>(b + j));
        }
      }
    }
    add_rest(t.rows, t.rows + 1, 0, rest_of(t, range), sum, product, of);
  }

  // Add the terms of some rows. They are passed by value, so that no store seems to change them.
  template <class... Rows>
  static void add_rows(int64_t from, int64_t whole, S* a, S* b, Rows... rows) {
    for (int64_t j = 0; j < whole; j += kLanes<T>) {
      V to_a = read<V>(a + j), to_b = read<V>(b + j);
      const auto add = [&](Term<V> term) {
        to_a += term.u;
        to_b = madd(term.u, term.v, to_b);
      };
      (add(rows.vector(from + j)), ...);
      __builtin_memcpy(a + j, &to_a, sizeof to_a);
      __builtin_memcpy(b + j, &to_b, sizeof to_b);
    }
  }

  // The same for rows i to end and lanes j to stop, one element after the other.
  template <class Of>
  static void add_rest(int64_t i, int64_t end, int64_t j, int64_t stop, double* sum,
                       double* product, const Of& of) {
    for (; j < stop && i < end; ++i) {
      const auto row = of(i);
      for (int64_t k = j; k < stop; ++k) {
        const Term<S> term = row.one(k);
        sum[k] += term.u;
        product[k] = madd(double(term.u), double(term.v), product[k]);
      }
    }
  }

  // What one row adds to the moments of each lane about its pivot.
  struct MomentsOfRow {
    const T* x;
    const S* pivot;
    int64_t ahead;
    Term<V> vector(int64_t j) const {
      __builtin_prefetch(x + ahead + j);
      const V d = load(x + j) - read<V>(pivot + j);
      return {d, d};
    }
    Term<S> one(int64_t j) const {
      const S d = S(get(x[j]) - pivot[j]);
      return {d, d};
    }
  };
  void moments(Tile t, RowRange range, const S* pivot, double* sum, double* squares) const {
    const T* x = x_ + t.begin;
    lane_sums(t, range, sum, squares, Nothing(),
              [&](int64_t i) { return MomentsOfRow{x + i * t.stride, pivot, ahead(t)}; });
  }

  // The sum over the lanes of one group, in all stretches of a row: several sums, as each waits for
  // the addition before.
  template <class Of>
  double over_group(const Tile& t, int64_t g, const Of& of) const {
    constexpr int64_t kSums = 16;
    const int64_t together = p_.size[3];
    double sums[kSums] = {}, sum = 0;
    for (int64_t first = g * together; first < t.width; first += t.lanes) {
      int64_t j = first;
      for (; j + kSums <= first + together; j += kSums)
        for (int64_t k = 0; k < kSums; ++k) sums[k] += of(j + k);
      for (; j < first + together; ++j) sum += of(j);
    }
    for (const double one : sums) sum += one;
    return sum;
  }

  // Write one number per group to all its lanes.
  template <class N, class Of>
  void to_lanes(const Tile& t, N* lanes, const Of& of) const {
    const int64_t together = p_.size[3];
    // Apart, because a loop within the loop keeps compilers from making vectors of this one.
    for (int64_t g = 0; together == 1 && g < t.groups; ++g) lanes[g] = N(of(g));
    for (int64_t g = 0; together > 1 && g < t.groups; ++g) {
      const N value = N(of(g));
      for (int64_t j = g * together; j < (g + 1) * together; ++j) lanes[j] = value;
    }
    for (int64_t j = t.lanes; j < t.width; ++j) lanes[j] = lanes[j - t.lanes];
  }

  // Write to all lanes of each group its statistics, and what follows from the third.
  void statistics_to_lanes(const Tile& t, const S* statistics, S* high, S* low, S* rstd) const {
    const S* from = statistics + 3 * t.group;
    if (t.groups == t.width) return separate(t.groups, from, high, low, rstd);
    to_lanes(t, high, [&](int64_t g) { return from[3 * g]; });
    to_lanes(t, low, [&](int64_t g) { return from[3 * g + 1]; });
    to_lanes(t, rstd, [&](int64_t g) { return rstd_of(p_, from[3 * g + 2]); });
  }

  // A loop that compilers turn into vectors.
  void separate(int64_t count, const S* __restrict from, S* __restrict high, S* __restrict low,
                S* __restrict rstd) const {
    for (int64_t g = 0; g < count; ++g) {
      high[g] = from[3 * g];
      low[g] = from[3 * g + 1];
      rstd[g] = rstd_of(p_, from[3 * g + 2]);
    }
  }

  // Call body(j, g, at) for each lane j, which is of the g-th group of the tile and whose gamma is the
  // at-th of its row. Divides nothing: a small tile is computed in the time of a few hundred divisions.
  template <class Body>
  void for_parameters(const Tile& t, const Body& body) const {
    const int64_t together = p_.size[3];
    const bool alike = groups_alike();
    for (int64_t j = 0; j < t.width;) {
      for (int64_t g = 0; g < t.groups; ++g) {
        const int64_t at = group_parameter(t, g);
        for (int64_t i = 0; alike && i < together; ++i) body(j++, g, at);
        for (int64_t i = 0; !alike && i < together; ++i) body(j++, g, at + p_.strides[3].offset(i));
      }
    }
  }
  // Whether a group of neighbours has one gamma.
  bool groups_alike() const { return p_.size[3] > 1 && !p_.strides[3].varies(); }
  // The first parameter of a group in its row.
  int64_t group_parameter(const Tile& t, int64_t g) const {
    return p_.strides[2].offset(t.first / p_.size[3] + g);
  }
  // The first parameter of a slice, and of one of its rows.
  int64_t slice_parameter(const Tile& t) const { return p_.strides[0].offset(t.slice); }
  int64_t row_parameter(const Tile& t, int64_t i) const {
    return slice_parameter(t) + p_.strides[1].offset(i);
  }
  bool lanes_vary() const { return p_.strides[2].varies() || p_.strides[3].varies(); }

  const Problem& p_;
  const ColumnShape shape_;
  const int64_t units_;
  const T* x_;
  const S* gamma_;
  const truenorm_executor* executor_;
  int64_t per_task_, chunk_, chunks_;
  bool ask_;  // for the next tile while one is written
};

}  // namespace TRUENORM_ISA
}  // namespace truenorm
