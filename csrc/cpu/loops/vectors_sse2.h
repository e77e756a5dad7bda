// 16 bytes: SSE2, which every x86-64 processor has.
#pragma once

#include "vectors_x86.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr auto transpose4 = transpose4_of_floats;
  static constexpr Function kDistance = Function::kMaxDistance;
  static Vector broadcast(float x) { return (Vector)_mm_set1_ps(x); }
  static Vector max(Vector a, Vector b) { return (Vector)_mm_max_ps((__m128)a, (__m128)b); }
  static Vector min(Vector a, Vector b) { return (Vector)_mm_min_ps((__m128)a, (__m128)b); }
  static Vector distance(Vector a, Vector b) { return (Vector)_mm_andnot_ps(_mm_set1_ps(-0.0f), (__m128)(a - b)); }
  static Vector clip(Vector x, Vector one) {
    return (Vector)_mm_max_ps(_mm_min_ps((__m128)x, (__m128)one), (__m128)-one);
  }
  static void sums(const Vector* four, float* to) {
    sums_of_floats((__m128)four[0], (__m128)four[1], (__m128)four[2], (__m128)four[3], to);
  }
};

struct Bytes : PlainBytes {
  typedef uint64_t Sum __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  template <Function F>
  static Sum add(Sum sum, Vector x, Vector w) {
    return sum + (Sum)_mm_sad_epu8((__m128i)x, (__m128i)w);
  }
  static Totals totals(const Sum* two) { return (Totals)_mm_shuffle_ps((__m128)two[0], (__m128)two[1], 0b10001000); }
  static Totals widen(const uint8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof(four));
    const __m128i zero = _mm_setzero_si128();
    return (Totals)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero);
  }
  static void narrow(uint8_t* to, Totals totals) {
    const __m128i words = _mm_packs_epi32((__m128i)totals, (__m128i)totals);
    const int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(to, &four, sizeof(four));
  }
};

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
