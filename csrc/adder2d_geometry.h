// What the operators are called with, and how packed filters lie in memory: for all devices.
#pragma once

#include <cstdint>

// What a file of one instruction set calls: a copy of its own, compiled with those instructions, would be a symbol that
// all processors may come to run (in a build without optimization).
#define ADDERZOO_INLINE __attribute__((always_inline))

namespace adderzoo {

// What sizes, strides, paddings and dilations are at most, and how many elements a tensor has at most: no index and no
// product of them overflows.
constexpr int64_t kLargestSize = (int64_t{1} << 31) - 1;
constexpr int64_t kMostElements = int64_t{1} << 48;

// One call of an operator.
struct Geometry {
  int64_t batch, groups, channels, filters;  // channels and filters of one group
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  ADDERZOO_INLINE int64_t taps() const { return kernel_h * kernel_w; }
};

// Channels of a panel of packed filters: the same on all processors, because networks are saved with packed filters.
constexpr int64_t kPanel = 16;

// Bytes of successive source channels that are one step, and lie side by side in a lane of a panel. Where channels have
// their own copies of the source, a step is one channel.
constexpr int64_t kByteStep = 8;

// Elements of a filter of bytes, whose differences of at most 255 add up to a signed integer of 32 bits.
constexpr int64_t kLargestByteFilter = ((int64_t{1} << 31) - 1) / 255;

}  // namespace adderzoo
