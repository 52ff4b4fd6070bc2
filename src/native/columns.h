// Columns: the elements of a group lie in R0 stretches of lanes, K1 * R1 of them to a stretch, of
// which R1 neighbours belong to one group. Sums are taken for each lane and folded into groups.
//
// Short stretches are folded: several of them, end on end, make one row of lanes that fills
// vectors. Long ones are cut into tiles, so that a tile of all R0 stretches stays in the cache.

namespace evenkeel {
namespace EVENKEEL_ISA {

// How the lanes of one K0 slice are cut, and its rows.
struct ColumnShape {
  int64_t lanes;    // K1 * R1
  int64_t lengths;  // R0
  int64_t fold;     // stretches in a row
  int64_t width;    // lanes of a tile, in all stretches of a row; a multiple of R1
  int64_t tiles;    // in a K0 slice
  bool by_row;      // gamma varies along R0

  // `reads` tensors of elements of so many bytes are read twice.
  ColumnShape(const Problem& p, int64_t bytes, int reads, int vector_lanes)
      : lanes(p.size[2] * p.size[3]), lengths(p.size[1]), fold(1), by_row(p.strides[1].varies()) {
    // Tiles are whole groups and, but for the last, whole cache lines.
    const int64_t together = p.size[3], line = 64 / bytes;
    const int64_t unit = together / common_divisor(together, line) * line;
    const int64_t fitting = reads * kCacheBytes / (lengths * bytes * reads) / unit * unit;
    width = lanes;
    if (lanes > most(fitting, unit) || lanes > kMostLanes) {
      const int64_t widest = least(kMostLanes, fitting ? fitting : lanes) / unit * unit;
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

  Columns(const Problem& p, const void* x, const void* gamma, const evenkeel_executor* executor,
          int reads)
      : p_(p),
        shape_(p, sizeof(T), reads, kLanes<T>),
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
      chunk_ = least(rows, most(kShortSum, kTaskElements / (shape_.fold * shape_.width)));
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

  // How far it is from a tile to that of the next unit, or 0 where this is not to be asked for.
  int64_t to_next(const Tile& t, int64_t unit, int64_t end) const {
    return ask_ && unit + 1 < end ? tile(unit + 1).begin - t.begin : 0;
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
  // anything; before(i) comes before row i. Where rows are far apart the processor does not see in
  // time that the next ones come, so vector(j) asks for them, `ahead` elements on. Sums are short, in the compute type, before they go to
  // double.
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
      const int64_t together = kInOrder || t.stride * int64_t(sizeof(T)) < kFarApart ? 1 : kTogether;
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
              [&](int64_t i) { return MomentsOfRow{x + i * t.stride, pivot, kTogether * t.stride}; });
  }

  // The sum over the lanes of one group, in all stretches of a row.
  template <class Of>
  double over_group(const Tile& t, int64_t g, const Of& of) const {
    const int64_t together = p_.size[3];
    double sum = 0;
    for (int64_t first = g * together; first < t.width; first += t.lanes)
      for (int64_t j = first; j < first + together; ++j) sum += of(j);
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

  // Write the three statistics of each group to all its lanes.
  void statistics_to_lanes(const Tile& t, const S* statistics, S* high, S* low, S* rstd) const {
    const S* from = statistics + 3 * t.group;
    if (t.groups == t.width) return separate(t.groups, from, high, low, rstd);
    S* const to[] = {high, low, rstd};
    for (int which = 0; which < 3; ++which)
      to_lanes(t, to[which], [&](int64_t g) { return from[3 * g + which]; });
  }
  // A loop that compilers turn into vectors.
  static void separate(int64_t count, const S* __restrict from, S* __restrict high,
                       S* __restrict low, S* __restrict rstd) {
    for (int64_t g = 0; g < count; ++g) {
      high[g] = from[3 * g];
      low[g] = from[3 * g + 1];
      rstd[g] = from[3 * g + 2];
    }
  }

  // The place of a lane's gamma within its slice, and of a slice's.
  int64_t lane_parameter(const Tile& t, int64_t j) const {
    const int64_t lane = t.first + j % t.lanes, together = p_.size[3];
    return p_.strides[2].offset(lane / together) + p_.strides[3].offset(lane % together);
  }
  int64_t slice_parameter(const Tile& t) const { return p_.strides[0].offset(t.slice); }
  bool lanes_vary() const { return p_.strides[2].varies() || p_.strides[3].varies(); }

  const Problem& p_;
  const ColumnShape shape_;
  const int64_t units_;
  const T* x_;
  const S* gamma_;
  const evenkeel_executor* executor_;
  int64_t per_task_, chunk_, chunks_;
  bool ask_;  // for the next tile while one is written
};

template <class T>
class ForwardColumns : Columns<T> {
  using Base = Columns<T>;
  using typename Base::S;
  using typename Base::V;
  using Base::p_, Base::shape_, Base::units_, Base::x_, Base::gamma_, Base::executor_;
  using Base::per_task_, Base::chunks_;

 public:
  explicit ForwardColumns(const Forward& f)
      : Base(f.p, f.x, f.gamma, f.executor, 1),
        beta_(static_cast<const S*>(f.beta)),
        y_(static_cast<T*>(f.y)),
        statistics_(static_cast<S*>(f.statistics)),
        variance_(static_cast<S*>(f.variance)),
        past_(p_.elements * int64_t(sizeof(T)) >= kStreamBytes &&
              can_stream(y_, shape_.lanes * shape_.fold) && can_stream(y_, shape_.lanes) &&
              can_stream(y_, shape_.width)) {}

  bool run() {
    if (chunks_ == 1) {
      return run_all(executor_, ceil_div(units_, per_task_), [&](int64_t task) {
        Scratch scratch;
        Lanes lanes(this->widest(), scratch);
        if (scratch.failed()) return false;
        const int64_t end = least(units_, (task + 1) * per_task_);
        for (int64_t u = task * per_task_; u < end; ++u) {
          const Tile t = this->tile(u);
          bool far = !p_.given;
          for (int pass = 0; pass < 2 && far; ++pass) {
            for (int64_t j = 0; j < t.width; ++j) lanes.sum[j] = lanes.squares[j] = 0;
            pivots(t, pass, lanes.pivot);
            this->moments(t, this->all(), lanes.pivot, lanes.sum, lanes.squares);
            far = statistics(t, lanes.pivot, lanes.sum, lanes.squares);
          }
          apply(t, this->all(), this->to_next(t, u, end), lanes);
        }
        if (past_) end_of_stream();
        return true;
      });
    }
    Scratch scratch;
    const int64_t width = this->widest();
    S* pivot = scratch.get<S>(units_ * width);
    double* sums = scratch.get<double>(units_ * chunks_ * 2 * width);
    if (scratch.failed()) return false;
    bool far = !p_.given;
    for (int pass = 0; pass < 2 && far; ++pass) {
      for (int64_t u = 0; u < units_; ++u) pivots(this->tile(u), pass, pivot + u * width);
      run_all(executor_, units_ * chunks_, [&](int64_t task) {
        double* sum = sums + task * 2 * width;
        for (int64_t j = 0; j < 2 * width; ++j) sum[j] = 0;
        this->moments(this->tile(task / chunks_), this->chunk(task % chunks_),
                      pivot + task / chunks_ * width, sum, sum + width);
        return true;
      });
      far = false;
      for (int64_t u = 0; u < units_; ++u) {
        double* first = sums + u * chunks_ * 2 * width;
        for (int64_t i = 1; i < chunks_; ++i)
          for (int64_t j = 0; j < 2 * width; ++j) first[j] += first[i * 2 * width + j];
        far |= statistics(this->tile(u), pivot + u * width, first, first + width);
      }
    }
    // Backwards: what was read last is in the cache still.
    return run_all(executor_, units_ * chunks_, [&](int64_t task) {
      task = units_ * chunks_ - 1 - task;
      Scratch own;
      Lanes lanes(width, own);
      if (own.failed()) return false;
      apply(this->tile(task / chunks_), this->chunk(task % chunks_), 0, lanes);
      if (past_) end_of_stream();
      return true;
    });
  }

 private:
  // Numbers for each lane of a tile. Passed by value, so that no store seems to change it.
  struct Lanes {
    double *sum, *squares;
    S *pivot, *high, *scale, *shift, *gamma, *beta;

    Lanes(int64_t width, Scratch& scratch) {
      sum = scratch.get<double>(2 * width);
      squares = sum + width;
      S** all[] = {&pivot, &high, &scale, &shift, &gamma, &beta};
      S* next = scratch.get<S>(6 * width);
      for (S** one : all) {
        *one = next;
        next += width;
      }
    }
  };

  void pivots(const Tile& t, int pass, S* pivot) const {
    if (!p_.centered) {
      for (int64_t j = 0; j < t.width; ++j) pivot[j] = 0;
      return;
    }
    this->to_lanes(t, pivot, [&](int64_t g) {
      return pass ? statistics_[3 * (t.group + g)] : S(get(x_[t.begin + g * p_.size[3]]));
    });
  }

  // Returns whether a pivot was too far from its mean.
  bool statistics(const Tile& t, const S* pivot, const double* sum, const double* squares) const {
    if (t.groups == t.width)
      return finish(p_, t.groups, pivot, sum, squares, statistics_ + 3 * t.group,
                    variance_ ? variance_ + t.group : nullptr);
    bool far = false;
    for (int64_t g = 0; g < t.groups; ++g) {
      Moments m;
      m.sum = this->over_group(t, g, [&](int64_t j) { return sum[j]; });
      m.squares = this->over_group(t, g, [&](int64_t j) { return squares[j]; });
      far |= finish(p_, pivot[g * p_.size[3]], m, statistics_ + 3 * (t.group + g),
                    variance_ ? variance_ + t.group + g : nullptr);
    }
    return far;
  }

  void apply(const Tile& t, RowRange range, int64_t next, const Lanes& l) const {
    this->statistics_to_lanes(t, statistics_, l.high, l.shift, l.scale);
    if (shape_.by_row || !(gamma_ || beta_)) {
      for (int64_t j = 0; j < t.width; ++j) l.shift[j] = -l.shift[j] * l.scale[j];
    } else {
      const int64_t first = this->slice_parameter(t);
      for (int64_t j = 0; j < t.width; ++j) {
        const int64_t at = first + this->lane_parameter(t, j);
        const double low = l.shift[j];
        if (gamma_) l.scale[j] = l.scale[j] * gamma_[at];
        l.shift[j] = S((beta_ ? double(beta_[at]) : 0.0) - low * l.scale[j]);
      }
    }
    if (!shape_.by_row)
      past_ ? rows_alike<true>(t, range, next, l) : rows_alike<false>(t, range, next, l);
    else if (this->lanes_vary())
      past_ ? rows_vary<true>(t, range, l) : rows_vary<false>(t, range, l);
    else
      past_ ? rows_apart<true>(t, range, next, l) : rows_apart<false>(t, range, next, l);
  }

  // A row, and its gamma and beta where they change from row to row.
  struct Row {
    const T* x;
    T* y;
    S gamma, beta;
  };
  Row row(const Tile& t, int64_t i, S gamma = 1, S beta = 0) const {
    return {x_ + t.begin + i * t.stride, y_ + t.begin + i * t.stride, gamma, beta};
  }

  template <bool past>
  void rows_alike(const Tile& t, RowRange range, int64_t next, const Lanes& l) const {
    by_fours(range.begin, least(range.end, t.rows), [&](int64_t i) { return row(t, i); },
             [&](auto... rows) { write<past, false>(t.width, t.stride, next, l, rows...); });
    write<false, false>(this->rest_of(t, range), 0, 0, l, row(t, t.rows));
  }

  template <bool past>
  void rows_apart(const Tile& t, RowRange range, int64_t next, const Lanes& l) const {
    const int64_t slice = this->slice_parameter(t);
    const auto of = [&](int64_t i) {
      const int64_t at = slice + p_.strides[1].offset(i);
      return row(t, i, gamma_ ? gamma_[at] : S(1), beta_ ? beta_[at] : S(0));
    };
    by_fours(range.begin, range.end, of,
             [&](auto... rows) { write<past, true>(t.width, t.stride, next, l, rows...); });
  }

  // Call body for rows begin to end, four at a time as long as there are four.
  template <class Of, class Body>
  static void by_fours(int64_t begin, int64_t end, const Of& of, const Body& body) {
    int64_t i = begin;
    for (; i + 4 <= end; i += 4) body(of(i), of(i + 1), of(i + 2), of(i + 3));
    for (; i < end; ++i) body(of(i));
  }

  // Write some rows, which are passed by value, so that no store seems to change them. What comes
  // next is asked for: the lines of y of the rows after these, which an ordinary store reads first,
  // and x of the next tile, `next` elements on.
  template <bool past, bool apart, class... Rows>
  static void write(int64_t width, int64_t stride, int64_t next, Lanes l, Rows... rows) {
    const int64_t ahead = int64_t(sizeof...(Rows)) * stride;
    int64_t j = 0;
    for (; j + kLanes<T> <= width; j += kLanes<T>) {
      const V high = read<V>(l.high + j), scale = read<V>(l.scale + j);
      const V shift = read<V>(l.shift + j);
      const auto one = [&](const Row& row) {
        if (!past) __builtin_prefetch(row.y + ahead + j, 1);
        __builtin_prefetch(row.x + next + j);
        const V v = madd(load(row.x + j) - high, scale, shift);
        store<past>(row.y + j, apart ? madd(v, fill<V>(row.gamma), fill<V>(row.beta)) : v);
      };
      (one(rows), ...);
    }
    for (; j < width; ++j) {
      const auto one = [&](const Row& row) {
        const S v = madd(S(get(row.x[j]) - l.high[j]), l.scale[j], l.shift[j]);
        put(row.y + j, apart ? madd(v, row.gamma, row.beta) : v);
      };
      (one(rows), ...);
    }
  }

  // gamma and beta change from row to row, and along a row too.
  template <bool past>
  void rows_vary(const Tile& t, RowRange range, Lanes l) const {
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t first = this->slice_parameter(t) + p_.strides[1].offset(i);
      for (int64_t j = 0; j < t.width; ++j) {
        const int64_t at = first + this->lane_parameter(t, j);
        l.gamma[j] = gamma_ ? gamma_[at] : S(1);
        l.beta[j] = beta_ ? beta_[at] : S(0);
      }
      const T* x = x_ + t.begin + i * t.stride;
      T* y = y_ + t.begin + i * t.stride;
      this->for_lanes(
          0, t.width,
          [&](int64_t j) {
            const V v = madd(load(x + j) - read<V>(l.high + j), read<V>(l.scale + j),
                             read<V>(l.shift + j));
            store<past>(y + j, madd(v, read<V>(l.gamma + j), read<V>(l.beta + j)));
          },
          [&](int64_t j) {
            const S v = madd(S(get(x[j]) - l.high[j]), l.scale[j], l.shift[j]);
            put(y + j, madd(v, l.gamma[j], l.beta[j]));
          });
    }
  }

  const S* beta_;
  T* y_;
  S *statistics_, *variance_;
  const bool past_;
};

template <class T>
class BackwardColumns : Columns<T> {
  using Base = Columns<T>;
  using typename Base::Nothing;
  using typename Base::S;
  using typename Base::V;
  using Base::p_, Base::shape_, Base::units_, Base::x_, Base::gamma_, Base::executor_;
  using Base::per_task_, Base::chunks_;

 public:
  explicit BackwardColumns(const Backward& b)
      : Base(b.p, b.x, b.gamma, b.executor, 2),
        b_(b),
        dy_(static_cast<const T*>(b.dy)),
        dx_(static_cast<T*>(b.dx)),
        statistics_(static_cast<const S*>(b.statistics)),
        wanted_(b.dgamma || b.dbeta),
        past_(p_.elements * int64_t(sizeof(T)) >= kStreamBytes &&
              can_stream(dx_, shape_.lanes * shape_.fold) && can_stream(dx_, shape_.lanes) &&
              can_stream(dx_, shape_.width)) {}

  bool run() {
    Scratch scratch;
    const int64_t width = this->widest();
    bool done = true;
    if (chunks_ == 1) {
      const int64_t tasks =
          least(ceil_div(units_, per_task_), wanted_ ? ParameterSums::most_parts(p_) : units_);
      const int64_t some = ceil_div(units_, tasks);
      const ParameterSums parameters(b_, tasks, scratch);
      if (scratch.failed()) return false;
      done = run_all(executor_, tasks, [&](int64_t task) {
        Scratch own;
        const Lanes lanes(width, own);
        if (own.failed()) return false;
        const int64_t end = least(units_, (task + 1) * some);
        for (int64_t u = task * some; u < end; ++u) {
          const Tile t = this->tile(u);
          start(t, lanes);
          for (int64_t j = 0; j < 2 * width; ++j) lanes.sum[j] = 0;
          products(t, this->all(), lanes, lanes.sum, lanes.product);
          if (!shape_.by_row) to_parameters(t, lanes.sum, lanes.product, parameters, task);
          project_lanes(t, lanes.sum, lanes.product, lanes);
          apply(t, this->all(), this->to_next(t, u, end), lanes, parameters, task);
        }
        if (past_) end_of_stream();
        return true;
      });
      parameters.finish(static_cast<S*>(b_.dgamma), static_cast<S*>(b_.dbeta));
      return done;
    }
    // Where gamma varies by row, tasks add to parameters of their own: a chunk's, if no two rows
    // have any in common; else those of a part, of which there are as many as tasks.
    const bool shared = shape_.by_row && wanted_ && !p_.strides[1].distinct();
    const int64_t some = shared ? ceil_div(chunks_, ParameterSums::most_parts(p_)) : 1;
    const int64_t tasks = ceil_div(chunks_, some);
    const ParameterSums parameters(b_, shared ? tasks : 1, scratch);
    double* sums = scratch.get<double>(units_ * chunks_ * 2 * width);
    if (scratch.failed()) return false;
    done = run_all(executor_, units_ * chunks_, [&](int64_t task) {
      Scratch own;
      const Lanes lanes(width, own);
      if (own.failed()) return false;
      double* sum = sums + task * 2 * width;
      for (int64_t j = 0; j < 2 * width; ++j) sum[j] = 0;
      const Tile t = this->tile(task / chunks_);
      start(t, lanes);
      products(t, this->chunk(task % chunks_), lanes, sum, sum + width);
      return true;
    });
    for (int64_t u = 0; u < units_ && done; ++u) {
      double* first = sums + u * chunks_ * 2 * width;
      for (int64_t i = 1; i < chunks_; ++i)
        for (int64_t j = 0; j < 2 * width; ++j) first[j] += first[i * 2 * width + j];
      if (!shape_.by_row) to_parameters(this->tile(u), first, first + width, parameters, 0);
    }
    done = done && run_all(executor_, tasks, [&](int64_t task) {
      task = tasks - 1 - task;
      Scratch own;
      const Lanes lanes(width, own);
      if (own.failed()) return false;
      for (int64_t u = units_ - 1; u >= 0; --u) {
        const Tile t = this->tile(u);
        const double* first = sums + u * chunks_ * 2 * width;
        start(t, lanes);
        project_lanes(t, first, first + width, lanes);
        for (int64_t i = task * some; i < least(chunks_, (task + 1) * some); ++i)
          apply(t, this->chunk(i), 0, lanes, parameters, shared ? task : 0);
      }
      if (past_) end_of_stream();
      return true;
    });
    parameters.finish(static_cast<S*>(b_.dgamma), static_cast<S*>(b_.dbeta));
    return done;
  }

 private:
  // Numbers for each lane of a tile. Passed by value, so that no store seems to change it.
  struct Lanes {
    double *sum, *product;  // of g = gamma * dy, and of g * (x - high)
    S *high, *low, *rstd, *scale, *slope, *constant, *gamma, *terms;

    Lanes(int64_t width, Scratch& scratch) {
      sum = scratch.get<double>(2 * width);
      product = sum + width;
      S** all[] = {&high, &low, &rstd, &scale, &slope, &constant, &gamma, &terms};
      S* next = scratch.get<S>(8 * width);
      for (S** one : all) {
        *one = next;
        next += width;
      }
    }
  };

  // The statistics of each lane, and its gamma where this is the same in all rows.
  void start(const Tile& t, const Lanes& l) const {
    this->statistics_to_lanes(t, statistics_, l.high, l.low, l.rstd);
    if (shape_.by_row) return;
    const int64_t first = this->slice_parameter(t);
    for (int64_t j = 0; j < t.width; ++j)
      l.gamma[j] = gamma_ ? gamma_[first + this->lane_parameter(t, j)] : S(1);
  }

  // The first of a row's parameters, and gamma in its lanes.
  int64_t row_parameter(const Tile& t, int64_t i) const {
    return this->slice_parameter(t) + p_.strides[1].offset(i);
  }
  void row_gamma(const Tile& t, int64_t i, S* gamma) const {
    const int64_t first = row_parameter(t, i);
    for (int64_t j = 0; j < t.width; ++j)
      gamma[j] = gamma_ ? gamma_[first + this->lane_parameter(t, j)] : S(1);
  }

  // What one row adds for each lane to the sums of g and of g * (x - high): g is dy, times gamma
  // where this changes from row to row, and is one number or points to one for each lane.
  template <class Gamma>
  struct ProductsOfRow {
    const T *x, *dy;
    const S* high;
    Gamma gamma;
    int64_t ahead;
    typename Base::template Term<V> vector(int64_t j) const {
      __builtin_prefetch(x + ahead + j);
      __builtin_prefetch(dy + ahead + j);
      return {load(dy + j) * spread(gamma, j), load(x + j) - read<V>(high + j)};
    }
    typename Base::template Term<S> one(int64_t j) const {
      return {S(get(dy[j]) * at(gamma, j)), S(get(x[j]) - high[j])};
    }
    static V spread(S number, int64_t) { return fill<V>(number); }
    static V spread(const S* numbers, int64_t j) { return read<V>(numbers + j); }
    static S at(S number, int64_t) { return number; }
    static S at(const S* numbers, int64_t j) { return numbers[j]; }
  };
  void products(Tile t, RowRange range, Lanes l, double* sum, double* product) const {
    if (p_.given && (shape_.by_row || !wanted_)) return;
    const T *x = x_ + t.begin, *dy = dy_ + t.begin;
    const auto with = [&](auto gamma) {
      return [=, &t](int64_t i) {
        return ProductsOfRow<decltype(gamma(i))>{x + i * t.stride, dy + i * t.stride, l.high,
                                                 gamma(i), kTogether * t.stride};
      };
    };
    if (!shape_.by_row)
      this->lane_sums(t, range, sum, product, Nothing(), with([](int64_t) { return S(1); }));
    else if (this->lanes_vary())
      this->lane_sums(t, range, sum, product, [&](int64_t i) { row_gamma(t, i, l.gamma); },
                      with([&](int64_t) -> const S* { return l.gamma; }));
    else
      this->lane_sums(t, range, sum, product, Nothing(), with([&](int64_t i) {
                        return gamma_ ? gamma_[row_parameter(t, i)] : S(1);
                      }));
  }

  // The gradients of gamma and beta where these are the same in all rows.
  void to_parameters(const Tile& t, const double* sum, const double* product,
                     const ParameterSums& parameters, int64_t part) const {
    if (!wanted_) return;
    const int64_t first = this->slice_parameter(t), together = p_.size[3];
    for (int64_t j = 0; j < t.width; ++j) {
      const S* s = statistics_ + 3 * (t.group + j % t.lanes / together);
      parameters.add(part, first + this->lane_parameter(t, j),
                     double(s[2]) * (product[j] - double(s[1]) * sum[j]), sum[j]);
    }
  }

  // The coefficients of dx in each lane.
  void project_lanes(const Tile& t, const double* sum, const double* product, Lanes l) const {
    const Projector project(p_);
    const bool scaled = !shape_.by_row;
    const int64_t together = p_.size[3];
    const auto weight = [&](int64_t j) { return scaled ? double(l.gamma[j]) : 1.0; };
    if (t.groups == t.width) {
      for (int64_t j = 0; j < t.width; ++j) {
        const Projection projection =
            project(weight(j) * sum[j], weight(j) * product[j], l.low[j], l.rstd[j]);
        l.slope[j] = S(projection.slope);
        l.constant[j] = S(projection.constant);
      }
    } else {
      for (int64_t g = 0; g < t.groups; ++g) {
        const double a = this->over_group(t, g, [&](int64_t j) { return weight(j) * sum[j]; });
        const double b = this->over_group(t, g, [&](int64_t j) { return weight(j) * product[j]; });
        const int64_t first = g * together;
        const Projection projection = project(a, b, l.low[first], l.rstd[first]);
        for (int64_t j = first; j < first + together; ++j) {
          l.slope[j] = S(projection.slope);
          l.constant[j] = S(projection.constant);
        }
      }
      for (int64_t j = t.lanes; j < t.width; ++j) {
        l.slope[j] = l.slope[j - t.lanes];
        l.constant[j] = l.constant[j - t.lanes];
      }
    }
    for (int64_t j = 0; j < t.width; ++j) l.scale[j] = scaled ? l.rstd[j] * l.gamma[j] : l.rstd[j];
  }

  void apply(const Tile& t, RowRange range, int64_t next, const Lanes& l,
             const ParameterSums& parameters, int64_t part) const {
    if (!shape_.by_row)
      past_ ? rows_alike<true>(t, range, l) : rows_alike<false>(t, range, l);
    else if (this->lanes_vary())
      past_ ? rows_apart<true, true>(t, range, next, l, parameters, part)
            : rows_apart<false, true>(t, range, next, l, parameters, part);
    else
      past_ ? rows_apart<true, false>(t, range, next, l, parameters, part)
            : rows_apart<false, false>(t, range, next, l, parameters, part);
  }

  template <bool past>
  void rows_alike(const Tile& t, RowRange range, const Lanes& l) const {
    for (int64_t i = range.begin; i < least(range.end, t.rows); ++i)
      row<past>(t.begin + i * t.stride, t.width, l);
    row<false>(t.begin + t.rows * t.stride, this->rest_of(t, range), l);
  }

  template <bool past>
  void row(int64_t at, int64_t width, Lanes l) const {
    const T *x = x_ + at, *dy = dy_ + at;
    T* dx = dx_ + at;
    this->for_lanes(
        0, width,
        [&](int64_t j) {
          const V inner = madd(read<V>(l.slope + j), load(x + j) - read<V>(l.high + j),
                               read<V>(l.constant + j));
          store<past>(dx + j, madd(read<V>(l.scale + j), load(dy + j), inner));
        },
        [&](int64_t j) {
          const S inner = madd(l.slope[j], S(get(x[j]) - l.high[j]), l.constant[j]);
          put(dx + j, madd(l.scale[j], S(get(dy[j])), inner));
        });
  }

  // gamma changes from row to row, and along a row too where `vary`; and so do the parameters that
  // a row adds to.
  template <bool past, bool vary>
  void rows_apart(Tile t, RowRange range, int64_t next, Lanes l, const ParameterSums& parameters,
                  int64_t part) const {
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t first = row_parameter(t, i);
      if (vary) row_gamma(t, i, l.gamma);
      const S one = !vary && gamma_ ? gamma_[first] : S(1);
      WideSum<T> to_gamma, to_beta;
      double rest_gamma = 0, rest_beta = 0;
      const T *x = x_ + t.begin + i * t.stride, *dy = dy_ + t.begin + i * t.stride;
      T* dx = dx_ + t.begin + i * t.stride;
      // As many vectors at a time as may be summed in the compute type, in registers.
      constexpr int64_t kSome = kShortSum * kLanes<T>;
      for (int64_t from = 0; from < t.width; from += kSome) {
        V sum_gamma = {}, sum_beta = {};
        this->for_lanes(
            from, least(t.width, from + kSome),
            [&](int64_t j) {
              const V d = load(x + j) - read<V>(l.high + j), g = load(dy + j);
              const V rstd = read<V>(l.scale + j);
              const V gamma = vary ? read<V>(l.gamma + j) : fill<V>(one);
              const V inner = madd(read<V>(l.slope + j), d, read<V>(l.constant + j));
              // The next tile, and what an ordinary store reads first.
              __builtin_prefetch(x + next + j);
              __builtin_prefetch(dy + next + j);
              if (!past) __builtin_prefetch(dx + kTogether * t.stride + j, 1);
              store<past>(dx + j, madd(rstd * gamma, g, inner));
              const V term = g * ((d - read<V>(l.low + j)) * rstd);
              if (vary) {
                __builtin_memcpy(l.terms + j, &term, sizeof term);
              } else {
                sum_gamma += term;
                sum_beta += g;
              }
            },
            [&](int64_t j) {
              const S d = get(x[j]) - l.high[j], g = get(dy[j]);
              const S inner = madd(l.slope[j], d, l.constant[j]);
              put(dx + j, madd(S(l.scale[j] * (vary ? l.gamma[j] : one)), g, inner));
              l.terms[j] = g * ((d - l.low[j]) * l.scale[j]);
              rest_gamma += l.terms[j];
              rest_beta += g;
            });
        if (vary) continue;
        to_gamma.add(sum_gamma);
        to_beta.add(sum_beta);
      }
      if (!wanted_) continue;
      if (!vary)
        parameters.add(part, first, to_gamma.total() + rest_gamma, to_beta.total() + rest_beta);
      for (int64_t j = 0; vary && j < t.width; ++j)
        parameters.add(part, first + this->lane_parameter(t, j), l.terms[j], get(dy[j]));
    }
  }

  const Backward& b_;
  const T* dy_;
  T* dx_;
  const S* statistics_;
  const bool wanted_, past_;
};

}  // namespace EVENKEEL_ISA
}  // namespace evenkeel
