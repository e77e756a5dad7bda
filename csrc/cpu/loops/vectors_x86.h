// Four floats at a time: what the instruction sets of x86-64 have in common.
#pragma once

#include "vectors_plain.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

inline __attribute__((always_inline)) void transpose4_of_floats(const float* from, int64_t stride, float* a, float* b,
                                                                float* c, float* d) {
  __m128 w = _mm_loadu_ps(from), x = _mm_loadu_ps(from + stride), y = _mm_loadu_ps(from + 2 * stride),
         z = _mm_loadu_ps(from + 3 * stride);
  _MM_TRANSPOSE4_PS(w, x, y, z);
  _mm_storeu_ps(a, w);
  _mm_storeu_ps(b, x);
  _mm_storeu_ps(c, y);
  _mm_storeu_ps(d, z);
}

inline __attribute__((always_inline)) void sums_of_floats(__m128 w, __m128 x, __m128 y, __m128 z, float* to) {
  const __m128 wx = _mm_add_ps(_mm_unpacklo_ps(w, x), _mm_unpackhi_ps(w, x));  // even w, even x, odd w, odd x
  const __m128 yz = _mm_add_ps(_mm_unpacklo_ps(y, z), _mm_unpackhi_ps(y, z));
  _mm_storeu_ps(to, _mm_add_ps(_mm_movelh_ps(wx, yz), _mm_movehl_ps(yz, wx)));
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
