// The seam between the operators (adder2d_kernel.cpp, which knows PyTorch) and their loops (which know only pointers).
//
// Forward pass and input gradient are the same walk over memory: for every point of a lattice, for every tap of the
// filter, fetch one pixel of `source` and add a function of its channels and the filter's to the channels of the point.
// `Accumulation` describes that walk, `Function` what is added.
//
// It is done like a matrix product, and without im2col. The points are cut into items of some rows. The part of the
// source that an item reads, its region, is copied into scratch memory with its padding, channels last, so that a tap
// is one constant offset for all points; where the source is channels_last and has no padding, it is the region itself.
// All steps (one source channel of one tap) are taken in blocks of kBlock: the filters of a block and some channels fit
// into the first cache and serve all tiles (some points times some vectors of channels, their sums in registers) of the
// item.
#pragma once

#include <cstdint>

#include "../adder2d_geometry.h"

namespace adderzoo::cpu {

enum class Function {
  kDistance,           // |source - filter|; the sum is written with a minus sign (eq. 2)
  kMaxDistance,        // the same, from the sum of max(source, filter)
  kClippedSlope,       // source * clip(filter - input, -1, 1) (eq. 6 and 7, source being the output's gradient)
  kExactClippedSlope,  // the same where a filter or the input may be NaN
  kSignSlope,          // source * sign(filter - input)
};

// Channels of an item whose channels have their own copies of the source, at most.
constexpr int64_t kMaxOwnChannels = 4 * kPanel;

// A plain float32 sum of thousands of terms loses the precision that the operator promises (1e-6 of the sum of
// |x| + |w|), so sums are taken in blocks of so many terms and the blocks added.
constexpr int64_t kBlock = 128;

// Distances in elements from one image, row, column and channel to the next.
struct Strides {
  int64_t image;
  int64_t row;
  int64_t column;
  int64_t channel;
};

// Successive steps whose sources lie in a line.
struct Piece {
  int64_t source;  // offset of the first from the point's place in the region, in elements
  int64_t step;    // number of the first among the packed filter's steps
  int64_t length;
};

// What is done with the sums before they are written: y * scale + shift + addend, then max(0, y).
template <typename T>
struct Epilogue {
  const T* scale = nullptr;  // null: the sums are written as they are
  const T* shift = nullptr;
  const T* addend = nullptr;  // with the output's strides, or null
  bool relu = false;
};

// Of bytes, whose sums are integers: s * scale + shift + addend * addend_scale, every operation rounded to float32;
// then a float no less than `lowest`, or a byte: within the bounds, rounded, plus the zero point. A NaN becomes the
// lowest byte.
template <>
struct Epilogue<uint8_t> {
  const float* scale;
  const float* shift;
  const uint8_t* byte_addend;  // with the output's strides; one of the two at most
  const float* float_addend;
  float addend_scale;
  float lowest, highest;
  int32_t zero_point;
  float* float_output;  // null: bytes are written to the accumulation's output
};

template <typename T>
struct Accumulation {
  Function function;

  // The points: a row of `rows` and `columns` for each image. A point's source pixel under a tap is
  // (y * step_h + tap's row, x * step_w + tap's column).
  int64_t batch, rows, columns, step_h, step_w;
  int64_t channels;  // of all groups

  // Shared: all channels of a group see the same source channels. Else every channel has its own copy of them in the
  // region, which serves groups that are narrower than a panel (depthwise layers).
  bool shared;
  int64_t groups, source_channels, group_channels;  // of a group; one group where nothing is shared

  const T* source;
  Strides source_strides;
  int64_t source_height, source_width;

  // Taps are all pairs of these, ascending.
  const int64_t* tap_rows;
  const int64_t* tap_columns;
  int64_t num_tap_rows, num_tap_columns;

  bool staged;           // whether the region is a copy
  uint8_t padding;       // what all bytes of a padded pixel's channels are
  int64_t tap_steps;     // steps of a tap
  int64_t region_width;  // in pixels
  int64_t region_pixel;  // elements of a pixel
  int64_t source_step;   // from one step to the next of a piece, in elements
  const Piece* pieces;
  const int64_t* blocks;  // block b is the pieces [blocks[b], blocks[b + 1])
  int64_t num_blocks;

  const T* filters;      // packed: (panels, steps, kPanel), a step being a tap and a source channel
  const T* filter_sums;  // of each channel, and below which distance they cancel too much; for kMaxDistance
  const T* filter_limits;
  int64_t filter_steps;

  T* output;
  Strides output_strides;
  const T* input;  // x at the points; for slopes
  Strides input_strides;
  Epilogue<T> epilogue;

  // The items: some rows of all images' and some panels of one group each.
  int64_t rows_of_item, panels_of_item, panel_chunks;
  int64_t num_items, item_steps;
  int64_t scratch_size;  // in elements
  int64_t max_points;    // of an item
  int64_t max_region_rows;
};

// A filter tensor as it is to be packed; steps are ordered by tap, then source channel.
struct FilterShape {
  int64_t channels, group_channels, source_channels, taps;
  int64_t group_stride, channel_stride, source_stride;  // between filters; taps are adjacent
  bool reverse_taps;

  ADDERZOO_INLINE int64_t panels() const { return (channels + kPanel - 1) / kPanel; }
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

// What a machine can do at most: loops with the instructions of one of the above, but all operands at hand.
enum class Ceiling { kMultiplyAdd, kDistance, kSlope };

// The loops for one instruction set.
template <typename T>
struct Loops {
  const char* capability;
  bool max_distance;  // whether kMaxDistance is faster than kDistance
  // Does the items in [begin, end), which are independent, with `scratch_size` elements of scratch memory.
  void (*run)(const Accumulation<T>&, int64_t begin, int64_t end, T* scratch);
  // Packs some panels; `sums` and `limits` get those of each channel.
  void (*pack)(const T* weight, T* packed, T* sums, T* limits, const FilterShape&, int64_t begin, int64_t end);
  void (*sum_filters)(const T* packed, T* sums, T* limits, int64_t steps, int64_t begin, int64_t end);
  void (*filter_sign_gradient)(const FilterSignGradient<T>&, int64_t begin, int64_t end);
  // Returns the number of elements.
  int64_t (*ceiling)(Ceiling, int64_t steps);
};

template <>
struct Loops<uint8_t> {
  void (*run)(const Accumulation<uint8_t>&, int64_t begin, int64_t end, uint8_t* scratch);
  int64_t (*ceiling)(int64_t steps);
};

// The best loops that this processor can run. ADDERZOO_CPU_CAPABILITY (default, avx2, avx512) in the environment asks
// for others; std::runtime_error where this processor or this build lacks them.
template <typename T>
const Loops<T>& loops();

}  // namespace adderzoo::cpu
