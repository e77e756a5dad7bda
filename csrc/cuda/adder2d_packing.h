// Packs the filters of a call.
#pragma once

#include "adder2d_filters.h"
#include "adder2d_launch.h"

namespace adderzoo::cuda {

inline ReachingTaps all_taps(int64_t kernel) {
  return {.count = kernel, .first = 0, .period = 1, .output0 = 0, .output_step = 0};
}

// Filters (dense OIHW) in panels whose lanes are the filters, or for the input gradient the input channels: those of
// their taps that reach the same pixels.
inline Tensor packed_filters(const Queue& queue, const Geometry& g, const Tensor& weight, ScalarType type,
                             bool backward, const ReachingTaps& rows, const ReachingTaps& columns) {
  const int64_t outputs = g.groups * (backward ? g.channels : g.filters), channels = backward ? g.filters : g.channels;
  const int64_t panels = divide_up(outputs, kPanel), taps = rows.count * columns.count;
  Tensor packed = torch::stable::empty({panels * taps * channels * kPanel}, type, std::nullopt, weight.device());
  if (packed.numel() == 0) return packed;
  const Packing packing{
      .taps = number(taps),
      .channels = number(channels),
      .outputs = number(outputs),
      .panels = number(panels),
      .tap_columns = number(columns.count),
      .tap0 = number(rows.first * g.kernel_w + columns.first),
      .tap_row_step = number(rows.period * g.kernel_w),
      .tap_column_step = number(columns.period),
      .group_outputs = number(outputs / g.groups),
      .group_stride = g.filters * g.channels * g.taps(),
      .output_stride = (backward ? 1 : g.channels) * g.taps(),
      .channel_stride = (backward ? g.channels : 1) * g.taps(),
  };
  const dim3 blocks = blocks_of_outputs(packed.numel());
  if (type == ScalarType::Double) {
    queue.run(pack<double, double>, blocks, kThreads, 0, packing, weight.const_data_ptr<double>(),
              packed.mutable_data_ptr<double>());
  } else {
    with_pointer(weight, [&]<typename W>(const W* from) {
      queue.run(pack<float, W>, blocks, kThreads, 0, packing, from, packed.mutable_data_ptr<float>());
    });
  }
  return packed;
}

}  // namespace adderzoo::cuda
