// Vectors of the width that the instruction set has, and how each dtype is read and written.
//
// Included once per instruction set, inside its namespace. Nothing here, nor in the files that
// include it, may use a template of the standard library: the linker would keep one copy for all
// instruction sets, maybe one that the machine cannot run.

#if defined(__AVX512F__)
#define TRUENORM_BYTES 64
#elif defined(__AVX2__)
#define TRUENORM_BYTES 32
#else
#define TRUENORM_BYTES 16
#endif

#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace truenorm {
namespace TRUENORM_ISA {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type of statistics and arithmetic.
template <class T>
struct Compute {
  typedef float type;
};
template <>
struct Compute<double> {
  typedef double type;
};

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

// The lanes of a vector in which elements of storage type T are computed.
template <class T>
constexpr int kLanes = TRUENORM_BYTES / sizeof(typename Compute<T>::type);
template <class T>
using Vector = typename VectorOf<typename Compute<T>::type, kLanes<T>>::type;

typedef VectorOf<float, TRUENORM_BYTES / 4>::type Floats;
typedef VectorOf<double, TRUENORM_BYTES / 8>::type Doubles;
typedef VectorOf<float, TRUENORM_BYTES / 8>::type HalfFloats;  // as many as Doubles
typedef VectorOf<uint32_t, TRUENORM_BYTES / 4>::type Words;
typedef VectorOf<uint16_t, TRUENORM_BYTES / 4>::type Shorts;
constexpr int kDoubles = TRUENORM_BYTES / 8;
// Numbers that are added in the compute type before double takes over.
constexpr int64_t kShortSum = 32;

template <class V, class T>
static inline V read(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class To, class From>
static inline To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// a * b + c, rounded once where the instruction set can. Explicit, and the compiler is told to
// fuse nothing else, so that an element's bits do not depend on which loop it falls into.
#if defined(__AVX512F__)
static inline Floats madd(Floats a, Floats b, Floats c) {
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
static inline Doubles madd(Doubles a, Doubles b, Doubles c) {
  return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__FMA__)
static inline Floats madd(Floats a, Floats b, Floats c) {
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
static inline Doubles madd(Doubles a, Doubles b, Doubles c) {
  return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif defined(__aarch64__)
static inline Floats madd(Floats a, Floats b, Floats c) {
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
static inline Doubles madd(Doubles a, Doubles b, Doubles c) {
  return (Doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
static inline Floats madd(Floats a, Floats b, Floats c) { return a * b + c; }
static inline Doubles madd(Doubles a, Doubles b, Doubles c) { return a * b + c; }
#endif
#if defined(__FMA__) || defined(__aarch64__)
static inline float madd(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double madd(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
static inline float madd(float a, float b, float c) { return a * b + c; }
static inline double madd(double a, double b, double c) { return a * b + c; }
#endif

// Half precision in integer arithmetic, on one word or on a vector of words W. It gives the right
// numbers also where the framework has told the processor to flush subnormal floats to zero.
template <class F, class W>
static inline F float_of_float16(W half) {
  const W sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  // A normal number: rebias the exponent. Infinity and NaN: rebias it to the largest.
  W normal = (magnitude << 13) + (112u << 23);
  normal = magnitude >= 0x7c00u ? normal + (112u << 23) : normal;
  // A subnormal one: an exponent that makes its digits the last ones, less what that adds.
  const W least = W{} + (113u << 23);
  const F subnormal = bits_of<F>((magnitude << 13) + least) - bits_of<F>(least);
  return bits_of<F>((magnitude < 0x0400u ? bits_of<W>(subnormal) : normal) | sign);
}

template <class F, class W>
static inline W float16_of_float(F value) {
  const W word = bits_of<W>(value), sign = (word >> 16) & 0x8000u, magnitude = word & 0x7fffffffu;
  // Rounding to even: add just less than half, and what makes an odd number round up.
  W normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  normal = magnitude >= 0x477ff000u ? W{} + 0x7c00u : normal;
  normal = magnitude > 0x7f800000u ? W{} + 0x7e00u : normal;
  // Subnormal: adding 0.5 puts the digits where they belong, rounded.
  const F half = bits_of<F>(W{} + 0x3f000000u);
  const W subnormal = bits_of<W>(bits_of<F>(magnitude) + half) - 0x3f000000u;
  return (magnitude < 0x38800000u ? subnormal : normal) | sign;
}

template <class F, class W>
static inline W bfloat16_of_float(F value) {
  const W word = bits_of<W>(value);
  const W rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  return value != value ? W{} + 0x7fc0u : rounded;  // the sign of NaN means nothing
}

// One element.
static inline float get(float x) { return x; }
static inline double get(double x) { return x; }
static inline float get(bfloat16 x) { return bits_of<float>(uint32_t(x.bits) << 16); }
static inline float get(float16 x) { return float_of_float16<float, uint32_t>(x.bits); }
static inline void put(float* to, float value) { *to = value; }
static inline void put(double* to, double value) { *to = value; }
static inline void put(bfloat16* to, float value) {
  to->bits = uint16_t(bfloat16_of_float<float, uint32_t>(value));
}
static inline void put(float16* to, float value) {
  to->bits = uint16_t(float16_of_float<float, uint32_t>(value));
}

// kLanes elements.
static inline Floats load(const float* from) { return read<Floats>(from); }
static inline Doubles load(const double* from) { return read<Doubles>(from); }
// Not __builtin_convertvector where there is an instruction: GCC 12 makes halves of it.
static inline Words widen(Shorts shorts) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)shorts);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)shorts);
#else
  return __builtin_convertvector(shorts, Words);
#endif
}
static inline Shorts narrow(Words words) {
#if defined(__AVX512F__)
  return (Shorts)_mm512_cvtepi32_epi16((__m512i)words);
#elif defined(__AVX2__)
  const __m256i w = (__m256i)words;
  return (Shorts)_mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
#else
  return __builtin_convertvector(words, Shorts);
#endif
}
static inline Floats load(const bfloat16* from) {
  return bits_of<Floats>(widen(read<Shorts>(from)) << 16);
}
static inline Floats load(const float16* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps((__m256i)read<Shorts>(from));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps((__m128i)read<Shorts>(from));
#else
  return float_of_float16<Floats, Words>(widen(read<Shorts>(from)));
#endif
}

static inline Floats pack(const float*, Floats v) { return v; }
static inline Doubles pack(const double*, Doubles v) { return v; }
static inline Shorts pack(const bfloat16*, Floats v) {
  return narrow(bfloat16_of_float<Floats, Words>(v));
}
static inline Shorts pack(const float16*, Floats v) {
#if defined(__AVX512F__)
  return (Shorts)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (Shorts)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return narrow(float16_of_float<Floats, Words>(v));
#endif
}

template <int N>
static inline void stream_bytes(void* to, const void* from) {
#if defined(__AVX512F__)
  if constexpr (N == 64) return _mm512_stream_si512((__m512i*)to, read<__m512i>((const char*)from));
#endif
#if defined(__AVX2__)
  if constexpr (N == 32) return _mm256_stream_si256((__m256i*)to, read<__m256i>((const char*)from));
#endif
#if defined(__SSE2__)
  if constexpr (N == 16) return _mm_stream_si128((__m128i*)to, read<__m128i>((const char*)from));
  if constexpr (N == 8) return _mm_stream_si64((long long*)to, read<long long>((const char*)from));
#endif
  __builtin_memcpy(to, from, N);
}

// Whether the vectors from here on may be stored past the cache.
template <class T>
static inline bool can_stream(const T* to, int64_t step) {
  return (reinterpret_cast<uintptr_t>(to) | uintptr_t(step) * sizeof(T)) %
             (kLanes<T> * sizeof(T)) == 0;
}

static inline void end_of_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// kLanes elements, past the cache where `past` (which asks for can_stream).
template <bool past, class T>
static inline void store(T* to, Vector<T> v) {
  const auto packed = pack(to, v);
  if constexpr (past)
    stream_bytes<sizeof packed>(to, &packed);
  else
    __builtin_memcpy(to, &packed, sizeof packed);
}

// Add a vector to as many numbers in double.
static inline void add_to(double* sums, Doubles v) {
  const Doubles sum = read<Doubles>(sums) + v;
  __builtin_memcpy(sums, &sum, sizeof sum);
}
static inline Doubles widen(HalfFloats half) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_cvtps_pd((__m256)half);
#else
  return __builtin_convertvector(half, Doubles);
#endif
}
static inline void add_to(double* sums, Floats v) {
  HalfFloats halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  add_to(sums, widen(halves[0]));
  add_to(sums + kDoubles, widen(halves[1]));
}

template <class V, class S>
static inline V fill(S value) {
  return value - V{};  // a sum would make 0 of -0, so compilers could not leave it out
}

// The numbers 0 to n - 1, for the compiler.
template <int... i>
struct Numbers {};
template <int n, int... i>
struct Count : Count<n - 1, n - 1, i...> {};
template <int... i>
struct Count<0, i...> : Numbers<i...> {};

// The last `count` lanes of a vector, and zeros before them: of what is read once more, to fill a
// vector at the end of a stretch, this is what has not been counted yet.
template <class T, int... i>
static inline Vector<T> last(Vector<T> v, int count, Numbers<i...>) {
  typedef decltype(v < v) Places;
  return Places{i...} >= kLanes<T> - count ? v : Vector<T>{};
}
template <class T>
static inline Vector<T> last(Vector<T> v, int64_t count) {
  return last<T>(v, int(count), Count<kLanes<T>>());
}

// The lanes of a, and after them those of b, at these places.
template <int... places, class V>
static inline V shuffled(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, places...);
#else
  typedef decltype(a < b) Places;
  return __builtin_shuffle(a, b, Places{places...});
#endif
}

// The sum of the lanes of a vector: of its halves, of their halves, ...
template <int n, int... i>
static inline Doubles plus_turned(Doubles v, Numbers<i...>) {
  return v + shuffled<(i + n) % kDoubles...>(v, v);
}
template <int n = kDoubles / 2>
static inline double sum_of(Doubles v) {
  if constexpr (n == 0) return v[0];
  else return sum_of<n / 2>(plus_turned<n>(v, Count<kDoubles>()));
}

// a and b, element by element in turn: their lower halves, or their upper ones.
template <bool upper, class V, int... i>
static inline V interleave(V a, V b, Numbers<i...>) {
  constexpr int n = sizeof...(i);
  return shuffled<(i / 2 + upper * n / 2 + i % 2 * n)...>(a, b);
}

// Make rows of columns, of as many vectors as a vector has lanes. Each round of interleaving moves
// one bit of an element's lane into the number of its vector.
template <class T>
static inline void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  for (int round = 1; round < n; round *= 2) {
    Vector<T> next[n];
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<false>(rows[i], rows[i + n / 2], Count<n>());
      next[2 * i + 1] = interleave<true>(rows[i], rows[i + n / 2], Count<n>());
    }
    __builtin_memcpy(rows, next, sizeof next);
  }
}

// Sums of vectors in double, folded at the end.
template <class T>
struct WideSum {
  double lanes[kLanes<T>] = {};

  void add(Vector<T> v) { add_to(lanes, v); }
  double total() {
    Doubles sum = read<Doubles>(lanes);
    if (kLanes<T> > kDoubles) sum += read<Doubles>(lanes + kLanes<T> - kDoubles);
    return sum_of(sum);
  }
};

}  // namespace TRUENORM_ISA
}  // namespace truenorm
