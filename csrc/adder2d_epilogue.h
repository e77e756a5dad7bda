// What becomes of the operators' sums before they are written: for all devices.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "adder2d_geometry.h"

namespace adderzoo {

// sum * scale + shift + addend, then max(0, that).
template <typename T>
struct Epilogue {
  const T* scale = nullptr;  // null: the sums are written as they are
  const T* shift = nullptr;
  const T* addend = nullptr;  // with the output's strides, or null
  bool relu = false;
};

// Of bytes, whose sums are integers: sum * scale + shift + addend * addend_scale, every operation rounded to float32;
// then a float no less than `lowest`, or a byte: within the bounds, rounded, plus the zero point. A NaN becomes the
// lowest byte.
template <>
struct Epilogue<uint8_t> {
  const float* scale;
  const float* shift;
  const uint8_t* byte_addend;  // with the output's strides; one of the two at most
  const float* float_addend;
  float addend_scale;
  float lowest, highest;
  int32_t zero_point;
  float* float_output;  // null: bytes are written
};

// Without its pointers, from the operator's arguments: floats come out where there is no zero point.
inline Epilogue<uint8_t> byte_epilogue(bool relu, std::optional<int64_t> out_zero_point, int64_t out_max,
                                       double addend_scale) {
  const bool bytes = out_zero_point.has_value();
  const int64_t zero_point = out_zero_point.value_or(0);
  return {.scale = nullptr,
          .shift = nullptr,
          .byte_addend = nullptr,
          .float_addend = nullptr,
          .addend_scale = static_cast<float>(addend_scale),
          .lowest = relu    ? 0.0f
                    : bytes ? -static_cast<float>(zero_point)
                            : -std::numeric_limits<float>::infinity(),
          .highest = static_cast<float>(out_max - zero_point),
          .zero_point = static_cast<int32_t>(zero_point),
          .float_output = nullptr};
}

}  // namespace adderzoo
