// Columns, forward: y and the statistics of each group.

namespace truenorm {
namespace TRUENORM_ISA {

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
        past_(this->streams(y_)) {}

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
          if (y_) apply(t, this->all(), this->to_next(t, u), lanes);
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
    if (!y_) return true;
    // Backwards: what was read last is in the cache still.
    return run_all(executor_, units_ * chunks_, [&](int64_t task) {
      task = units_ * chunks_ - 1 - task;
      Scratch own;
      Lanes lanes(width, own);
      if (own.failed()) return false;
      const Tile t = this->tile(task / chunks_);
      apply(t, this->chunk(task % chunks_), this->to_next(t), lanes);
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

  // The pivot of each lane's group: of four of its complete rows in the first pass, the mean in the
  // second.
  void pivots(const Tile& t, int pass, S* pivot) const {
    if (!p_.centered) {
      for (int64_t j = 0; j < t.width; ++j) pivot[j] = 0;
    } else if (pass) {
      this->to_lanes(t, pivot, [&](int64_t g) { return statistics_[3 * (t.group + g)]; });
    } else {
      const T* x = x_ + t.begin;
      this->for_lanes(
          0, t.width,
          [&](int64_t j) {
            const V v = pivot_of(t.rows, [&](int64_t i) { return load(x + i * t.stride + j); });
            __builtin_memcpy(pivot + j, &v, sizeof v);
          },
          [&](int64_t j) {
            pivot[j] = pivot_of(t.rows, [&](int64_t i) { return get(x[i * t.stride + j]); });
          });
      if (t.groups == t.width) return;
      const double part = double(t.groups) / double(t.width);
      this->to_lanes(t, pivot, [&](int64_t g) {
        return part * this->over_group(t, g, [&](int64_t j) { return pivot[j]; });
      });
    }
  }

  // Returns whether a pivot was too far from its mean.
  bool statistics(const Tile& t, const S* pivot, const double* sum, const double* squares) const {
    if (t.groups == t.width)
      return finish(p_, t.groups, pivot, sum, squares, statistics_ + 3 * t.group);
    bool far = false;
    for (int64_t g = 0; g < t.groups; ++g) {
      Moments m;
      m.sum = this->over_group(t, g, [&](int64_t j) { return sum[j]; });
      m.squares = this->over_group(t, g, [&](int64_t j) { return squares[j]; });
      far |= finish(p_, pivot[g * p_.size[3]], m, statistics_ + 3 * (t.group + g));
    }
    return far;
  }

  void apply(const Tile& t, RowRange range, int64_t next, const Lanes& l) const {
    this->statistics_to_lanes(t, statistics_, l.high, l.shift, l.scale);
    if (shape_.by_row || !(gamma_ || beta_)) {
      for (int64_t j = 0; j < t.width; ++j) l.shift[j] = -l.shift[j] * l.scale[j];
    } else {
      const int64_t first = this->slice_parameter(t);
      this->for_parameters(t, [&](int64_t j, int64_t, int64_t at) {
        const double low = l.shift[j];
        if (gamma_) l.scale[j] = l.scale[j] * gamma_[first + at];
        l.shift[j] = S((beta_ ? double(beta_[first + at]) : 0.0) - low * l.scale[j]);
      });
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
    const int64_t stop = least(range.end, t.rows);
    if (t.width == kFolded * kLanes<T>)
      in_order<past>(t, range.begin, stop, next, l);
    else if (t.stride == t.width)
      for (int64_t i = range.begin; i < stop; ++i)
        write<past, false>(t.width, t.stride, next, l, row(t, i));
    else
      by_fours(range.begin, stop, [&](int64_t i) { return row(t, i); },
               [&](auto... rows) { write<past, false>(t.width, t.stride, next, l, rows...); });
    write<false, false>(this->rest_of(t, range), 0, 0, l, row(t, t.rows));
  }

  // Rows of which the numbers for all lanes find room in registers are written one after the other:
  // then x is read in its order, which several at a time are not.
  template <bool past>
  void in_order(const Tile& t, int64_t begin, int64_t end, int64_t next, const Lanes& l) const {
    V high[kFolded], scale[kFolded], shift[kFolded];
    __builtin_memcpy(high, l.high, sizeof high);
    __builtin_memcpy(scale, l.scale, sizeof scale);
    __builtin_memcpy(shift, l.shift, sizeof shift);
    for (int64_t i = begin; i < end; ++i) {
      const Row r = row(t, i);
      for (int64_t k = 0, j = 0; k < kFolded; ++k, j += kLanes<T>) {
        __builtin_prefetch(r.x + next + j);
        store<past>(r.y + j, madd(load(r.x + j) - high[k], scale[k], shift[k]));
      }
    }
  }

  template <bool past>
  void rows_apart(const Tile& t, RowRange range, int64_t next, const Lanes& l) const {
    const auto of = [&](int64_t i) {
      const int64_t at = this->row_parameter(t, i);
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
      const int64_t first = this->row_parameter(t, i);
      this->for_parameters(t, [&](int64_t j, int64_t, int64_t at) {
        l.gamma[j] = gamma_ ? gamma_[first + at] : S(1);
        l.beta[j] = beta_ ? beta_[first + at] : S(0);
      });
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
  S* statistics_;
  const bool past_;
};

}  // namespace TRUENORM_ISA
}  // namespace truenorm
