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
  // Blocks for which a multiprocessor shall have registers, 128 for each of the 256 threads of the widest tile.
  static constexpr int kBlocks = kThreads == 256 ? 2 : 1;
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
  // What blocks of sums add up to: four of every thread, side by side. A thread needs them once in kBlockSteps steps,
  // and its registers all the time.
  float totals[T::kThreadPoints * T::kThreadFilters / 4][T::kThreads][4];
  float sums[T::kPoints];  // of the source
};

// The first filter of this block, of its group's. It is a multiple of four among those of all groups, which are fetched
// by fours: before a group's first filters there may be the last ones of another, of which nothing is written.
template <typename T>
__device__ int first_filter(const Walk& walk) {
  return static_cast<int>(blockIdx.y) * T::kFilters - static_cast<int>(blockIdx.z) * walk.outputs % 4;
}

// Brings the source and the filters of some steps into shared memory, by way of registers, so that the next ones are
// under way while a block computes. VECTOR: the source's channels lie side by side and are fetched by fours; else
// neighboring threads fetch neighboring points.
template <typename T, typename S, bool VECTOR>
struct Fetch {
  static constexpr int kValues = T::kPoints * T::kSteps / T::kThreads;
  static constexpr int kQuads = VECTOR ? kValues / 4 : 1;  // points of this thread
  static constexpr int kRowsApart = T::kThreads / T::kPoints;
  static constexpr int kFilterThreads = T::kFilters / 4;  // of one step
  static constexpr int kFilterRowsApart = T::kThreads / kFilterThreads;
  static constexpr int kFilterQuads = divide_up(T::kSteps, kFilterRowsApart);
  static_assert(!VECTOR || kValues % 4 == 0);
  static_assert(VECTOR || T::kThreads % T::kPoints == 0);

  const Walk& walk;
  const float* filters;
  uint32_t lanes;  // four filters' in the row that this thread fetches next
  int rows;        // how many there are
  Reach<S> reach[kQuads];
  Step step;
  float values[kValues], quads[kFilterQuads][4];

  static __device__ int point(int quad) {
    return VECTOR ? threadIdx.x / (T::kSteps / 4) + quad * (T::kThreads / (T::kSteps / 4)) : threadIdx.x % T::kPoints;
  }

  // `filter0`: the first filter of the block, of all groups'.
  __device__ Fetch(const Walk& walk, const S* source, const float* filters, uint32_t point0, int group, int filter0)
      : walk(walk), filters(filters), step{0, 0, 0} {
    rows = walk.tap_rows * walk.tap_columns * walk.channels;
    // Behind the last ones any filters do, of which nothing is written.
    const int last = divide_up(walk.groups * walk.outputs, kPanel) * kPanel - 4;
    const int filter = filter0 + filter_column() < last ? filter0 + filter_column() : last;
    lanes = (static_cast<uint32_t>(filter / kPanel) * rows + filter_row(0)) * kPanel + filter % kPanel;
    for (int i = 0; i < kQuads; ++i) reach[i] = Reach<S>::of(walk, source, point0 + point(i), group);
    step.advance(walk, VECTOR ? threadIdx.x % (T::kSteps / 4) * 4 : threadIdx.x / T::kPoints);
  }
  static __device__ int filter_row(int i) { return threadIdx.x / kFilterThreads + i * kFilterRowsApart; }
  static __device__ int filter_column() { return threadIdx.x % kFilterThreads * 4; }
  // Whether the row is one of the steps: there may be more threads.
  static __device__ bool fetches(int i) {
    return kFilterQuads * kFilterRowsApart <= T::kSteps || filter_row(i) < T::kSteps;
  }

  // Fetches the steps from number `step0` on, one chunk after another.
  __device__ void load(int step0) {
    if constexpr (VECTOR) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (!step.ended(walk) && reach[i].inside(walk, step)) {
          load_four(reach[i].image + reach[i].template at<uint32_t>(walk, step), values + 4 * i);
        } else {
          for (int j = 0; j < 4; ++j) values[4 * i + j] = 0.0f;
        }
      }
      step.advance(walk, T::kSteps);
    } else if (walk.channels % T::kSteps == 0) {  // of one tap
      const bool inside = !step.ended(walk) && reach[0].inside(walk, step);
      const uint32_t at = reach[0].template at<uint32_t>(walk, step);
      const uint32_t apart = kRowsApart * static_cast<uint32_t>(walk.source.channel);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        values[i] = inside ? to_number(reach[0].image[at + i * apart]) : 0.0f;
      }
      step.advance(walk, T::kSteps);
    } else {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const bool inside = !step.ended(walk) && reach[0].inside(walk, step);
        values[i] = inside ? to_number(reach[0].image[reach[0].template at<uint32_t>(walk, step)]) : 0.0f;
        step.advance(walk, kRowsApart);
      }
    }
#pragma unroll
    for (int i = 0; i < kFilterQuads; ++i) {
      if (fetches(i) && step0 + filter_row(i) < rows) {
        load_four(filters + (lanes + i * kFilterRowsApart * kPanel), quads[i]);
      } else {
        for (int j = 0; j < 4; ++j) quads[i][j] = 0.0f;
      }
    }
    lanes += T::kSteps * kPanel;
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
      if (!fetches(i)) continue;
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

// Writes what `finish` makes of the values of a tile, four at once where four channels of a pixel or four points of a
// channel lie side by side. New tensors begin where four numbers can be stored, and so do all such fours.
template <typename T, typename Value, typename Finish, typename Store, typename StoreFour>
__device__ void write_tile(const Walk& walk, uint32_t point0, int filter0, Value value, Finish finish, Store store,
                           StoreFour store_four) {
  const Strides& to = walk.output;
  const bool channels_together = to.channel == 1 && walk.outputs % 4 == 0;
  const bool points_together = to.column == 1 && walk.out_step_w == 1 && walk.out_step_h == 1 &&
                               to.row == walk.columns && walk.rows * walk.columns % 4 == 0;
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; i += 4) {
    const uint32_t point = point0 + T::thread_point(i);
    if (point >= walk.points) continue;
    Point p = find_point(walk, point);
    int64_t offsets[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      offsets[k] = offset_at<int64_t>(walk, p, to);
      advance(walk, p);
    }
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; j += 4) {
      const int filter = filter0 + T::thread_filter(j);
      const int channel = static_cast<int>(blockIdx.z) * walk.outputs + filter;
      float values[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto there = [&](int l) {
          return point + k < walk.points && filter + l >= 0 && filter + l < walk.outputs;
        };
        const auto at = [&](int l) { return offsets[k] + (channel + l) * to.channel; };
#pragma unroll
        for (int l = 0; l < 4; ++l) values[k][l] = value(i + k, j + l);
        finish(channel, at, there, values[k]);
        if (channels_together) {
          if (there(0)) store_four(at(0), values[k][0], values[k][1], values[k][2], values[k][3]);
        } else if (!points_together) {
#pragma unroll
          for (int l = 0; l < 4; ++l) {
            if (there(l)) store(at(l), values[k][l]);
          }
        }
      }
      if (channels_together || !points_together) continue;
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        if (filter + l < 0 || filter + l >= walk.outputs) continue;
        store_four(offsets[0] + (channel + l) * to.channel, values[0][l], values[1][l], values[2][l], values[3][l]);
      }
    }
  }
}

template <typename T>
__device__ int chunks_of(const Walk& walk) {
  return divide_up(walk.tap_rows * walk.tap_columns * walk.channels, T::kSteps);
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

// Adds the sums to the totals, or the totals to the sums.
template <typename T>
__device__ void add_totals(const Shared<T>& shared, float (&sums)[T::kThreadPoints][T::kThreadFilters]) {
#pragma unroll
  for (int n = 0; n < T::kThreadPoints * T::kThreadFilters; n += 4) {
    float totals[4];
    load_four(shared.totals[n / 4][threadIdx.x], totals);
#pragma unroll
    for (int k = 0; k < 4; ++k) sums[n / T::kThreadFilters][n % T::kThreadFilters + k] += totals[k];
  }
}

// Of sums that go on from zero.
template <typename T>
__device__ void keep_totals(Shared<T>& shared, float (&sums)[T::kThreadPoints][T::kThreadFilters]) {
#pragma unroll
  for (int n = 0; n < T::kThreadPoints * T::kThreadFilters; n += 4) {
    float* const four = &sums[n / T::kThreadFilters][n % T::kThreadFilters];
    store_four(shared.totals[n / 4][threadIdx.x], four[0], four[1], four[2], four[3]);
#pragma unroll
    for (int k = 0; k < 4; ++k) four[k] = 0.0f;
  }
}

}  // namespace adderzoo::cuda
