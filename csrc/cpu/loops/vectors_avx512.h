// 64 bytes: AVX-512.
#pragma once

#include "vectors_x86.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr auto transpose4 = transpose4_of_floats;
  static constexpr Function kDistance = Function::kMaxFmaDistance, kSlope = Function::kFmaClippedSlope;
  static constexpr bool kClipsAtOnce = true;
  static Vector broadcast(float x) { return (Vector)_mm512_set1_ps(x); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
  }
  static Vector max(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
  static Vector min(Vector a, Vector b) { return (Vector)_mm512_min_ps((__m512)a, (__m512)b); }
  static Vector distance(Vector a, Vector b) { return (Vector)_mm512_abs_ps((__m512)(a - b)); }
  static Vector multiply_subtract(Vector a, Vector b, Vector c) {
    return (Vector)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)c);
  }
  // The smaller magnitude of the two with the sign of the first, in one instruction.
  static Vector clip(Vector x, Vector one) { return (Vector)_mm512_range_ps((__m512)x, (__m512)one, 0b0010); }
  static void sums(const Vector* four, float* to) {
    const __m512 w = (__m512)four[0], x = (__m512)four[1], y = (__m512)four[2], z = (__m512)four[3];
    // Halves of two, then a quarter of each, then two of its floats, then one.
    const __m512 wx = _mm512_add_ps(_mm512_shuffle_f32x4(w, x, 0x44), _mm512_shuffle_f32x4(w, x, 0xee));
    const __m512 yz = _mm512_add_ps(_mm512_shuffle_f32x4(y, z, 0x44), _mm512_shuffle_f32x4(y, z, 0xee));
    __m512 each = _mm512_add_ps(_mm512_shuffle_f32x4(wx, yz, 0x88), _mm512_shuffle_f32x4(wx, yz, 0xdd));
    each = _mm512_add_ps(each, _mm512_permute_ps(each, 0b01001110));
    each = _mm512_add_ps(each, _mm512_permute_ps(each, 0b10110001));
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, each)));
  }
  static bool any(Mask mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }
};

struct Bytes : PlainBytes {
  typedef uint64_t Sum __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static constexpr Function kDistance = Function::kDoubleDistance;
  // As a double, an integer below 2^53 is that multiple of the smallest number, and the sum of two has the same bits.
  template <Function F>
  static Sum add(Sum sum, Vector x, Vector w) {
    const __m512i distance = _mm512_sad_epu8((__m512i)x, (__m512i)w);
    if constexpr (F == Function::kDoubleDistance) return (Sum)_mm512_add_pd((__m512d)sum, (__m512d)distance);
    return sum + (Sum)distance;
  }
  template <Function F>
  static unsigned keep_denormals() {
    if (F != Function::kDoubleDistance) return 0;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before & ~0x8040u);  // what flushes results, and operands
    return before;
  }
  template <Function F>
  static void restore(unsigned before) {
    if (F == Function::kDoubleDistance) _mm_setcsr(before);
  }
  static Totals totals(const Sum* two) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return (Totals)_mm512_permutex2var_epi32((__m512i)two[0], even, (__m512i)two[1]);
  }
  static Totals widen(const uint8_t* from) {
    return (Totals)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void narrow(uint8_t* to, Totals totals) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)totals));
  }
};

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
