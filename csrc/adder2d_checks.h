// What the operators take: the same checks, in the same words, as adderzoo/ops/reference.py makes. That of the devices
// is made there and by the kernels for GPUs, since the dispatcher calls those for the CPU only when all tensors are
// there.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "adder2d_geometry.h"

namespace adderzoo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pair = std::vector<int64_t>;

// Not STD_TORCH_CHECK, which shows users the path of this file where it was compiled.
template <typename... Words>
[[noreturn]] void fail(const char* op, const Words&... words) {
  std::ostringstream text;
  text << op << ": ";
  (text << ... << words);
  throw std::runtime_error(text.str());
}

// Throws unless `mode` is one of two.
void check_mode(const char* argument, const std::string& mode, const char* one, const char* other);

// float64 for float64, float32 for everything narrower: adder outputs lie near -1000 with a spread of a few units,
// which half precision would round away.
ScalarType accumulation_type(const Tensor& input);

// The arguments of `adder2d`.
Geometry check(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding, const Pair& dilation,
               int64_t groups);

void check_grad(const Tensor& grad, const Geometry& g);

// Those of `adder2d_affine`.
Geometry check_affine(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                      const std::optional<Tensor>& addend, const Pair& stride, const Pair& padding,
                      const Pair& dilation, int64_t groups);

// Those of `adder2d_u8`.
Geometry check_u8(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                  const std::optional<Tensor>& addend, const Pair& stride, const Pair& padding, const Pair& dilation,
                  int64_t groups, int64_t zero_point, std::optional<int64_t> out_zero_point, int64_t out_max);

// Those of `quantize_u8`.
void check_quantize_u8(const Tensor& input, int64_t zero_point, int64_t top);

}  // namespace adderzoo
