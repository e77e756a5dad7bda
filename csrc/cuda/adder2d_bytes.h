// The forward pass on bytes.
#pragma once

#include "adder2d_tiles.h"

namespace adderzoo::cuda {

// As the other one, of sums of bytes.
template <int N, typename At, typename There>
__device__ void finish(const ByteOutput& output, int channel, At at, There there, float (&values)[N]) {
  const Epilogue<uint8_t>& e = output.epilogue;
#pragma unroll
  for (int l = 0; l < N; ++l) {
    if (there(l)) values[l] = add(multiply(values[l], e.scale[channel + l]), e.shift[channel + l]);
  }
  if (e.byte_addend || e.float_addend) {
#pragma unroll
    for (int l = 0; l < N; ++l) {
      if (!there(l)) continue;
      const float addend = e.byte_addend ? static_cast<float>(e.byte_addend[at(l)]) : e.float_addend[at(l)];
      values[l] = add(values[l], multiply(addend, e.addend_scale));
    }
  }
#pragma unroll
  for (int l = 0; l < N; ++l) {
    float& y = values[l];
    if (e.float_output) {
      y = y < e.lowest ? e.lowest : y;
    } else {
      y = y > e.lowest ? y : e.lowest;  // NaN becomes the lowest
      y = y < e.highest ? y : e.highest;
    }
  }
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
template <typename N>
__device__ void compute_bytes_directly(const Walk& walk, const uint8_t* source, const uint8_t* filters, int lane_bytes,
                                       const ByteOutput& output) {
  const N rows = divide_up(walk.channels, lane_bytes), taps = static_cast<N>(walk.tap_rows) * walk.tap_columns;
  for_outputs<N>(walk, true, [&](const Point& p, int channel) {
    const auto reach = Reach<uint8_t>::from(walk, source, p, channel / walk.outputs);
    const uint8_t* lane =
        filters + (static_cast<int64_t>(channel / kPanel) * taps * rows * kPanel + channel % kPanel) * lane_bytes;
    uint32_t sum = 0;
    for (Step step{0, 0, 0}; !step.ended(walk); step.next_tap(walk)) {
      const bool inside = reach.inside(walk, step);
      const N pixel = reach.template at<N>(walk, step);
      for (int row = 0; row < static_cast<int>(rows); ++row) {
        for (int byte = 0; byte < lane_bytes && row * lane_bytes + byte < walk.channels; ++byte) {
          const int x = inside ? reach.image[pixel + (row * lane_bytes + byte) * static_cast<N>(walk.source.channel)]
                               : output.padding;
          const int f = lane[byte];
          sum += x > f ? x - f : f - x;
        }
        lane += kPanel * lane_bytes;
      }
    }
    const N at = offset_at<N>(walk, p, walk.output) + static_cast<N>(channel) * static_cast<N>(walk.output.channel);
    float value[1] = {static_cast<float>(static_cast<int32_t>(sum))};
    finish(output, channel, [&](int) { return at; }, [](int) { return true; }, value);
    store(output, at, value[0]);
  });
}

__global__ void direct_bytes(Walk walk, const uint8_t* source, const uint8_t* filters, int lane_bytes,
                             ByteOutput output) {
  if (walk.small) {
    compute_bytes_directly<uint32_t>(walk, source, filters, lane_bytes, output);
  } else {
    compute_bytes_directly<int64_t>(walk, source, filters, lane_bytes, output);
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
  const uint8_t* filters;
  int padding, filter0, panels, words_of_tap;
  int words;  // of a filter, which has few enough (kLargestByteFilter)
  Reach<uint8_t> reach[kReaches];
  Step step;
  uint32_t values[kWords], filter_words[kFilterWords];

  static __device__ int point(int i) { return threadIdx.x / kThreadsOfPoint + i * (T::kThreads / kThreadsOfPoint); }
  static __device__ int word() { return threadIdx.x % kThreadsOfPoint * kTogether; }
  static __device__ int filter_row(int i) { return threadIdx.x / kThreadsOfRow + i * (T::kThreads / kThreadsOfRow); }
  static __device__ int filter_word() { return threadIdx.x % kThreadsOfRow * kTogether; }

  // `filter0`: the first filter of the block, of all groups'.
  __device__ FetchBytes(const Walk& walk, const uint8_t* source, const uint8_t* filters, int padding, uint32_t point0,
                        int group, int filter0)
      : walk(walk), filters(filters), padding(padding), filter0(filter0) {
    panels = divide_up(walk.groups * walk.outputs, kPanel);
    words_of_tap = divide_up(walk.channels, static_cast<int>(kByteStep)) * 2;
    words = walk.tap_rows * walk.tap_columns * words_of_tap;
#pragma unroll
    for (int i = 0; i < kReaches; ++i) reach[i] = Reach<uint8_t>::of(walk, source, point0 + point(i), group);
    step = {0, 0, 0};
    if (VECTOR) step.advance(walk, word() * 4);
  }

  // The words from `word0` on; chunk by chunk.
  __device__ void load(int word0) {
    if constexpr (VECTOR) {
#pragma unroll
      for (int i = 0; i < kReaches; ++i) {
        if (!step.ended(walk) && reach[i].inside(walk, step)) {
          const uint8_t* const from = reach[i].image + reach[i].template at<uint32_t>(walk, step);
          load_four(reinterpret_cast<const uint32_t*>(from), values + 4 * i);
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
        const uint32_t pixel = reach[i].template at<uint32_t>(walk, place);
        for (int j = 0; j < there; ++j) {
          const uint32_t byte = inside ? reach[i].image[pixel + j] : static_cast<uint32_t>(padding);
          values[i] |= byte << (8 * j);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kFilterWords / kTogether; ++i) {
      const int row = word0 / 2 + filter_row(i);
      const int filter = filter0 + filter_word() / 2;
      const int64_t lane = (filter / kPanel * static_cast<int64_t>(words / 2) + row) * kPanel + filter % kPanel;
      const uint8_t* const from = filters + lane * 8 + filter_word() % 2 * 4;
      const bool valid = 2 * row < words && filter / kPanel < panels;
      if constexpr (VECTOR) {
        for (int j = 0; j < 4; ++j) filter_words[4 * i + j] = 0;
        if (valid) load_four(reinterpret_cast<const uint32_t*>(from), filter_words + 4 * i);
      } else {
        filter_words[i] = valid ? load_word(from) : 0;
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
  const int group = blockIdx.z, filter0 = first_filter<T>(walk);
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
  write_tile<T>(
      walk, point0, filter0, [&](int i, int j) { return static_cast<float>(static_cast<int32_t>(sums[i][j])); },
      [&](int channel, auto at, auto there, float (&values)[4]) { finish(output, channel, at, there, values); },
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

}  // namespace adderzoo::cuda
