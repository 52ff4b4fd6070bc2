// Short rows: so few elements that a vector would be left half empty. Blocks of them are transposed
// in the nearest cache, so that a vector holds one element of each of several rows.

namespace truenorm {
namespace TRUENORM_ISA {

template <class T>
class ShortRows {
 public:
  using S = typename Compute<T>::type;
  using V = Vector<T>;

  // Rows of one length whose parameters are the same in all.
  static bool takes(const Problem& p) {
    return p.size[1] == 1 && p.size[3] <= kLongest && p.groups >= kRows &&
           !p.strides[0].varies() && !p.strides[2].varies() &&
           (!p.strides[3].varies() || p.strides[3].stride[p.strides[3].count - 1] == 1) &&
           p.strides[3].count <= 1;
  }

  static bool forward(const Forward& f) {
    const ShortRows r(f.p, f.x, f.gamma);
    const S* beta = static_cast<const S*>(f.beta);
    S* statistics = static_cast<S*>(f.statistics);
    const int64_t blocks = ceil_div(r.rows_, kRows), some = r.blocks_per_task();
    return run_all(f.executor, ceil_div(blocks, some), [&](int64_t task) {
      for (int64_t b = task * some; b < least(blocks, (task + 1) * some); ++b)
        r.forward_block(b * kRows, beta, static_cast<T*>(f.y), statistics);
      return true;
    });
  }

  static bool backward(const Backward& b) {
    const ShortRows r(b.p, b.x, b.gamma);
    const bool wanted = b.dgamma || b.dbeta;
    const int64_t blocks = ceil_div(r.rows_, kRows);
    const int64_t tasks = least(ceil_div(blocks, r.blocks_per_task()),
                                wanted ? ParameterSums::most_parts(b.p) : blocks);
    const int64_t some = ceil_div(blocks, tasks);
    Scratch scratch;
    const ParameterSums parameters(b, tasks, scratch);
    if (scratch.failed()) return false;
    run_all(b.executor, tasks, [&](int64_t task) {
      WideSum<T> to_gamma[kLongest], to_beta[kLongest];
      for (int64_t block = task * some; block < least(blocks, (task + 1) * some); ++block)
        r.backward_block(block * kRows, static_cast<const T*>(b.dy),
                         static_cast<const S*>(b.statistics), static_cast<T*>(b.dx),
                         static_cast<S*>(b.dstatistics), wanted ? to_gamma : nullptr, to_beta);
      for (int64_t i = 0; wanted && i < r.n_; ++i)
        parameters.add(task, i * r.step_, to_gamma[i].total(), to_beta[i].total());
      return true;
    });
    parameters.finish(static_cast<S*>(b.dgamma), static_cast<S*>(b.dbeta));
    return true;
  }

 private:
  static constexpr int64_t kRows = 64;  // of a block
  static constexpr int64_t kLongest = kShortSum;

  ShortRows(const Problem& p, const void* x, const void* gamma)
      : p_(p),
        n_(p.size[3]),
        rows_(p.groups),
        x_(static_cast<const T*>(x)),
        gamma_(static_cast<const S*>(gamma)),
        step_(p.strides[3].varies() ? 1 : 0) {}

  int64_t blocks_per_task() const { return most(1, kTaskElements / (n_ * kRows)); }

  // One number for each row of a block, and one for each element of each row.
  struct Line {
    alignas(64) S at[kRows];
    V vector(int64_t j) const { return read<V>(at + j); }
  };
  struct Block {
    alignas(64) S at[ceil_div(kLongest, kLanes<T>) * kLanes<T> * kRows];
    V vector(int64_t i, int64_t j) const { return read<V>(at + i * kRows + j); }
    void set(int64_t i, int64_t j, V v) { __builtin_memcpy(at + i * kRows + j, &v, sizeof v); }
  };

  // Rows that are not there are zero.
  void read_rows(const T* from, int64_t first, Block& block) const {
    const int64_t rows = least(kRows, rows_ - first), end = rows_ * n_;
    for (int64_t r = 0; r < kRows; r += kLanes<T>) {
      for (int64_t i = 0; i < n_; i += kLanes<T>) {
        V some[kLanes<T>];
        for (int k = 0; k < kLanes<T>; ++k) {
          // What is read beyond a row's end falls into rows of the block that hold no element.
          const int64_t at = (first + r + k) * n_ + i;
          some[k] = r + k >= rows ? V{} : at + kLanes<T> <= end ? load(from + at) : rest(from, at);
        }
        transpose<T>(some);
        for (int k = 0; k < kLanes<T>; ++k) block.set(i + k, r, some[k]);
      }
    }
  }

  // The elements from the last of the vectors' places on.
  V rest(const T* from, int64_t at) const {
    S some[kLanes<T>] = {};
    for (int64_t k = 0; at + k < rows_ * n_; ++k) some[k] = get(from[at + k]);
    return read<V>(some);
  }

  // What is written beyond a row's end is written again with the rows that follow.
  void write_rows(const Block& block, int64_t first, T* to) const {
    const int64_t rows = least(kRows, rows_ - first), end = (first + rows) * n_;
    for (int64_t r = 0; r < rows; r += kLanes<T>) {
      V some[kLongest / kLanes<T> + 1][kLanes<T>];
      for (int64_t i = 0, tile = 0; i < n_; i += kLanes<T>, ++tile) {
        for (int k = 0; k < kLanes<T>; ++k) some[tile][k] = block.vector(i + k, r);
        transpose<T>(some[tile]);
      }
      for (int k = 0; k < kLanes<T> && r + k < rows; ++k) {
        for (int64_t i = 0, tile = 0; i < n_; i += kLanes<T>, ++tile) {
          const int64_t at = (first + r + k) * n_ + i;
          if (at + kLanes<T> <= end) {
            store<false>(to + at, some[tile][k]);
          } else {
            for (int64_t m = 0; m < least(kLanes<T>, n_ - i); ++m) put(to + at + m, some[tile][k][m]);
          }
        }
      }
    }
  }

  S gamma(int64_t i) const { return gamma_ ? gamma_[i * step_] : S(1); }

  // The statistics of a block, about a pivot for each row. Returns whether one was too far.
  bool take_statistics(const Block& x, const Line& pivot, int64_t rows, Line& high, Line& low,
                       Line& variance) const {
    alignas(64) double sum[kRows] = {}, squares[kRows] = {};
    for (int64_t j = 0; j < kRows; j += kLanes<T>) {
      V s = {}, q = {};
      for (int64_t i = 0; i < n_; ++i) {
        const V d = x.vector(i, j) - pivot.vector(j);
        s += d;
        q = madd(d, d, q);
      }
      add_to(sum + j, s);
      add_to(squares + j, q);
    }
    return (p_.centered ? in_lines<true, S> : in_lines<false, S>)(
        p_, rows, pivot.at, sum, squares, high.at, low.at, variance.at);
  }

  // Of rows that are not there the variance is one, for what is computed of them to be finite.
  void read_statistics(const S* statistics, int64_t first, int64_t which, Line& line) const {
    const int64_t rows = least(kRows, rows_ - first);
    for (int64_t r = 0; r < kRows; ++r)
      line.at[r] = r < rows ? statistics[3 * (first + r) + which] : S(which == 2);
  }

  // A loop that compilers turn into vectors.
  Line deviations(const Line& variance) const {
    Line rstd;
    for (int64_t r = 0; r < kRows; ++r) rstd.at[r] = rstd_of(p_, variance.at[r]);
    return rstd;
  }

  void forward_block(int64_t first, const S* beta, T* y, S* statistics) const {
    Block x;
    Line high, low = {}, variance = {};
    read_rows(x_, first, x);
    if (p_.given) {
      read_statistics(statistics, first, 0, high);
      read_statistics(statistics, first, 1, low);
      read_statistics(statistics, first, 2, variance);
    } else {
      const int64_t rows = least(kRows, rows_ - first);
      Line pivot;
      for (int64_t j = 0; j < kRows; j += kLanes<T>) {
        const V v = p_.centered ? pivot_of(n_, [&](int64_t i) { return x.vector(i, j); }) : V{};
        __builtin_memcpy(high.at + j, &v, sizeof v);
      }
      bool far = true;
      for (int pass = 0; pass < 2 && far; ++pass) {
        pivot = high;
        far = take_statistics(x, pivot, rows, high, low, variance);
      }
      for (int64_t r = 0; r < rows; ++r) {
        S* to = statistics + 3 * (first + r);
        to[0] = high.at[r];
        to[1] = low.at[r];
        to[2] = variance.at[r];
      }
    }
    if (!y) return;
    const Line rstd = deviations(variance);
    for (int64_t j = 0; j < kRows; j += kLanes<T>) {
      const V h = high.vector(j), a = rstd.vector(j), b = -low.vector(j) * a;
      for (int64_t i = 0; i < n_; ++i) {
        const V v = madd(x.vector(i, j) - h, a, b);
        x.set(i, j, madd(v, fill<V>(gamma(i)), fill<V>(beta ? beta[i * step_] : S(0))));
      }
    }
    write_rows(x, first, y);
  }

  // Adds the terms of each element's gradients of gamma and beta where to_gamma is not null.
  void backward_block(int64_t first, const T* cotangent, const S* statistics, T* dx, S* dstatistics,
                      WideSum<T>* to_gamma, WideSum<T>* to_beta) const {
    Block x, dy;
    Line high, low, variance, slope, constant;
    read_rows(x_, first, x);
    read_rows(cotangent, first, dy);
    read_statistics(statistics, first, 0, high);
    read_statistics(statistics, first, 1, low);
    read_statistics(statistics, first, 2, variance);
    const Line rstd = deviations(variance);
    double sum[kRows] = {}, product[kRows] = {};
    for (int64_t j = 0; j < kRows; j += kLanes<T>) {
      V a = {}, b = {};
      for (int64_t i = 0; i < n_; ++i) {
        const V g = dy.vector(i, j) * fill<V>(gamma(i)), d = x.vector(i, j) - high.vector(j);
        a += g;
        b = madd(g, d, b);
        x.set(i, j, d);
      }
      add_to(sum + j, a);
      add_to(product + j, b);
    }
    const Projector project(p_);
    const int64_t rows = least(kRows, rows_ - first);
    for (int64_t r = 0; dstatistics && r < rows; ++r)
      project.to_statistics(sum[r], product[r], low.at[r], rstd.at[r],
                            dstatistics + 2 * (first + r));
    for (int64_t r = 0; r < kRows; ++r) {
      const Projection projection = project(sum[r], product[r], low.at[r], rstd.at[r]);
      slope.at[r] = S(projection.slope);
      constant.at[r] = S(projection.constant);
    }
    for (int64_t i = 0; i < n_; ++i) {
      V gammas = {}, betas = {};
      for (int64_t j = 0; j < kRows; j += kLanes<T>) {
        const V d = x.vector(i, j), g = dy.vector(i, j), a = rstd.vector(j);
        gammas += g * ((d - low.vector(j)) * a);
        betas += g;
        x.set(i, j, madd(a * fill<V>(gamma(i)), g,
                         madd(slope.vector(j), d, constant.vector(j))));
      }
      if (!to_gamma) continue;
      to_gamma[i].add(gammas);
      to_beta[i].add(betas);
    }
    write_rows(x, first, dx);
  }

  const Problem& p_;
  const int64_t n_, rows_;
  const T* x_;
  const S* gamma_;
  const int64_t step_;  // of gamma from element to element
};

}  // namespace TRUENORM_ISA
}  // namespace truenorm
