// What the operators are called with, how packed filters lie in memory, and the arithmetic of both: for all devices.
#pragma once

#include <cstdint>
#include <type_traits>

// What a file of one instruction set calls: a copy of its own, compiled with those instructions, would be a symbol that
// all processors may come to run (in a build without optimization).
#ifdef __CUDACC__
#define ADDERZOO_INLINE __host__ __device__ __forceinline__
#else
#define ADDERZOO_INLINE inline __attribute__((always_inline))
#endif

namespace adderzoo {

// What sizes, strides, paddings and dilations are at most, and how many elements a tensor has at most: no index and no
// product of them overflows.
constexpr int64_t kLargestSize = (int64_t{1} << 31) - 1;
constexpr int64_t kMostElements = int64_t{1} << 48;

// Channels of a panel of packed filters: the same on all processors, because networks are saved with packed filters.
constexpr int kPanel = 16;

// Bytes of successive source channels that are one step, and lie side by side in a lane of a panel. Where channels have
// their own copies of the source, filters are packed by single channels.
constexpr int64_t kByteStep = 8;

// Elements of a filter of bytes, whose differences of at most 255 add up to a signed integer of 32 bits.
constexpr int64_t kLargestByteFilter = ((int64_t{1} << 31) - 1) / 255;

// Steps of a partial sum. A plain float32 sum of thousands of terms loses the precision that the operator promises
// (1e-6 of the sum of |x| + |w|), so sums are taken in blocks of so many terms and the blocks added.
constexpr int kBlockSteps = 128;

// Of numbers that are not negative.
template <typename N>
ADDERZOO_INLINE constexpr N divide_up(N a, std::type_identity_t<N> b) {
  return (a + b - 1) / b;
}

ADDERZOO_INLINE constexpr int64_t round_up(int64_t number, int64_t multiple) {
  return divide_up(number, multiple) * multiple;
}

// Of an axis; 0 where the dilated kernel does not fit into the padded input.
ADDERZOO_INLINE constexpr int64_t output_size(int64_t padded, int64_t kernel, int64_t stride, int64_t dilation) {
  const int64_t span = padded - dilation * (kernel - 1) - 1;
  return span < 0 ? 0 : span / stride + 1;
}

// Whether all filters of a group read one copy of its source; else each has its own.
ADDERZOO_INLINE constexpr bool shares_source(int64_t groups, int64_t group_filters) {
  return groups == 1 || group_filters >= kPanel;
}

// One call of an operator.
struct Geometry {
  int64_t batch, groups, channels, filters;  // channels and filters of one group
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  ADDERZOO_INLINE int64_t taps() const { return kernel_h * kernel_w; }
};

// Distances in elements from one image, row, column and channel to the next.
struct Strides {
  int64_t image, row, column, channel;
};

// The taps of one axis that reach the input's positions p = phase + stride * i from an output: taps first,
// first + period, ..., as many as `count`. Tap number k of these leads from i to output i + output0 - k * output_step.
struct ReachingTaps {
  int64_t count, first, period, output0, output_step;
};

inline ReachingTaps taps_reaching(int64_t phase, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  ReachingTaps taps{.count = 0, .first = 0, .period = 1, .output0 = 0, .output_step = 0};
  for (int64_t tap = 0; tap < kernel; ++tap) {
    if ((phase + padding - tap * dilation) % stride != 0) continue;
    if (taps.count == 0) taps.first = tap;
    if (taps.count == 1) taps.period = tap - taps.first;
    ++taps.count;
  }
  if (taps.count == 0) return taps;
  taps.output0 = (phase + padding - taps.first * dilation) / stride;
  taps.output_step = taps.period * dilation / stride;
  return taps;
}

}  // namespace adderzoo
