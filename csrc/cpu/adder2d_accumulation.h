// What the loops do, in pointers and numbers. A reader of the kernels for CPUs starts here.
//
// Forward pass and input gradient are the same walk over memory: for every point of a lattice, for every tap of the
// filter, fetch one pixel of `source` and add a function of its channels and the filter's to the channels of the point.
// `Accumulation` describes that walk, `Function` what is added.
//
// It is done like a matrix product, and without im2col. The points are cut into items of some rows, or of a part of a
// long one. The part of the source that an item reads, its region, is copied into scratch memory with its padding,
// channels last, so that a tap is one constant offset for all points; where the source is channels_last and has no
// padding, it is the region itself. All steps (one source channel of one tap) are taken in blocks of kBlockSteps: the
// filters of a block and some channels fit into the first cache and serve all tiles (some points times some vectors of
// channels, their sums in registers) of the item.
//
// An example: an image of 16 channels, 8x8 pixels and NCHW, 16 filters of 3x3, padding 1, float32, one thread.
//
//   lattice  8 rows of 8 columns, 64 points; tap rows and tap columns are -1, 0 and 1.
//   filters  One panel of 9 taps * 16 channels = 144 steps, each with 16 lanes: a lane is a filter.
//   items    Two, of 4 rows or 32 points, and of the one panel.
//   region   Of an item: 6 rows (4, and one above and below) of 10 pixels of 16 channels, 960 elements. The taps of the
//            point (y, x) begin (y * 10 + x) * 16 elements into it: 0, 16, ... 112 in the first row, 160 in the second.
//   pieces   The 3 taps of a row lie in a line: 48 steps, those of tap row i at 160 * i from where the point's begin.
//   blocks   Of 128 steps. The first takes tap rows 0 and 1, and 32 steps of row 2: three pieces (source, step, length)
//            of (0, 0, 48), (160, 48, 48) and (320, 96, 32). The second takes the fourth piece, (352, 128, 16).
//   tiles    A panel is one vector of AVX-512, two of AVX2, four of SSE2 or NEON, and a tile at most 8, 5, 2 or 6
//            points times those. The 32 points of an item make 4 tiles of 8 points; 7 of 5 or 4; 16 of 2; 6 of 6 or 5.
//
// tests/ops/loops_main.cpp holds the planner to these numbers, loops/tile_shapes.h the tiles.
#pragma once

#include <cstdint>

#include "../adder2d_epilogue.h"
#include "../adder2d_geometry.h"

namespace adderzoo::cpu {

enum class Function {
  kDistance,           // |source - filter|; the sum is written with a minus sign (eq. 2)
  kDoubleDistance,     // the same of bytes, whose sums are added as doubles
  kMaxDistance,        // the same, from the sum of max(source, filter)
  kMaxFmaDistance,     // the same again, each addition as a multiply-add by one
  kClippedSlope,       // source * clip(filter - input, -1, 1) (eq. 6 and 7, source being the output's gradient)
  kFmaClippedSlope,    // the same, subtractions as multiply-adds by one
  kExactClippedSlope,  // the same where a filter or the input may be NaN
  kSignSlope,          // source * sign(filter - input)
};

// Whether it needs the input at the points.
ADDERZOO_INLINE constexpr bool has_input(Function function) {
  return function == Function::kClippedSlope || function == Function::kFmaClippedSlope ||
         function == Function::kExactClippedSlope || function == Function::kSignSlope;
}

// Whether its sums are of max(source, filter).
ADDERZOO_INLINE constexpr bool sums_maxima(Function function) {
  return function == Function::kMaxDistance || function == Function::kMaxFmaDistance;
}

// Channels of an item whose channels have their own copies of the source, at most.
constexpr int64_t kMaxOwnChannels = 8 * kPanel;

// Panels of a tile, at most, whatever the instruction set.
constexpr int64_t kMostPanelsOfTile = 4;

// The points: a row of `rows` and `columns` for each image; and the taps of each. A point's source pixel under a tap is
// (y * step_h + tap's row, x * step_w + tap's column).
struct Lattice {
  int64_t batch, rows, columns, step_h, step_w;

  // Taps are all pairs of these, ascending; no rows without columns.
  const int64_t* tap_rows;
  const int64_t* tap_columns;
  int64_t num_tap_rows, num_tap_columns;

  ADDERZOO_INLINE int64_t all_rows() const { return batch * rows; }
  ADDERZOO_INLINE int64_t taps() const { return num_tap_rows * num_tap_columns; }
  // Source rows and columns from the first tap of a point to its last.
  ADDERZOO_INLINE int64_t reach_h() const { return taps() > 0 ? tap_rows[num_tap_rows - 1] - tap_rows[0] + 1 : 0; }
  ADDERZOO_INLINE int64_t reach_w() const {
    return taps() > 0 ? tap_columns[num_tap_columns - 1] - tap_columns[0] + 1 : 0;
  }
  // Source columns of so many successive points.
  ADDERZOO_INLINE int64_t span_w(int64_t points) const { return taps() > 0 ? (points - 1) * step_w + reach_w() : 0; }
};

// The image tensor whose pixels the taps read.
template <typename T>
struct Source {
  const T* data;
  Strides strides;
  int64_t height, width;
  int64_t channels;  // of a group
};

// Successive steps whose sources lie in a line.
struct Piece {
  int64_t source;  // offset of the first from the point's place in the region, in elements
  int64_t step;    // number of the first among the packed filter's steps
  int64_t length;
};

// What an item reads of the source, as it lies in memory, and the order in which its tiles read it.
struct Region {
  bool staged;  // whether it is a copy, with padding; else it is the source
  // Shared: all channels of a group see the same source channels. Else every channel has its own copy of them in the
  // region, which serves groups that are narrower than a panel. Only bytes of depthwise layers, where the copy is the
  // source, need not be staged then.
  bool shared;
  // Whether the taps of a row are one to the loops: of few bytes, whose lanes would be mostly empty. For every point
  // the channels of its taps in a row lie in a line, which other points do not share.
  bool joined;
  uint8_t padding;    // what all bytes of a padded pixel's channels are
  int64_t lane;       // source channels of a step: kByteStep of bytes, which lie side by side, or one
  int64_t width;      // in pixels
  int64_t pixel;      // elements of a pixel, before taps are joined
  int64_t row;        // from one row to the next, in elements
  int64_t point;      // from one point to the next, likewise
  int64_t step;       // from one step to the next of a piece, likewise
  int64_t tap_steps;  // steps of a tap, or of joined ones
  const Piece* pieces;
  const int64_t* blocks;  // block b is the pieces [blocks[b], blocks[b + 1]): kBlockSteps steps, the last one the rest
  int64_t num_blocks;
};

template <typename T>
struct FilterPanels {
  // (panels, steps, kPanel, lane), a step being a tap and a lane of source channels. Where lanes are single bytes,
  // those of all channels of an item lie side by side: (items of the same rows, steps, channels of an item).
  const T* packed;
  const T* sums;  // of each channel, and below which distance they cancel too much; where maxima are summed
  const T* limits;
  int64_t steps;
};

template <typename T>
struct Outputs {
  T* data;
  Strides strides;
  int64_t channels;                // of all groups
  int64_t groups, group_channels;  // channels of a group
  const T* input;                  // x at the points; for slopes
  Strides input_strides;
  Epilogue<T> epilogue;
};

// The items: some rows of all images', some columns of these and some panels of one group each.
struct Items {
  int64_t rows, columns, panels;  // of an item
  int64_t column_chunks;          // items of the same rows, group and panels
  int64_t panel_chunks;           // items of the same rows and group
  int64_t count;
  int64_t steps;         // of an item, about
  int64_t scratch_size;  // in elements
  int64_t max_points;    // of an item, a multiple of kPanel
  int64_t max_region_rows;
};

// adder2d_plan.cpp makes it, and checks there what is said of it here.
template <typename T>
struct Accumulation {
  Function function;
  Lattice lattice;
  Source<T> source;
  Region region;
  FilterPanels<T> filters;
  Outputs<T> output;
  Items items;

  // Taps that the loops see, and the steps of all of them.
  ADDERZOO_INLINE int64_t taps() const { return region.joined ? lattice.num_tap_rows : lattice.taps(); }
  ADDERZOO_INLINE int64_t steps() const { return taps() * region.tap_steps; }
};

}  // namespace adderzoo::cpu
