// Rows, forward: y and the statistics of each group.

namespace truenorm {
namespace TRUENORM_ISA {

template <class T, class S>
static S row_pivot(const T* x, int64_t n) {
  return pivot_of(n, [&](int64_t i) { return get(x[i]); });
}

// In short sums of the compute type: 32 squares of numbers up to 2e18 are a float still. What lies
// `next` elements on is asked for.
template <class T, class S>
static Moments row_moments(const T* x, int64_t n, S pivot, int64_t next = 0) {
  using V = Vector<T>;
  constexpr int64_t kLane = kLanes<T>, kStep = 4 * kLane, kBlock = kShortSum * kStep;
  const V p = fill<V>(pivot);
  WideSum<T> sum, squares;
  int64_t i = 0;
  while (i + kStep <= n) {
    const int64_t stop = least(n, i + kBlock);
    V s[4] = {}, q[4] = {};
    for (; i + kStep <= stop; i += kStep) {
      for (int k = 0; k < 4; ++k) {
        __builtin_prefetch(x + next + i + k * kLane);
        const V d = load(x + i + k * kLane) - p;
        s[k] += d;
        q[k] = madd(d, d, q[k]);
      }
    }
    for (int k = 0; k < 4; k += 2) {
      sum.add(s[k] + s[k + 1]);
      squares.add(q[k] + q[k + 1]);
    }
  }
  const auto add = [&](V d) {
    sum.add(d);
    squares.add(d * d);
  };
  for (; i + kLane <= n; i += kLane) add(load(x + i) - p);
  if (i < n && n >= kLane) {
    add(last<T>(load(x + n - kLane) - p, n - i));
    i = n;
  }
  Moments m{sum.total(), squares.total()};
  for (; i < n; ++i) {
    const double d = get(x[i]) - pivot;
    m.sum += d;
    m.squares = madd(d, d, m.squares);
  }
  return m;
}

// y = (x - high) * scale + shift. `next` is what to_next() says.
template <bool past, class T, class S>
static void row_affine(const T* x, T* y, int64_t n, int64_t next, S high, S scale, S shift) {
  using V = Vector<T>;
  const V h = fill<V>(high), a = fill<V>(scale), b = fill<V>(shift);
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    __builtin_prefetch(x + next + i);
    store<past>(y + i, madd(load(x + i) - h, a, b));
  }
  for (; i < n; ++i) put(y + i, madd(S(get(x[i]) - high), scale, shift));
}

// y = ((x - high) * scale + shift) * gamma + beta
template <bool past, bool scaled, bool shifted, class T, class S>
static void row_affine_each(const T* x, T* y, int64_t n, int64_t next, S high, S scale, S shift,
                            const S* gamma, const S* beta) {
  using V = Vector<T>;
  const V h = fill<V>(high), a = fill<V>(scale), b = fill<V>(shift);
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    __builtin_prefetch(x + next + i);
    V v = madd(load(x + i) - h, a, b);
    if constexpr (scaled && shifted)
      v = madd(v, read<V>(gamma + i), read<V>(beta + i));
    else if constexpr (scaled)
      v = v * read<V>(gamma + i);
    else
      v = v + read<V>(beta + i);
    store<past>(y + i, v);
  }
  for (; i < n; ++i) {
    S v = madd(S(get(x[i]) - high), scale, shift);
    if constexpr (scaled && shifted)
      v = madd(v, gamma[i], beta[i]);
    else if constexpr (scaled)
      v = v * gamma[i];
    else
      v = v + beta[i];
    put(y + i, v);
  }
}

// The elements begin to end of a row.
template <bool past, class T, class S = typename Compute<T>::type>
static void row_forward(const Problem& p, const RowShape& shape, int64_t row, int64_t begin,
                        int64_t end, int64_t next, const T* x, const S* gamma, const S* beta,
                        const S* statistics, T* y) {
  const S high = statistics[0], rstd = rstd_of(p, statistics[2]);
  const double low = statistics[1];
  const int64_t first = shape.offset(row);
  shape.segments(begin, end, [&](const Segment& s) {
    const int64_t n = s.end - s.begin, at = first + s.parameter;
    const T* from = x + s.begin;
    T* to = y + s.begin;
    if (!shape.each || (!gamma && !beta)) {
      const S scale = gamma ? rstd * gamma[at] : rstd;
      const double shift = beta ? double(beta[at]) : 0;
      row_affine<past>(from, to, n, next, high, scale, S(shift - low * scale));
      return;
    }
    const S shift = S(-low * rstd);
    if (gamma && beta)
      row_affine_each<past, true, true>(from, to, n, next, high, rstd, shift, gamma + at,
                                        beta + at);
    else if (gamma)
      row_affine_each<past, true, false>(from, to, n, next, high, rstd, shift, gamma + at, beta);
    else
      row_affine_each<past, false, true>(from, to, n, next, high, rstd, shift, gamma, beta + at);
  });
}

template <class T, class S = typename Compute<T>::type>
static void row_forward(bool past, const Problem& p, const RowShape& shape, int64_t row,
                        int64_t begin, int64_t end, int64_t next, const T* x, const S* gamma,
                        const S* beta, const S* statistics, T* y) {
  if (past)
    row_forward<true>(p, shape, row, begin, end, next, x, gamma, beta, statistics, y);
  else
    row_forward<false>(p, shape, row, begin, end, next, x, gamma, beta, statistics, y);
}

// Rows that stay in the cache are whole tasks; longer ones, or few, are cut into chunks.
template <class T>
static bool forward_rows(const Forward& f) {
  using S = typename Compute<T>::type;
  const Problem& p = f.p;
  const RowShape shape(p);
  const int64_t n = shape.length, rows = p.groups;
  const T* x = static_cast<const T*>(f.x);
  T* y = static_cast<T*>(f.y);
  const S *gamma = static_cast<const S*>(f.gamma), *beta = static_cast<const S*>(f.beta);
  S* statistics = static_cast<S*>(f.statistics);
  const bool past = row_streams(p, shape, y);

  const bool whole = n * int64_t(sizeof(T)) <= kCacheBytes &&
                     (rows >= 8 || p.elements < 2 * kTaskElements);
  if (whole) {
    const int64_t some = most(1, kTaskElements / n);
    return run_all(f.executor, ceil_div(rows, some), [&](int64_t task) {
      const int64_t stop = least(rows, (task + 1) * some);
      for (int64_t row = task * some; row < stop; ++row) {
        const T* from = x + row * n;
        S* to = statistics + 3 * row;
        if (!p.given) {
          const S pivot = p.centered ? row_pivot<T, S>(from, n) : S(0);
          if (finish(p, pivot, row_moments(from, n, pivot), to)) {
            const S mean = to[0];
            finish(p, mean, row_moments(from, n, mean), to);
          }
        }
        if (y)
          row_forward(past, p, shape, row, 0, n, to_next<T>(row, stop, n, 1), from, gamma, beta, to,
                      y + row * n);
      }
      if (past) end_of_stream();
      return true;
    });
  }

  const int64_t chunk = most(kTaskElements / 4, ceil_div(n, 64)) / 64 * 64;
  const int64_t chunks = ceil_div(n, chunk);
  Scratch scratch;
  Moments* partial = scratch.get<Moments>(rows * chunks);
  if (scratch.failed()) return false;
  bool far = !p.given;
  for (int pass = 0; pass < 2 && far; ++pass) {
    const auto pivot = [&](int64_t row) {
      return !p.centered ? S(0) : pass ? statistics[3 * row] : row_pivot<T, S>(x + row * n, n);
    };
    run_all(f.executor, rows * chunks, [&](int64_t task) {
      const int64_t row = task / chunks, begin = task % chunks * chunk;
      partial[task] = row_moments(x + row * n + begin, least(chunk, n - begin), pivot(row));
      return true;
    });
    far = false;
    for (int64_t row = 0; row < rows; ++row) {
      Moments m;
      for (int64_t i = row * chunks; i < (row + 1) * chunks; ++i) {
        m.sum += partial[i].sum;
        m.squares += partial[i].squares;
      }
      far |= finish(p, pivot(row), m, statistics + 3 * row);
    }
  }
  if (!y) return true;
  // Backwards: what was read last is in the cache still.
  return run_all(f.executor, rows * chunks, [&](int64_t task) {
    task = rows * chunks - 1 - task;
    const int64_t row = task / chunks, begin = task % chunks * chunk;
    row_forward(past, p, shape, row, begin, least(n, begin + chunk), 0, x + row * n, gamma, beta,
                statistics + 3 * row, y + row * n);
    if (past) end_of_stream();
    return true;
  });
}

}  // namespace TRUENORM_ISA
}  // namespace truenorm
