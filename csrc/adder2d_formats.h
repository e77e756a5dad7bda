// Memory formats of the operators' results.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "adder2d_checks.h"

namespace adderzoo {

using torch::headeronly::MemoryFormat;

// Whether its elements lie in this order, without gaps.
inline bool is_dense(const Tensor& tensor, MemoryFormat format) {
  if (format == MemoryFormat::Contiguous) return tensor.is_contiguous();
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

// PyTorch takes microseconds to find that a tensor is as it should be: it is asked for those that are not.
inline Tensor of_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline Tensor dense(const Tensor& tensor, ScalarType type, MemoryFormat format = MemoryFormat::Contiguous) {
  const Tensor converted = of_type(tensor, type);
  return is_dense(converted, format) ? converted : torch::stable::contiguous(converted, format);
}

// Then, and only then, the result is channels_last too: of tensors that are dense in both formats (one channel, one
// pixel), those of bytes, which all that reads them wants so.
inline bool is_channels_last(const Tensor& tensor) {
  return is_dense(tensor, MemoryFormat::ChannelsLast) &&
         (tensor.scalar_type() == ScalarType::Byte || !tensor.is_contiguous());
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
