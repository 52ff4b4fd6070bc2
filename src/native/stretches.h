// Stretches: the elements of a group lie in R0 stretches, each long enough to be read as a row, and
// all have the same gamma and beta: a batch's channels, channels first.
//
// A group that stays in the cache is read, and written, by one task, though its stretches are far
// apart; larger or few ones by several, which take pieces of stretches in the order of memory and
// need a pass for the statistics and one for the result.

namespace truenorm {
namespace TRUENORM_ISA {

template <class T>
class Stretches {
 public:
  using S = typename Compute<T>::type;

  static bool takes(const Problem& p) {
    return p.size[1] > 1 && p.size[3] * int64_t(sizeof(T)) >= kLongStretch &&
           !p.strides[1].varies() && !p.strides[3].varies();
  }

  static bool forward(const Forward& f) {
    const Stretches s(f.p, f.x, f.gamma, f.y, f.executor, 1);
    const S* beta = static_cast<const S*>(f.beta);
    S* statistics = static_cast<S*>(f.statistics);
    return s.whole_ ? s.forward_whole(beta, statistics) : s.forward_in_pieces(beta, statistics);
  }

  static bool backward(const Backward& b) {
    const Stretches s(b.p, b.x, b.gamma, b.dx, b.executor, 2);
    return s.whole_ ? s.backward_whole(b) : s.backward_in_pieces(b);
  }

 private:
  // `reads` tensors of x's size are read twice.
  Stretches(const Problem& p, const void* x, const void* gamma, void* to,
            const truenorm_executor* executor, int reads)
      : p_(p),
        n_(p.size[3]),
        x_(static_cast<const T*>(x)),
        gamma_(static_cast<const S*>(gamma)),
        to_(static_cast<T*>(to)),
        executor_(executor),
        past_(p.elements * int64_t(sizeof(T)) >= kStreamBytes && can_stream(to_, n_)),
        whole_(reads * p.count * int64_t(sizeof(T)) <= reads * kCacheBytes && p.groups >= 8),
        ask_(reads * p.count * int64_t(sizeof(T)) <= kNextTile) {
    const int64_t cuts = ceil_div(n_, kTaskElements);
    piece_ = ceil_div(ceil_div(n_, cuts), 64) * 64;
    in_stretch_ = ceil_div(n_, piece_);
    pieces_ = p.size[0] * p.size[1] * p.size[2] * in_stretch_;
    some_ = most(1, kTaskElements / least(piece_, n_));
  }

  // The first element of a group's r-th stretch.
  int64_t begin(int64_t group, int64_t r) const {
    const int64_t outer = group / p_.size[2], inner = group % p_.size[2];
    return ((outer * p_.size[1] + r) * p_.size[2] + inner) * n_;
  }
  // How far it is to the next group's, or 0 where this is not to be asked for while one is written.
  int64_t to_next(int64_t group) const {
    return ask_ && group + 1 < p_.groups ? begin(group + 1, 0) - begin(group, 0) : 0;
  }
  // The same to the group's next stretch.
  int64_t to_next_stretch(int64_t r) const { return r + 1 < p_.size[1] ? p_.size[2] * n_ : 0; }
  // The group's gamma and beta.
  int64_t parameter(int64_t group) const {
    return p_.strides[0].offset(group / p_.size[2]) + p_.strides[2].offset(group % p_.size[2]);
  }

  // A piece of a stretch; pieces are counted in the order of memory.
  struct Piece {
    int64_t group, begin, length;
  };
  Piece piece(int64_t index) const {
    const int64_t stretch = index / in_stretch_, first = index % in_stretch_ * piece_;
    const int64_t outer = stretch / (p_.size[1] * p_.size[2]);
    return {outer * p_.size[2] + stretch % p_.size[2], stretch * n_ + first,
            least(piece_, n_ - first)};
  }
  // Call body(i) for every piece, some of them in a task.
  template <class Body>
  bool for_pieces(const Body& body) const {
    const int64_t tasks = ceil_div(pieces_, some_);
    return run_all(executor_, tasks, [&](int64_t task) {
      for (int64_t i = task * some_; i < least(pieces_, (task + 1) * some_); ++i) body(i);
      if (past_) end_of_stream();
      return true;
    });
  }

  S pivot(int64_t group) const {
    if (!p_.centered) return 0;
    return pivot_of(p_.count, [&](int64_t i) { return get(x_[begin(group, i / n_) + i % n_]); });
  }

  bool forward_whole(const S* beta, S* statistics) const {
    const int64_t some = most(1, kTaskElements / p_.count);
    return run_all(executor_, ceil_div(p_.groups, some), [&](int64_t task) {
      for (int64_t g = task * some; g < least(p_.groups, (task + 1) * some); ++g) {
        S* to = statistics + 3 * g;
        if (!p_.given) {
          const S about = pivot(g);
          if (finish(p_, about, moments(g, about), to)) {
            const S mean = to[0];
            finish(p_, mean, moments(g, mean), to);
          }
        }
        for (int64_t r = 0; to_ && r < p_.size[1]; ++r)
          write(g, begin(g, r), n_, to_next(g), beta, to);
      }
      if (past_) end_of_stream();
      return true;
    });
  }

  Moments moments(int64_t group, S about) const {
    Moments all;
    for (int64_t r = 0; r < p_.size[1]; ++r)
      add(all, row_moments(x_ + begin(group, r), n_, about, to_next_stretch(r)));
    return all;
  }
  static void add(Moments& all, const Moments& one) {
    all.sum += one.sum;
    all.squares += one.squares;
  }

  bool forward_in_pieces(const S* beta, S* statistics) const {
    Scratch scratch;
    S* about = scratch.get<S>(p_.groups);
    Moments* partial = scratch.get<Moments>(pieces_);
    Moments* all = scratch.get<Moments>(p_.groups);
    if (scratch.failed()) return false;
    bool far = !p_.given;
    for (int pass = 0; pass < 2 && far; ++pass) {
      for (int64_t g = 0; g < p_.groups; ++g) {
        about[g] = pass ? statistics[3 * g] : pivot(g);
        all[g] = Moments();
      }
      for_pieces([&](int64_t i) {
        const Piece one = piece(i);
        partial[i] = row_moments(x_ + one.begin, one.length, about[one.group]);
      });
      for (int64_t i = 0; i < pieces_; ++i) add(all[piece(i).group], partial[i]);
      far = false;
      for (int64_t g = 0; g < p_.groups; ++g)
        far |= finish(p_, about[g], all[g], statistics + 3 * g);
    }
    // Backwards: what was read last is in the cache still.
    return !to_ || for_pieces([&](int64_t i) {
      const Piece one = piece(pieces_ - 1 - i);
      write(one.group, one.begin, one.length, 0, beta, statistics + 3 * one.group);
    });
  }

  // y of a part of a group's stretch.
  void write(int64_t group, int64_t begin, int64_t length, int64_t next, const S* beta,
             const S* statistics) const {
    const int64_t at = parameter(group);
    const S rstd = rstd_of(p_, statistics[2]), scale = gamma_ ? rstd * gamma_[at] : rstd;
    const S shift = S((beta ? double(beta[at]) : 0.0) - double(statistics[1]) * scale);
    const T* x = x_ + begin;
    past_ ? row_affine<true>(x, to_ + begin, length, next, statistics[0], scale, shift)
          : row_affine<false>(x, to_ + begin, length, next, statistics[0], scale, shift);
  }

  // The sums of dy and of dy * (x - high) over a group.
  struct Sums {
    double dy = 0, product = 0;
  };
  Sums sums(const T* dy, int64_t begin, int64_t length, S high, int64_t next = 0) const {
    Sums s;
    row_products<false>(x_ + begin, dy + begin, length, high, gamma_, &s.dy, &s.product, next);
    return s;
  }
  static void add(Sums& all, const Sums& one) {
    all.dy += one.dy;
    all.product += one.product;
  }
  // Whether anybody asks for them.
  bool summed(const Backward& b) const {
    return !p_.given || b.dstatistics || b.dgamma || b.dbeta;
  }

  // The numbers of dx = scale * dy + (slope * (x - high) + constant), and the gradients in the
  // parameters and in the statistics.
  struct Line {
    S high, scale, slope, constant;
  };
  Line line(const Backward& b, int64_t group, Sums all, const ParameterSums& parameters,
            int64_t part) const {
    const S* statistics = static_cast<const S*>(b.statistics) + 3 * group;
    const int64_t at = parameter(group);
    const S rstd = rstd_of(p_, statistics[2]);
    const double low = statistics[1], scale = gamma_ ? double(gamma_[at]) : 1.0;
    parameters.add(part, at, rstd * (all.product - low * all.dy), all.dy);
    const Projector project(p_);
    if (b.dstatistics)
      project.to_statistics(scale * all.dy, scale * all.product, low, rstd,
                            static_cast<S*>(b.dstatistics) + 2 * group);
    const Projection found = project(scale * all.dy, scale * all.product, low, rstd);
    return {statistics[0], S(rstd * S(scale)), S(found.slope), S(found.constant)};
  }

  void write(const T* dy, int64_t begin, int64_t length, int64_t next, Line l) const {
    const T* x = x_ + begin;
    past_ ? row_gradient<true>(x, dy + begin, to_ + begin, length, next, l.high, l.scale, l.slope,
                               l.constant)
          : row_gradient<false>(x, dy + begin, to_ + begin, length, next, l.high, l.scale, l.slope,
                                l.constant);
  }

  bool backward_whole(const Backward& b) const {
    const T* dy = static_cast<const T*>(b.dy);
    const S* statistics = static_cast<const S*>(b.statistics);
    const bool wanted = b.dgamma || b.dbeta;
    const int64_t tasks = least(ceil_div(p_.groups, most(1, kTaskElements / p_.count)),
                                wanted ? ParameterSums::most_parts(p_) : p_.groups);
    Scratch scratch;
    const ParameterSums parameters(b, tasks, scratch);
    if (scratch.failed()) return false;
    run_all(executor_, tasks, [&](int64_t task) {
      for (int64_t g = task * p_.groups / tasks; g < (task + 1) * p_.groups / tasks; ++g) {
        Sums all;
        for (int64_t r = 0; summed(b) && r < p_.size[1]; ++r)
          add(all, sums(dy, begin(g, r), n_, statistics[3 * g], to_next_stretch(r)));
        const Line l = line(b, g, all, parameters, task);
        for (int64_t r = 0; r < p_.size[1]; ++r) write(dy, begin(g, r), n_, to_next(g), l);
      }
      if (past_) end_of_stream();
      return true;
    });
    parameters.finish(static_cast<S*>(b.dgamma), static_cast<S*>(b.dbeta));
    return true;
  }

  bool backward_in_pieces(const Backward& b) const {
    const T* dy = static_cast<const T*>(b.dy);
    const S* statistics = static_cast<const S*>(b.statistics);
    Scratch scratch;
    Sums* partial = scratch.get<Sums>(pieces_);
    Sums* all = scratch.get<Sums>(p_.groups);
    Line* lines = scratch.get<Line>(p_.groups);
    const ParameterSums parameters(b, 1, scratch);
    if (scratch.failed()) return false;
    for (int64_t g = 0; g < p_.groups; ++g) all[g] = Sums();
    if (summed(b)) {
      for_pieces([&](int64_t i) {
        const Piece one = piece(i);
        partial[i] = sums(dy, one.begin, one.length, statistics[3 * one.group]);
      });
      for (int64_t i = 0; i < pieces_; ++i) add(all[piece(i).group], partial[i]);
    }
    for (int64_t g = 0; g < p_.groups; ++g) lines[g] = line(b, g, all[g], parameters, 0);
    for_pieces([&](int64_t i) {
      const Piece one = piece(pieces_ - 1 - i);
      write(dy, one.begin, one.length, 0, lines[one.group]);
    });
    parameters.finish(static_cast<S*>(b.dgamma), static_cast<S*>(b.dbeta));
    return true;
  }

  const Problem& p_;
  const int64_t n_;  // elements in a stretch
  const T* x_;
  const S* gamma_;
  T* to_;  // y, or dx
  const truenorm_executor* executor_;
  const bool past_;   // it is stored past the cache
  const bool whole_;  // tasks have whole groups
  const bool ask_;    // for the next group while one is written
  int64_t piece_, in_stretch_, pieces_;  // the length of a piece; how many a stretch has; and all
  int64_t some_;  // pieces in a task
};

}  // namespace TRUENORM_ISA
}  // namespace truenorm
