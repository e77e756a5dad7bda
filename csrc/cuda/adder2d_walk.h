// What the kernels are told: pointers and numbers, by value.
//
// As on the CPU, forward pass and input gradient are one walk: for every point of a lattice, for every tap of the
// filter, fetch one pixel of a source and add a function of its channels and the filter's to the outputs at the point.
// It is done as a matrix product would be, points times filters, without im2col: a block of threads fetches the pixels
// that a tap reaches for all its points into shared memory, some channels at a time.
#pragma once

#include <cstdint>

#include "../adder2d_epilogue.h"
#include "../adder2d_geometry.h"

namespace adderzoo::cuda {

// A lattice of points, and the pixels of the source that the taps reach from a point (y, x): row
// y * step_h + tap_row0 + i * tap_row_step for tap i, and the column likewise. Those outside the source are zero.
struct Walk {
  int64_t points;  // of all images
  bool small;      // source, outputs and a panel of filters have less than 2^31 elements each
  int rows, columns;
  int step_h, step_w;
  int tap_rows, tap_row0, tap_row_step;
  int tap_columns, tap_column0, tap_column_step;

  // Of one group: channels of the source, and what is computed at each point. Filters are packed: (panels, taps in the
  // order of the walk, channels, lanes), a lane being an output.
  int groups, channels, outputs;
  int source_height, source_width;
  Strides source;

  // The outputs, and the inputs of a slope: pixel (y * out_step_h + out_row0, ...) of theirs.
  int out_step_h, out_step_w, out_row0, out_column0;
  Strides output, input;
};

// What becomes of a sum of bytes, and where.
struct ByteOutput {
  Epilogue<uint8_t> epilogue;
  int padding;     // what the bytes of a padded pixel are
  uint8_t* bytes;  // where the epilogue has no floats
};

}  // namespace adderzoo::cuda
