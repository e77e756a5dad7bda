// Memory formats of the operators' results.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "adder2d_checks.h"

namespace adderzoo {

using torch::headeronly::MemoryFormat;

// Dense in channels_last and in no other format: then, and only then, the result is channels_last too.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

inline MemoryFormat format_like(const Tensor& input) {
  return is_channels_last(input) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type, MemoryFormat format) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt, format);
}

// Strides by index, whatever contiguous() leaves in the dimensions of size one.
inline Strides dense_strides(const Tensor& tensor, MemoryFormat format) {
  const int64_t channels = tensor.size(1), height = tensor.size(2), width = tensor.size(3);
  if (format == MemoryFormat::ChannelsLast) return {height * width * channels, width * channels, channels, 1};
  return {channels * height * width, width, 1, height * width};
}

}  // namespace adderzoo
