// Columns, backward: dx, dgamma, dbeta and dstatistics.

namespace truenorm {
namespace TRUENORM_ISA {

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
        dstatistics_(static_cast<S*>(b.dstatistics)),
        wanted_(b.dgamma || b.dbeta),
        past_(this->streams(dx_)) {}

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
          if (!shape_.by_row) to_parameters(t, lanes.sum, lanes.product, lanes, parameters, task);
          to_statistics(t, lanes.sum, lanes.product, lanes);
          project_lanes(t, lanes.sum, lanes.product, lanes);
          apply(t, this->all(), this->to_next(t, u), lanes, parameters, task);
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
    const Lanes lanes(width, scratch);
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
      const Tile t = this->tile(u);
      start(t, lanes);
      if (!shape_.by_row) to_parameters(t, first, first + width, lanes, parameters, 0);
      to_statistics(t, first, first + width, lanes);
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
          apply(t, this->chunk(i), this->to_next(t), lanes, parameters, shared ? task : 0);
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
    gammas(t, this->slice_parameter(t), l.gamma);
  }

  // gamma in the lanes of a row, of which `first` is the first parameter.
  void gammas(const Tile& t, int64_t first, S* gamma) const {
    this->for_parameters(t, [&](int64_t j, int64_t, int64_t at) {
      gamma[j] = gamma_ ? gamma_[first + at] : S(1);
    });
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
    if (p_.given && !dstatistics_ && (shape_.by_row || !wanted_)) return;
    const T *x = x_ + t.begin, *dy = dy_ + t.begin;
    const auto with = [&](auto gamma) {
      return [=, &t](int64_t i) {
        return ProductsOfRow<decltype(gamma(i))>{x + i * t.stride, dy + i * t.stride, l.high,
                                                 gamma(i), this->ahead(t)};
      };
    };
    if (!shape_.by_row)
      this->lane_sums(t, range, sum, product, Nothing(), with([](int64_t) { return S(1); }));
    else if (this->lanes_vary())
      this->lane_sums(t, range, sum, product,
                      [&](int64_t i) { gammas(t, this->row_parameter(t, i), l.gamma); },
                      with([&](int64_t) -> const S* { return l.gamma; }));
    else
      this->lane_sums(t, range, sum, product, Nothing(), with([&](int64_t i) {
                        return gamma_ ? gamma_[this->row_parameter(t, i)] : S(1);
                      }));
  }

  // The gradients of gamma and beta where these are the same in all rows.
  void to_parameters(const Tile& t, const double* sum, const double* product, const Lanes& l,
                     const ParameterSums& parameters, int64_t part) const {
    if (!wanted_) return;
    const int64_t first = this->slice_parameter(t);
    const auto add = [&](int64_t j, int64_t at, double of_dy, double of_product) {
      const double to_gamma = l.rstd[j] * (of_product - double(l.low[j]) * of_dy);
      parameters.add(part, first + at, to_gamma, of_dy);
    };
    if (!this->groups_alike())
      return this->for_parameters(
          t, [&](int64_t j, int64_t, int64_t at) { add(j, at, sum[j], product[j]); });
    for (int64_t g = 0; g < t.groups; ++g)
      add(g * p_.size[3], this->group_parameter(t, g),
          this->over_group(t, g, [&](int64_t j) { return sum[j]; }),
          this->over_group(t, g, [&](int64_t j) { return product[j]; }));
  }

  // What the sums of a lane are multiplied by to be those of g.
  auto weight(const Lanes& l) const {
    return [gamma = l.gamma, scaled = !shape_.by_row](int64_t j) {
      return scaled ? double(gamma[j]) : 1.0;
    };
  }

  // The gradients in the statistics of a tile's groups.
  void to_statistics(const Tile& t, const double* sum, const double* product, Lanes l) const {
    const Projector project(p_);
    const auto weight = this->weight(l);
    for (int64_t g = 0; dstatistics_ && g < t.groups; ++g) {
      const int64_t first = g * p_.size[3];
      const double a = this->over_group(t, g, [&](int64_t j) { return weight(j) * sum[j]; });
      const double b = this->over_group(t, g, [&](int64_t j) { return weight(j) * product[j]; });
      project.to_statistics(a, b, l.low[first], l.rstd[first], dstatistics_ + 2 * (t.group + g));
    }
  }

  // The coefficients of dx in each lane.
  void project_lanes(const Tile& t, const double* sum, const double* product, Lanes l) const {
    const Projector project(p_);
    const bool scaled = !shape_.by_row;
    const int64_t together = p_.size[3];
    const auto weight = this->weight(l);
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
      past_ ? rows_alike<true>(t, range, next, l) : rows_alike<false>(t, range, next, l);
    else if (this->lanes_vary())
      past_ ? rows_apart<true, true>(t, range, next, l, parameters, part)
            : rows_apart<false, true>(t, range, next, l, parameters, part);
    else
      past_ ? rows_apart<true, false>(t, range, next, l, parameters, part)
            : rows_apart<false, false>(t, range, next, l, parameters, part);
  }

  template <bool past>
  void rows_alike(const Tile& t, RowRange range, int64_t next, const Lanes& l) const {
    for (int64_t i = range.begin; i < least(range.end, t.rows); ++i)
      row<past>(t.begin + i * t.stride, t.width, next, l);
    row<false>(t.begin + t.rows * t.stride, this->rest_of(t, range), 0, l);
  }

  template <bool past>
  void row(int64_t at, int64_t width, int64_t next, Lanes l) const {
    const T *x = x_ + at, *dy = dy_ + at;
    T* dx = dx_ + at;
    this->for_lanes(
        0, width,
        [&](int64_t j) {
          __builtin_prefetch(x + next + j);
          __builtin_prefetch(dy + next + j);
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
  void rows_apart(const Tile& t, RowRange range, int64_t next, const Lanes& l,
                  const ParameterSums& parameters, int64_t part) const {
    // Several at a time share what is read for each lane; with ordinary stores this takes longer.
    constexpr int count = past && !vary ? kTogether : 1;
    int64_t i = range.begin;
    for (; i + count <= range.end; i += count)
      some_rows<past, vary, count>(t, i, next, l, parameters, part);
    for (; i < range.end; ++i) some_rows<past, vary, 1>(t, i, next, l, parameters, part);
  }

  // `count` rows from the i-th on.
  template <bool past, bool vary, int count>
  void some_rows(Tile t, int64_t i, int64_t next, Lanes l, const ParameterSums& parameters,
                 int64_t part) const {
    int64_t first[count];
    S gamma[count];
    for (int r = 0; r < count; ++r) {
      first[r] = this->row_parameter(t, i + r);
      gamma[r] = !vary && gamma_ ? gamma_[first[r]] : S(1);
    }
    if (vary) gammas(t, first[0], l.gamma);
    WideSum<T> to_gamma[count], to_beta[count];
    double rest_gamma[count] = {}, rest_beta[count] = {};
    const T *x = x_ + t.begin + i * t.stride, *dy = dy_ + t.begin + i * t.stride;
    T* dx = dx_ + t.begin + i * t.stride;
    // As many vectors at a time as may be summed in the compute type, in registers.
    int64_t j = 0;
    while (j + kLanes<T> <= t.width) {
      V sum_gamma[count] = {}, sum_beta[count] = {};
      const int64_t stop = least(t.width, j + kShortSum * kLanes<T>);
      for (; j + kLanes<T> <= stop; j += kLanes<T>) {
        const V high = read<V>(l.high + j), low = read<V>(l.low + j), rstd = read<V>(l.scale + j);
        const V slope = read<V>(l.slope + j), constant = read<V>(l.constant + j);
        for (int r = 0; r < count; ++r) {
          const int64_t at = r * t.stride + j;
          const V d = load(x + at) - high, g = load(dy + at);
          // The next tile, and what an ordinary store reads first.
          __builtin_prefetch(x + next + at);
          __builtin_prefetch(dy + next + at);
          if (!past) __builtin_prefetch(dx + kTogether * t.stride + at, 1);
          const V scale = rstd * (vary ? read<V>(l.gamma + j) : fill<V>(gamma[r]));
          store<past>(dx + at, madd(scale, g, madd(slope, d, constant)));
          const V term = g * ((d - low) * rstd);
          if (vary) {
            __builtin_memcpy(l.terms + j, &term, sizeof term);
          } else {
            sum_gamma[r] += term;
            sum_beta[r] += g;
          }
        }
      }
      for (int r = 0; r < count; ++r) {
        to_gamma[r].add(sum_gamma[r]);
        to_beta[r].add(sum_beta[r]);
      }
    }
    for (; j < t.width; ++j) {
      for (int r = 0; r < count; ++r) {
        const int64_t at = r * t.stride + j;
        const S d = get(x[at]) - l.high[j], g = get(dy[at]);
        const S scale = l.scale[j] * (vary ? l.gamma[j] : gamma[r]);
        put(dx + at, madd(scale, g, madd(l.slope[j], d, l.constant[j])));
        l.terms[j] = g * ((d - l.low[j]) * l.scale[j]);
        rest_gamma[r] += l.terms[j];
        rest_beta[r] += g;
      }
    }
    if (!wanted_) return;
    for (int r = 0; r < count && !vary; ++r)
      parameters.add(part, first[r], to_gamma[r].total() + rest_gamma[r],
                     to_beta[r].total() + rest_beta[r]);
    if (vary)
      this->for_parameters(t, [&](int64_t j, int64_t, int64_t at) {
        parameters.add(part, first[0] + at, l.terms[j], get(dy[j]));
      });
  }

  const Backward& b_;
  const T* dy_;
  T* dx_;
  const S* statistics_;
  S* dstatistics_;
  const bool wanted_, past_;
};

}  // namespace TRUENORM_ISA
}  // namespace truenorm
