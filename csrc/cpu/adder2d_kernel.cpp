#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <string>
#include <vector>

#include "adder2d_loops.h"

namespace adderzoo::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pair = std::vector<int64_t>;

// Work that is worth waking a thread for, in terms of a sum: some ten microseconds.
constexpr int64_t kGrainTerms = 1 << 19;

int64_t grain(int64_t terms, int64_t items) { return std::max<int64_t>(1, kGrainTerms / (terms / items + 1)); }

struct Geometry {
  int64_t batch, groups, channels, filters;  // channels and filters of one group
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  int64_t taps() const { return kernel_h * kernel_w; }
};

std::string shape(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + ")";
}

bool is_supported(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

void check_pair(const char* name, const Pair& pair, int64_t least) {
  STD_TORCH_CHECK(pair.size() == 2 && pair[0] >= least && pair[1] >= least, "adder2d: ", name,
                  " must be two integers of at least ", least);
}

// The same checks, in the same words, as adderzoo/ops/adder2d.py makes for tensors without data.
Geometry check(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding, const Pair& dilation,
               int64_t groups) {
  STD_TORCH_CHECK(input.dim() == 4, "adder2d: input must have 4 dimensions (N, C, H, W), got shape ", shape(input));
  STD_TORCH_CHECK(weight.dim() == 4, "adder2d: weight must have 4 dimensions (O, C / groups, kH, kW), got shape ",
                  shape(weight));
  STD_TORCH_CHECK(is_supported(input.scalar_type()), "adder2d: input must be float32, float64, bfloat16 or float16");
  STD_TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "adder2d: weight must have the dtype of input");
  STD_TORCH_CHECK(weight.device() == input.device(), "adder2d: weight must be on the device of input");
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  STD_TORCH_CHECK(groups >= 1 && weight.size(0) % groups == 0 && input.size(1) == weight.size(1) * groups,
                  "adder2d: groups must divide the filters, and input must have groups times the channels of weight, "
                  "got groups ",
                  groups, ", input ", shape(input), " and weight ", shape(weight));
  STD_TORCH_CHECK(weight.numel() > 0, "adder2d: weight must not be empty, got shape ", shape(weight));

  Geometry g;
  g.batch = input.size(0);
  g.groups = groups;
  g.channels = weight.size(1);
  g.filters = weight.size(0) / groups;
  g.height = input.size(2);
  g.width = input.size(3);
  g.kernel_h = weight.size(2);
  g.kernel_w = weight.size(3);
  g.stride_h = stride[0];
  g.stride_w = stride[1];
  g.padding_h = padding[0];
  g.padding_w = padding[1];
  g.dilation_h = dilation[0];
  g.dilation_w = dilation[1];
  const int64_t span_h = g.height + 2 * g.padding_h - g.dilation_h * (g.kernel_h - 1) - 1;
  const int64_t span_w = g.width + 2 * g.padding_w - g.dilation_w * (g.kernel_w - 1) - 1;
  STD_TORCH_CHECK(span_h >= 0 && span_w >= 0, "adder2d: the dilated kernel must fit into the padded input, got input ",
                  shape(input), " and weight ", shape(weight));
  g.out_height = span_h / g.stride_h + 1;
  g.out_width = span_w / g.stride_w + 1;
  return g;
}

void check_grad(const Tensor& grad, const Tensor& input, const Tensor& weight, const Geometry& g) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == g.batch && grad.size(1) == weight.size(0) &&
                      grad.size(2) == g.out_height && grad.size(3) == g.out_width,
                  "adder2d: grad must have the shape of the output, got ", shape(grad), " for input ", shape(input),
                  " and weight ", shape(weight));
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
  const int64_t points = work.batch * work.rows * work.columns;
  const int64_t terms = points * work.groups * work.channels * work.source_channels * work.num_taps;
  torch::stable::parallel_for(0, items, grain(terms, items),
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

  Accumulation<T> work{};
  work.batch = g.batch;
  work.rows = g.out_height;
  work.columns = g.out_width;
  work.step_h = g.stride_h;
  work.step_w = g.stride_w;
  work.groups = g.groups;
  work.source_channels = g.channels;
  work.channels = g.filters;
  work.source = input.const_data_ptr<T>();
  work.source_height = g.height;
  work.source_width = g.width;
  work.zeros = zeros.data();
  work.taps = tap_list.data();
  work.num_taps = taps;
  work.filters = filters.data();
  work.filter_taps = taps;
  work.output = output.mutable_data_ptr<T>();
  work.output_strides = dense_strides(format, g.groups * g.filters, g.out_height, g.out_width);
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

      Accumulation<T> work{};
      work.batch = g.batch;
      work.rows = (g.height - y + g.stride_h - 1) / g.stride_h;
      work.columns = (g.width - x + g.stride_w - 1) / g.stride_w;
      work.step_h = 1;
      work.step_w = 1;
      work.groups = g.groups;
      work.source_channels = g.filters;
      work.channels = g.channels;
      work.source = grad.const_data_ptr<T>();
      work.source_height = g.out_height;
      work.source_width = g.out_width;
      work.zeros = zeros.data();
      work.taps = tap_list.data();
      work.num_taps = static_cast<int64_t>(tap_list.size());
      work.filters = filters.data();
      work.filter_taps = taps;
      work.output = grad_input.mutable_data_ptr<T>() + y * to.row + x * to.column;
      work.output_strides = {to.image, to.row * g.stride_h, to.column * g.stride_w, to.channel};
      work.input = input.const_data_ptr<T>() + y * from.row + x * from.column;
      work.input_strides = {from.image, from.row * g.stride_h, from.column * g.stride_w, from.channel};
      run(function, work);
    }
  }
}

template <typename T>
void backward_weight(const Geometry& g, const Tensor& grad, const Tensor& input, const Tensor& weight,
                     Tensor& grad_weight) {
  FilterSignGradient<T> work{};
  work.batch = g.batch;
  work.groups = g.groups;
  work.channels = g.channels;
  work.filters = g.filters;
  work.height = g.height;
  work.width = g.width;
  work.out_height = g.out_height;
  work.out_width = g.out_width;
  work.kernel_h = g.kernel_h;
  work.kernel_w = g.kernel_w;
  work.stride_h = g.stride_h;
  work.stride_w = g.stride_w;
  work.padding_h = g.padding_h;
  work.padding_w = g.padding_w;
  work.dilation_h = g.dilation_h;
  work.dilation_w = g.dilation_w;
  work.input = input.const_data_ptr<T>();
  work.grad = grad.const_data_ptr<T>();
  work.weight = weight.const_data_ptr<T>();
  work.grad_weight = grad_weight.mutable_data_ptr<T>();
  const int64_t items = g.groups * g.filters * g.taps();
  const int64_t terms = items * g.channels * g.batch * g.out_height * g.out_width;
  torch::stable::parallel_for(0, items, grain(terms, items),
                              [&](int64_t begin, int64_t end) { loops<T>().filter_sign_gradient(work, begin, end); });
}

Tensor adder2d(const Tensor& input, const Tensor& weight, Pair stride, Pair padding, Pair dilation, int64_t groups,
               std::string input_grad, std::string weight_grad) {
  STD_TORCH_CHECK(input_grad == "hardtanh" || input_grad == "sign",
                  "adder2d: input_grad must be 'hardtanh' or 'sign', got '", input_grad, "'");
  STD_TORCH_CHECK(weight_grad == "full" || weight_grad == "sign",
                  "adder2d: weight_grad must be 'full' or 'sign', got '", weight_grad, "'");
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
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_grad(grad, input, weight, g);
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
  check_grad(grad, input, weight, g);
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
