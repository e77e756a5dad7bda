// The operators on NVIDIA GPUs: arguments, memory, launches. With __CUDACC__ undefined it compiles with the shim of
// tests/ops/cuda_on_cpu.h, which runs the same kernels on the CPU, in the place of the CPU's own.
#ifdef __CUDACC__
#define USE_CUDA  // for the current stream
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define ADDERZOO_DEVICE CUDA
#else
#include "cuda_on_cpu.h"
#define ADDERZOO_DEVICE CPU
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "../adder2d_checks.h"
#include "adder2d_kernels.h"

namespace adderzoo::cuda {
namespace {

using torch::headeronly::MemoryFormat;

// Blocks of threads of a kernel in which each thread takes one output after another.
constexpr int64_t kMaxBlocks = 1 << 16;
constexpr int kThreads = 256;

// The current device and stream, as long as this lives: PyTorch's conventions.
#ifdef __CUDACC__
class Queue {
 public:
  explicit Queue(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  template <typename... Parameters, typename... Arguments>
  void run(void (*kernel)(Parameters...), dim3 blocks, int threads, const Arguments&... arguments) const {
    kernel<<<blocks, threads, 0, stream_>>>(arguments...);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) fail("adder2d", "the kernel cannot be launched: ", cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};
#else
struct Queue {
  explicit Queue(const Tensor&) {}
  template <typename... Parameters, typename... Arguments>
  void run(void (*kernel)(Parameters...), dim3 blocks, int threads, const Arguments&... arguments) const {
    cuda_on_cpu::run(blocks, threads, [&] { kernel(arguments...); });
  }
};
#endif

// Dense in channels_last and in no other format: then, and only then, the result is channels_last too.
bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

MemoryFormat format_like(const Tensor& input) {
  return is_channels_last(input) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type, MemoryFormat format) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt, format);
}

// Strides by index, whatever a tensor has in the dimensions of size one.
Strides dense_strides(const Tensor& tensor, MemoryFormat format) {
  const int64_t channels = tensor.size(1), height = tensor.size(2), width = tensor.size(3);
  if (format == MemoryFormat::ChannelsLast) return {height * width * channels, width * channels, channels, 1};
  return {channels * height * width, width, 1, height * width};
}

// A dense tensor and its strides.
struct Dense {
  Dense(const Tensor& given, MemoryFormat format)
      : tensor(torch::stable::contiguous(given, format)), strides(dense_strides(tensor, format)) {}
  explicit Dense(const Tensor& given) : Dense(given, format_like(given)) {}
  Tensor tensor;
  Strides strides;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int number(int64_t n) {
  if (n > std::numeric_limits<int>::max()) fail("adder2d", "a dimension must be less than 2^31 on a GPU, got ", n);
  return static_cast<int>(n);
}

// Calls `f` with a pointer of the tensor's type in memory.
template <typename F>
void with_pointer(const Tensor& tensor, F f) {
  void* const data = tensor.mutable_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return f(static_cast<Half*>(data));
    case ScalarType::BFloat16:
      return f(static_cast<BFloat16*>(data));
    default:
      return f(static_cast<float*>(data));
  }
}

// ------------------------------------------------------------------------------------------------------------- walks

Walk forward_walk(const Geometry& g, const Strides& source, const Strides& output) {
  return {
      .points = g.batch * g.out_height * g.out_width,
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
      .filter_taps = number(g.taps()),
      .filter_tap0 = 0,
      .filter_tap_row_step = number(g.kernel_w),
      .filter_tap_column_step = 1,
      .out_step_h = 1,
      .out_step_w = 1,
      .out_row0 = 0,
      .out_column0 = 0,
      .output = output,
      .input = output,
  };
}

// The taps that reach an axis' positions that leave `phase` modulo the stride: kernel taps first, first + period, ...;
// position phase + stride * y is reached by the gradient's y + reach0 - i * reach_step.
struct Phase {
  int64_t taps = 0, first = 0, period = 1, reach0 = 0, reach_step = 0, positions = 0;

  Phase(int64_t size, int64_t phase, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    positions = phase < size ? divide_up(size - phase, stride) : 0;
    std::vector<int64_t> reaching;
    for (int64_t k = 0; k < kernel; ++k) {
      if ((phase + padding - k * dilation) % stride == 0) reaching.push_back(k);
    }
    taps = static_cast<int64_t>(reaching.size());
    if (taps == 0) return;
    first = reaching[0];
    period = taps > 1 ? reaching[1] - reaching[0] : 1;
    reach0 = (phase + padding - first * dilation) / stride;
    reach_step = period * dilation / stride;
  }
};

Walk backward_walk(const Geometry& g, const Phase& rows, const Phase& columns, int64_t row, int64_t column,
                   const Strides& grad, const Strides& input, const Strides& output) {
  return {
      .points = g.batch * rows.positions * columns.positions,
      .rows = number(rows.positions),
      .columns = number(columns.positions),
      .step_h = 1,
      .step_w = 1,
      .tap_rows = number(columns.taps > 0 ? rows.taps : 0),
      .tap_row0 = number(rows.reach0),
      .tap_row_step = -number(rows.reach_step),
      .tap_columns = number(columns.taps),
      .tap_column0 = number(columns.reach0),
      .tap_column_step = -number(columns.reach_step),
      .groups = number(g.groups),
      .channels = number(g.filters),
      .outputs = number(g.channels),
      .source_height = number(g.out_height),
      .source_width = number(g.out_width),
      .source = grad,
      .filter_taps = number(g.taps()),
      .filter_tap0 = number(rows.first * g.kernel_w + columns.first),
      .filter_tap_row_step = number(rows.period * g.kernel_w),
      .filter_tap_column_step = number(columns.period),
      .out_step_h = number(g.stride_h),
      .out_step_w = number(g.stride_w),
      .out_row0 = number(row),
      .out_column0 = number(column),
      .output = output,
      .input = input,
  };
}

// ---------------------------------------------------------------------------------------------------------- launches

dim3 blocks_of_outputs(int64_t outputs) {
  return dim3(static_cast<unsigned>(std::min(kMaxBlocks, divide_up(outputs, kThreads))));
}

// Groups narrower than this have a tile mostly to themselves: their outputs are computed one by one.
constexpr int kNarrow = 8;

template <typename T>
dim3 blocks_of_tiles(const Walk& w) {
  return dim3(static_cast<unsigned>(divide_up(w.points, T::kPoints)),
              static_cast<unsigned>(divide_up(w.outputs, T::kFilters)), static_cast<unsigned>(w.groups));
}

template <typename T>
bool fits_tiles(const Walk& w) {
  return divide_up(w.points, T::kPoints) < (int64_t{1} << 31) && divide_up(w.outputs, T::kFilters) < (1 << 16) &&
         w.groups < (1 << 16);
}

// Whether four channels of a pixel can be fetched at once, wherever the pixel is.
template <typename S>
bool by_fours(const Walk& w, const S* source) {
  const Strides& s = w.source;
  return s.channel == 1 && w.channels % 4 == 0 && s.image % 4 == 0 && s.row % 4 == 0 && s.column % 4 == 0 &&
         reinterpret_cast<uintptr_t>(source) % (4 * sizeof(S)) == 0;
}

template <typename T, typename S, typename Out>
void run_distances(const Queue& queue, const Walk& w, const S* source, const float* filters, const Affine& affine,
                   Out* output) {
  const auto run = [&](auto kernel) {
    queue.run(kernel, blocks_of_tiles<T>(w), T::kThreads, w, source, filters, affine, output);
  };
  by_fours(w, source) ? run(distances<T, S, true, Out>) : run(distances<T, S, false, Out>);
}

template <typename S, typename Out>
void run_forward(const Queue& queue, const Walk& w, const S* source, const float* filters, const Affine& affine,
                 Out* output) {
  using Wide = Tile<128, 128, 8, 8>;
  using Medium = Tile<128, 64, 8, 8>;
  using Slim = Tile<128, 32, 4, 8>;
  if (w.points == 0) return;
  if (w.outputs < kNarrow || !fits_tiles<Slim>(w)) {
    queue.run(direct<Distance, float, S, S, Out>, blocks_of_outputs(w.points * w.groups * w.outputs), kThreads, w,
              source, filters, source, affine, output, w.output.channel == 1);
  } else if (w.outputs <= 32) {
    run_distances<Slim>(queue, w, source, filters, affine, output);
  } else if (w.outputs <= 64) {
    run_distances<Medium>(queue, w, source, filters, affine, output);
  } else {
    run_distances<Wide>(queue, w, source, filters, affine, output);
  }
}

template <typename T, typename In, typename Out>
void run_slopes(const Queue& queue, const Walk& w, const float* grad, const float* filters, const In* input,
                Out* output) {
  const auto run = [&](auto kernel) {
    queue.run(kernel, blocks_of_tiles<T>(w), T::kThreads, w, grad, filters, input, output);
  };
  by_fours(w, grad) ? run(slopes<T, float, true, In, Out>) : run(slopes<T, float, false, In, Out>);
}

template <typename In>
void run_backward(const Queue& queue, const Walk& w, bool sign, const float* grad, const float* filters,
                  const In* input, In* output) {
  using Wide = Tile<128, 64, 4, 16>;
  using Slim = Tile<128, 32, 4, 16>;
  if (w.points == 0) return;
  if (sign || w.outputs < kNarrow || !fits_tiles<Slim>(w)) {
    const auto kernel = sign ? direct<SignSlope, float, float, In, In> : direct<ClippedSlope, float, float, In, In>;
    queue.run(kernel, blocks_of_outputs(w.points * w.groups * w.outputs), kThreads, w, grad, filters, input, Affine{},
              output, w.output.channel == 1);
  } else if (w.outputs <= 32) {
    run_slopes<Slim>(queue, w, grad, filters, input, output);
  } else {
    run_slopes<Wide>(queue, w, grad, filters, input, output);
  }
}

// Filters (dense OIHW) in panels whose lanes are the filters, or for the input gradient the input channels.
Tensor packed_filters(const Queue& queue, const Geometry& g, const Tensor& weight, ScalarType type, bool backward) {
  const int64_t outputs = g.groups * (backward ? g.channels : g.filters), channels = backward ? g.filters : g.channels;
  const int64_t panels = divide_up(outputs, kLanes);
  Tensor packed = torch::stable::empty({panels * g.taps() * channels * kLanes}, type, std::nullopt, weight.device());
  const Packing packing{
      .taps = number(g.taps()),
      .channels = number(channels),
      .outputs = number(outputs),
      .panels = number(panels),
      .group_outputs = number(outputs / g.groups),
      .group_stride = g.filters * g.channels * g.taps(),
      .output_stride = (backward ? 1 : g.channels) * g.taps(),
      .channel_stride = (backward ? g.channels : 1) * g.taps(),
  };
  const dim3 blocks = blocks_of_outputs(packed.numel());
  if (type == ScalarType::Double) {
    queue.run(pack<double, double>, blocks, kThreads, packing, weight.const_data_ptr<double>(),
              packed.mutable_data_ptr<double>());
  } else {
    with_pointer(weight, [&]<typename W>(W* w) {
      queue.run(pack<float, W>, blocks, kThreads, packing, static_cast<const W*>(w), packed.mutable_data_ptr<float>());
    });
  }
  return packed;
}

// --------------------------------------------------------------------------------------------------------- operators

Tensor adder2d(const Tensor& input, const Tensor& weight, Pair stride, Pair padding, Pair dilation, int64_t groups,
               std::string input_grad, std::string weight_grad) {
  check_mode("input_grad", input_grad, "hardtanh", "sign");
  check_mode("weight_grad", weight_grad, "full", "sign");
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  const Queue queue(input);
  const ScalarType type = accumulation_type(input);
  const MemoryFormat format = format_like(input);
  Tensor output = new_empty(input, {g.batch, weight.size(0), g.out_height, g.out_width}, type, format);
  const Dense x(input, format);
  const Tensor filters = packed_filters(queue, g, torch::stable::contiguous(weight), type, false);
  const Walk walk = forward_walk(g, x.strides, dense_strides(output, format));
  if (walk.points == 0) return output;
  if (type == ScalarType::Double) {
    const double* const source = x.tensor.const_data_ptr<double>();
    queue.run(direct<Distance, double, double, double, double>, blocks_of_outputs(output.numel()), kThreads, walk,
              source, filters.const_data_ptr<double>(), source, AffineOf<double>{}, output.mutable_data_ptr<double>(),
              walk.output.channel == 1);
    return output;
  }
  with_pointer(x.tensor, [&]<typename S>(S* source) {
    run_forward<S, float>(queue, walk, source, filters.const_data_ptr<float>(), {}, output.mutable_data_ptr<float>());
  });
  return output;
}

Tensor adder2d_affine(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                      std::optional<Tensor> addend, Pair stride, Pair padding, Pair dilation, int64_t groups,
                      bool relu) {
  const Geometry g = check_affine(input, weight, scale, shift, addend, stride, padding, dilation, groups);
  const Queue queue(input);
  const MemoryFormat format = format_like(input);
  Tensor output =
      new_empty(input, {g.batch, scale.size(0), g.out_height, g.out_width}, input.scalar_type(), format);
  const Dense x(input, format);
  const Tensor filters = torch::stable::contiguous(weight), a = torch::stable::contiguous(scale),
               b = torch::stable::contiguous(shift);
  const Walk walk = forward_walk(g, x.strides, dense_strides(output, format));
  if (walk.points == 0) return output;
  std::optional<Dense> added;
  if (addend.has_value()) added.emplace(torch::stable::to(*addend, accumulation_type(input)), format);
  const auto affine = [&]<typename T>(T) {
    return AffineOf<T>{a.const_data_ptr<T>(), b.const_data_ptr<T>(),
                       added ? added->tensor.template const_data_ptr<T>() : nullptr, relu};
  };
  if (input.scalar_type() == ScalarType::Double) {
    const double* const source = x.tensor.const_data_ptr<double>();
    queue.run(direct<Distance, double, double, double, double>, blocks_of_outputs(output.numel()), kThreads, walk,
              source, filters.const_data_ptr<double>(), source, affine(0.0), output.mutable_data_ptr<double>(),
              walk.output.channel == 1);
    return output;
  }
  with_pointer(x.tensor, [&]<typename S>(S* source) {
    run_forward<S, S>(queue, walk, source, filters.const_data_ptr<float>(), affine(0.0f),
                      static_cast<S*>(output.mutable_data_ptr()));
  });
  return output;
}

Tensor adder2d_u8(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                  std::optional<Tensor> addend, Pair stride, Pair padding, Pair dilation, int64_t groups, bool relu,
                  int64_t zero_point, std::optional<int64_t> out_zero_point, int64_t out_max, double addend_scale) {
  const Geometry g = check_u8(input, weight, scale, shift, addend, stride, padding, dilation, groups, zero_point,
                              out_zero_point, out_max);
  const Queue queue(input);
  const MemoryFormat format = format_like(input);
  const bool bytes = out_zero_point.has_value();
  Tensor output = new_empty(input, {g.batch, scale.size(0), g.out_height, g.out_width},
                            bytes ? ScalarType::Byte : ScalarType::Float, format);
  const Dense x(input, format);
  const Tensor filters = torch::stable::contiguous(weight), a = torch::stable::contiguous(scale),
               b = torch::stable::contiguous(shift);
  const Walk w = forward_walk(g, x.strides, dense_strides(output, format));
  if (w.points == 0) return output;
  std::optional<Dense> added;
  if (addend.has_value()) added.emplace(*addend, format);
  const bool byte_addend = added && added->tensor.scalar_type() == ScalarType::Byte;
  const ByteAffine affine{
      .scale = a.const_data_ptr<float>(),
      .shift = b.const_data_ptr<float>(),
      .byte_addend = byte_addend ? added->tensor.const_data_ptr<uint8_t>() : nullptr,
      .float_addend = added && !byte_addend ? added->tensor.const_data_ptr<float>() : nullptr,
      .addend_scale = static_cast<float>(addend_scale),
      .lowest = relu    ? 0.0f
                : bytes ? -static_cast<float>(*out_zero_point)
                        : -std::numeric_limits<float>::infinity(),
      .highest = static_cast<float>(out_max - out_zero_point.value_or(0)),
      .zero_point = number(out_zero_point.value_or(0)),
      .padding = number(zero_point),
      .bytes = bytes ? output.mutable_data_ptr<uint8_t>() : nullptr,
      .floats = bytes ? nullptr : output.mutable_data_ptr<float>(),
  };
  const uint8_t* const source = x.tensor.const_data_ptr<uint8_t>();
  const uint8_t* const packed = filters.const_data_ptr<uint8_t>();
  const int lane_bytes = number(filters.size(5));
  const auto run = [&]<typename T>(T) {
    // Sixteen channels of a pixel at once, and two lanes.
    const bool words = by_fours(w, reinterpret_cast<const uint32_t*>(source)) && w.channels % 16 == 0 &&
                       w.source.image % 16 == 0 && w.source.row % 16 == 0 && w.source.column % 16 == 0 &&
                       (w.groups == 1 || w.outputs % 2 == 0) && reinterpret_cast<uintptr_t>(packed) % 16 == 0;
    queue.run(words ? byte_distances<T, true> : byte_distances<T, false>, blocks_of_tiles<T>(w), T::kThreads, w, source,
              packed, affine);
  };
  using Wide = Tile<128, 128, 8, 16>;
  using Medium = Tile<128, 64, 8, 16>;
  using Slim = Tile<128, 32, 4, 16>;
  if (lane_bytes != kByteStep || w.outputs < kNarrow || !fits_tiles<Slim>(w) || x.strides.channel != 1) {
    queue.run(direct_bytes, blocks_of_outputs(output.numel()), kThreads, w, source, packed, lane_bytes, affine);
  } else if (w.outputs <= 32) {
    run(Slim{});
  } else if (w.outputs <= 64) {
    run(Medium{});
  } else {
    run(Wide{});
  }
  return output;
}

// Input pixels that leave the same remainders modulo the stride are reached by the same taps: one launch for each pair.
Tensor adder2d_backward_input(const Tensor& grad, const Tensor& input, const Tensor& weight, Pair stride, Pair padding,
                              Pair dilation, int64_t groups, std::string input_grad) {
  check_mode("input_grad", input_grad, "hardtanh", "sign");
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_grad(grad, g);
  const Queue queue(input);
  const bool sign = input_grad == "sign";
  const ScalarType type = accumulation_type(input);
  const MemoryFormat format = format_like(input);
  Tensor grad_input =
      new_empty(input, {g.batch, input.size(1), g.height, g.width}, input.scalar_type(), format);
  const Dense x(input, format), dy(torch::stable::to(grad, type), format);
  const Tensor filters = packed_filters(queue, g, torch::stable::contiguous(weight), type, true);
  const Strides strides = dense_strides(grad_input, format);
  for (int64_t row = 0; row < std::min(g.stride_h, g.height); ++row) {
    const Phase rows(g.height, row, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
    for (int64_t column = 0; column < std::min(g.stride_w, g.width); ++column) {
      const Phase columns(g.width, column, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
      const Walk walk = backward_walk(g, rows, columns, row, column, dy.strides, x.strides, strides);
      if (walk.points == 0) continue;
      if (type == ScalarType::Double) {
        const auto kernel = sign ? direct<SignSlope, double, double, double, double>
                                 : direct<ClippedSlope, double, double, double, double>;
        queue.run(kernel, blocks_of_outputs(walk.points * input.size(1)), kThreads, walk,
                  dy.tensor.const_data_ptr<double>(), filters.const_data_ptr<double>(),
                  x.tensor.const_data_ptr<double>(), AffineOf<double>{}, grad_input.mutable_data_ptr<double>(),
                  walk.output.channel == 1);
        continue;
      }
      with_pointer(x.tensor, [&]<typename S>(S* source) {
        run_backward<S>(queue, walk, sign, dy.tensor.const_data_ptr<float>(), filters.const_data_ptr<float>(), source,
                        static_cast<S*>(grad_input.mutable_data_ptr()));
      });
    }
  }
  return grad_input;
}

Tensor adder2d_backward_weight(const Tensor& grad, const Tensor& input, const Tensor& weight, Pair stride, Pair padding,
                               Pair dilation, int64_t groups) {
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_grad(grad, g);
  const Queue queue(input);
  const ScalarType type = accumulation_type(input);
  Tensor grad_weight = new_empty(weight, {weight.size(0), g.channels, g.kernel_h, g.kernel_w}, weight.scalar_type(),
                                 MemoryFormat::Contiguous);
  const Dense x(input), dy(torch::stable::to(grad, type));
  const Tensor filters = torch::stable::contiguous(weight);
  const Walk walk = forward_walk(g, x.strides, dy.strides);
  const dim3 blocks(static_cast<unsigned>(std::min(kMaxBlocks, filters.numel())));
  if (type == ScalarType::Double) {
    queue.run(filter_signs<double, double, double, double>, blocks, kSignThreads, walk,
              x.tensor.const_data_ptr<double>(), filters.const_data_ptr<double>(), dy.strides,
              dy.tensor.const_data_ptr<double>(), grad_weight.mutable_data_ptr<double>());
    return grad_weight;
  }
  with_pointer(x.tensor, [&]<typename S>(S* source) {
    queue.run(filter_signs<float, S, S, S>, blocks, kSignThreads, walk, static_cast<const S*>(source),
              static_cast<const S*>(filters.mutable_data_ptr()), dy.strides, dy.tensor.const_data_ptr<float>(),
              static_cast<S*>(grad_weight.mutable_data_ptr()));
  });
  return grad_weight;
}

}  // namespace
}  // namespace adderzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(adderzoo, ADDERZOO_DEVICE, m) {
  m.impl("adder2d", TORCH_BOX(&adderzoo::cuda::adder2d));
  m.impl("adder2d_affine", TORCH_BOX(&adderzoo::cuda::adder2d_affine));
  m.impl("adder2d_u8", TORCH_BOX(&adderzoo::cuda::adder2d_u8));
  m.impl("_adder2d_backward_input", TORCH_BOX(&adderzoo::cuda::adder2d_backward_input));
  m.impl("_adder2d_backward_weight", TORCH_BOX(&adderzoo::cuda::adder2d_backward_weight));
}
