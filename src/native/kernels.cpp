// The kernels of one instruction set: this file is compiled once for each, with TRUENORM_ISA its
// name.

#include "vector.h"
//
#include "common.h"
//
#include "columns.h"
#include "rows.h"
//
#include "columns_backward.h"
#include "columns_forward.h"
#include "rows_backward.h"
#include "rows_forward.h"
#include "short_rows.h"
#include "stretches.h"

namespace truenorm {
namespace TRUENORM_ISA {

template <class T>
static bool forward_of(const Forward& f) {
  if (ShortRows<T>::takes(f.p)) return ShortRows<T>::forward(f);
  if (Stretches<T>::takes(f.p)) return Stretches<T>::forward(f);
  return f.p.size[1] == 1 ? forward_rows<T>(f) : ForwardColumns<T>(f).run();
}

template <class T>
static bool backward_of(const Backward& b) {
  if (ShortRows<T>::takes(b.p)) return ShortRows<T>::backward(b);
  if (Stretches<T>::takes(b.p)) return Stretches<T>::backward(b);
  return b.p.size[1] == 1 ? BackwardRows<T>(b).run() : BackwardColumns<T>(b).run();
}

// Both return whether there was memory enough.
bool forward(const Problem& p, const void* x, const void* gamma, const void* beta, void* y,
             void* statistics, const truenorm_executor* executor) {
  const Forward f{p, x, gamma, beta, y, statistics, executor};
  switch (p.dtype) {
    case TRUENORM_FLOAT32: return forward_of<float>(f);
    case TRUENORM_FLOAT64: return forward_of<double>(f);
    case TRUENORM_BFLOAT16: return forward_of<bfloat16>(f);
    default: return forward_of<float16>(f);
  }
}

bool backward(const Problem& p, const void* x, const void* gamma, const void* dy,
              const void* statistics, void* dx, void* dgamma, void* dbeta, void* dstatistics,
              const truenorm_executor* executor) {
  const Backward b{p, x, gamma, dy, statistics, dx, dgamma, dbeta, dstatistics, executor};
  switch (p.dtype) {
    case TRUENORM_FLOAT32: return backward_of<float>(b);
    case TRUENORM_FLOAT64: return backward_of<double>(b);
    case TRUENORM_BFLOAT16: return backward_of<bfloat16>(b);
    default: return backward_of<float16>(b);
  }
}

}  // namespace TRUENORM_ISA
}  // namespace truenorm
