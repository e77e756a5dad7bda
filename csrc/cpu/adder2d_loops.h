// The seam between the operator (adder2d_kernel.cpp, which knows PyTorch) and its loops (which know only pointers).
//
// Forward pass and input gradient are the same walk over memory: for every point of a lattice, for every tap of the
// filter, fetch one pixel of `source` and add a function of its channels and the filter's to the channels of the point.
// `Accumulation` describes that walk, `Function` what is added.
#pragma once

#include <cstdint>

namespace adderzoo::cpu {

// One call of the operator.
struct Geometry {
  int64_t batch, groups, channels, filters;  // channels and filters of one group
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  int64_t taps() const { return kernel_h * kernel_w; }
};

enum class Function {
  kDistance,      // |source - filter|; the sum is written with a minus sign (eq. 2)
  kClippedSlope,  // source * clip(filter - input, -1, 1) (eq. 6 and 7, source being the output's gradient)
  kSignSlope,     // source * sign(filter - input)
};

// The source pixel of point (y, x) under this tap is (y * step_h + row, x * step_w + column).
struct Tap {
  int64_t row;
  int64_t column;
  int64_t index;  // position among the packed filter's taps
};

// Distances in elements from one image, row, column and channel to the next.
struct Strides {
  int64_t image;
  int64_t row;
  int64_t column;
  int64_t channel;
};

template <typename T>
struct Accumulation {
  // The points.
  int64_t batch;
  int64_t rows;
  int64_t columns;
  int64_t step_h;
  int64_t step_w;

  // Each group reads `source_channels` channels and writes `channels`.
  int64_t groups;
  int64_t source_channels;
  int64_t channels;

  const T* source;  // dense NHWC
  int64_t source_height;
  int64_t source_width;
  const T* zeros;  // `source_channels` of them: what a tap reads outside the source

  const Tap* taps;
  int64_t num_taps;
  const T* filters;  // packed
  int64_t filter_taps;

  T* output;
  Strides output_strides;
  const T* input;  // x at the points, channels dense; not read by kDistance
  Strides input_strides;
};

// A filter tensor as it is to be packed. The strides are those of the unpacked filters, in which taps are adjacent.
struct FilterShape {
  int64_t groups;
  int64_t channels;
  int64_t source_channels;
  int64_t taps;
  int64_t group_stride;
  int64_t channel_stride;
  int64_t source_stride;
};

// Gradient of the filters from the sign of X - F (eq. 4).
template <typename T>
struct FilterSignGradient {
  Geometry geometry;
  const T* input;   // dense NHWC
  const T* grad;    // dense NHWC
  const T* weight;  // dense OIHW
  T* grad_weight;   // dense OIHW
};

// Time is counted in steps, of one term for every lane of a vector, a third of a nanosecond or more. Finding a pixel
// takes as long as this many (measured).
constexpr int64_t kStepsOfPixel = 8;

// The loops for one instruction set.
template <typename T>
struct Loops {
  const char* capability;
  // The work is cut into `num_items` independent items; `run` does those in [begin, end).
  int64_t (*num_items)(Function, const Accumulation<T>&);
  // What an item costs, in steps.
  int64_t (*item_steps)(Function, const Accumulation<T>&);
  void (*run)(Function, const Accumulation<T>&, int64_t begin, int64_t end);
  // Packed filters: (groups, blocks of channels, taps, source channels, channels of a block), the last block filled up
  // with zeros.
  int64_t (*packed_size)(const FilterShape&);
  void (*pack)(const T* weight, T* packed, const FilterShape&);
  // An item is one tap of one filter.
  void (*filter_sign_gradient)(const FilterSignGradient<T>&, int64_t begin, int64_t end);
};

// The best loops that this processor can run. ADDERZOO_CPU_CAPABILITY (default, avx2, avx512) in the environment asks
// for others; std::runtime_error where this processor or this build lacks them.
template <typename T>
const Loops<T>& loops();

}  // namespace adderzoo::cpu
