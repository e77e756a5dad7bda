// The kernels for GPUs where offsets are beyond 2^31 and 2^32 elements, and where nearly 2^31 points are numbered: on
// memory that is reserved, not filled, with strides of that size, and of a grid the blocks that matter. Prints what is
// wrong; every number is small and exact.
#include <sys/mman.h>

#include <cmath>
#include <random>

#include "../../csrc/cuda/adder2d_bytes.h"
#include "../../csrc/cuda/adder2d_distances.h"
#include "../../csrc/cuda/adder2d_slopes.h"

namespace {

using namespace adderzoo;
using namespace adderzoo::cuda;

constexpr int64_t k31 = int64_t{1} << 31;

// Zeros, of which only those that are touched take up memory.
template <typename T>
T* reserve(int64_t elements) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const memory = mmap(nullptr, elements * sizeof(T), PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (memory == MAP_FAILED) {
    std::printf("memory cannot be reserved\n");
    std::exit(1);
  }
  return static_cast<T*>(memory);
}

struct Case {
  const char* name;
  Walk walk;
  int64_t first_point;  // those from here on are computed
};

// Single taps at the point's own pixel.
Walk walk_of(int64_t images, int rows, int columns, int channels, int outputs, Strides source, Strides output) {
  return {.points = images * rows * columns,
          .small = false,
          .rows = rows,
          .columns = columns,
          .step_h = 1,
          .step_w = 1,
          .tap_rows = 1,
          .tap_row0 = 0,
          .tap_row_step = 1,
          .tap_columns = 1,
          .tap_column0 = 0,
          .tap_column_step = 1,
          .groups = 1,
          .channels = channels,
          .outputs = outputs,
          .source_height = rows,
          .source_width = columns,
          .source = source,
          .out_step_h = 1,
          .out_step_w = 1,
          .out_row0 = 0,
          .out_column0 = 0,
          .output = output,
          .input = output};
}

int64_t offset_of(const Walk& walk, int64_t point, const Strides& strides) {
  const int64_t column = point % walk.columns, row = point / walk.columns % walk.rows;
  return point / walk.columns / walk.rows * strides.image + row * strides.row + column * strides.column;
}

int64_t last_offset(const Walk& walk, const Strides& strides, int channels) {
  return offset_of(walk, walk.points - 1, strides) + (channels - 1) * strides.channel;
}

// Runs the blocks from number `first` on, of so many.
template <typename F>
void run_blocks(int64_t first, int64_t blocks, int64_t columns, int threads, std::size_t shared, F kernel) {
  std::vector<cuda_on_cpu::Fiber> fibers(threads);
  cuda_on_cpu::grid_size = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns));
  cuda_on_cpu::block_size = dim3(static_cast<unsigned>(threads));
  for (unsigned y = 0; y < columns; ++y) {
    for (int64_t x = first; x < blocks; ++x) {
      cuda_on_cpu::block_index = dim3(static_cast<unsigned>(x), y, 0);
      cuda_on_cpu::run_block(fibers, shared, kernel);
    }
  }
}

template <typename T, typename F>
void run_tiles(const Case& c, std::size_t shared, F kernel) {
  run_blocks(c.first_point / T::kPoints, divide_up<int64_t>(c.walk.points, T::kPoints),
             divide_up(c.walk.outputs, T::kFilters), T::kThreads, shared, kernel);
}

// One thread an output: those from the first point's on, where channels come first.
template <typename F>
void run_directly(const Case& c, F kernel) {
  run_blocks(c.first_point * c.walk.outputs / 256, divide_up(c.walk.points * c.walk.outputs, 256), 1, 256, 0, kernel);
}

int wrong = 0;

template <typename Out, typename F>
void compare(const Case& c, const char* kernel, Out* output, F expected) {
  for (int64_t point = c.first_point; point < c.walk.points; ++point) {
    for (int channel = 0; channel < c.walk.outputs; ++channel) {
      Out& actual = output[offset_of(c.walk, point, c.walk.output) + channel * c.walk.output.channel];
      const Out wanted = expected(point, channel);
      if (actual != wanted && ++wrong < 20) {
        std::printf("%s, %s: point %lld, channel %d is %g, not %g\n", c.name, kernel, static_cast<long long>(point),
                    channel, static_cast<double>(actual), static_cast<double>(wanted));
      }
      actual = Out(0);
    }
  }
}

void check(Case c) {
  using T = Tile<64, 64, 8, 4, 8>;
  using B = Tile<64, 64, 8, 4, 16>;
  const Walk& walk = c.walk;
  const int channels = walk.channels, outputs = walk.outputs;
  const int64_t packed = round_up(outputs, kPanel) * round_up(channels, kByteStep);
  std::mt19937 random(0);
  float* const source = reserve<float>(last_offset(walk, walk.source, channels) + 1);
  uint8_t* const bytes = reserve<uint8_t>(last_offset(walk, walk.source, channels) + 1);
  float* const output = reserve<float>(last_offset(walk, walk.output, outputs) + 1);
  float* const input = reserve<float>(last_offset(walk, walk.output, outputs) + 1);
  uint8_t* const byte_output = reserve<uint8_t>(last_offset(walk, walk.output, outputs) + 1);
  float* const filters = reserve<float>(packed);
  uint8_t* const byte_filters = reserve<uint8_t>(packed);
  const auto filter = [&](int o, int i) -> float& {
    return filters[(o / kPanel * channels + i) * kPanel + o % kPanel];
  };
  const auto byte_filter = [&](int o, int i) -> uint8_t& {
    const int64_t rows = round_up(channels, kByteStep) / kByteStep;
    return byte_filters[((o / kPanel * rows + i / kByteStep) * kPanel + o % kPanel) * kByteStep + i % kByteStep];
  };
  const auto at = [&](int64_t point, int i) { return offset_of(walk, point, walk.source) + i * walk.source.channel; };
  const auto out = [&](int64_t point, int o) { return offset_of(walk, point, walk.output) + o * walk.output.channel; };
  for (int64_t point = c.first_point; point < walk.points; ++point) {
    for (int i = 0; i < channels; ++i) source[at(point, i)] = bytes[at(point, i)] = random() % 32;
    for (int o = 0; o < outputs; ++o) input[out(point, o)] = static_cast<float>(random() % 9) / 4 - 1;
  }
  for (int o = 0; o < outputs; ++o) {
    for (int i = 0; i < channels; ++i) filter(o, i) = byte_filter(o, i) = random() % 3;
  }
  const auto distance = [&](int64_t point, int o) {
    float sum = 0;
    for (int i = 0; i < channels; ++i) sum += std::fabs(source[at(point, i)] - filter(o, i));
    return sum;
  };
  const auto negative = [&](int64_t point, int o) { return -distance(point, o); };
  const auto slope = [&](int64_t point, int o) {
    float sum = 0;
    for (int i = 0; i < channels; ++i) {
      sum += source[at(point, i)] * std::fmin(std::fmax(filter(o, i) - input[out(point, o)], -1.0f), 1.0f);
    }
    return sum;
  };
  const bool channels_first = true, vector = walk.source.channel == 1;

  run_tiles<T>(c, sizeof(Shared<T>), [&] {
    if (vector) distances<T, float, true, float>(walk, source, filters, {}, output);
    if (!vector) distances<T, float, false, float>(walk, source, filters, {}, output);
  });
  compare(c, "distances", output, negative);
  run_tiles<B>(c, sizeof(Shared<B>), [&] {
    if (vector) slopes<B, float, true, float, float>(walk, source, filters, input, output);
    if (!vector) slopes<B, float, false, float, float>(walk, source, filters, input, output);
  });
  compare(c, "slopes", output, slope);

  std::vector<float> scale(outputs, 1.0f), shift(outputs, 0.0f);
  ByteOutput sums{.epilogue = byte_epilogue(false, 0, 255, 1.0), .padding = 0, .bytes = byte_output};
  sums.epilogue.scale = scale.data();
  sums.epilogue.shift = shift.data();
  const auto byte = [&](int64_t point, int o) { return static_cast<uint8_t>(std::fmin(distance(point, o), 255.0f)); };
  if (vector) {
    run_tiles<B>(c, 0, [&] { byte_distances<B, true>(walk, bytes, byte_filters, sums); });
    compare(c, "byte_distances", byte_output, byte);
    run_tiles<B>(c, 0, [&] { byte_distances<B, false>(walk, bytes, byte_filters, sums); });
    compare(c, "byte_distances of any channels", byte_output, byte);
  }

  const int64_t elements = std::max(walk.points * outputs, std::max(last_offset(walk, walk.source, channels),
                                                                    last_offset(walk, walk.output, outputs)));
  for (c.walk.small = false;; c.walk.small = true) {
    run_directly(c, [&] {
      direct<Distance, float, float, float, float>(walk, source, filters, source, {}, output, channels_first);
    });
    compare(c, "direct", output, negative);
    run_directly(c, [&] {
      direct<ClippedSlope, float, float, float, float>(walk, source, filters, input, {}, output, channels_first);
    });
    compare(c, "direct slopes", output, slope);
    run_directly(c, [&] { direct_bytes(walk, bytes, byte_filters, kByteStep, sums); });
    compare(c, "direct_bytes", byte_output, byte);
    if (c.walk.small || elements >= k31) break;
  }
}

}  // namespace

int main() {
  // A row of an image begins beyond 2^31 elements, an image beyond 2^32.
  const int64_t row = k31 + 64, image = 2 * k31 - 64;
  check({"wide strides, channels_last", walk_of(3, 2, 4, 16, 20, {image, row, 16, 1}, {4 * k31, row, 20, 1}), 0});
  check({"wide strides, planes", walk_of(3, 2, 4, 12, 20, {image, 4, 1, 8 * k31 / 64}, {8 * k31, 4, 1, k31 / 4}), 0});
  // The last points of the most that tiles number, and of the most outputs that 32 bits number.
  check({"2^31 - 1 points", walk_of(k31 - 1, 1, 1, 16, 4, {16, 16, 16, 1}, {4, 4, 4, 1}), k31 - 100});
  const int64_t images = (k31 - 1) / 16;
  check({"2^31 - 1 elements", walk_of(images, 1, 1, 16, 16, {16, 16, 16, 1}, {16, 16, 16, 1}), images - 100});
  if (wrong == 0) std::printf("all offsets are right\n");
  return wrong != 0;
}
