// Tiles of points and filters in shared memory: what the float kernels have in common.
#pragma once

#include "adder2d_direct.h"

namespace adderzoo::cuda {

// Points and filters of a block of threads, and those of a thread: two (or one) times four of each, far apart, so that
// the threads of a warp read shared memory side by side. `STEPS` are fetched at once.
template <int POINTS, int FILTERS, int THREAD_POINTS, int THREAD_FILTERS, int STEPS>
struct Tile {
  static constexpr int kPoints = POINTS, kFilters = FILTERS, kSteps = STEPS;
  static constexpr int kThreadPoints = THREAD_POINTS, kThreadFilters = THREAD_FILTERS;
  static constexpr int kColumns = kFilters / kThreadFilters;  // of threads
  static constexpr int kThreads = kColumns * (kPoints / kThreadPoints);
  // A row of points in shared memory: two rows four apart lie half of the banks apart, for what writes four channels.
  static constexpr int kPitch = kPoints + 4;
  static_assert(kThreads % kPoints == 0 || kPoints % kThreads == 0);

  // Instructions an element: two, loads of four numbers from shared memory, and some five for a number fetched.
  static constexpr double kInstructions = 2.0 +
                                          (kThreadPoints + kThreadFilters) / (4.0 * kThreadPoints * kThreadFilters) +
                                          5.0 * (kPoints + kFilters) / (kPoints * kFilters);

  __device__ static int thread_point(int i) {
    constexpr int kApart = kPoints * 4 / kThreadPoints;
    return (threadIdx.x / kColumns) * 4 + (i / 4) * kApart + i % 4;
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
// neighboring threads fetch neighboring points.
template <typename T, typename S, bool VECTOR>
struct Fetch {
  static constexpr int kValues = T::kPoints * T::kSteps / T::kThreads;
  static constexpr int kQuads = VECTOR ? kValues / 4 : 1;  // points of this thread
  static constexpr int kRowsApart = T::kThreads / T::kPoints;
  static constexpr int kFilterThreads = T::kFilters / 4;  // of one step
  static constexpr int kFilterQuads = divide_up(T::kSteps * kFilterThreads, T::kThreads);
  static_assert(!VECTOR || kValues % 4 == 0);
  static_assert(VECTOR || T::kThreads % T::kPoints == 0);

  const Walk& walk;
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

  __device__ Fetch(const Walk& walk, const S* source, const float* filters, uint32_t point0, int group, int filter0)
      : walk(walk),
        source(source),
        filters(filters),
        panel(static_cast<int64_t>(walk.filter_taps) * walk.channels * kPanel),
        filter0(filter0),
        last_filter(static_cast<int>(divide_up<int64_t>(walk.groups * walk.outputs, kPanel) * kPanel - 4)),
        aligned(filter0 % 4 == 0),
        step{0, 0, 0} {
    for (int i = 0; i < kQuads; ++i) reach[i] = Reach::of(walk, point0 + point(i), group);
    step.advance(walk, VECTOR ? threadIdx.x % (T::kSteps / 4) * 4 : threadIdx.x / T::kPoints);
    for (int i = 0; i < kFilterQuads; ++i) {
      filter_step[i] = {0, 0, 0};
      filter_step[i].advance(walk, filter_row(i));
    }
  }
  static __device__ int filter_row(int i) { return (threadIdx.x + i * T::kThreads) / kFilterThreads; }
  static __device__ int filter_column() { return threadIdx.x % kFilterThreads * 4; }

  // Fetches some steps, and goes on to the next.
  __device__ void load() {
    if constexpr (VECTOR) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (!step.ended(walk) && reach[i].inside(walk, step)) {
          load_four(source + reach[i].at(walk, step), values + 4 * i);
        } else {
          for (int j = 0; j < 4; ++j) values[4 * i + j] = 0.0f;
        }
      }
      step.advance(walk, T::kSteps);
    } else {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const bool inside = !step.ended(walk) && reach[0].inside(walk, step);
        values[i] = inside ? to_number(source[reach[0].at(walk, step)]) : 0.0f;
        step.advance(walk, kRowsApart);
      }
    }
#pragma unroll
    for (int i = 0; i < kFilterQuads; ++i) {
      const int filter = filter0 + filter_column();
      const bool there = filter_row(i) < T::kSteps && !filter_step[i].ended(walk);
      const int64_t row = there ? filter_step[i].filter_row(walk) * kPanel : 0;
      for (int j = 0; j < 4; ++j) quads[i][j] = 0.0f;
      if (there && aligned && filter <= last_filter) {
        load_four(filters + filter / kPanel * panel + row + filter % kPanel, quads[i]);
      } else if (there && !aligned) {
        for (int j = 0; j < 4; ++j) {
          const int f = filter + j;
          if (f < last_filter + 4) quads[i][j] = filters[f / kPanel * panel + row + f % kPanel];
        }
      }
      filter_step[i].advance(walk, T::kSteps);
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

// The place of a thread's point, for one after another of them: they lie side by side by fours.
template <typename T>
__device__ void next_point(const Walk& walk, uint32_t point, int i, Point& p) {
  if (i % 4 == 0) {
    p = find_point(walk, point);
  } else {
    advance(walk, p);
  }
}

// Writes what `finish` makes of a point's sums, four channels at once where they lie side by side: new tensors begin,
// and so do pixels of four times as many channels, where four numbers can be stored.
template <typename T, typename Finish, typename Store, typename StoreFour>
__device__ void write_by_fours(const Walk& walk, int group, int filter0, int64_t offset, Finish finish, Store store,
                               StoreFour store_four) {
  const bool together = walk.output.channel == 1 && walk.outputs % 4 == 0;
#pragma unroll
  for (int j = 0; j < T::kThreadFilters; j += 4) {
    const int filter = filter0 + T::thread_filter(j), channel = group * walk.outputs + filter;
    const int64_t at = offset + channel * walk.output.channel;
    float values[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (filter + k < walk.outputs) values[k] = finish(j + k, channel + k, at + k * walk.output.channel);
    }
    if (together && filter < walk.outputs) store_four(at, values[0], values[1], values[2], values[3]);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!together && filter + k < walk.outputs) store(at + k * walk.output.channel, values[k]);
    }
  }
}

template <typename T>
__device__ int64_t chunks_of(const Walk& walk) {
  return divide_up<int64_t>(static_cast<int64_t>(walk.tap_rows) * walk.tap_columns * walk.channels, T::kSteps);
}

// One step: the thread's points and filters from shared memory, and what `term` makes of each pair and its sum.
template <typename T, typename Memory, typename Number, typename F>
__device__ void take_step(const Memory& shared, int stage, int k, Number (&sums)[T::kThreadPoints][T::kThreadFilters],
                          F term) {
  Number points[T::kThreadPoints], filters[T::kThreadFilters];
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; i += 4) load_four(&shared.points[stage][k][T::thread_point(i)], points + i);
#pragma unroll
  for (int j = 0; j < T::kThreadFilters; j += 4) load_four(&shared.filters[stage][k][T::thread_filter(j)], filters + j);
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) sums[i][j] = term(sums[i][j], points[i], filters[j], i, j);
  }
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

}  // namespace adderzoo::cuda
