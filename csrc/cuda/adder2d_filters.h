// Filters: how they are packed, and their gradient.
#pragma once

#include "adder2d_direct.h"

namespace adderzoo::cuda {

// Packs filters, as packing.py does, or for the input gradient with input channels as lanes. A lane is an output, a row
// of lanes a tap and a source channel.
struct Packing {
  int taps, channels, outputs, panels;  // channels of a group, outputs of all groups
  int tap_columns, tap0, tap_row_step,
      tap_column_step;  // tap (i, j) is number tap0 + i * tap_row_step + ... of a filter
  int group_outputs;
  int64_t group_stride, output_stride, channel_stride;  // in elements of the filters; taps are adjacent
};

template <typename T, typename W>
__global__ void pack(Packing packing, const W* filters, T* packed) {
  const int64_t total = static_cast<int64_t>(packing.panels) * packing.taps * packing.channels * kPanel;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = i / kPanel;
    const int channel = static_cast<int>(row % packing.channels),
              tap = static_cast<int>(row / packing.channels % packing.taps);
    const int64_t output = row / packing.channels / packing.taps * kPanel + i % kPanel;
    const int64_t at = output / packing.group_outputs * packing.group_stride +
                       output % packing.group_outputs * packing.output_stride + channel * packing.channel_stride +
                       packing.tap0 + tap / packing.tap_columns * packing.tap_row_step +
                       tap % packing.tap_columns * packing.tap_column_step;
    packed[i] = output < packing.outputs ? static_cast<T>(to_number(filters[at])) : T(0);
  }
}

// The gradient of the filters, from signs (eq. 4) or in full (eq. 5): a block of threads sums up one element over all
// points, in an order that does not depend on the device.
constexpr int kGradientThreads = 128;

template <typename T, typename S, typename W, typename Out>
__global__ void filter_gradient(Walk walk, bool full, const S* source, const W* filters, Strides grad_strides,
                                const T* grad, Out* output) {
  __shared__ T partial[kGradientThreads];
  const int taps = walk.tap_rows * walk.tap_columns;
  const int64_t elements = static_cast<int64_t>(walk.groups) * walk.outputs * walk.channels * taps;
  for (int64_t e = blockIdx.x; e < elements; e += gridDim.x) {  // dense OIHW
    const int tap = static_cast<int>(e % taps), channel = static_cast<int>(e / taps % walk.channels);
    const int output_channel = static_cast<int>(e / taps / walk.channels);
    const Step step{channel, tap / walk.tap_columns, tap % walk.tap_columns};
    const T f = static_cast<T>(to_number(filters[e]));
    T total = 0, sum = 0;
    int terms = 0;
    for (int64_t point = threadIdx.x; point < walk.points; point += kGradientThreads) {
      const Point p = find_point(walk, point);
      const auto reach = Reach<S>::from(walk, source, p, output_channel / walk.outputs);
      const bool inside = reach.inside(walk, step);
      const T x = inside ? static_cast<T>(to_number(reach.image[reach.template at<int64_t>(walk, step)])) : T(0);
      const T value = grad[p.image * grad_strides.image + p.row * grad_strides.row + p.column * grad_strides.column +
                           output_channel * grad_strides.channel];
      sum += full ? value * (x - f) : SignSlope::term(value, x, f);
      if (++terms == kBlockSteps) {
        total += sum;
        sum = 0;
        terms = 0;
      }
    }
    partial[threadIdx.x] = total + sum;
    __syncthreads();
    for (int half = kGradientThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) from_number(partial[0], output[e]);
    __syncthreads();
  }
}

}  // namespace adderzoo::cuda
