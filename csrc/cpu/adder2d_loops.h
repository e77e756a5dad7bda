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

enum class FilterSlope {
  kFull,        // X - F (eq. 5)
  kSign,        // sign(X - F) (eq. 4)
  kFiniteSign,  // the same where input, gradient and filters are finite
};

// Gradient of the filters. An item is one tap of at most kPanel filters and channels of a group; of a depthwise layer,
// of at most kPanel groups.
template <typename T>
struct FilterGradient {
  FilterSlope slope;
  Geometry geometry;
  const T* input;   // dense NHWC
  const T* grad;    // dense NHWC
  const T* weight;  // dense OIHW
  T* grad_weight;   // dense OIHW

  ADDERZOO_INLINE bool depthwise() const { return geometry.channels == 1 && geometry.filters == 1; }
  ADDERZOO_INLINE int64_t items() const {
    const Geometry& g = geometry;
    if (depthwise()) return divide_up<int64_t>(g.groups, kPanel) * g.taps();
    return g.groups * divide_up<int64_t>(g.filters, kPanel) * divide_up<int64_t>(g.channels, kPanel) * g.taps();
  }
};

// The loops for one instruction set.
template <typename T>
struct Loops {
  const char* capability;
  Function distance, slope;  // their fastest forms; see form_for_processor() in capability.h
  // Does the items in [begin, end), which are independent, with `scratch_size` elements of scratch memory.
  void (*run)(const Accumulation<T>&, int64_t begin, int64_t end, T* scratch);
  // Packs some panels; `sums` and `limits` get those of each channel.
  void (*pack)(const T* weight, T* packed, T* sums, T* limits, const FilterShape&, int64_t begin, int64_t end);
  void (*sum_filters)(const T* packed, T* sums, T* limits, int64_t steps, int64_t begin, int64_t end);
  void (*filter_gradient)(const FilterGradient<T>&, int64_t begin, int64_t end);
  bool (*all_finite)(const T* numbers, int64_t count);
};

template <>
struct Loops<uint8_t> {
  Function distance;  // its fastest form; likewise
  void (*run)(const Accumulation<uint8_t>&, int64_t begin, int64_t end, uint8_t* scratch);
};

// The best loops that this processor can run, or those that were asked for (capability.h).
template <typename T>
const Loops<T>& loops();

}  // namespace adderzoo::cpu
