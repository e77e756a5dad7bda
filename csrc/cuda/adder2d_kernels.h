// The kernels. They know neither PyTorch nor the host: what includes them has included <cuda_runtime.h>, or a shim that
// runs them on a CPU.
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
    return valid && static_cast<unsigned>(row + step.tap_row * w.tap_row_step) < static_cast<unsigned>(w.source_height) &&
           static_cast<unsigned>(column + step.tap_column * w.tap_column_step) < static_cast<unsigned>(w.source_width);
  }
  __device__ int64_t at(const Walk& w, const Step& step) const {
    return offset + step.tap_row * w.tap_row_step * w.source.row + step.tap_column * w.tap_column_step * w.source.column +
           step.channel * w.source.channel;
  }
};

// -------------------------------------------------------------------------------------------------------- functions

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
  const T* const panel = filters + (output / kLanes) * (static_cast<int64_t>(w.filter_taps) * w.channels * kLanes) +
                         output % kLanes;
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

// ------------------------------------------------------------------------------------------------------------ tiles

// Points and filters of a block of threads, and those of a thread: two (or one) times four of each, far apart, so that
// the threads of a warp read shared memory side by side. `STEPS` are fetched at once.
template <int POINTS, int FILTERS, int THREAD_FILTERS, int STEPS>
struct Tile {
  static constexpr int kPoints = POINTS, kFilters = FILTERS, kSteps = STEPS;
  static constexpr int kThreadPoints = 8, kThreadFilters = THREAD_FILTERS;
  static constexpr int kColumns = kFilters / kThreadFilters;  // of threads
  static constexpr int kThreads = kColumns * (kPoints / kThreadPoints);
  // A row of points in shared memory: two rows four apart lie half of the banks apart, for what writes four channels.
  static constexpr int kPitch = kPoints + 4;
  static_assert(kThreads % kPoints == 0 || kPoints % kThreads == 0);

  __device__ static int thread_point(int i) {
    return (threadIdx.x / kColumns) * 4 + (i / 4) * (kPoints / 2) + i % 4;
  }
  __device__ static int thread_filter(int i) {
    constexpr int kApart = kFilters * 4 / kThreadFilters;
    return (threadIdx.x % kColumns) * 4 + (i / 4) * kApart + i % 4;
  }
};

template <typename T>
struct alignas(16) Shared {
  float points[2][T::kSteps][T::kPitch];
  float filters[2][T::kSteps][T::kFilters];
  float sums[T::kPoints];
};

// Brings the source and the filters of some steps into shared memory, by way of registers, so that the next ones are
// under way while a block computes. VECTOR: the source's channels lie side by side and are fetched by fours; else
// neighbouring threads fetch neighbouring points.
template <typename T, typename S, bool VECTOR>
struct Fetch {
  static constexpr int kValues = T::kPoints * T::kSteps / T::kThreads;
  static constexpr int kQuads = VECTOR ? kValues / 4 : 1;  // points of this thread
  static constexpr int kRowsApart = T::kThreads / T::kPoints;
  static constexpr int kFilterThreads = T::kFilters / 4;  // of one step
  static constexpr int kFilterQuads = (T::kSteps * kFilterThreads + T::kThreads - 1) / T::kThreads;
  static_assert(!VECTOR || kValues % 4 == 0);
  static_assert(VECTOR || T::kThreads % T::kPoints == 0);

  const Walk& w;
  const S* source;
  const float* filters;
  int64_t panel;  // elements of one
  int filter0, last_filter;
  bool aligned;
  Reach reach[kQuads];
  Step step, filter_step[kFilterQuads];
  float values[kValues], quads[kFilterQuads][4];

  static __device__ int point(int quad) {
    return VECTOR ? threadIdx.x / (T::kSteps / 4) + quad * (T::kThreads / (T::kSteps / 4)) : threadIdx.x % T::kPoints;
  }

  __device__ Fetch(const Walk& w, const S* source, const float* filters, int64_t point0, int group, int filter0)
      : w(w),
        source(source),
        filters(filters),
        panel(static_cast<int64_t>(w.filter_taps) * w.channels * kLanes),
        filter0(filter0),
        last_filter((w.groups * w.outputs + kLanes - 1) / kLanes * kLanes - 4),
        aligned(filter0 % 4 == 0),
        step{0, 0, 0} {
    for (int i = 0; i < kQuads; ++i) reach[i] = Reach::of(w, point0 + point(i), group);
    step.advance(w, VECTOR ? threadIdx.x % (T::kSteps / 4) * 4 : threadIdx.x / T::kPoints);
    for (int i = 0; i < kFilterQuads; ++i) {
      filter_step[i] = {0, 0, 0};
      filter_step[i].advance(w, filter_row(i));
    }
  }
  static __device__ int filter_row(int i) { return (threadIdx.x + i * T::kThreads) / kFilterThreads; }
  static __device__ int filter_column() { return threadIdx.x % kFilterThreads * 4; }

  // Fetches some steps, and goes on to the next.
  __device__ void load() {
    if constexpr (VECTOR) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (!step.ended(w) && reach[i].inside(w, step)) {
          load_four(source + reach[i].at(w, step), values + 4 * i);
        } else {
          for (int j = 0; j < 4; ++j) values[4 * i + j] = 0.0f;
        }
      }
      step.advance(w, T::kSteps);
    } else {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const bool inside = !step.ended(w) && reach[0].inside(w, step);
        values[i] = inside ? to_number(source[reach[0].at(w, step)]) : 0.0f;
        step.advance(w, kRowsApart);
      }
    }
#pragma unroll
    for (int i = 0; i < kFilterQuads; ++i) {
      const int filter = filter0 + filter_column();
      const bool there = filter_row(i) < T::kSteps && !filter_step[i].ended(w);
      const int64_t row = there ? filter_step[i].filter_row(w) * kLanes : 0;
      for (int j = 0; j < 4; ++j) quads[i][j] = 0.0f;
      if (there && aligned && filter <= last_filter) {
        load_four(filters + filter / kLanes * panel + row + filter % kLanes, quads[i]);
      } else if (there && !aligned) {
        for (int j = 0; j < 4; ++j) {
          const int f = filter + j;
          if (f < last_filter + 4) quads[i][j] = filters[f / kLanes * panel + row + f % kLanes];
        }
      }
      filter_step[i].advance(w, T::kSteps);
    }
  }

  // Writes what was fetched, filters times `scale`.
  __device__ void store(Shared<T>& shared, int stage, float scale) {
    if constexpr (VECTOR) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        shared.points[stage][threadIdx.x % (T::kSteps / 4) * 4 + i % 4][point(i / 4)] = values[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        shared.points[stage][threadIdx.x / T::kPoints + i * kRowsApart][point(0)] = values[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kFilterQuads; ++i) {
      if (filter_row(i) >= T::kSteps) continue;
      float* const quad = &shared.filters[stage][filter_row(i)][filter_column()];
      store_four(quad, quads[i][0] * scale, quads[i][1] * scale, quads[i][2] * scale, quads[i][3] * scale);
    }
  }

  // `zero` plus zero times the filters that were fetched last: zero, if they are finite.
  __device__ float add_zeros(float zero) const {
#pragma unroll
    for (int i = 0; i < kFilterQuads; ++i) {
      for (int j = 0; j < 4; ++j) zero = multiply_add(quads[i][j], 0.0f, zero);
    }
    return zero;
  }
};

template <typename T>
__device__ int64_t chunks_of(const Walk& w) {
  return (static_cast<int64_t>(w.tap_rows) * w.tap_columns * w.channels + T::kSteps - 1) / T::kSteps;
}

template <typename T>
__device__ void add_up(float (&totals)[T::kThreadPoints][T::kThreadFilters],
                       float (&sums)[T::kThreadPoints][T::kThreadFilters]) {
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) {
      totals[i][j] += sums[i][j];
      sums[i][j] = 0.0f;
    }
  }
}

// Forward: two additions an element, |.| and - being free on operands.
template <typename T, typename S, bool VECTOR, typename Out>
__global__ void __launch_bounds__(T::kThreads) distances(Walk w, const S* source, const float* filters, Affine affine,
                                                         Out* output) {
  __shared__ Shared<T> shared;
  const int group = blockIdx.z, filter0 = blockIdx.y * T::kFilters;
  const int64_t point0 = static_cast<int64_t>(blockIdx.x) * T::kPoints;
  Fetch<T, S, VECTOR> fetch(w, source, filters, point0, group, group * w.outputs + filter0);
  float sums[T::kThreadPoints][T::kThreadFilters] = {}, totals[T::kThreadPoints][T::kThreadFilters] = {};

  const int64_t chunks = chunks_of<T>(w);
  fetch.load();
  fetch.store(shared, 0, 1.0f);
  __syncthreads();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    if (chunk + 1 < chunks) fetch.load();
#pragma unroll
    for (int k = 0; k < T::kSteps; ++k) {
      float points[T::kThreadPoints], fs[T::kThreadFilters];
#pragma unroll
      for (int i = 0; i < T::kThreadPoints; i += 4) load_four(&shared.points[stage][k][T::thread_point(i)], points + i);
#pragma unroll
      for (int j = 0; j < T::kThreadFilters; j += 4) load_four(&shared.filters[stage][k][T::thread_filter(j)], fs + j);
#pragma unroll
      for (int i = 0; i < T::kThreadPoints; ++i) {
#pragma unroll
        for (int j = 0; j < T::kThreadFilters; ++j) sums[i][j] += magnitude(points[i] - fs[j]);
      }
    }
    if ((chunk + 1) % (kBlock / T::kSteps) == 0) add_up<T>(totals, sums);
    if (chunk + 1 < chunks) fetch.store(shared, 1 - stage, 1.0f);
    __syncthreads();
  }
  add_up<T>(totals, sums);
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const int64_t point = point0 + T::thread_point(i);
    if (point >= w.points) continue;
    const int64_t offset = offset_at(w, find_point(w, point), w.output);
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) {
      const int filter = filter0 + T::thread_filter(j), channel = group * w.outputs + filter;
      if (filter < w.outputs) write(affine, -totals[i][j], channel, offset + channel * w.output.channel, output);
    }
  }
}

// Input gradient: clip(w - x, -1, 1) is 2 clip((w - x + 1) / 2, 0, 1) - 1, so with filters w / 2 and inputs
// (1 - x) / 2 an element is one addition that saturates, which costs nothing, and one multiply-add; the sum of g is
// taken off at the end. Where anything is not finite, which saturation would hide, the sums are taken directly.
template <typename T, typename S, bool VECTOR, typename In, typename Out>
__global__ void __launch_bounds__(T::kThreads) slopes(Walk w, const S* source, const float* filters, const In* input,
                                                      Out* output) {
  __shared__ Shared<T> shared;
  const int group = blockIdx.z, filter0 = blockIdx.y * T::kFilters;
  const int64_t point0 = static_cast<int64_t>(blockIdx.x) * T::kPoints;
  Fetch<T, S, VECTOR> fetch(w, source, filters, point0, group, group * w.outputs + filter0);
  float inputs[T::kThreadPoints][T::kThreadFilters];
  float zero = 0.0f;  // as long as everything is finite
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const int64_t point = point0 + T::thread_point(i);
    const int64_t offset = offset_at(w, find_point(w, point < w.points ? point : 0), w.input);
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) {
      const int filter = filter0 + T::thread_filter(j), channel = group * w.outputs + filter;
      const bool there = point < w.points && filter < w.outputs;
      const float x = there ? to_number(input[offset + channel * w.input.channel]) : 0.0f;
      zero = multiply_add(x, 0.0f, zero);
      inputs[i][j] = 0.5f - 0.5f * x;
    }
  }
  float sums[T::kThreadPoints][T::kThreadFilters] = {}, totals[T::kThreadPoints][T::kThreadFilters] = {};
  float sum = 0.0f, total = 0.0f;  // of g, for the first threads' points

  const int64_t chunks = chunks_of<T>(w);
  fetch.load();
  zero = fetch.add_zeros(zero);
  fetch.store(shared, 0, 0.5f);
  __syncthreads();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    if (chunk + 1 < chunks) {
      fetch.load();
      zero = fetch.add_zeros(zero);
    }
    if (threadIdx.x < T::kPoints) {
#pragma unroll
      for (int k = 0; k < T::kSteps; ++k) sum += shared.points[stage][k][threadIdx.x];
    }
#pragma unroll
    for (int k = 0; k < T::kSteps; ++k) {
      float points[T::kThreadPoints], fs[T::kThreadFilters];
#pragma unroll
      for (int i = 0; i < T::kThreadPoints; i += 4) load_four(&shared.points[stage][k][T::thread_point(i)], points + i);
#pragma unroll
      for (int j = 0; j < T::kThreadFilters; j += 4) load_four(&shared.filters[stage][k][T::thread_filter(j)], fs + j);
#pragma unroll
      for (int i = 0; i < T::kThreadPoints; ++i) {
#pragma unroll
        for (int j = 0; j < T::kThreadFilters; ++j) {
          sums[i][j] = multiply_add(points[i], saturating_add(fs[j], inputs[i][j]), sums[i][j]);
        }
      }
    }
    if ((chunk + 1) % (kBlock / T::kSteps) == 0) {
      add_up<T>(totals, sums);
      total += sum;
      sum = 0.0f;
    }
    if (chunk + 1 < chunks) fetch.store(shared, 1 - stage, 0.5f);
    __syncthreads();
  }
  add_up<T>(totals, sums);
  total += sum;
  if (threadIdx.x < T::kPoints) shared.sums[threadIdx.x] = total;
  const bool direct = __syncthreads_or(!(zero == 0.0f && total - total == 0.0f));
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const int64_t point = point0 + T::thread_point(i);
    if (point >= w.points) continue;
    const Point p = find_point(w, point);
    const int64_t in = offset_at(w, p, w.input), out = offset_at(w, p, w.output);
    const Reach reach = Reach::of(w, point, group);
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) {
      const int filter = filter0 + T::thread_filter(j), channel = group * w.outputs + filter;
      if (filter >= w.outputs) continue;
      float y = 2.0f * totals[i][j] - shared.sums[T::thread_point(i)];
      if (direct) {
        const float x = to_number(input[in + channel * w.input.channel]);
        y = direct_sum<ClippedSlope, float>(w, reach, source, filters, channel, x);
      }
      from_number(y, output[out + channel * w.output.channel]);
    }
  }
}

// ----------------------------------------------------------------------------------------------------------- filters

// Packs filters, as packing.py does, or for the input gradient with input channels as lanes. A lane is an output, a row
// of lanes a tap and a source channel.
struct Packing {
  int taps, channels, outputs, panels;  // channels of a group, outputs of all groups
  int group_outputs;
  int64_t group_stride, output_stride, channel_stride;  // in elements of the filters; taps are adjacent
};

template <typename T, typename W>
__global__ void pack(Packing p, const W* filters, T* packed) {
  const int64_t total = static_cast<int64_t>(p.panels) * p.taps * p.channels * kLanes;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = i / kLanes;
    const int channel = static_cast<int>(row % p.channels), tap = static_cast<int>(row / p.channels % p.taps);
    const int output = static_cast<int>(row / p.channels / p.taps * kLanes + i % kLanes);
    const int64_t at = output / p.group_outputs * p.group_stride + output % p.group_outputs * p.output_stride +
                       channel * p.channel_stride + tap;
    packed[i] = output < p.outputs ? static_cast<T>(to_number(filters[at])) : T(0);
  }
}

// The gradient of the filters from signs (eq. 4): a block of threads sums up one element over all points, in an order
// that does not depend on the device.
constexpr int kSignThreads = 128;

template <typename T, typename S, typename W, typename Out>
__global__ void filter_signs(Walk w, const S* source, const W* filters, Strides grad_strides, const T* grad, Out* output) {
  __shared__ T partial[kSignThreads];
  const int64_t elements = static_cast<int64_t>(w.groups) * w.outputs * w.channels * w.filter_taps;
  for (int64_t e = blockIdx.x; e < elements; e += gridDim.x) {  // dense OIHW
    const int tap = static_cast<int>(e % w.filter_taps), channel = static_cast<int>(e / w.filter_taps % w.channels);
    const int output_channel = static_cast<int>(e / w.filter_taps / w.channels);
    const Step step{channel, tap / w.tap_columns, tap % w.tap_columns};
    const T f = static_cast<T>(to_number(filters[e]));
    T total = 0, sum = 0;
    int terms = 0;
    for (int64_t point = threadIdx.x; point < w.points; point += kSignThreads) {
      const Reach reach = Reach::of(w, point, output_channel / w.outputs);
      const Point p = find_point(w, point);
      const T x = reach.inside(w, step) ? static_cast<T>(to_number(source[reach.at(w, step)])) : T(0);
      const T g = grad[p.image * grad_strides.image + p.row * grad_strides.row + p.column * grad_strides.column +
                       output_channel * grad_strides.channel];
      sum += SignSlope::term(g, x, f);
      if (++terms == kBlock) {
        total += sum;
        sum = 0;
        terms = 0;
      }
    }
    partial[threadIdx.x] = total + sum;
    __syncthreads();
    for (int half = kSignThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) from_number(partial[0], output[e]);
    __syncthreads();
  }
}

// ------------------------------------------------------------------------------------------------------------- bytes

// What a sum of bytes becomes.
__device__ inline void write(const ByteAffine& a, uint32_t sum, int channel, int64_t offset) {
  float y = add(multiply(static_cast<float>(static_cast<int32_t>(sum)), a.scale[channel]), a.shift[channel]);
  if (a.byte_addend) y = add(y, multiply(static_cast<float>(a.byte_addend[offset]), a.addend_scale));
  if (a.float_addend) y = add(y, multiply(a.float_addend[offset], a.addend_scale));
  if (a.floats) {
    a.floats[offset] = y < a.lowest ? a.lowest : y;
  } else {
    y = y > a.lowest ? y : a.lowest;  // NaN becomes the lowest
    y = y < a.highest ? y : a.highest;
    a.bytes[offset] = static_cast<uint8_t>(static_cast<int>(round_to_even(y)) + a.zero_point);
  }
}

// Packed filters of bytes: (panels, taps, rows, lanes, `lane_bytes` successive channels).
__device__ inline uint8_t filter_byte(const Walk& w, const uint8_t* filters, int lane_bytes, int output, const Step& s) {
  const int rows = (w.channels + lane_bytes - 1) / lane_bytes;
  const int tap = s.tap_row * w.tap_columns + s.tap_column;
  const int64_t row = (static_cast<int64_t>(output / kLanes) * w.filter_taps + tap) * rows + s.channel / lane_bytes;
  return filters[(row * kLanes + output % kLanes) * lane_bytes + s.channel % lane_bytes];
}

__global__ void direct_bytes(Walk w, const uint8_t* source, const uint8_t* filters, int lane_bytes, ByteAffine affine) {
  const int64_t outputs = static_cast<int64_t>(w.groups) * w.outputs, total = w.points * outputs;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int channel = static_cast<int>(i % outputs);
    const Reach reach = Reach::of(w, i / outputs, channel / w.outputs);
    uint32_t sum = 0;
    for (Step step{0, 0, 0}; !step.ended(w); step.advance(w, 1)) {
      const int x = reach.inside(w, step) ? source[reach.at(w, step)] : affine.padding;
      const int f = filter_byte(w, filters, lane_bytes, channel, step);
      sum += x > f ? x - f : f - x;
    }
    write(affine, sum, channel, offset_at(w, find_point(w, i / outputs), w.output) + channel * w.output.channel);
  }
}

// Four successive channels in a word; those behind the last are zero, as they are in the filters.
template <typename T>
struct alignas(16) SharedWords {
  uint32_t points[2][T::kSteps][T::kPitch];
  uint32_t filters[2][T::kSteps][T::kFilters];
};

// What brings bytes into shared memory. Channels of the source in words, a tap having an even number of them, as the
// filters have; filters with eight bytes a lane. VECTOR: four words of a pixel, and two lanes, are fetched at once.
template <typename T, bool VECTOR>
struct FetchBytes {
  static constexpr int kWords = T::kPoints * T::kSteps / T::kThreads;
  static constexpr int kFilterWords = T::kFilters * T::kSteps / T::kThreads;
  static constexpr int kTogether = VECTOR ? 4 : 1;
  static constexpr int kThreadsOfPoint = T::kSteps / kTogether;
  static constexpr int kReaches = kWords / kTogether;
  static constexpr int kThreadsOfRow = T::kFilters * 2 / kTogether;  // a row of lanes: two words each
  static_assert(T::kThreads % kThreadsOfPoint == 0 && T::kThreads % kThreadsOfRow == 0);
  static_assert(kWords % kTogether == 0 && kFilterWords % kTogether == 0);

  const Walk& w;
  const uint8_t* source;
  const uint8_t* filters;
  int padding, first_filter, panels, words_of_tap;
  int64_t words;
  Reach reach[kReaches];
  Step step;
  uint32_t values[kWords], filter_words[kFilterWords];

  static __device__ int point(int i) {
    return threadIdx.x / kThreadsOfPoint + i * (T::kThreads / kThreadsOfPoint);
  }
  static __device__ int word() { return threadIdx.x % kThreadsOfPoint * kTogether; }
  static __device__ int filter_row(int i) { return threadIdx.x / kThreadsOfRow + i * (T::kThreads / kThreadsOfRow); }
  static __device__ int filter_word() { return threadIdx.x % kThreadsOfRow * kTogether; }

  __device__ FetchBytes(const Walk& w, const uint8_t* source, const uint8_t* filters, int padding, int64_t point0,
                        int group, int first_filter)
      : w(w), source(source), filters(filters), padding(padding), first_filter(first_filter) {
    panels = static_cast<int>((static_cast<int64_t>(w.groups) * w.outputs + kLanes - 1) / kLanes);
    words_of_tap = (w.channels + 7) / 8 * 2;
    words = static_cast<int64_t>(w.tap_rows) * w.tap_columns * words_of_tap;
#pragma unroll
    for (int i = 0; i < kReaches; ++i) reach[i] = Reach::of(w, point0 + point(i), group);
    step = {0, 0, 0};
    if (VECTOR) step.advance(w, word() * 4);
  }

  // The words from `word0` on; chunk by chunk.
  __device__ void load(int64_t word0) {
    if constexpr (VECTOR) {
#pragma unroll
      for (int i = 0; i < kReaches; ++i) {
        if (!step.ended(w) && reach[i].inside(w, step)) {
          load_four(reinterpret_cast<const uint32_t*>(source + reach[i].at(w, step)), values + 4 * i);
        } else {
          const uint32_t word = step.ended(w) ? 0 : 0x01010101u * static_cast<uint32_t>(padding);
          for (int j = 0; j < 4; ++j) values[4 * i + j] = word;
        }
      }
      step.advance(w, T::kSteps * 4);
    } else {
      const int64_t at = word0 + word();
      const int tap = static_cast<int>(at / words_of_tap), channel = static_cast<int>(at % words_of_tap) * 4;
      const Step place{channel, tap / w.tap_columns, tap % w.tap_columns};
      const int there = w.channels - channel < 4 ? w.channels - channel : 4;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        values[i] = 0;
        if (at >= words || there <= 0) continue;
        const bool inside = reach[i].inside(w, place);
        for (int j = 0; j < there; ++j) {
          const uint32_t byte = inside ? source[reach[i].at(w, place) + j] : static_cast<uint32_t>(padding);
          values[i] |= byte << (8 * j);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kFilterWords / kTogether; ++i) {
      const int64_t row = word0 / 2 + filter_row(i);
      const int filter = first_filter + filter_word() / 2;
      const int64_t at = ((filter / kLanes * (words / 2) + row) * kLanes + filter % kLanes) * 8 + filter_word() % 2 * 4;
      const bool valid = 2 * row < words && filter / kLanes < panels;
      if constexpr (VECTOR) {
        for (int j = 0; j < 4; ++j) filter_words[4 * i + j] = 0;
        if (valid) load_four(reinterpret_cast<const uint32_t*>(filters + at), filter_words + 4 * i);
      } else {
        filter_words[i] = valid ? load_word(filters + at) : 0;
      }
    }
  }

  __device__ void store(SharedWords<T>& shared, int stage) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      shared.points[stage][word() + i % kTogether][point(i / kTogether)] = values[i];
    }
#pragma unroll
    for (int i = 0; i < kFilterWords; ++i) {
      const int in_row = filter_word() + i % kTogether;
      shared.filters[stage][2 * filter_row(i / kTogether) + in_row % 2][in_row / 2] = filter_words[i];
    }
  }
};

// One instruction takes four differences and adds them up.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(T::kThreads) byte_distances(Walk w, const uint8_t* source, const uint8_t* filters,
                                                              ByteAffine affine) {
  __shared__ SharedWords<T> shared;
  const int group = blockIdx.z, filter0 = blockIdx.y * T::kFilters;
  const int64_t point0 = static_cast<int64_t>(blockIdx.x) * T::kPoints;
  FetchBytes<T, VECTOR> fetch(w, source, filters, affine.padding, point0, group, group * w.outputs + filter0);

  uint32_t sums[T::kThreadPoints][T::kThreadFilters] = {};
  const int64_t chunks = (fetch.words + T::kSteps - 1) / T::kSteps;
  fetch.load(0);
  fetch.store(shared, 0);
  __syncthreads();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    if (chunk + 1 < chunks) fetch.load((chunk + 1) * T::kSteps);
#pragma unroll
    for (int k = 0; k < T::kSteps; ++k) {
      uint32_t points[T::kThreadPoints], fs[T::kThreadFilters];
#pragma unroll
      for (int i = 0; i < T::kThreadPoints; i += 4) load_four(&shared.points[stage][k][T::thread_point(i)], points + i);
#pragma unroll
      for (int j = 0; j < T::kThreadFilters; j += 4) load_four(&shared.filters[stage][k][T::thread_filter(j)], fs + j);
#pragma unroll
      for (int i = 0; i < T::kThreadPoints; ++i) {
#pragma unroll
        for (int j = 0; j < T::kThreadFilters; ++j) sums[i][j] = add_byte_distances(points[i], fs[j], sums[i][j]);
      }
    }
    if (chunk + 1 < chunks) fetch.store(shared, 1 - stage);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const int64_t point = point0 + T::thread_point(i);
    if (point >= w.points) continue;
    const int64_t offset = offset_at(w, find_point(w, point), w.output);
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) {
      const int filter = filter0 + T::thread_filter(j), channel = group * w.outputs + filter;
      if (filter < w.outputs) write(affine, sums[i][j], channel, offset + channel * w.output.channel);
    }
  }
}

}  // namespace adderzoo::cuda
