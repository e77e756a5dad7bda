// Where the taps of a point lie, what is added up there, and the plain kernel: one thread an output.
// The kernels know neither PyTorch nor the host.
#pragma once

#include <limits>

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

template <typename N>
__device__ N offset_at(const Walk& walk, const Point& p, const Strides& strides) {
  const int row = p.row * walk.out_step_h + walk.out_row0, column = p.column * walk.out_step_w + walk.out_column0;
  return static_cast<N>(p.image) * static_cast<N>(strides.image) + static_cast<N>(row) * static_cast<N>(strides.row) +
         static_cast<N>(column) * static_cast<N>(strides.column);
}

// Walks over source channels, tap by tap.
struct Step {
  int channel, tap_row, tap_column;

  __device__ void advance(const Walk& walk, int channels) {
    channel += channels;
    while (channel >= walk.channels) {
      channel -= walk.channels;
      next_tap(walk);
    }
  }
  __device__ void next_tap(const Walk& walk) {
    if (++tap_column < walk.tap_columns) return;
    tap_column = 0;
    ++tap_row;
  }
  __device__ bool ended(const Walk& walk) const { return tap_row >= walk.tap_rows; }
};

// A row from which no tap leads to a pixel: a padded source has less than 2^31 rows.
constexpr int kNowhere = std::numeric_limits<int>::min();

// Where the taps of a point begin, in the image of its group's channels; a point that there is not reaches no pixel.
template <typename S>
struct Reach {
  const S* image;
  int row, column;

  template <typename N>
  static __device__ Reach of(const Walk& walk, const S* source, N point, int group) {
    const bool valid = point < static_cast<N>(walk.points);
    Reach reach = from(walk, source, find_point(walk, valid ? point : N{0}), group);
    if (!valid) reach.row = kNowhere;
    return reach;
  }
  static __device__ Reach from(const Walk& walk, const S* source, const Point& p, int group) {
    const int64_t channel = static_cast<int64_t>(group) * walk.channels;
    return {source + p.image * walk.source.image + channel * walk.source.channel, p.row * walk.step_h + walk.tap_row0,
            p.column * walk.step_w + walk.tap_column0};
  }
  __device__ bool inside(const Walk& walk, const Step& step) const {
    const uint32_t y = static_cast<uint32_t>(row) + step.tap_row * static_cast<uint32_t>(walk.tap_row_step);
    const uint32_t x = static_cast<uint32_t>(column) + step.tap_column * static_cast<uint32_t>(walk.tap_column_step);
    return y < static_cast<uint32_t>(walk.source_height) && x < static_cast<uint32_t>(walk.source_width);
  }
  // Which number of the image it is. 32 bits (N) are enough for images of fewer.
  template <typename N>
  __device__ N at(const Walk& walk, const Step& step) const {
    return static_cast<N>(row + step.tap_row * walk.tap_row_step) * static_cast<N>(walk.source.row) +
           static_cast<N>(column + step.tap_column * walk.tap_column_step) * static_cast<N>(walk.source.column) +
           static_cast<N>(step.channel) * static_cast<N>(walk.source.channel);
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
template <typename F, typename N, typename T, typename S>
__device__ T direct_sum(const Walk& walk, const Reach<S>& reach, const T* filters, int output, T input) {
  const int64_t panel = static_cast<int64_t>(walk.tap_rows) * walk.tap_columns * walk.channels * kPanel;
  const T* const lane = filters + output / kPanel * panel + output % kPanel;
  T total = 0, sum = 0;
  int terms = 0;
  for (Step step{0, 0, 0}; !step.ended(walk); step.next_tap(walk)) {
    const bool inside = reach.inside(walk, step);
    if (F::kSlope && !inside) continue;  // nothing, not zero times a slope that may be NaN
    const S* pixel = reach.image + reach.template at<N>(walk, step);
    const N tap = static_cast<N>(step.tap_row) * walk.tap_columns + step.tap_column;
    const T* filter = lane + tap * walk.channels * kPanel;
#pragma unroll 1
    for (int channel = 0; channel < walk.channels; ++channel) {
      const T value = inside ? static_cast<T>(to_number(*pixel)) : T(0);
      sum += F::term(value, *filter, input);
      pixel += walk.source.channel;
      filter += kPanel;
      if (++terms == kBlockSteps) {
        total += sum;
        sum = 0;
        terms = 0;
      }
    }
  }
  return total + sum;
}

// Makes outputs of the sums at one point, those of the channels from `channel` on: one, or four of a tile, which take
// the same branches. `at(l)` is the offset of an output, and `there(l)` whether there is one.
template <typename T, int N, typename At, typename There>
__device__ void finish(const Epilogue<T>& epilogue, int channel, At at, There there, T (&values)[N]) {
  if (!epilogue.scale) return;
#pragma unroll
  for (int l = 0; l < N; ++l) {
    if (there(l)) values[l] = values[l] * epilogue.scale[channel + l] + epilogue.shift[channel + l];
  }
  if (epilogue.addend) {
#pragma unroll
    for (int l = 0; l < N; ++l) {
      if (there(l)) values[l] += epilogue.addend[at(l)];
    }
  }
  if (epilogue.relu) {
#pragma unroll
    for (int l = 0; l < N; ++l) values[l] = values[l] < T(0) ? T(0) : values[l];
  }
}

// Calls `compute(point, channel)` for all outputs, one thread an output. `channels_first`: whether channels are the
// fastest, or points: those whose outputs lie side by side.
template <typename N, typename F>
__device__ void for_outputs(const Walk& walk, bool channels_first, F compute) {
  const N outputs = static_cast<N>(walk.groups) * walk.outputs, points = static_cast<N>(walk.points);
  const N total = points * outputs, fastest = channels_first ? outputs : points;
  for (N i = static_cast<N>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<N>(gridDim.x) * blockDim.x) {
    const N slower = i / fastest, faster = i - slower * fastest;
    compute(find_point(walk, channels_first ? slower : faster), static_cast<int>(channels_first ? faster : slower));
  }
}

template <typename N, typename F, typename T, typename S, typename In, typename Out>
__device__ void compute_directly(const Walk& walk, const S* source, const T* filters, const In* input,
                                 const Epilogue<T>& epilogue, Out* output, bool channels_first) {
  for_outputs<N>(walk, channels_first, [&](const Point& p, int channel) {
    const auto reach = Reach<S>::from(walk, source, p, channel / walk.outputs);
    T x = 0;
    if (F::kSlope) {
      const N at = offset_at<N>(walk, p, walk.input) + static_cast<N>(channel) * static_cast<N>(walk.input.channel);
      x = static_cast<T>(to_number(input[at]));
    }
    const T sum = direct_sum<F, N, T>(walk, reach, filters, channel, x);
    const N at = offset_at<N>(walk, p, walk.output) + static_cast<N>(channel) * static_cast<N>(walk.output.channel);
    T value[1] = {F::kSlope ? sum : -sum};
    finish(epilogue, channel, [&](int) { return at; }, [](int) { return true; }, value);
    from_number(value[0], output[at]);
  });
}

// The plain kernel. Numbers of 32 bits take a fraction of the instructions that those of 64 bits do.
template <typename F, typename T, typename S, typename In, typename Out>
__global__ void direct(Walk walk, const S* source, const T* filters, const In* input, Epilogue<T> epilogue, Out* output,
                       bool channels_first) {
  if (walk.small) {
    compute_directly<uint32_t, F>(walk, source, filters, input, epilogue, output, channels_first);
  } else {
    compute_directly<int64_t, F>(walk, source, filters, input, epilogue, output, channels_first);
  }
}

}  // namespace adderzoo::cuda
