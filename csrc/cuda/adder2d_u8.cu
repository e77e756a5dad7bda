// The forward operator on bytes on NVIDIA GPUs.
#include <limits>

#include "adder2d_bytes.h"
#include "adder2d_launch.h"

namespace adderzoo::cuda {
namespace {

using Wide = Tile<128, 128, 8, 8, 16>;
using Square = Tile<64, 64, 8, 4, 16>;
using Slim = Tile<128, 32, 8, 4, 16>;

Tensor adder2d_u8(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                  std::optional<Tensor> addend, Pair stride, Pair padding, Pair dilation, int64_t groups, bool relu,
                  int64_t zero_point, std::optional<int64_t> out_zero_point, int64_t out_max, double addend_scale) {
  const Geometry g = check_u8(input, weight, scale, shift, addend, stride, padding, dilation, groups, zero_point,
                              out_zero_point, out_max);
  check_devices("adder2d_u8", input,
                {{"weight", &weight}, {"scale", &scale}, {"shift", &shift}, {"addend", addend ? &*addend : nullptr}});
  const Queue queue(input);
  const MemoryFormat format = format_like(input);
  const bool bytes = out_zero_point.has_value();
  Tensor output = new_empty(input, {g.batch, scale.size(0), g.out_height, g.out_width},
                            bytes ? ScalarType::Byte : ScalarType::Float, format);
  const Dense x(input, format);
  const Tensor filters = aligned_filters(weight), a = torch::stable::contiguous(scale),
               b = torch::stable::contiguous(shift);
  const Walk w = forward_walk(g, x.strides, dense_strides(output, format));
  if (w.points == 0) return output;
  std::optional<Dense> added;
  if (addend.has_value()) added.emplace(*addend, format);
  const bool byte_addend = added && added->tensor.scalar_type() == ScalarType::Byte;
  const ByteAffine affine{
      .scale = a.const_data_ptr<float>(),
      .shift = b.const_data_ptr<float>(),
      .byte_addend = byte_addend ? added->tensor.const_data_ptr<uint8_t>() : nullptr,
      .float_addend = added && !byte_addend ? added->tensor.const_data_ptr<float>() : nullptr,
      .addend_scale = static_cast<float>(addend_scale),
      .lowest = relu    ? 0.0f
                : bytes ? -static_cast<float>(*out_zero_point)
                        : -std::numeric_limits<float>::infinity(),
      .highest = static_cast<float>(out_max - out_zero_point.value_or(0)),
      .zero_point = number(out_zero_point.value_or(0)),
      .padding = number(zero_point),
      .bytes = bytes ? output.mutable_data_ptr<uint8_t>() : nullptr,
      .floats = bytes ? nullptr : output.mutable_data_ptr<float>(),
  };
  const uint8_t* const source = x.tensor.const_data_ptr<uint8_t>();
  const uint8_t* const packed = filters.const_data_ptr<uint8_t>();
  const int lane_bytes = number(filters.size(5));
  if (lane_bytes != kByteStep || w.outputs < kNarrow || !fits_tiles<Wide, Square, Slim>(w) || x.strides.channel != 1) {
    queue.run(direct_bytes, blocks_of_outputs(output.numel()), kThreads, w, source, packed, lane_bytes, affine);
    return output;
  }
  // Sixteen channels of a pixel at once, and two lanes.
  const bool vector = by_fours(w, reinterpret_cast<const uint32_t*>(source)) && w.channels % 16 == 0 &&
                      w.source.image % 16 == 0 && w.source.row % 16 == 0 && w.source.column % 16 == 0 &&
                      (w.groups == 1 || w.outputs % 2 == 0);
  with_best_tile<Wide, Square, Slim>(w, queue.processors(), [&]<typename T>(T) {
    const auto kernel = vector ? byte_distances<T, true> : byte_distances<T, false>;
    queue.run(kernel, blocks_of_tiles<T>(w), T::kThreads, w, source, packed, affine);
  });
  return output;
}

}  // namespace
}  // namespace adderzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(adderzoo, ADDERZOO_DEVICE, m) {
  m.impl("adder2d_u8", TORCH_BOX(&adderzoo::cuda::adder2d_u8));
}
