// What the sums are of: one term more, for each function.
#pragma once

#include "vectors.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// What recomputes a tile for which the fast form does not hold.
constexpr Function exact(Function f) {
  if (f == Function::kClippedSlope || f == Function::kFmaClippedSlope) return Function::kExactClippedSlope;
  return sums_maxima(f) ? Function::kDistance : f;
}

// The sum with one more term.
//
// kMaxDistance adds max(x, w), from which |x - w| = 2 max(x, w) - x - w: two instructions for three. One of them is for
// nothing, and the speed that of a convolution, where the two run on different ports: comparisons run beside additions
// on AMD's Zen 1 and 2, and beside multiply-adds on Zen 3 to 5, where kMaxFmaDistance adds by a multiply-add by one,
// which is the same to the last bit (`form_for_processor` chooses). Like the plain form's, its rounding error is
// within 1e-6 of sum(|x| + |w|). It is not relative to the result, and infinities give inf - inf = NaN: `finish` finds
// tiles where either matters, and `redo` replaces those values by the plain form's.
//
// kFmaClippedSlope subtracts by a multiply-add by one, since comparisons have the ports of subtractions on Zen 3 to 5:
// always where the clip is two comparisons, and in every `other` term where it is one instruction.
//
// Comparisons with a NaN are false, so a NaN passes through the exact functions. Where there is no gradient because the
// source ends, a slope counts for nothing, and 0 * NaN would: the exact ones leave out what has the bits of `outside`.
template <Function F, bool kOther, typename T>
inline __attribute__((always_inline)) Vector<T> add_term(Vector<T> sum, Vector<T> source, Vector<T> filter,
                                                         Vector<T> input, Vector<T> one, Mask<T> outside) {
  if constexpr (F == Function::kDistance) {
    return sum + Simd<T>::distance(source, filter);
  } else if constexpr (F == Function::kMaxDistance) {
    return sum + Simd<T>::max(source, filter);
  } else if constexpr (F == Function::kMaxFmaDistance) {
    // `one` is opaque, or else this would become an addition.
    return Simd<T>::multiply_add(Simd<T>::max(source, filter), one, sum);
  } else if constexpr (F == Function::kClippedSlope || F == Function::kFmaClippedSlope) {
    constexpr bool kFma = F == Function::kFmaClippedSlope && (kOther || !Simd<T>::kClipsAtOnce);
    Vector<T> slope;
    if constexpr (kFma) {
      slope = Simd<T>::multiply_subtract(filter, one, input);
    } else {
      slope = filter - input;
    }
    return Simd<T>::multiply_add(source, Simd<T>::clip(slope, one), sum);
  } else {
    const Vector<T> zero = {}, slope = filter - input;
    Vector<T> bounded;
    if constexpr (F == Function::kSignSlope) {
      bounded = slope > zero ? one : (slope < zero ? -one : slope);
    } else {
      bounded = one < slope ? one : slope;
      bounded = -one > bounded ? -one : bounded;
    }
    return sum + ((Mask<T>)source == outside ? zero : source * bounded);
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
