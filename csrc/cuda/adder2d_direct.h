// Where the taps of a point lie, what is added up there, and the plain kernel: one thread an output.
// The kernels know neither PyTorch nor the host.
#pragma once

#include "adder2d_numbers.h"
#include "adder2d_walk.h"

namespace adderzoo::cuda {

// A point's place.
struct Point {
  int64_t image;
  int row, column;
};

// Tiles number their points with 32 bits, whose divisions take a fraction of the instructions.
template <typename N>
__device__ Point find_point(const Walk& walk, N point) {
  const N line = point / static_cast<N>(walk.columns), image = line / static_cast<N>(walk.rows);
  return {static_cast<int64_t>(image), static_cast<int>(line - image * static_cast<N>(walk.rows)),
          static_cast<int>(point - line * static_cast<N>(walk.columns))};
}

// The point behind one, without a division.
__device__ inline void advance(const Walk& walk, Point& p) {
  if (++p.column < walk.columns) return;
  p.column = 0;
  if (++p.row < walk.rows) return;
  p.row = 0;
  ++p.image;
}

__device__ inline int64_t offset_at(const Walk& walk, const Point& p, const Strides& strides) {
  return p.image * strides.image + (p.row * static_cast<int64_t>(walk.out_step_h) + walk.out_row0) * strides.row +
         (p.column * static_cast<int64_t>(walk.out_step_w) + walk.out_column0) * strides.column;
}

// Walks over source channels, tap by tap.
struct Step {
  int channel, tap_row, tap_column;

  __device__ void advance(const Walk& walk, int channels) {
    channel += channels;
    while (channel >= walk.channels) {
      channel -= walk.channels;
      if (++tap_column == walk.tap_columns) {
        tap_column = 0;
        ++tap_row;
      }
    }
  }
  __device__ bool ended(const Walk& walk) const { return tap_row >= walk.tap_rows; }
  // Of the packed filters of a panel, in units of lanes.
  __device__ int64_t filter_row(const Walk& walk) const {
    const int tap = walk.filter_tap0 + tap_row * walk.filter_tap_row_step + tap_column * walk.filter_tap_column_step;
    return static_cast<int64_t>(tap) * walk.channels + channel;
  }
};

// Where the taps of a point begin.
struct Reach {
  int64_t offset;
  int row, column;
  bool valid;

  template <typename N>
  static __device__ Reach of(const Walk& walk, N point, int group) {
    const bool valid = point < static_cast<N>(walk.points);
    return from(walk, find_point(walk, valid ? point : N{0}), valid, group);
  }
  static __device__ Reach from(const Walk& walk, const Point& p, bool valid, int group) {
    const int row = p.row * walk.step_h + walk.tap_row0, column = p.column * walk.step_w + walk.tap_column0;
    const int64_t offset = p.image * walk.source.image + row * walk.source.row + column * walk.source.column +
                           static_cast<int64_t>(group) * walk.channels * walk.source.channel;
    return {offset, row, column, valid};
  }
  __device__ bool inside(const Walk& walk, const Step& step) const {
    return valid &&
           static_cast<unsigned>(row + step.tap_row * walk.tap_row_step) < static_cast<unsigned>(walk.source_height) &&
           static_cast<unsigned>(column + step.tap_column * walk.tap_column_step) <
               static_cast<unsigned>(walk.source_width);
  }
  __device__ int64_t at(const Walk& walk, const Step& step) const {
    return offset + step.tap_row * walk.tap_row_step * walk.source.row +
           step.tap_column * walk.tap_column_step * walk.source.column + step.channel * walk.source.channel;
  }
};

struct Distance {
  static constexpr bool kSlope = false;
  template <typename T>
  __device__ static T term(T source, T filter, T) {
    return magnitude(source - filter);
  }
};

struct ClippedSlope {
  static constexpr bool kSlope = true;
  template <typename T>
  __device__ static T term(T source, T filter, T input) {
    const T difference = filter - input;  // comparisons that let NaN through
    return source * (difference < T(-1) ? T(-1) : difference > T(1) ? T(1) : difference);
  }
};

struct SignSlope {
  static constexpr bool kSlope = true;
  template <typename T>
  __device__ static T term(T source, T filter, T input) {
    const T difference = filter - input;
    return source * (difference < T(0) ? T(-1) : difference > T(0) ? T(1) : difference);
  }
};

// The sum at one output, term by term: for what tiles do not fit, and where numbers are not finite.
template <typename F, typename T, typename S>
__device__ T direct_sum(const Walk& walk, const Reach& reach, const S* source, const T* filters, int output, T input) {
  const T* const panel =
      filters + (output / kPanel) * (static_cast<int64_t>(walk.filter_taps) * walk.channels * kPanel) + output % kPanel;
  T total = 0, sum = 0;
  int terms = 0;
  for (Step step{0, 0, 0}; !step.ended(walk); step.advance(walk, 1)) {
    const bool inside = reach.inside(walk, step);
    if (F::kSlope && !inside) continue;  // nothing, not zero times a slope that may be NaN
    const T value = inside ? static_cast<T>(to_number(source[reach.at(walk, step)])) : T(0);
    sum += F::term(value, panel[step.filter_row(walk) * kPanel], input);
    if (++terms == kBlockSteps) {
      total += sum;
      sum = 0;
      terms = 0;
    }
  }
  return total + sum;
}

template <typename T>
__device__ T finish(const Epilogue<T>& epilogue, T sum, int channel, int64_t offset) {
  if (epilogue.scale) {
    sum = sum * epilogue.scale[channel] + epilogue.shift[channel];
    if (epilogue.addend) sum += epilogue.addend[offset];
    if (epilogue.relu) sum = sum < T(0) ? T(0) : sum;
  }
  return sum;
}

// One thread an output. `first` says which of channel and point is the fastest: the one whose outputs lie side by side.
template <typename F, typename T, typename S, typename In, typename Out>
__global__ void direct(Walk walk, const S* source, const T* filters, const In* input, Epilogue<T> epilogue, Out* output,
                       bool channels_first) {
  const int64_t outputs = static_cast<int64_t>(walk.groups) * walk.outputs, total = walk.points * outputs;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t slower = i / (channels_first ? outputs : walk.points);
    const int64_t faster = i - slower * (channels_first ? outputs : walk.points);
    const int channel = static_cast<int>(channels_first ? faster : slower);
    const Point p = find_point(walk, channels_first ? slower : faster);
    const Reach reach = Reach::from(walk, p, true, channel / walk.outputs);
    T x = 0;
    if (F::kSlope) x = static_cast<T>(to_number(input[offset_at(walk, p, walk.input) + channel * walk.input.channel]));
    const T sum = direct_sum<F, T>(walk, reach, source, filters, channel, x);
    const int64_t offset = offset_at(walk, p, walk.output) + channel * walk.output.channel;
    from_number(finish(epilogue, F::kSlope ? sum : -sum, channel, offset), output[offset]);
  }
}

}  // namespace adderzoo::cuda
