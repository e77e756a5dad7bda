// The seam between the operators (adder2d_kernel.cpp, which knows PyTorch) and their loops (which know only pointers):
// what each instruction set has functions for.
#pragma once

#include "adder2d_accumulation.h"

namespace adderzoo::cpu {

// A filter tensor as it is to be packed; steps are ordered by tap, then source channel.
struct FilterShape {
  int64_t channels, group_channels, source_channels, taps;
  int64_t group_stride, channel_stride, source_stride;  // between filters; taps are adjacent
  bool reverse_taps;

  ADDERZOO_INLINE int64_t panels() const { return divide_up<int64_t>(channels, kPanel); }
  ADDERZOO_INLINE int64_t steps() const { return source_channels * taps; }
};

// Gradient of the filters from the sign of X - F (eq. 4).
template <typename T>
struct FilterSignGradient {
  Geometry geometry;
  const T* input;   // dense NHWC, or NCHW where it is narrow
  const T* grad;    // likewise
  const T* weight;  // dense OIHW
  T* grad_weight;   // dense OIHW

  // Filters or channels, whichever are more, are taken side by side: they are the lanes of an item, which is one tap of
  // one of the others. Where both are few, pixels are taken side by side, and an item is one element.
  ADDERZOO_INLINE bool narrow() const { return lanes() < 8 && geometry.stride_w == 1; }
  ADDERZOO_INLINE bool filters_are_lanes() const { return geometry.filters > geometry.channels; }
  ADDERZOO_INLINE int64_t lanes() const { return filters_are_lanes() ? geometry.filters : geometry.channels; }
  ADDERZOO_INLINE int64_t items() const {
    const int64_t others = filters_are_lanes() ? geometry.channels : geometry.filters;
    return geometry.groups * others * geometry.taps() * (narrow() ? lanes() : 1);
  }
};

// The loops for one instruction set.
template <typename T>
struct Loops {
  const char* capability;
  Function distance;  // its fastest form; see adds_beside_maxima() in capability.h
  // Does the items in [begin, end), which are independent, with `scratch_size` elements of scratch memory.
  void (*run)(const Accumulation<T>&, int64_t begin, int64_t end, T* scratch);
  // Packs some panels; `sums` and `limits` get those of each channel.
  void (*pack)(const T* weight, T* packed, T* sums, T* limits, const FilterShape&, int64_t begin, int64_t end);
  void (*sum_filters)(const T* packed, T* sums, T* limits, int64_t steps, int64_t begin, int64_t end);
  void (*filter_sign_gradient)(const FilterSignGradient<T>&, int64_t begin, int64_t end);
};

template <>
struct Loops<uint8_t> {
  void (*run)(const Accumulation<uint8_t>&, int64_t begin, int64_t end, uint8_t* scratch);
};

// The best loops that this processor can run, or those that were asked for (capability.h).
template <typename T>
const Loops<T>& loops();

}  // namespace adderzoo::cpu
