// What the operators on NVIDIA GPUs have in common: memory, walks, launches. With __CUDACC__ undefined it compiles with
// the shim of tests/ops/cuda_on_cpu.h, which runs the same kernels on the CPU, in the place of the CPU's own.
#pragma once

#ifdef __CUDACC__
#define USE_CUDA  // for the current stream
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define ADDERZOO_DEVICE CUDA
#else
#define ADDERZOO_DEVICE CPU
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../adder2d_checks.h"
#include "../adder2d_formats.h"
#include "adder2d_numbers.h"
#include "adder2d_walk.h"

namespace adderzoo::cuda {

// Blocks of threads of a kernel in which each thread takes one output after another.
constexpr int64_t kMaxBlocks = 1 << 16;
constexpr int kThreads = 256;

// Shared memory of a block, in bytes, that a kernel has without asking for more.
constexpr std::size_t kUsualShared = 48 << 10;

inline std::string name(const torch::stable::Device& device) {
  if (!device.is_cuda()) return device.is_cpu() ? "cpu" : "another device";
  return "cuda:" + std::to_string(device.index());
}

// The dispatcher calls these kernels when one of the tensors is on a GPU, wherever the others are.
inline void check_devices(const char* op, const Tensor& input,
                          std::initializer_list<std::pair<const char*, const Tensor*>> others) {
  for (const auto& [argument, tensor] : others) {
    if (tensor && !(tensor->device() == input.device())) {
      fail(op, argument, " must be on the device of input, ", name(input.device()), ", got ", name(tensor->device()));
    }
  }
}

// The current device and stream, as long as this lives: PyTorch's conventions.
#ifdef __CUDACC__
class Queue {
 public:
  explicit Queue(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    check(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, tensor.get_device_index()));
  }
  int processors() const { return processors_; }
  // Launches blocks of threads, with so many bytes of shared memory beside what the kernel declares.
  template <typename... Parameters, typename... Arguments>
  void run(void (*kernel)(Parameters...), dim3 blocks, int threads, std::size_t shared,
           const Arguments&... arguments) const {
    if (shared > kUsualShared) {
      const auto function = reinterpret_cast<const void*>(kernel);
      check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
      check(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared));
    }
    kernel<<<blocks, threads, shared, stream_>>>(arguments...);
    check(cudaGetLastError());
  }

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) fail("adder2d", "the kernel cannot be launched: ", cudaGetErrorString(error));
  }
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  int processors_;
};
#else
struct Queue {
  explicit Queue(const Tensor&) {}
  int processors() const { return 1; }
  template <typename... Parameters, typename... Arguments>
  void run(void (*kernel)(Parameters...), dim3 blocks, int threads, std::size_t shared,
           const Arguments&... arguments) const {
    cuda_on_cpu::run(reinterpret_cast<void*>(kernel), blocks, threads, shared, [&] { kernel(arguments...); });
  }
};
#endif

// A dense tensor and its strides.
struct Dense {
  Dense(const Tensor& given, MemoryFormat format)
      : tensor(torch::stable::contiguous(given, format)), strides(dense_strides(tensor, format)) {}
  explicit Dense(const Tensor& given) : Dense(given, format_like(given)) {}
  Tensor tensor;
  Strides strides;
};

inline int number(int64_t n) {
  if (n > kLargestSize) fail("adder2d", "a dimension must be less than 2^31 on a GPU, got ", n);
  return static_cast<int>(n);
}

// Calls `f` with a pointer of the tensor's type in memory, to read: what is copied on write is not copied.
template <typename F>
void with_pointer(const Tensor& tensor, F f) {
  const void* const data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return f(static_cast<const Half*>(data));
    case ScalarType::BFloat16:
      return f(static_cast<const BFloat16*>(data));
    default:
      return f(static_cast<const float*>(data));
  }
}

// Filters that a user has packed, where the kernels can fetch 16 bytes at once: those of a view may begin anywhere.
inline Tensor aligned_filters(const Tensor& packed) {
  const Tensor filters = torch::stable::contiguous(packed);
  return reinterpret_cast<uintptr_t>(filters.const_data_ptr()) % 16 == 0 ? filters : torch::stable::clone(filters);
}

// Whether 32 bits number the elements of both tensors, and of a panel of the filters of either direction.
inline bool is_small(const Geometry& g) {
  const int64_t inputs = g.batch * g.groups * g.channels * g.height * g.width;
  const int64_t outputs = g.batch * g.groups * g.filters * g.out_height * g.out_width;
  const int64_t lanes = g.taps() * round_up(std::max(g.channels, g.filters), kByteStep);
  return std::max({inputs, outputs, lanes * kPanel}) <= kLargestSize;
}

inline Walk forward_walk(const Geometry& g, const Strides& source, const Strides& output) {
  return {
      .points = g.batch * g.out_height * g.out_width,
      .small = is_small(g),
      .rows = number(g.out_height),
      .columns = number(g.out_width),
      .step_h = number(g.stride_h),
      .step_w = number(g.stride_w),
      .tap_rows = number(g.kernel_h),
      .tap_row0 = -number(g.padding_h),
      .tap_row_step = number(g.dilation_h),
      .tap_columns = number(g.kernel_w),
      .tap_column0 = -number(g.padding_w),
      .tap_column_step = number(g.dilation_w),
      .groups = number(g.groups),
      .channels = number(g.channels),
      .outputs = number(g.filters),
      .source_height = number(g.height),
      .source_width = number(g.width),
      .source = source,
      .out_step_h = 1,
      .out_step_w = 1,
      .out_row0 = 0,
      .out_column0 = 0,
      .output = output,
      .input = output,
  };
}

inline dim3 blocks_of_outputs(int64_t outputs) {
  return dim3(static_cast<unsigned>(std::min(kMaxBlocks, divide_up(outputs, kThreads))));
}

// Groups narrower than this have a tile mostly to themselves: their outputs are computed one by one.
constexpr int kNarrow = 4;

// Blocks that a group's outputs take: some begin with up to three filters of the group before.
template <typename T>
int64_t blocks_of_group(const Walk& walk) {
  return divide_up<int64_t>(walk.outputs + (walk.groups > 1 && walk.outputs % 4 != 0 ? 3 : 0), T::kFilters);
}

template <typename T>
dim3 blocks_of_tiles(const Walk& walk) {
  return dim3(static_cast<unsigned>(divide_up(walk.points, T::kPoints)),
              static_cast<unsigned>(blocks_of_group<T>(walk)), static_cast<unsigned>(walk.groups));
}

// What tiles number with 32 bits (points, an image, packed filters), and what a grid of blocks can count.
template <typename... Tiles>
bool fits_tiles(const Walk& walk) {
  constexpr int64_t kMost = std::numeric_limits<uint32_t>::max();
  const int64_t filters = round_up(static_cast<int64_t>(walk.groups) * walk.outputs, kPanel);
  return walk.points <= kLargestSize && walk.source.image <= kMost &&
         filters * walk.tap_rows * walk.tap_columns * round_up(walk.channels, kByteStep) <= kMost &&
         walk.groups < (1 << 16) && ((blocks_of_group<Tiles>(walk) < (1 << 16)) && ...);
}

// Instructions of the processor that gets most blocks: tiles that are cut off, and processors left without one, count.
template <typename T>
double cost_of(const Walk& walk, int processors) {
  const int64_t blocks = divide_up(walk.points, T::kPoints) * blocks_of_group<T>(walk) * walk.groups;
  return T::kInstructions * T::kPoints * T::kFilters * static_cast<double>(divide_up(blocks, processors));
}

// The number of the tile that ADDERZOO_TILE asks for, with which scripts/gpu_check.sh times each; else -1.
inline int asked_tile() {
  static const char* const text = std::getenv("ADDERZOO_TILE");
  return text && *text ? std::atoi(text) : -1;
}

// Calls `run` with the tile, among these, that is asked for (the last, if there are fewer), or else that costs least.
template <typename... Tiles, typename F>
void with_best_tile(const Walk& walk, int processors, F run) {
  const double least = std::min({cost_of<Tiles>(walk, processors)...});
  const int asked = std::min(asked_tile(), static_cast<int>(sizeof...(Tiles)) - 1);
  int number = 0;
  bool done = false;
  const auto consider = [&]<typename T>(T tile) {
    const bool wanted = asked < 0 ? cost_of<T>(walk, processors) <= least : number == asked;
    ++number;
    if (done || !wanted) return;
    run(tile);
    done = true;
  };
  (consider(Tiles{}), ...);
}

// Whether four channels of a pixel can be fetched at once, wherever the pixel is.
template <typename S>
bool by_fours(const Walk& walk, const S* source) {
  const Strides& strides = walk.source;
  return strides.channel == 1 && walk.channels % 4 == 0 && strides.image % 4 == 0 && strides.row % 4 == 0 &&
         strides.column % 4 == 0 && reinterpret_cast<uintptr_t>(source) % (4 * sizeof(S)) == 0;
}

}  // namespace adderzoo::cuda
