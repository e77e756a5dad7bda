// The forward operator on bytes on NVIDIA GPUs.
#include "adder2d_bytes.h"
#include "adder2d_launch.h"

namespace adderzoo::cuda {
namespace {

using Wide = Tile<128, 128, 8, 8, 8>;  // of 16 steps a multiprocessor has registers for one block
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
  const int lane_bytes = number(weight.size(5));
  // Tiles fetch channels that lie side by side: to copy an input costs little beside what else reads single bytes.
  const bool tiled = lane_bytes == kByteStep && g.filters >= kNarrow;
  const Dense x(input, tiled ? MemoryFormat::ChannelsLast : format);
  const Tensor filters = aligned_filters(weight), a = torch::stable::contiguous(scale),
               b = torch::stable::contiguous(shift);
  const Walk walk = forward_walk(g, x.strides, dense_strides(output, format));
  if (walk.points == 0) return output;
  std::optional<Dense> added;
  if (addend.has_value()) added.emplace(*addend, format);
  const bool byte_addend = added && added->tensor.scalar_type() == ScalarType::Byte;
  ByteOutput sums{.epilogue = byte_epilogue(relu, out_zero_point, out_max, addend_scale),
                  .padding = number(zero_point),
                  .bytes = bytes ? output.mutable_data_ptr<uint8_t>() : nullptr};
  sums.epilogue.scale = a.const_data_ptr<float>();
  sums.epilogue.shift = b.const_data_ptr<float>();
  if (byte_addend) sums.epilogue.byte_addend = added->tensor.const_data_ptr<uint8_t>();
  if (added && !byte_addend) sums.epilogue.float_addend = added->tensor.const_data_ptr<float>();
  if (!bytes) sums.epilogue.float_output = output.mutable_data_ptr<float>();
  const uint8_t* const source = x.tensor.const_data_ptr<uint8_t>();
  const uint8_t* const packed = filters.const_data_ptr<uint8_t>();
  if (!tiled || !fits_tiles<Wide, Square, Slim>(walk)) {
    queue.run(direct_bytes, blocks_of_outputs(output.numel()), kThreads, 0, walk, source, packed, lane_bytes, sums);
    return output;
  }
  // Sixteen channels of a pixel at once, and two lanes.
  const bool vector = by_fours(walk, reinterpret_cast<const uint32_t*>(source)) && walk.channels % 16 == 0 &&
                      walk.source.image % 16 == 0 && walk.source.row % 16 == 0 && walk.source.column % 16 == 0;
  with_best_tile<Wide, Square, Slim>(walk, queue.processors(), [&]<typename T>(T) {
    const auto kernel = vector ? byte_distances<T, true> : byte_distances<T, false>;
    queue.run(kernel, blocks_of_tiles<T>(walk), T::kThreads, 0, walk, source, packed, sums);
  });
  return output;
}

}  // namespace
}  // namespace adderzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(adderzoo, ADDERZOO_DEVICE, m) {
  m.impl("adder2d_u8", TORCH_BOX(&adderzoo::cuda::adder2d_u8));
}
