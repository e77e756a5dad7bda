// Where an integer network begins: a float tensor becomes bytes in one pass over memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../adder2d_formats.h"

namespace adderzoo::cpu {
namespace {

// Elements that are worth waking a thread for: some ten microseconds.
constexpr int64_t kGrain = 1 << 14;

// Added to a number of less than 2^22, and taken away again, it leaves the nearest integer, of halves the even one.
constexpr float kRounding = 3 << 22;

// A NaN becomes the lowest. A compiler makes vectors of it for every instruction set.
void quantize(const float* input, uint8_t* output, int64_t size, float inverse, int zero_point, int top) {
  const float lowest = static_cast<float>(-zero_point), highest = static_cast<float>(top - zero_point);
  for (int64_t i = 0; i < size; ++i) {
    float steps = input[i] * inverse;
    steps = steps > lowest ? steps : lowest;
    steps = steps < highest ? steps : highest;
    steps = (steps + kRounding) - kRounding;
    output[i] = static_cast<uint8_t>(static_cast<int>(steps) + zero_point);
  }
}

Tensor quantize_u8(const Tensor& input, double inverse, int64_t zero_point, int64_t top) {
  check_quantize_u8(input, zero_point, top);
  const MemoryFormat format = input.dim() == 4 ? format_like(input) : MemoryFormat::Contiguous;
  const Tensor x = torch::stable::contiguous(input, format);
  Tensor output = new_empty(input, {input.sizes().begin(), input.sizes().end()}, ScalarType::Byte, format);
  const float* from = x.const_data_ptr<float>();
  uint8_t* to = output.mutable_data_ptr<uint8_t>();
  torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    quantize(from + begin, to + begin, end - begin, static_cast<float>(inverse), static_cast<int>(zero_point),
             static_cast<int>(top));
  });
  return output;
}

}  // namespace
}  // namespace adderzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(adderzoo, CPU, m) { m.impl("quantize_u8", TORCH_BOX(&adderzoo::cpu::quantize_u8)); }
