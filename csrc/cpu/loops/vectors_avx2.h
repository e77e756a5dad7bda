// 32 bytes: AVX2, and AVX-512 of that width.
#pragma once

#include "vectors_x86.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr auto transpose4 = transpose4_of_floats;
  static constexpr Function kDistance = Function::kMaxFmaDistance, kSlope = Function::kFmaClippedSlope;
  static Vector broadcast(float x) { return (Vector)_mm256_set1_ps(x); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
  }
  static Vector multiply_subtract(Vector a, Vector b, Vector c) {
    return (Vector)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)c);
  }
  static Vector max(Vector a, Vector b) { return (Vector)_mm256_max_ps((__m256)a, (__m256)b); }
  static Vector min(Vector a, Vector b) { return (Vector)_mm256_min_ps((__m256)a, (__m256)b); }
  static Vector distance(Vector a, Vector b) {
    return (Vector)_mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)(a - b));
  }
#if ADDERZOO_REGISTERS >= 32  // as in vectors_avx512.h
  static constexpr bool kClipsAtOnce = true;
  static Vector clip(Vector x, Vector one) { return (Vector)_mm256_range_ps((__m256)x, (__m256)one, 0b0010); }
#else
  static Vector clip(Vector x, Vector one) {
    return (Vector)_mm256_max_ps(_mm256_min_ps((__m256)x, (__m256)one), (__m256)-one);
  }
#endif
  static void sums(const Vector* four, float* to) {
    __m128 halves[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 x = (__m256)four[i];
      halves[i] = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    }
    sums_of_floats(halves[0], halves[1], halves[2], halves[3], to);
  }
  static bool any(Mask mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }
};

struct Bytes : PlainBytes {
  typedef uint64_t Sum __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  template <Function F>
  static Sum add(Sum sum, Vector x, Vector w) {
    return sum + (Sum)_mm256_sad_epu8((__m256i)x, (__m256i)w);
  }
  static Totals totals(const Sum* two) {
    const __m256 halves = _mm256_shuffle_ps((__m256)two[0], (__m256)two[1], 0b10001000);
    return (Totals)_mm256_permute4x64_epi64((__m256i)halves, 0b11011000);
  }
  static Totals widen(const uint8_t* from) {
    return (Totals)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static void narrow(uint8_t* to, Totals totals) {
    const __m256i first_bytes = _mm256_set1_epi32(0x0c080400);
    const __m256i halves = _mm256_shuffle_epi8((__m256i)totals, first_bytes);
    const __m128i low = _mm256_castsi256_si128(halves), high = _mm256_extracti128_si256(halves, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi32(low, high));
  }
};

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
