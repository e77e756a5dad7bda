// Packs the filters of a call.
#pragma once

#include "adder2d_filters.h"
#include "adder2d_launch.h"

namespace adderzoo::cuda {

// Filters (dense OIHW) in panels whose lanes are the filters, or for the input gradient the input channels.
inline Tensor packed_filters(const Queue& queue, const Geometry& g, const Tensor& weight, ScalarType type,
                             bool backward) {
  const int64_t outputs = g.groups * (backward ? g.channels : g.filters), channels = backward ? g.filters : g.channels;
  const int64_t panels = divide_up(outputs, kPanel);
  Tensor packed = torch::stable::empty({panels * g.taps() * channels * kPanel}, type, std::nullopt, weight.device());
  const Packing packing{
      .taps = number(g.taps()),
      .channels = number(channels),
      .outputs = number(outputs),
      .panels = number(panels),
      .group_outputs = number(outputs / g.groups),
      .group_stride = g.filters * g.channels * g.taps(),
      .output_stride = (backward ? 1 : g.channels) * g.taps(),
      .channel_stride = (backward ? g.channels : 1) * g.taps(),
  };
  const dim3 blocks = blocks_of_outputs(packed.numel());
  if (type == ScalarType::Double) {
    queue.run(pack<double, double>, blocks, kThreads, packing, weight.const_data_ptr<double>(),
              packed.mutable_data_ptr<double>());
  } else {
    with_pointer(weight, [&]<typename W>(const W* from) {
      queue.run(pack<float, W>, blocks, kThreads, packing, from, packed.mutable_data_ptr<float>());
    });
  }
  return packed;
}

}  // namespace adderzoo::cuda
