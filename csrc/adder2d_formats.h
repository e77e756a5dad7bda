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

}  // namespace adderzoo
