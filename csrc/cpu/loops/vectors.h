// The vectors of the instruction set that is compiled, and what lies in memory as vectors.
#pragma once

#if ADDERZOO_VECTOR_BYTES == 64
#include "vectors_avx512.h"
#elif ADDERZOO_VECTOR_BYTES == 32
#include "vectors_avx2.h"
#elif defined(__x86_64__)
#include "vectors_sse2.h"
#elif defined(__aarch64__)
#include "vectors_neon.h"
#else
#include "vectors_plain.h"
#endif

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

template <typename T>
using Vector = typename Simd<T>::Vector;
template <typename T>
using Mask = typename Simd<T>::Mask;
template <typename T>
constexpr int64_t kLanes = Simd<T>::kLanes;
// Vectors of a panel.
template <typename T>
constexpr int kVectors = static_cast<int>(kPanel / kLanes<T>);
template <>
constexpr int kVectors<uint8_t> = static_cast<int>(kPanel * kByteStep / ADDERZOO_VECTOR_BYTES);

template <typename T>
inline __attribute__((always_inline)) Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline __attribute__((always_inline)) void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

template <typename V, typename T>
inline __attribute__((always_inline)) V load_as(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// Zeros beyond the last channel.
template <typename T>
Vector<T> load_channels(const T* from, int64_t first, int64_t channels) {
  if (first + kLanes<T> <= channels) return load(from + first);
  T padded[kLanes<T>] = {};
  if (first < channels) std::memcpy(padded, from + first, (channels - first) * sizeof(T));
  return load(padded);
}

// Not std::min: a template of the standard library, once compiled here, could serve the whole program.
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// NaN for NaN.
template <typename T>
T sign_of(T x) {
  return x > T(0) ? T(1) : (x < T(0) ? T(-1) : x);
}

// to(c)[r] = from[r * stride + c], four by four.
template <typename T, typename To>
inline __attribute__((always_inline)) void transpose(const T* from, int64_t stride, int64_t rows, int64_t columns,
                                                     const To& to) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, from += 4 * stride) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      Simd<T>::transpose4(from + c, stride, to(c) + r, to(c + 1) + r, to(c + 2) + r, to(c + 3) + r);
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < 4; ++i) to(c)[r + i] = from[i * stride + c];
    }
  }
  for (; r < rows; ++r, from += stride) {
    for (int64_t c = 0; c < columns; ++c) to(c)[r] = from[c];
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
