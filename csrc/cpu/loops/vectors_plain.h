// Vectors in the compilers' own words, for every instruction set; the fast ones follow in vectors_*.h.
#pragma once

#include "../adder2d_loops.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// What has a name here is not left to the compiler. This serves every instruction set; the fast ones follow.
template <typename T>
struct PlainSimd {
  typedef T Vector __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  using Mask = decltype(Vector{} != Vector{});
  static constexpr int kLanes = ADDERZOO_VECTOR_BYTES / sizeof(T);
  static constexpr Function kDistance = Function::kDistance, kSlope = Function::kClippedSlope;  // the fastest forms
  static constexpr bool kClipsAtOnce = false;  // whether clip() is one instruction

  static Vector broadcast(T x) { return x - Vector{}; }
  // The compiler no longer knows what is in it.
  static Vector opaque(Vector x) {
#if defined(__x86_64__)
    asm volatile("" : "+v"(x));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(x));
#else
    asm volatile("" : "+m"(x));
#endif
    return x;
  }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return sum + a * b; }
  // Of two, if one is NaN, the second.
  static Vector max(Vector a, Vector b) { return a > b ? a : b; }
  static Vector min(Vector a, Vector b) { return a < b ? a : b; }
  static Vector distance(Vector a, Vector b) { return a > b ? a - b : b - a; }
  static Vector clip(Vector x, Vector one) {
    x = one < x ? one : x;
    return -one > x ? -one : x;
  }
  static T sum(Vector x) {
    T sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += x[i];
    return sum;
  }
  // Of each of four.
  static void sums(const Vector* four, T* to) {
    for (int i = 0; i < 4; ++i) to[i] = sum(four[i]);
  }
  static bool any(Mask mask) {
    bool any = false;
    for (int i = 0; i < kLanes; ++i) any |= mask[i] != 0;
    return any;
  }
  static void transpose4(const T* from, int64_t stride, T* a, T* b, T* c, T* d) {
    for (int i = 0; i < 4; ++i, from += stride) {
      a[i] = from[0];
      b[i] = from[1];
      c[i] = from[2];
      d[i] = from[3];
    }
  }
};

template <typename T>
struct Simd : PlainSimd<T> {};

// What has a name here is not left to the compiler. This serves every instruction set.
struct PlainBytes {
  typedef uint8_t Vector __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  // Of the differences of neighboring bytes: at most kBlockSteps pairs of them fit into 16 bits.
  typedef uint16_t Sum __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  typedef int32_t Totals __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static constexpr Function kDistance = Function::kDistance;                     // the fastest form
  static constexpr int64_t kChannels = ADDERZOO_VECTOR_BYTES / sizeof(int32_t);  // of a vector of totals

  static Vector broadcast(const uint8_t* from) {
    uint64_t lane;
    std::memcpy(&lane, from, sizeof(lane));
    typedef uint64_t Lanes __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
    return (Vector)(lane - Lanes{});
  }
  template <Function F>
  static Sum add(Sum sum, Vector x, Vector w) {
    const Sum distance = (Sum)(x > w ? x - w : w - x);
    return sum + (distance & 255) + (distance >> 8);
  }
  // Has denormal numbers taken for what they are where sums are of these, until restore() of what this returns. (Not by
  // a destructor, in which the compiler would see exceptions.)
  template <Function F>
  static unsigned keep_denormals() {
    return 0;
  }
  template <Function F>
  static void restore(unsigned) {}
  // The sums of each filter of two vectors.
  static Totals totals(const Sum* two) {
    constexpr int kFilters = ADDERZOO_VECTOR_BYTES / kByteStep;
    Totals totals = {};
    for (int filter = 0; filter < 2 * kFilters; ++filter) {
      for (int i = 0; i < 4; ++i) totals[filter] += two[filter / kFilters][filter % kFilters * 4 + i];
    }
    return totals;
  }
  // Bytes of as many successive channels as there are totals.
  static Totals widen(const uint8_t* from) {
    Totals totals;
    for (int i = 0; i < kChannels; ++i) totals[i] = from[i];
    return totals;
  }
  static void narrow(uint8_t* to, Totals totals) {
    for (int i = 0; i < kChannels; ++i) to[i] = static_cast<uint8_t>(totals[i]);
  }
};
static_assert(kBlockSteps * 2 * 255 < 1 << 16);

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
