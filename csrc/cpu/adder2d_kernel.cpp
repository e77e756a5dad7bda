#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "adder2d_loops.h"

namespace adderzoo::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pair = std::vector<int64_t>;

// Work that is worth waking a thread for, in steps of the loops: some ten microseconds.
constexpr int64_t kGrainSteps = 1 << 15;

int64_t grain(int64_t item_steps) { return std::max<int64_t>(1, kGrainSteps / std::max<int64_t>(1, item_steps)); }

// Not STD_TORCH_CHECK, which shows users the path of this file where it was compiled.
template <typename... Words>
[[noreturn]] void fail(const Words&... words) {
  std::ostringstream text;
  text << "adder2d: ";
  (text << ... << words);
  throw std::runtime_error(text.str());
}

// As Python writes a tuple.
std::string tuple(const std::vector<int64_t>& numbers) {
  std::string text = "(";
  for (size_t i = 0; i < numbers.size(); ++i) text += (i ? ", " : "") + std::to_string(numbers[i]);
  return text + (numbers.size() == 1 ? ",)" : ")");
}

std::string shape(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes.push_back(tensor.size(d));
  return tuple(sizes);
}

// As Python writes it.
std::string dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(tensor.scalar_type());
  }
}

bool is_supported(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

void check_pair(const char* name, const Pair& pair, int64_t least) {
  if (pair.size() != 2 || pair[0] < least || pair[1] < least) {
    fail(name, " must be two integers of at least ", least, ", got ", tuple(pair));
  }
}

void check_mode(const char* name, const std::string& mode, const char* one, const char* other) {
  if (mode != one && mode != other) fail(name, " must be '", one, "' or '", other, "', got '", mode, "'");
}

// The same checks, in the same words, as adderzoo/ops/reference.py makes; that of the devices is made there alone,
// because the dispatcher calls these kernels for tensors that are all on the CPU.
Geometry check(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding, const Pair& dilation,
               int64_t groups) {
  if (input.dim() != 4) fail("input must have 4 dimensions (N, C, H, W), got shape ", shape(input));
  if (weight.dim() != 4) fail("weight must have 4 dimensions (O, C / groups, kH, kW), got shape ", shape(weight));
  if (!is_supported(input.scalar_type())) {
    fail("input must be float32, float64, bfloat16 or float16, got ", dtype(input));
  }
  if (weight.scalar_type() != input.scalar_type()) {
    fail("weight must have the dtype of input, ", dtype(input), ", got ", dtype(weight));
  }
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  if (groups < 1 || weight.size(0) % groups != 0 || input.size(1) != weight.size(1) * groups) {
    fail("groups must divide the filters, and input must have groups times the channels of weight, got groups ", groups,
         ", input ", shape(input), " and weight ", shape(weight));
  }
  if (weight.numel() == 0) fail("weight must not be empty, got shape ", shape(weight));

  Geometry g{
      .batch = input.size(0),
      .groups = groups,
      .channels = weight.size(1),
      .filters = weight.size(0) / groups,
      .height = input.size(2),
      .width = input.size(3),
      .kernel_h = weight.size(2),
      .kernel_w = weight.size(3),
      .stride_h = stride[0],
      .stride_w = stride[1],
      .padding_h = padding[0],
      .padding_w = padding[1],
      .dilation_h = dilation[0],
      .dilation_w = dilation[1],
  };
  const int64_t span_h = g.height + 2 * g.padding_h - g.dilation_h * (g.kernel_h - 1) - 1;
  const int64_t span_w = g.width + 2 * g.padding_w - g.dilation_w * (g.kernel_w - 1) - 1;
  if (span_h < 0 || span_w < 0) {
    fail("the dilated kernel must fit into the padded input, got input ", shape(input), ", weight ", shape(weight),
         ", padding ", tuple(padding), " and dilation ", tuple(dilation));
  }
  g.out_height = span_h / g.stride_h + 1;
  g.out_width = span_w / g.stride_w + 1;
  return g;
}

void check_grad(const Tensor& grad, const Geometry& g) {
  const std::string expected = tuple({g.batch, g.groups * g.filters, g.out_height, g.out_width});
  if (shape(grad) != expected) fail("grad must have the shape of the output, ", expected, ", got ", shape(grad));
}

// Adder outputs lie near -1000 with a spread of a few units: half precision would round the spread away.
ScalarType accumulation_type(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

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

Tensor dense(const Tensor& tensor, ScalarType type, MemoryFormat format) {
  return torch::stable::contiguous(torch::stable::to(tensor, type), format);
}

// Strides by index, whatever contiguous() leaves in the dimensions of size one.
Strides dense_strides(MemoryFormat format, int64_t channels, int64_t height, int64_t width) {
  if (format == MemoryFormat::ChannelsLast) return {height * width * channels, width * channels, channels, 1};
  return {channels * height * width, width, 1, height * width};
}

template <typename T>
std::vector<T> pack(const Tensor& weight, const FilterShape& filter_shape) {
  std::vector<T> packed(loops<T>().packed_size(filter_shape));
  loops<T>().pack(weight.const_data_ptr<T>(), packed.data(), filter_shape);
  return packed;
}

template <typename T>
void run(Function function, const Accumulation<T>& work) {
  const int64_t items = loops<T>().num_items(function, work);
  if (items == 0) return;
  torch::stable::parallel_for(0, items, grain(loops<T>().item_steps(function, work)),
                              [&](int64_t begin, int64_t end) { loops<T>().run(function, work, begin, end); });
}

template <typename T>
void forward(const Geometry& g, const Tensor& input, const Tensor& weight, Tensor& output, MemoryFormat format) {
  const int64_t taps = g.taps();
  const std::vector<T> filters =
      pack<T>(weight, {g.groups, g.filters, g.channels, taps, g.filters * g.channels * taps, g.channels * taps, taps});
  const std::vector<T> zeros(g.channels);
  std::vector<Tap> tap_list;
  for (int64_t i = 0; i < g.kernel_h; ++i) {
    for (int64_t j = 0; j < g.kernel_w; ++j) {
      tap_list.push_back({i * g.dilation_h - g.padding_h, j * g.dilation_w - g.padding_w, i * g.kernel_w + j});
    }
  }

  const Accumulation<T> work{
      .batch = g.batch,
      .rows = g.out_height,
      .columns = g.out_width,
      .step_h = g.stride_h,
      .step_w = g.stride_w,
      .groups = g.groups,
      .source_channels = g.channels,
      .channels = g.filters,
      .source = input.const_data_ptr<T>(),
      .source_height = g.height,
      .source_width = g.width,
      .zeros = zeros.data(),
      .taps = tap_list.data(),
      .num_taps = taps,
      .filters = filters.data(),
      .filter_taps = taps,
      .output = output.mutable_data_ptr<T>(),
      .output_strides = dense_strides(format, g.groups * g.filters, g.out_height, g.out_width),
  };
  run(Function::kDistance, work);
}

// Input rows that leave the same remainder modulo the stride are reached by the same taps: one accumulation for each
// pair of remainders, in which the step over the gradient is one pixel.
template <typename T>
void backward_input(Function function, const Geometry& g, const Tensor& grad, const Tensor& input, const Tensor& weight,
                    Tensor& grad_input, MemoryFormat format) {
  const int64_t taps = g.taps();
  const std::vector<T> filters =
      pack<T>(weight, {g.groups, g.channels, g.filters, taps, g.filters * g.channels * taps, taps, g.channels * taps});
  const std::vector<T> zeros(g.filters);
  const Strides to = dense_strides(format, g.groups * g.channels, g.height, g.width);
  const Strides from = dense_strides(MemoryFormat::ChannelsLast, g.groups * g.channels, g.height, g.width);

  for (int64_t y = 0; y < std::min(g.stride_h, g.height); ++y) {
    for (int64_t x = 0; x < std::min(g.stride_w, g.width); ++x) {
      std::vector<Tap> tap_list;
      for (int64_t i = 0; i < g.kernel_h; ++i) {
        const int64_t row = y + g.padding_h - i * g.dilation_h;
        if (row % g.stride_h != 0) continue;
        for (int64_t j = 0; j < g.kernel_w; ++j) {
          const int64_t column = x + g.padding_w - j * g.dilation_w;
          if (column % g.stride_w != 0) continue;
          tap_list.push_back({row / g.stride_h, column / g.stride_w, i * g.kernel_w + j});
        }
      }

      const Accumulation<T> work{
          .batch = g.batch,
          .rows = (g.height - y + g.stride_h - 1) / g.stride_h,
          .columns = (g.width - x + g.stride_w - 1) / g.stride_w,
          .step_h = 1,
          .step_w = 1,
          .groups = g.groups,
          .source_channels = g.filters,
          .channels = g.channels,
          .source = grad.const_data_ptr<T>(),
          .source_height = g.out_height,
          .source_width = g.out_width,
          .zeros = zeros.data(),
          .taps = tap_list.data(),
          .num_taps = static_cast<int64_t>(tap_list.size()),
          .filters = filters.data(),
          .filter_taps = taps,
          .output = grad_input.mutable_data_ptr<T>() + y * to.row + x * to.column,
          .output_strides = {to.image, to.row * g.stride_h, to.column * g.stride_w, to.channel},
          .input = input.const_data_ptr<T>() + y * from.row + x * from.column,
          .input_strides = {from.image, from.row * g.stride_h, from.column * g.stride_w, from.channel},
      };
      run(function, work);
    }
  }
}

template <typename T>
void backward_weight(const Geometry& g, const Tensor& grad, const Tensor& input, const Tensor& weight,
                     Tensor& grad_weight) {
  const FilterSignGradient<T> work{
      .geometry = g,
      .input = input.const_data_ptr<T>(),
      .grad = grad.const_data_ptr<T>(),
      .weight = weight.const_data_ptr<T>(),
      .grad_weight = grad_weight.mutable_data_ptr<T>(),
  };
  const int64_t item_steps = g.batch * g.out_height * g.out_width * (g.channels + kStepsOfPixel);
  torch::stable::parallel_for(0, g.groups * g.filters * g.taps(), grain(item_steps),
                              [&](int64_t begin, int64_t end) { loops<T>().filter_sign_gradient(work, begin, end); });
}

Tensor adder2d(const Tensor& input, const Tensor& weight, Pair stride, Pair padding, Pair dilation, int64_t groups,
               std::string input_grad, std::string weight_grad) {
  check_mode("input_grad", input_grad, "hardtanh", "sign");
  check_mode("weight_grad", weight_grad, "full", "sign");
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  const ScalarType type = accumulation_type(input);
  const MemoryFormat format = format_like(input);
  Tensor output = new_empty(input, {g.batch, weight.size(0), g.out_height, g.out_width}, type, format);
  const Tensor x = dense(input, type, MemoryFormat::ChannelsLast);
  const Tensor w = dense(weight, type, MemoryFormat::Contiguous);
  if (type == ScalarType::Double) {
    forward<double>(g, x, w, output, format);
  } else {
    forward<float>(g, x, w, output, format);
  }
  return output;
}

Tensor adder2d_backward_input(const Tensor& grad, const Tensor& input, const Tensor& weight, Pair stride, Pair padding,
                              Pair dilation, int64_t groups, std::string input_grad) {
  check_mode("input_grad", input_grad, "hardtanh", "sign");
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_grad(grad, g);
  const Function function = input_grad == "sign" ? Function::kSignSlope : Function::kClippedSlope;
  const ScalarType type = accumulation_type(input);
  const MemoryFormat format = format_like(input);
  Tensor grad_input = new_empty(input, {g.batch, input.size(1), g.height, g.width}, type, format);
  const Tensor dy = dense(grad, type, MemoryFormat::ChannelsLast);
  const Tensor x = dense(input, type, MemoryFormat::ChannelsLast);
  const Tensor w = dense(weight, type, MemoryFormat::Contiguous);
  if (type == ScalarType::Double) {
    backward_input<double>(function, g, dy, x, w, grad_input, format);
  } else {
    backward_input<float>(function, g, dy, x, w, grad_input, format);
  }
  return torch::stable::to(grad_input, input.scalar_type());
}

Tensor adder2d_backward_weight(const Tensor& grad, const Tensor& input, const Tensor& weight, Pair stride, Pair padding,
                               Pair dilation, int64_t groups) {
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_grad(grad, g);
  const ScalarType type = accumulation_type(input);
  Tensor grad_weight =
      new_empty(weight, {weight.size(0), g.channels, g.kernel_h, g.kernel_w}, type, MemoryFormat::Contiguous);
  const Tensor dy = dense(grad, type, MemoryFormat::ChannelsLast);
  const Tensor x = dense(input, type, MemoryFormat::ChannelsLast);
  const Tensor w = dense(weight, type, MemoryFormat::Contiguous);
  if (type == ScalarType::Double) {
    backward_weight<double>(g, dy, x, w, grad_weight);
  } else {
    backward_weight<float>(g, dy, x, w, grad_weight);
  }
  return torch::stable::to(grad_weight, weight.scalar_type());
}

std::string cpu_capability() { return loops<float>().capability; }

}  // namespace
}  // namespace adderzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(adderzoo, CPU, m) {
  m.impl("adder2d", TORCH_BOX(&adderzoo::cpu::adder2d));
  m.impl("_adder2d_backward_input", TORCH_BOX(&adderzoo::cpu::adder2d_backward_input));
  m.impl("_adder2d_backward_weight", TORCH_BOX(&adderzoo::cpu::adder2d_backward_weight));
}

STABLE_TORCH_LIBRARY_IMPL(adderzoo, CompositeExplicitAutograd, m) {
  m.impl("_cpu_capability", TORCH_BOX(&adderzoo::cpu::cpu_capability));
}
