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

__device__ inline Point find_point(const Walk& w, int64_t point) {
  const int64_t line = point / w.columns;
  return {line / w.rows, static_cast<int>(line % w.rows), static_cast<int>(point % w.columns)};
}

__device__ inline int64_t offset_at(const Walk& w, const Point& p, const Strides& s) {
  return p.image * s.image + (p.row * static_cast<int64_t>(w.out_step_h) + w.out_row0) * s.row +
         (p.column * static_cast<int64_t>(w.out_step_w) + w.out_column0) * s.column;
}

// Walks over source channels, tap by tap.
struct Step {
  int channel, tap_row, tap_column;

  __device__ void advance(const Walk& w, int channels) {
    channel += channels;
    while (channel >= w.channels) {
      channel -= w.channels;
      if (++tap_column == w.tap_columns) {
        tap_column = 0;
        ++tap_row;
      }
    }
  }
  __device__ bool ended(const Walk& w) const { return tap_row >= w.tap_rows; }
  // Of the packed filters of a panel, in units of lanes.
  __device__ int64_t filter_row(const Walk& w) const {
    const int tap = w.filter_tap0 + tap_row * w.filter_tap_row_step + tap_column * w.filter_tap_column_step;
    return static_cast<int64_t>(tap) * w.channels + channel;
  }
};

// Where the taps of a point begin.
struct Reach {
  int64_t offset;
  int row, column;
  bool valid;

  static __device__ Reach of(const Walk& w, int64_t point, int group) {
    const bool valid = point < w.points;
    const Point p = find_point(w, valid ? point : 0);
    const int row = p.row * w.step_h + w.tap_row0, column = p.column * w.step_w + w.tap_column0;
    const int64_t offset = p.image * w.source.image + row * w.source.row + column * w.source.column +
                           static_cast<int64_t>(group) * w.channels * w.source.channel;
    return {offset, row, column, valid};
  }
  __device__ bool inside(const Walk& w, const Step& step) const {
    return valid &&
           static_cast<unsigned>(row + step.tap_row * w.tap_row_step) < static_cast<unsigned>(w.source_height) &&
           static_cast<unsigned>(column + step.tap_column * w.tap_column_step) < static_cast<unsigned>(w.source_width);
  }
  __device__ int64_t at(const Walk& w, const Step& step) const {
    return offset + step.tap_row * w.tap_row_step * w.source.row +
           step.tap_column * w.tap_column_step * w.source.column + step.channel * w.source.channel;
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
__device__ T direct_sum(const Walk& w, const Reach& reach, const S* source, const T* filters, int output, T input) {
  const T* const panel =
      filters + (output / kLanes) * (static_cast<int64_t>(w.filter_taps) * w.channels * kLanes) + output % kLanes;
  T total = 0, sum = 0;
  int terms = 0;
  for (Step step{0, 0, 0}; !step.ended(w); step.advance(w, 1)) {
    const bool inside = reach.inside(w, step);
    if (F::kSlope && !inside) continue;  // nothing, not zero times a slope that may be NaN
    const T value = inside ? static_cast<T>(to_number(source[reach.at(w, step)])) : T(0);
    sum += F::term(value, panel[step.filter_row(w) * kLanes], input);
    if (++terms == kBlock) {
      total += sum;
      sum = 0;
      terms = 0;
    }
  }
  return total + sum;
}

template <typename T, typename Out>
__device__ void write(const AffineOf<T>& affine, T sum, int channel, int64_t offset, Out* output) {
  if (affine.scale) {
    sum = sum * affine.scale[channel] + affine.shift[channel];
    if (affine.addend) sum += affine.addend[offset];
    if (affine.relu) sum = sum < T(0) ? T(0) : sum;
  }
  from_number(sum, output[offset]);
}

// One thread an output. `first` says which of channel and point is the fastest: the one whose outputs lie side by side.
template <typename F, typename T, typename S, typename In, typename Out>
__global__ void direct(Walk w, const S* source, const T* filters, const In* input, AffineOf<T> affine, Out* output,
                       bool channels_first) {
  const int64_t outputs = static_cast<int64_t>(w.groups) * w.outputs, total = w.points * outputs;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t point = channels_first ? i / outputs : i % w.points;
    const int channel = static_cast<int>(channels_first ? i % outputs : i / w.points);
    const Reach reach = Reach::of(w, point, channel / w.outputs);
    const Point p = find_point(w, point);
    T x = 0;
    if (F::kSlope) x = static_cast<T>(to_number(input[offset_at(w, p, w.input) + channel * w.input.channel]));
    const T sum = direct_sum<F, T>(w, reach, source, filters, channel, x);
    write(affine, F::kSlope ? sum : -sum, channel, offset_at(w, p, w.output) + channel * w.output.channel, output);
  }
}

}  // namespace adderzoo::cuda
