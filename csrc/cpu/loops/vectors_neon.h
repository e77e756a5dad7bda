// 16 bytes: NEON, which every aarch64 processor has.
#pragma once

#include "vectors_plain.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

inline __attribute__((always_inline)) void transpose4_of_floats(const float* from, int64_t stride, float* a, float* b,
                                                                float* c, float* d) {
  const float32x4_t w = vld1q_f32(from), x = vld1q_f32(from + stride), y = vld1q_f32(from + 2 * stride),
                    z = vld1q_f32(from + 3 * stride);
  // First and third column of two rows, and second and fourth.
  const float64x2_t wx_ac = vreinterpretq_f64_f32(vtrn1q_f32(w, x)), wx_bd = vreinterpretq_f64_f32(vtrn2q_f32(w, x)),
                    yz_ac = vreinterpretq_f64_f32(vtrn1q_f32(y, z)), yz_bd = vreinterpretq_f64_f32(vtrn2q_f32(y, z));
  vst1q_f32(a, vreinterpretq_f32_f64(vtrn1q_f64(wx_ac, yz_ac)));
  vst1q_f32(b, vreinterpretq_f32_f64(vtrn1q_f64(wx_bd, yz_bd)));
  vst1q_f32(c, vreinterpretq_f32_f64(vtrn2q_f64(wx_ac, yz_ac)));
  vst1q_f32(d, vreinterpretq_f32_f64(vtrn2q_f64(wx_bd, yz_bd)));
}

// The absolute difference is one instruction, so there is nothing to win from the maximum.
template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr auto transpose4 = transpose4_of_floats;
  static Vector broadcast(float x) { return (Vector)vdupq_n_f32(x); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
  }
  static Vector distance(Vector a, Vector b) { return (Vector)vabdq_f32((float32x4_t)a, (float32x4_t)b); }
  static Vector clip(Vector x, Vector one) {
    return (Vector)vmaxq_f32(vminq_f32((float32x4_t)x, (float32x4_t)one), (float32x4_t)-one);
  }
};

struct Bytes : PlainBytes {
  template <Function F>
  static Sum add(Sum sum, Vector x, Vector w) {
    return (Sum)vpadalq_u8((uint16x8_t)sum, vabdq_u8((uint8x16_t)x, (uint8x16_t)w));
  }
  static Totals totals(const Sum* two) {
    return (Totals)vpaddq_u32(vpaddlq_u16((uint16x8_t)two[0]), vpaddlq_u16((uint16x8_t)two[1]));
  }
};

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
