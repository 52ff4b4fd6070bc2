// Short rows: so few elements that a vector would be left half empty. Blocks of them are transposed
// in the nearest cache, so that a vector holds one element of each of several rows.

namespace evenkeel {
namespace EVENKEEL_ISA {

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
    S *statistics = static_cast<S*>(f.statistics), *variance = static_cast<S*>(f.variance);
    const int64_t blocks = ceil_div(r.rows_, kRows), some = r.blocks_per_task();
    return run_all(f.executor, ceil_div(blocks, some), [&](int64_t task) {
      for (int64_t b = task * some; b < least(blocks, (task + 1) * some); ++b)
        r.forward_block(b * kRows, beta, static_cast<T*>(f.y), statistics, variance);
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
      for (int64_t block = task * some; block < least(blocks, (task + 1) * some); ++block)
        r.backward_block(block * kRows, static_cast<const T*>(b.dy),
                         static_cast<const S*>(b.statistics), static_cast<T*>(b.dx), wanted,
                         parameters, task);
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
    alignas(64) S at[kLongest * kRows];
    V vector(int64_t i, int64_t j) const { return read<V>(at + i * kRows + j); }
    void set(int64_t i, int64_t j, V v) { __builtin_memcpy(at + i * kRows + j, &v, sizeof v); }
  };

  // Rows that are not there are zero.
  void read_rows(const T* from, int64_t first, Block& block) const {
    const int64_t rows = least(kRows, rows_ - first);
    from += first * n_;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < n_; ++i) block.at[i * kRows + r] = get(from[r * n_ + i]);
    for (int64_t r = rows; r < kRows; ++r)
      for (int64_t i = 0; i < n_; ++i) block.at[i * kRows + r] = 0;
  }

  void write_rows(const Block& block, int64_t first, T* to) const {
    to += first * n_;
    for (int64_t r = 0; r < least(kRows, rows_ - first); ++r)
      for (int64_t i = 0; i < n_; ++i) put(to + r * n_ + i, block.at[i * kRows + r]);
  }

  S gamma(int64_t i) const { return gamma_ ? gamma_[i * step_] : S(1); }

  // The statistics of a block, about a pivot for each row. Returns whether one was too far.
  bool take_statistics(const Block& x, const Line& pivot, int64_t first, S* statistics,
                       S* variance) const {
    double sum[kRows] = {}, squares[kRows] = {};
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
    return finish(p_, least(kRows, rows_ - first), pivot.at, sum, squares, statistics + 3 * first,
                  variance ? variance + first : nullptr);
  }

  void read_statistics(const S* statistics, int64_t first, int64_t which, Line& line) const {
    const int64_t rows = least(kRows, rows_ - first);
    for (int64_t r = 0; r < kRows; ++r)
      line.at[r] = r < rows ? statistics[3 * (first + r) + which] : S(0);
  }

  void forward_block(int64_t first, const S* beta, T* y, S* statistics, S* variance) const {
    Block x;
    Line high, low, rstd;
    read_rows(x_, first, x);
    if (!p_.given) {
      for (int64_t r = 0; r < kRows; ++r) high.at[r] = p_.centered ? x.at[r] : S(0);
      if (take_statistics(x, high, first, statistics, variance)) {
        read_statistics(statistics, first, 0, high);
        take_statistics(x, high, first, statistics, variance);
      }
    }
    read_statistics(statistics, first, 0, high);
    read_statistics(statistics, first, 1, low);
    read_statistics(statistics, first, 2, rstd);
    for (int64_t j = 0; j < kRows; j += kLanes<T>) {
      const V h = high.vector(j), a = rstd.vector(j), b = -low.vector(j) * a;
      for (int64_t i = 0; i < n_; ++i) {
        const V v = madd(x.vector(i, j) - h, a, b);
        x.set(i, j, madd(v, fill<V>(gamma(i)), fill<V>(beta ? beta[i * step_] : S(0))));
      }
    }
    write_rows(x, first, y);
  }

  void backward_block(int64_t first, const T* cotangent, const S* statistics, T* dx, bool wanted,
                      const ParameterSums& parameters, int64_t part) const {
    Block x, dy;
    Line high, low, rstd, slope, constant;
    read_rows(x_, first, x);
    read_rows(cotangent, first, dy);
    read_statistics(statistics, first, 0, high);
    read_statistics(statistics, first, 1, low);
    read_statistics(statistics, first, 2, rstd);
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
    for (int64_t r = 0; r < kRows; ++r) {
      const Projection projection = project(sum[r], product[r], low.at[r], rstd.at[r]);
      slope.at[r] = S(projection.slope);
      constant.at[r] = S(projection.constant);
    }
    for (int64_t i = 0; i < n_; ++i) {
      LongSum<T> to_gamma, to_beta;
      for (int64_t j = 0; j < kRows; j += kLanes<T>) {
        const V d = x.vector(i, j), g = dy.vector(i, j), a = rstd.vector(j);
        if (wanted) {
          to_gamma.add(g * ((d - low.vector(j)) * a));
          to_beta.add(g);
        }
        x.set(i, j, madd(a * fill<V>(gamma(i)), g,
                         madd(slope.vector(j), d, constant.vector(j))));
      }
      if (wanted) parameters.add(part, i * step_, to_gamma.total(), to_beta.total());
    }
    write_rows(x, first, dx);
  }

  const Problem& p_;
  const int64_t n_, rows_;
  const T* x_;
  const S* gamma_;
  const int64_t step_;  // of gamma from element to element
};

}  // namespace EVENKEEL_ISA
}  // namespace evenkeel
