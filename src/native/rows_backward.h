// Rows, backward: dx, dgamma, dbeta and dstatistics.

namespace truenorm {
namespace TRUENORM_ISA {

// The sums of g = gamma * dy and of g * (x - high), where gamma is one number or one for each
// element, in short sums of the compute type. What lies `next` elements on is asked for.
template <bool each, class T, class S>
static void row_products(const T* x, const T* dy, int64_t n, S high, const S* gamma, double* sum,
                         double* product, int64_t next = 0) {
  using V = Vector<T>;
  constexpr int64_t kLane = kLanes<T>, kStep = 4 * kLane, kBlock = kShortSum * kStep;
  const V h = fill<V>(high);
  WideSum<T> g_sum, g_product;
  const auto gradient = [&](int64_t at) {
    V g = load(dy + at);
    if constexpr (each) g = g * read<V>(gamma + at);
    return g;
  };
  int64_t i = 0;
  while (i + kStep <= n) {
    const int64_t stop = least(n, i + kBlock);
    V a[4] = {}, b[4] = {};
    for (; i + kStep <= stop; i += kStep) {
      for (int k = 0; k < 4; ++k) {
        __builtin_prefetch(x + next + i + k * kLane);
        __builtin_prefetch(dy + next + i + k * kLane);
        const V g = gradient(i + k * kLane);
        a[k] += g;
        b[k] = madd(g, load(x + i + k * kLane) - h, b[k]);
      }
    }
    g_sum.add((a[0] + a[1]) + (a[2] + a[3]));
    g_product.add((b[0] + b[1]) + (b[2] + b[3]));
  }
  const auto add = [&](V g, V d) {
    g_sum.add(g);
    g_product.add(g * d);
  };
  for (; i + kLane <= n; i += kLane) add(gradient(i), load(x + i) - h);
  if (i < n && n >= kLane) {
    const int64_t at = n - kLane;
    add(last<T>(gradient(at), n - i), last<T>(load(x + at) - h, n - i));
    i = n;
  }
  *sum = g_sum.total();
  *product = g_product.total();
  for (; i < n; ++i) {
    double g = get(dy[i]);
    if constexpr (each) g *= gamma[i];
    *sum += g;
    *product = madd(g, double(get(x[i]) - high), *product);
  }
}

// dx = scale * dy + (slope * (x - high) + constant)
template <bool past, class T, class S>
static void row_gradient(const T* x, const T* dy, T* dx, int64_t n, int64_t next, S high, S scale,
                         S slope, S constant) {
  using V = Vector<T>;
  const V h = fill<V>(high), a = fill<V>(scale), b = fill<V>(slope), c = fill<V>(constant);
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    __builtin_prefetch(x + next + i);
    __builtin_prefetch(dy + next + i);
    store<past>(dx + i, madd(a, load(dy + i), madd(b, load(x + i) - h, c)));
  }
  for (; i < n; ++i)
    put(dx + i, madd(scale, S(get(dy[i])), madd(slope, S(get(x[i]) - high), constant)));
}

// The same with scale = rstd * gamma for each element, and the terms of the gradients of gamma
// and beta added to to_gamma and to_beta, where these are not null.
template <bool past, class T, class S>
static void row_gradient_each(const T* x, const T* dy, T* dx, int64_t n, int64_t next, S high,
                              S low, S rstd, S slope, S constant, const S* gamma, S* to_gamma,
                              S* to_beta) {
  using V = Vector<T>;
  const S shift = -low * rstd;
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    __builtin_prefetch(x + next + i);
    __builtin_prefetch(dy + next + i);
    const V d = load(x + i) - fill<V>(high), g = load(dy + i);
    const V a = gamma ? fill<V>(rstd) * read<V>(gamma + i) : fill<V>(rstd);
    store<past>(dx + i, madd(a, g, madd(fill<V>(slope), d, fill<V>(constant))));
    if (to_gamma) {
      const V sum = madd(g, madd(d, fill<V>(rstd), fill<V>(shift)), read<V>(to_gamma + i));
      __builtin_memcpy(to_gamma + i, &sum, sizeof sum);
    }
    if (to_beta) {
      const V sum = read<V>(to_beta + i) + g;
      __builtin_memcpy(to_beta + i, &sum, sizeof sum);
    }
  }
  for (; i < n; ++i) {
    const S d = get(x[i]) - high, g = get(dy[i]);
    put(dx + i, madd(gamma ? rstd * gamma[i] : rstd, g, madd(slope, d, constant)));
    if (to_gamma) to_gamma[i] = madd(g, madd(d, rstd, shift), to_gamma[i]);
    if (to_beta) to_beta[i] += g;
  }
}

// Like `forward_rows`, and with the sums of the parameters' gradients.
template <class T>
class BackwardRows {
 public:
  using S = typename Compute<T>::type;

  explicit BackwardRows(const Backward& b)
      : b_(b),
        p_(b.p),
        shape_(b.p),
        n_(shape_.length),
        x_(static_cast<const T*>(b.x)),
        dy_(static_cast<const T*>(b.dy)),
        gamma_(static_cast<const S*>(b.gamma)),
        statistics_(static_cast<const S*>(b.statistics)),
        dx_(static_cast<T*>(b.dx)),
        dstatistics_(static_cast<S*>(b.dstatistics)),
        wanted_(b.dgamma || b.dbeta),
        summed_(!b.p.given || b.dstatistics),
        past_(row_streams(b.p, shape_, dx_)) {}

  bool run() {
    // Sums of the parameters' gradients that are as large as x cannot be kept for each part: then
    // tasks take columns, and each has its parameters for itself.
    const bool wide = wanted_ && shape_.each && 32 * p_.parameters > p_.elements;
    const bool small = p_.elements < 2 * kTaskElements;
    const bool whole = 2 * n_ * int64_t(sizeof(T)) <= 2 * kCacheBytes && p_.groups >= 8 && !wide;
    return small || whole ? run_whole_rows() : run_in_chunks();
  }

 private:
  struct Sums {
    double g = 0, product = 0;
  };

  // The sums of g and g * (x - high) over a part of a row; adds to the parameters of a segment that
  // has one, where they are given.
  Sums sums(int64_t row, int64_t begin, int64_t end, const ParameterSums* parameters = nullptr,
            int64_t part = 0) const {
    Sums all;
    const T *x = x_ + row * n_, *dy = dy_ + row * n_;
    const int64_t first = shape_.offset(row);
    const S high = statistics_[3 * row];
    shape_.segments(begin, end, [&](const Segment& s) {
      double sum, product;
      const int64_t n = s.end - s.begin, at = first + s.parameter;
      if (shape_.each && gamma_) {
        row_products<true>(x + s.begin, dy + s.begin, n, high, gamma_ + at, &sum, &product);
      } else {
        row_products<false>(x + s.begin, dy + s.begin, n, high, gamma_, &sum, &product);
        if (parameters && !shape_.each) to_parameters(*parameters, part, row, at, sum, product);
        if (gamma_) sum *= gamma_[at], product *= gamma_[at];
      }
      all.g += sum;
      all.product += product;
    });
    return all;
  }

  void to_parameters(const ParameterSums& parameters, int64_t part, int64_t row, int64_t at,
                     double sum, double product) const {
    const double low = statistics_[3 * row + 1], rstd = rstd_of(p_, statistics_[3 * row + 2]);
    parameters.add(part, at, rstd * (product - low * sum), sum);
  }

  // What one task adds up for the parameters of the elements begin to end of a row: short sums in
  // the compute type, added to the part's own when they are full or the rows' parameters change.
  struct Pending {
    S *gamma = nullptr, *beta = nullptr;
    int64_t first = -1, rows = 0;
  };

  void flush(const ParameterSums& sums, int64_t part, int64_t lowest, int64_t highest,
             Pending& pending) const {
    if (!pending.rows) return;
    sums.take(sums.gamma, part, pending.first, pending.gamma, lowest, highest);
    sums.take(sums.beta, part, pending.first, pending.beta, lowest, highest);
    pending.rows = 0;
  }

  template <bool past>
  void gradient(int64_t row, int64_t begin, int64_t end, int64_t next, Projection projection,
                const ParameterSums& sums, int64_t part, const Pending& pending,
                bool summed) const {
    const T *x = x_ + row * n_, *dy = dy_ + row * n_;
    T* dx = dx_ + row * n_;
    const int64_t first = shape_.offset(row);
    const S high = statistics_[3 * row], low = statistics_[3 * row + 1];
    const S rstd = rstd_of(p_, statistics_[3 * row + 2]);
    const S slope = S(projection.slope), constant = S(projection.constant);
    shape_.segments(begin, end, [&](const Segment& s) {
      const int64_t n = s.end - s.begin, at = first + s.parameter;
      if (shape_.each) {
        row_gradient_each<past>(x + s.begin, dy + s.begin, dx + s.begin, n, next, high, low, rstd,
                                slope, constant, gamma_ ? gamma_ + at : nullptr,
                                pending.gamma ? pending.gamma + s.parameter : nullptr,
                                pending.beta ? pending.beta + s.parameter : nullptr);
        return;
      }
      if (wanted_ && !summed) {
        double sum, product;
        row_products<false>(x + s.begin, dy + s.begin, n, high, gamma_, &sum, &product);
        to_parameters(sums, part, row, at, sum, product);
      }
      const S scale = gamma_ ? rstd * gamma_[at] : rstd;
      row_gradient<past>(x + s.begin, dy + s.begin, dx + s.begin, n, next, high, scale, slope,
                         constant);
    });
  }

  // The gradient in the elements begin to end of some rows; `summed` says whether the sums for the
  // parameters of segments that have one are taken already.
  template <class Project>
  bool rows(int64_t from, int64_t to, int64_t begin, int64_t end, const ParameterSums& sums,
            int64_t part, bool summed, const Project& projection) const {
    Scratch scratch;
    Pending pending;
    // The parameters that these elements have, counted from the row's first.
    const bool one = shape_.segment == n_;
    const int64_t lowest = one ? begin : 0, highest = !shape_.each ? 0 : one ? end : shape_.span();
    if (shape_.each && b_.dgamma) pending.gamma = scratch.zeros<S>(highest);
    if (shape_.each && b_.dbeta) pending.beta = scratch.zeros<S>(highest);
    if (scratch.failed()) return false;
    for (int64_t row = from; row < to; ++row) {
      const int64_t first = shape_.offset(row);
      if (pending.rows >= (one ? kShortSum : 1) || first != pending.first)
        flush(sums, part, lowest, highest, pending);
      pending.first = first;
      ++pending.rows;
      const int64_t next = to_next<T>(row, to, n_, 2);
      if (past_)
        gradient<true>(row, begin, end, next, projection(row), sums, part, pending, summed);
      else
        gradient<false>(row, begin, end, next, projection(row), sums, part, pending, summed);
    }
    flush(sums, part, lowest, highest, pending);
    if (past_) end_of_stream();
    return true;
  }

  Projection project_row(int64_t row, Sums sums) const {
    const double low = statistics_[3 * row + 1], rstd = rstd_of(p_, statistics_[3 * row + 2]);
    const Projector project(p_);
    if (dstatistics_)
      project.to_statistics(sums.g, sums.product, low, rstd, dstatistics_ + 2 * row);
    return project(sums.g, sums.product, low, rstd);
  }

  bool run_whole_rows() {
    const int64_t tasks = least(ceil_div(p_.groups, most(1, kTaskElements / n_)),
                                wanted_ ? ParameterSums::most_parts(p_) : p_.groups);
    const int64_t some = ceil_div(p_.groups, tasks);
    Scratch scratch;
    const ParameterSums parameters(b_, tasks, scratch);
    if (scratch.failed()) return false;
    const bool done = run_all(b_.executor, tasks, [&](int64_t task) {
      return rows(least(p_.groups, task * some), least(p_.groups, (task + 1) * some), 0, n_,
                  parameters, task, summed_, [&](int64_t row) {
                    if (!summed_) return Projection{0, 0};
                    const ParameterSums* to = wanted_ ? &parameters : nullptr;
                    return project_row(row, sums(row, 0, n_, to, task));
                  });
    });
    parameters.finish(static_cast<S*>(b_.dgamma), static_cast<S*>(b_.dbeta));
    return done;
  }

  bool run_in_chunks() {
    int64_t chunk = most(kTaskElements / 8, ceil_div(n_, 64)) / 64 * 64;
    if (shape_.segment <= chunk) chunk = chunk / shape_.segment * shape_.segment;
    const int64_t chunks = ceil_div(n_, chunk);
    // Where chunks have no parameter in common, they add to the same set of sums.
    const bool apart =
        shape_.distinct() && (shape_.each ? shape_.segment == n_ : chunk % shape_.segment == 0);
    const int64_t tasks = apart || !wanted_ ? chunks : least(chunks, ParameterSums::most_parts(p_));
    Scratch scratch;
    Sums* partial = scratch.get<Sums>(p_.groups * chunks);
    Projection* projections = scratch.get<Projection>(p_.groups);
    const ParameterSums parameters(b_, apart ? 1 : tasks, scratch);
    if (scratch.failed()) return false;
    run_all(b_.executor, summed_ ? p_.groups * chunks : 0, [&](int64_t task) {
      const int64_t begin = task % chunks * chunk;
      partial[task] = sums(task / chunks, begin, least(n_, begin + chunk));
      return true;
    });
    for (int64_t row = 0; row < p_.groups; ++row) {
      Sums all;
      for (int64_t i = row * chunks; i < (row + 1) * chunks && summed_; ++i) {
        all.g += partial[i].g;
        all.product += partial[i].product;
      }
      projections[row] = project_row(row, all);
    }
    const bool done = run_all(b_.executor, tasks, [&](int64_t task) {
      bool good = true;
      for (int64_t c = task * chunks / tasks; c < (task + 1) * chunks / tasks; ++c)
        good &= rows(0, p_.groups, c * chunk, least(n_, (c + 1) * chunk), parameters,
                     apart ? 0 : task, false, [&](int64_t row) { return projections[row]; });
      return good;
    });
    parameters.finish(static_cast<S*>(b_.dgamma), static_cast<S*>(b_.dbeta));
    return done;
  }

  const Backward& b_;
  const Problem& p_;
  const RowShape shape_;
  const int64_t n_;
  const T *x_, *dy_;
  const S *gamma_, *statistics_;
  T* dx_;
  S* dstatistics_;
  const bool wanted_;  // the gradients of gamma and beta
  const bool summed_;  // the products of each row, before dx
  const bool past_;
};

}  // namespace TRUENORM_ISA
}  // namespace truenorm
