#include "adder2d_checks.h"

namespace adderzoo {
namespace {

constexpr const char* kAdder2d = "adder2d";
constexpr const char* kAffine = "adder2d_affine";
constexpr const char* kU8 = "adder2d_u8";
constexpr const char* kQuantize = "quantize_u8";

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
std::string name(ScalarType type) {
  switch (type) {
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
      return torch::headeronly::toString(type);
  }
}

bool is_supported(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

void check_pair(const char* op, const char* argument, const Pair& pair, int64_t least) {
  const auto fits = [&](int64_t number) { return least <= number && number <= kLargestSize; };
  if (pair.size() != 2 || !fits(pair[0]) || !fits(pair[1])) {
    fail(op, argument, " must be two integers from ", least, " to ", kLargestSize, ", got ", tuple(pair));
  }
}

// Whether a tensor has no more than kMostElements. A size of 0 counts as 1, as it does in strides.
bool fits(std::initializer_list<int64_t> sizes) {
  int64_t elements = 1;
  for (const int64_t size : sizes) {
    if (size > 1 && __builtin_mul_overflow(elements, size, &elements)) return false;
  }
  return elements <= kMostElements;
}

// Of all dimensions from `first` on.
void check_sizes(const char* op, const char* argument, const Tensor& tensor, int64_t first = 0) {
  for (int64_t d = first; d < tensor.dim(); ++d) {
    if (tensor.size(d) > kLargestSize) {
      fail(op, argument, " must have sizes of at most ", kLargestSize, first ? " behind the first" : "", ", got shape ",
           shape(tensor));
    }
  }
}

void check_dimensions(const char* op, const Tensor& input) {
  if (input.dim() != 4) fail(op, "input must have 4 dimensions (N, C, H, W), got shape ", shape(input));
  check_sizes(op, "input", input, 1);
}

void check_dtype(const char* op, const Tensor& input) {
  if (!is_supported(input.scalar_type())) {
    fail(op, "input must be float32, float64, bfloat16 or float16, got ", name(input.scalar_type()));
  }
}

void check_pairs(const char* op, const Pair& stride, const Pair& padding, const Pair& dilation) {
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
}

Geometry geometry(const char* op, const Tensor& input, const Tensor& weight, int64_t filters, int64_t channels,
                  int64_t kernel_h, int64_t kernel_w, const Pair& stride, const Pair& padding, const Pair& dilation,
                  int64_t groups) {
  Geometry g{
      .batch = input.size(0),
      .groups = groups,
      .channels = channels,
      .filters = filters / groups,
      .height = input.size(2),
      .width = input.size(3),
      .out_height = 0,
      .out_width = 0,
      .kernel_h = kernel_h,
      .kernel_w = kernel_w,
      .stride_h = stride[0],
      .stride_w = stride[1],
      .padding_h = padding[0],
      .padding_w = padding[1],
      .dilation_h = dilation[0],
      .dilation_w = dilation[1],
  };
  const int64_t padded_h = g.height + 2 * g.padding_h, padded_w = g.width + 2 * g.padding_w;
  if (padded_h > kLargestSize || padded_w > kLargestSize || !fits({g.batch, groups * channels, padded_h, padded_w})) {
    fail(op, "padding must leave an input of at most ", kLargestSize, " rows and columns and ", kMostElements,
         " elements, got input ", shape(input), " and padding ", tuple(padding));
  }
  if (!fits({filters, channels, kernel_h, kernel_w})) {
    fail(op, "weight must have at most ", kMostElements, " elements, got shape ", shape(weight));
  }
  g.out_height = output_size(padded_h, g.kernel_h, g.stride_h, g.dilation_h);
  g.out_width = output_size(padded_w, g.kernel_w, g.stride_w, g.dilation_w);
  if (g.out_height == 0 || g.out_width == 0) {
    fail(op, "the dilated kernel must fit into the padded input, got input ", shape(input), ", weight ", shape(weight),
         ", padding ", tuple(padding), " and dilation ", tuple(dilation));
  }
  if (!fits({g.batch, filters, g.out_height, g.out_width})) {
    fail(op, "the output must have at most ", kMostElements, " elements, got input ", shape(input), ", weight ",
         shape(weight), ", stride ", tuple(stride), " and padding ", tuple(padding));
  }
  return g;
}

void check_affine_map(const char* op, const Tensor& scale, const Tensor& shift) {
  if (scale.dim() != 1 || scale.numel() == 0) {
    fail(op, "scale must have a value for each filter, (O,), got shape ", shape(scale));
  }
  if (shift.dim() != 1 || shift.numel() != scale.numel()) {
    fail(op, "shift must have the shape of scale, ", shape(scale), ", got ", shape(shift));
  }
  check_sizes(op, "scale", scale);
}

void check_parameter(const char* op, const char* argument, const Tensor& tensor, ScalarType type, const Tensor& input) {
  if (tensor.scalar_type() != type) {
    fail(op, argument, " must be ", name(type), " for an input of ", name(input.scalar_type()), ", got ",
         name(tensor.scalar_type()));
  }
}

void check_groups(const char* op, const Tensor& input, int64_t filters, int64_t groups) {
  if (groups < 1 || filters % groups != 0 || input.size(1) % groups != 0) {
    fail(op, "groups must divide the channels of input and the filters, got groups ", groups, ", input ", shape(input),
         " and ", filters, " filters");
  }
}

// `channels` are those of weight.
void check_channels(const char* op, const Tensor& input, const Tensor& weight, int64_t channels, int64_t groups) {
  if (input.size(1) / groups != channels) {
    fail(op, "input must have groups times the channels of weight, ", groups * channels, ", got ", input.size(1),
         ": groups ", groups, ", input ", shape(input), " and weight ", shape(weight));
  }
}

void check_addend(const char* op, const std::optional<Tensor>& addend, const Tensor& input, const Geometry& g) {
  if (!addend.has_value()) return;
  const std::string expected = tuple({g.batch, g.groups * g.filters, g.out_height, g.out_width});
  if (shape(*addend) != expected) {
    fail(op, "addend must have the shape of the output, ", expected, ", got ", shape(*addend));
  }
  if (addend->scalar_type() != input.scalar_type() && addend->scalar_type() != ScalarType::Float) {
    fail(op, "addend must have the dtype of input, ", name(input.scalar_type()), ", or be float32, got ",
         name(addend->scalar_type()));
  }
}

void check_byte(const char* op, const char* argument, int64_t number, int64_t most) {
  if (number < 0 || number > most) fail(op, argument, " must be from 0 to ", most, ", got ", number);
}

}  // namespace

void check_mode(const char* argument, const std::string& mode, const char* one, const char* other) {
  if (mode != one && mode != other) {
    fail(kAdder2d, argument, " must be '", one, "' or '", other, "', got '", mode, "'");
  }
}

ScalarType accumulation_type(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Geometry check(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding, const Pair& dilation,
               int64_t groups) {
  check_dimensions(kAdder2d, input);
  if (weight.dim() != 4) {
    fail(kAdder2d, "weight must have 4 dimensions (O, C / groups, kH, kW), got shape ", shape(weight));
  }
  check_dtype(kAdder2d, input);
  if (weight.scalar_type() != input.scalar_type()) {
    fail(kAdder2d, "weight must have the dtype of input, ", name(input.scalar_type()), ", got ",
         name(weight.scalar_type()));
  }
  check_sizes(kAdder2d, "weight", weight);
  check_pairs(kAdder2d, stride, padding, dilation);
  if (weight.numel() == 0) fail(kAdder2d, "weight must not be empty, got shape ", shape(weight));
  check_groups(kAdder2d, input, weight.size(0), groups);
  check_channels(kAdder2d, input, weight, weight.size(1), groups);
  return geometry(kAdder2d, input, weight, weight.size(0), weight.size(1), weight.size(2), weight.size(3), stride,
                  padding, dilation, groups);
}

void check_grad(const Tensor& grad, const Geometry& g) {
  const std::string expected = tuple({g.batch, g.groups * g.filters, g.out_height, g.out_width});
  if (shape(grad) != expected)
    fail(kAdder2d, "grad must have the shape of the output, ", expected, ", got ", shape(grad));
}

Geometry check_affine(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                      const std::optional<Tensor>& addend, const Pair& stride, const Pair& padding,
                      const Pair& dilation, int64_t groups) {
  const int64_t filters = scale.numel();
  check_dimensions(kAffine, input);
  check_affine_map(kAffine, scale, shift);
  if (weight.dim() != 5 || weight.size(0) != divide_up<int64_t>(filters, kPanel) || weight.size(4) != kPanel ||
      weight.numel() == 0) {
    fail(kAffine, "weight must be packed filters, (ceil(O / 16), kH, kW, C / groups, 16), got shape ", shape(weight),
         " with O = ", filters);
  }
  check_dtype(kAffine, input);
  const ScalarType type = accumulation_type(input);
  check_parameter(kAffine, "weight", weight, type, input);
  check_parameter(kAffine, "scale", scale, type, input);
  check_parameter(kAffine, "shift", shift, type, input);
  check_sizes(kAffine, "weight", weight);
  check_pairs(kAffine, stride, padding, dilation);
  check_groups(kAffine, input, filters, groups);
  check_channels(kAffine, input, weight, weight.size(3), groups);
  const Geometry g = geometry(kAffine, input, weight, filters, weight.size(3), weight.size(1), weight.size(2), stride,
                              padding, dilation, groups);
  check_addend(kAffine, addend, input, g);
  return g;
}

Geometry check_u8(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                  const std::optional<Tensor>& addend, const Pair& stride, const Pair& padding, const Pair& dilation,
                  int64_t groups, int64_t zero_point, std::optional<int64_t> out_zero_point, int64_t out_max) {
  const int64_t filters = scale.numel();
  check_dimensions(kU8, input);
  check_affine_map(kU8, scale, shift);
  if (input.scalar_type() != ScalarType::Byte) fail(kU8, "input must be uint8, got ", name(input.scalar_type()));
  check_parameter(kU8, "weight", weight, ScalarType::Byte, input);
  check_parameter(kU8, "scale", scale, ScalarType::Float, input);
  check_parameter(kU8, "shift", shift, ScalarType::Float, input);
  check_sizes(kU8, "weight", weight);
  check_pairs(kU8, stride, padding, dilation);
  check_groups(kU8, input, filters, groups);
  const int64_t channels = input.size(1) / groups, lane = shares_source(groups, filters / groups) ? kByteStep : 1;
  const int64_t panels = divide_up<int64_t>(filters, kPanel), steps = divide_up(channels, lane);
  if (weight.dim() != 6 || weight.size(0) != panels || weight.size(3) != steps || weight.size(4) != kPanel ||
      weight.size(5) != lane || weight.numel() == 0) {
    fail(kU8, "weight must be packed filters, (", panels, ", kH, kW, ", steps, ", ", kPanel, ", ", lane, ") for ",
         filters, " filters of ", channels, " channels in ", groups, " groups, got shape ", shape(weight));
  }
  const std::vector<int64_t> filter = {channels, weight.size(1), weight.size(2)};
  if (!fits({filter[0], filter[1], filter[2]}) || filter[0] * filter[1] * filter[2] > kLargestByteFilter) {
    fail(kU8, "a filter of weight must have at most ", kLargestByteFilter,
         " elements, got (C / groups, kH, kW) = ", tuple(filter));
  }
  check_byte(kU8, "out_max", out_max, 255);
  check_byte(kU8, "zero_point", zero_point, 255);
  if (out_zero_point.has_value()) check_byte(kU8, "out_zero_point", *out_zero_point, out_max);
  const Geometry g = geometry(kU8, input, weight, filters, channels, weight.size(1), weight.size(2), stride, padding,
                              dilation, groups);
  check_addend(kU8, addend, input, g);
  return g;
}

void check_quantize_u8(const Tensor& input, int64_t zero_point, int64_t top) {
  if (input.scalar_type() != ScalarType::Float) {
    fail(kQuantize, "input must be float32, got ", name(input.scalar_type()));
  }
  check_byte(kQuantize, "top", top, 255);
  check_byte(kQuantize, "zero_point", zero_point, top);
}

}  // namespace adderzoo
