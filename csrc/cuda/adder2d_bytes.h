// The forward pass on bytes.
#pragma once

#include "adder2d_tiles.h"

namespace adderzoo::cuda {

__device__ inline float finish(const ByteOutput& output, uint32_t sum, int channel, int64_t offset) {
  const Epilogue<uint8_t>& e = output.epilogue;
  float y = add(multiply(static_cast<float>(static_cast<int32_t>(sum)), e.scale[channel]), e.shift[channel]);
  if (e.byte_addend) y = add(y, multiply(static_cast<float>(e.byte_addend[offset]), e.addend_scale));
  if (e.float_addend) y = add(y, multiply(e.float_addend[offset], e.addend_scale));
  if (e.float_output) return y < e.lowest ? e.lowest : y;
  y = y > e.lowest ? y : e.lowest;  // NaN becomes the lowest
  return y < e.highest ? y : e.highest;
}

__device__ inline uint32_t to_byte(const ByteOutput& output, float y) {
  return static_cast<uint8_t>(static_cast<int>(round_to_even(y)) + output.epilogue.zero_point);
}

__device__ inline void store(const ByteOutput& output, int64_t offset, float y) {
  if (output.epilogue.float_output) {
    output.epilogue.float_output[offset] = y;
  } else {
    output.bytes[offset] = static_cast<uint8_t>(to_byte(output, y));
  }
}

// Packed filters of bytes: (panels, taps, rows, lanes, `lane_bytes` successive channels).
__device__ inline uint8_t filter_byte(const Walk& walk, const uint8_t* filters, int lane_bytes, int output,
                                      const Step& step) {
  const int rows = divide_up(walk.channels, lane_bytes);
  const int tap = step.tap_row * walk.tap_columns + step.tap_column;
  const int64_t row =
      (static_cast<int64_t>(output / kPanel) * walk.filter_taps + tap) * rows + step.channel / lane_bytes;
  return filters[(row * kPanel + output % kPanel) * lane_bytes + step.channel % lane_bytes];
}

__global__ void direct_bytes(Walk walk, const uint8_t* source, const uint8_t* filters, int lane_bytes,
                             ByteOutput output) {
  const int64_t outputs = static_cast<int64_t>(walk.groups) * walk.outputs, total = walk.points * outputs;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t point = i / outputs;
    const int channel = static_cast<int>(i - point * outputs);
    const Point p = find_point(walk, point);
    const Reach reach = Reach::from(walk, p, true, channel / walk.outputs);
    uint32_t sum = 0;
    for (Step step{0, 0, 0}; !step.ended(walk); step.advance(walk, 1)) {
      const int x = reach.inside(walk, step) ? source[reach.at(walk, step)] : output.padding;
      const int f = filter_byte(walk, filters, lane_bytes, channel, step);
      sum += x > f ? x - f : f - x;
    }
    const int64_t offset = offset_at(walk, p, walk.output) + channel * walk.output.channel;
    store(output, offset, finish(output, sum, channel, offset));
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

  const Walk& walk;
  const uint8_t* source;
  const uint8_t* filters;
  int padding, first_filter, panels, words_of_tap;
  int words;  // of a filter, which has few enough (kLargestByteFilter)
  Reach reach[kReaches];
  Step step;
  uint32_t values[kWords], filter_words[kFilterWords];

  static __device__ int point(int i) { return threadIdx.x / kThreadsOfPoint + i * (T::kThreads / kThreadsOfPoint); }
  static __device__ int word() { return threadIdx.x % kThreadsOfPoint * kTogether; }
  static __device__ int filter_row(int i) { return threadIdx.x / kThreadsOfRow + i * (T::kThreads / kThreadsOfRow); }
  static __device__ int filter_word() { return threadIdx.x % kThreadsOfRow * kTogether; }

  __device__ FetchBytes(const Walk& walk, const uint8_t* source, const uint8_t* filters, int padding, uint32_t point0,
                        int group, int first_filter)
      : walk(walk), source(source), filters(filters), padding(padding), first_filter(first_filter) {
    panels = static_cast<int>(divide_up<int64_t>(static_cast<int64_t>(walk.groups) * walk.outputs, kPanel));
    words_of_tap = divide_up(walk.channels, static_cast<int>(kByteStep)) * 2;
    words = walk.tap_rows * walk.tap_columns * words_of_tap;
#pragma unroll
    for (int i = 0; i < kReaches; ++i) reach[i] = Reach::of(walk, point0 + point(i), group);
    step = {0, 0, 0};
    if (VECTOR) step.advance(walk, word() * 4);
  }

  // The words from `word0` on; chunk by chunk.
  __device__ void load(int word0) {
    if constexpr (VECTOR) {
#pragma unroll
      for (int i = 0; i < kReaches; ++i) {
        if (!step.ended(walk) && reach[i].inside(walk, step)) {
          load_four(reinterpret_cast<const uint32_t*>(source + reach[i].at(walk, step)), values + 4 * i);
        } else {
          const uint32_t word = step.ended(walk) ? 0 : 0x01010101u * static_cast<uint32_t>(padding);
          for (int j = 0; j < 4; ++j) values[4 * i + j] = word;
        }
      }
      step.advance(walk, T::kSteps * 4);
    } else {
      const int at = word0 + word();
      const int tap = at / words_of_tap, channel = (at - tap * words_of_tap) * 4;
      const Step place{channel, tap / walk.tap_columns, tap % walk.tap_columns};
      const int there = walk.channels - channel < 4 ? walk.channels - channel : 4;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        values[i] = 0;
        if (at >= words || there <= 0) continue;
        const bool inside = reach[i].inside(walk, place);
        for (int j = 0; j < there; ++j) {
          const uint32_t byte = inside ? source[reach[i].at(walk, place) + j] : static_cast<uint32_t>(padding);
          values[i] |= byte << (8 * j);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kFilterWords / kTogether; ++i) {
      const int row = word0 / 2 + filter_row(i);
      const int filter = first_filter + filter_word() / 2;
      const int64_t lane = (filter / kPanel * static_cast<int64_t>(words / 2) + row) * kPanel + filter % kPanel;
      const int64_t at = lane * 8 + filter_word() % 2 * 4;
      const bool valid = 2 * row < words && filter / kPanel < panels;
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

// Blocks for which a multiprocessor shall have registers: code for sm_80 would put some of two blocks' into memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kBlocks = 2;
#else
constexpr int kBlocks = 1;
#endif

// One instruction takes four differences and adds them up.
template <typename T, bool VECTOR>
__global__ void __launch_bounds__(T::kThreads, VECTOR ? kBlocks : 1)
    byte_distances(Walk walk, const uint8_t* source, const uint8_t* filters, ByteOutput output) {
  __shared__ SharedWords<T> shared;
  const int group = blockIdx.z, filter0 = blockIdx.y * T::kFilters;
  const uint32_t point0 = blockIdx.x * T::kPoints;
  FetchBytes<T, VECTOR> fetch(walk, source, filters, output.padding, point0, group, group * walk.outputs + filter0);

  uint32_t sums[T::kThreadPoints][T::kThreadFilters] = {};
  const int chunks = divide_up(fetch.words, T::kSteps);
  fetch.load(0);
  fetch.store(shared, 0);
  __syncthreads();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    if (chunk + 1 < chunks) fetch.load((chunk + 1) * T::kSteps);
#pragma unroll
    for (int k = 0; k < T::kSteps; ++k) {
      take_step<T>(shared, stage, k, sums,
                   [](uint32_t sum, uint32_t x, uint32_t f, int, int) { return add_byte_distances(x, f, sum); });
    }
    if (chunk + 1 < chunks) fetch.store(shared, 1 - stage);
    __syncthreads();
  }
  Point p;
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const uint32_t point = point0 + T::thread_point(i);
    next_point<T>(walk, point, i, p);
    if (point >= walk.points) continue;
    const int64_t offset = offset_at(walk, p, walk.output);
    write_by_fours<T>(
        walk, group, filter0, offset,
        [&](int j, int channel, int64_t at) { return finish(output, sums[i][j], channel, at); },
        [&](int64_t at, float value) { store(output, at, value); },
        [&](int64_t at, float a, float b, float c, float d) {
          if (output.epilogue.float_output) {
            store_four(output.epilogue.float_output + at, a, b, c, d);
          } else {
            store_word(output.bytes + at, to_byte(output, a) | to_byte(output, b) << 8 | to_byte(output, c) << 16 |
                                              to_byte(output, d) << 24);
          }
        });
  }
}

}  // namespace adderzoo::cuda
