#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../adder2d_checks.h"
#include "../adder2d_formats.h"
#include "adder2d_plan.h"
#include "capability.h"

namespace adderzoo::cpu {
namespace {

// Work that is worth waking a thread for, in steps of the loops: some ten microseconds.
constexpr int64_t kGrainSteps = 1 << 15;

// Packing gathers the channels of a step one by one.
constexpr int64_t kStepsOfPackedStep = 16;
// Finding a pixel takes as long as so many steps (measured).
constexpr int64_t kStepsOfPixel = 8;

int64_t grain(double item_steps) {
  return std::max<int64_t>(1, static_cast<int64_t>(kGrainSteps / std::max(1.0, item_steps)));
}

// A float or double tensor in either format, as it is if it is dense.
template <typename T>
struct Dense {
  Dense(const Tensor& given, ScalarType type) : Dense(given, type, format_like(given)) {}
  Dense(const Tensor& given, ScalarType type, MemoryFormat format)
      : tensor(dense(given, type, format)), view{tensor.const_data_ptr<T>(), dense_strides(given, format)} {}
  Tensor tensor;
  View<const T> view;
};

template <typename T>
View<T> view(Tensor& tensor, MemoryFormat format) {
  return {tensor.mutable_data_ptr<T>(), dense_strides(tensor, format)};
}

// Memory that begins at a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : memory_(new T[size + kLine]) {
    void* begin = memory_.get();
    size_t space = (size + kLine) * sizeof(T);
    begin_ = static_cast<T*>(std::align(kLine * sizeof(T), size * sizeof(T), begin, space));
  }
  T* begin() const { return begin_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);
  std::unique_ptr<T[]> memory_;
  T* begin_;
};

int64_t threads() { return torch::stable::get_num_threads(); }

template <typename T>
struct PackedFilters {
  PackedFilters(const T* weight, const FilterShape& s)
      : packed(s.panels() * s.steps() * kPanel), sums(s.panels() * kPanel), limits(s.panels() * kPanel) {
    torch::stable::parallel_for(0, s.panels(), grain(s.steps() * kStepsOfPackedStep), [&](int64_t begin, int64_t end) {
      loops<T>().pack(weight, packed.begin(), sums.begin(), limits.begin(), s, begin, end);
    });
  }
  bool finite(int64_t channels) const {
    return std::all_of(sums.begin(), sums.begin() + channels, [](T x) { return x - x == T(0); });
  }
  Buffer<T> packed, sums, limits;
};

// Of one thread. Rows of images are far from it; a wide stride over padding is not, whose pixels are mostly read by
// none.
constexpr int64_t kMostScratchBytes = int64_t{1} << 32;

template <typename T>
void run(const Geometry& g, const Accumulation<T>& work) {
  if (work.items.count == 0) return;
  if (work.items.scratch_size > kMostScratchBytes / static_cast<int64_t>(sizeof(T))) {
    fail("adder2d", "stride and padding must leave rows of at most ", kMostScratchBytes,
         " bytes for a point's taps, got stride (", g.stride_h, ", ", g.stride_w, ") and padding (", g.padding_h, ", ",
         g.padding_w, ")");
  }
  torch::stable::parallel_for(0, work.items.count, grain(work.items.steps), [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(work.items.scratch_size);
    loops<T>().run(work, begin, end, scratch.begin());
  });
}

template <typename T>
void forward(const Geometry& g, View<const T> input, const T* filters, const T* filter_sums, const T* filter_limits,
             Epilogue<T> epilogue, View<T> output) {
  Plan<T> plan;
  plan.work.function = form_for_processor(loops<T>().distance);
  plan.work.filters.packed = filters;
  plan.work.filters.sums = filter_sums;
  plan.work.filters.limits = filter_limits;
  plan.work.output.epilogue = epilogue;
  plan_forward(plan, g, input, output, threads());
  run(g, plan.work);
}

// Input rows that leave the same remainder modulo the stride are reached by the same taps: one accumulation for each
// pair of remainders, in which the step over the gradient is one pixel.
template <typename T>
void backward_input(Function function, const Geometry& g, View<const T> grad, View<const T> input, const T* weight,
                    View<T> grad_input) {
  const PackedFilters<T> filters(weight, backward_filters(g));
  if (function == Function::kClippedSlope) {
    function =
        filters.finite(g.groups * g.channels) ? form_for_processor(loops<T>().slope) : Function::kExactClippedSlope;
  }
  for (int64_t y = 0; y < std::min(g.stride_h, g.height); ++y) {
    for (int64_t x = 0; x < std::min(g.stride_w, g.width); ++x) {
      Plan<T> plan;
      plan.work.function = function;
      plan.work.filters.packed = filters.packed.begin();
      plan_backward(plan, g, y, x, grad, input, grad_input, threads());
      run(g, plan.work);
    }
  }
}

template <typename T>
bool all_finite(const Tensor& tensor) {
  std::atomic<bool> finite = true;
  const T* const numbers = tensor.const_data_ptr<T>();
  torch::stable::parallel_for(0, tensor.numel(), kGrainSteps, [&](int64_t begin, int64_t end) {
    if (!loops<T>().all_finite(numbers + begin, end - begin)) finite = false;
  });
  return finite;
}

template <typename T>
void backward_weight(const Geometry& g, bool full, const Tensor& grad, const Tensor& input, const Tensor& weight,
                     Tensor& grad_weight) {
  const auto finite = [&] { return all_finite<T>(grad) && all_finite<T>(input) && all_finite<T>(weight); };
  const FilterGradient<T> work{
      .slope = full       ? FilterSlope::kFull
               : finite() ? FilterSlope::kFiniteSign
                          : FilterSlope::kSign,
      .geometry = g,
      .input = input.const_data_ptr<T>(),
      .grad = grad.const_data_ptr<T>(),
      .weight = weight.const_data_ptr<T>(),
      .grad_weight = grad_weight.mutable_data_ptr<T>(),
  };
  const int64_t others = std::min<int64_t>(kPanel, std::min(g.channels, g.filters));
  const double item_steps = static_cast<double>(g.batch * g.out_height * g.out_width) * (others + kStepsOfPixel);
  torch::stable::parallel_for(0, work.items(), grain(item_steps),
                              [&](int64_t begin, int64_t end) { loops<T>().filter_gradient(work, begin, end); });
}

Tensor adder2d(const Tensor& input, const Tensor& weight, Pair stride, Pair padding, Pair dilation, int64_t groups,
               std::string input_grad, std::string weight_grad) {
  check_mode("input_grad", input_grad, "hardtanh", "sign");
  check_mode("weight_grad", weight_grad, "full", "sign");
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  const ScalarType type = accumulation_type(input);
  const MemoryFormat format = format_like(input);
  Tensor output = new_empty(input, {g.batch, weight.size(0), g.out_height, g.out_width}, type, format);
  const Tensor w = dense(weight, type);
  const auto compute = [&]<typename T>(T) {
    const Dense<T> x(input, type);
    const PackedFilters<T> filters(w.const_data_ptr<T>(), forward_filters(g));
    forward<T>(g, x.view, filters.packed.begin(), filters.sums.begin(), filters.limits.begin(), {},
               view<T>(output, format));
  };
  type == ScalarType::Double ? compute(double()) : compute(float());
  return output;
}

Tensor adder2d_affine(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                      std::optional<Tensor> addend, Pair stride, Pair padding, Pair dilation, int64_t groups,
                      bool relu) {
  const Geometry g = check_affine(input, weight, scale, shift, addend, stride, padding, dilation, groups);
  const ScalarType type = accumulation_type(input);
  const MemoryFormat format = format_like(input);
  Tensor output = new_empty(input, {g.batch, scale.size(0), g.out_height, g.out_width}, type, format);
  const auto compute = [&]<typename T>(T) {
    const Dense<T> x(input, type);
    const Tensor packed = dense(weight, type), a = dense(scale, type), b = dense(shift, type);
    Epilogue<T> epilogue{
        .scale = a.const_data_ptr<T>(), .shift = b.const_data_ptr<T>(), .addend = nullptr, .relu = relu};
    std::optional<Dense<T>> added;
    if (addend.has_value()) {
      added.emplace(*addend, type, format);
      epilogue.addend = added->view.data;
    }
    const int64_t panels = weight.size(0), steps = g.taps() * g.channels;
    const Buffer<T> sums(panels * kPanel), limits(panels * kPanel);
    const T* filters = packed.const_data_ptr<T>();
    torch::stable::parallel_for(0, panels, grain(steps), [&](int64_t begin, int64_t end) {
      loops<T>().sum_filters(filters, sums.begin(), limits.begin(), steps, begin, end);
    });
    forward<T>(g, x.view, filters, sums.begin(), limits.begin(), epilogue, view<T>(output, format));
  };
  type == ScalarType::Double ? compute(double()) : compute(float());
  return of_type(output, input.scalar_type());
}

Tensor adder2d_u8(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                  std::optional<Tensor> addend, Pair stride, Pair padding, Pair dilation, int64_t groups, bool relu,
                  int64_t zero_point, std::optional<int64_t> out_zero_point, int64_t out_max, double addend_scale) {
  const Geometry g = check_u8(input, weight, scale, shift, addend, stride, padding, dilation, groups, zero_point,
                              out_zero_point, out_max);
  const MemoryFormat format = MemoryFormat::ChannelsLast;
  const bool bytes = out_zero_point.has_value();
  Tensor output = new_empty(input, {g.batch, scale.size(0), g.out_height, g.out_width},
                            bytes ? ScalarType::Byte : ScalarType::Float, format);
  const Dense<uint8_t> x(input, ScalarType::Byte, format);
  const Tensor filters = dense(weight, ScalarType::Byte), a = dense(scale, ScalarType::Float),
               b = dense(shift, ScalarType::Float);
  Epilogue<uint8_t> epilogue = byte_epilogue(relu, out_zero_point, out_max, addend_scale);
  epilogue.scale = a.const_data_ptr<float>();
  epilogue.shift = b.const_data_ptr<float>();
  epilogue.float_output = bytes ? nullptr : output.mutable_data_ptr<float>();
  std::optional<Tensor> added;
  if (addend.has_value()) {
    added = dense(*addend, addend->scalar_type(), format);
    if (addend->scalar_type() == ScalarType::Byte) {
      epilogue.byte_addend = added->const_data_ptr<uint8_t>();
    } else {
      epilogue.float_addend = added->const_data_ptr<float>();
    }
  }
  Plan<uint8_t> plan;
  plan.work.function = form_for_processor(loops<uint8_t>().distance);
  plan.work.filters.packed = filters.const_data_ptr<uint8_t>();
  plan.work.region.padding = static_cast<uint8_t>(zero_point);
  plan.work.output.epilogue = epilogue;
  const Strides strides = dense_strides(output, format);
  plan_forward<uint8_t>(plan, g, x.view, {bytes ? output.mutable_data_ptr<uint8_t>() : nullptr, strides}, threads());
  run(g, plan.work);
  if (is_channels_last(input)) return output;
  Tensor result = new_empty(input, {g.batch, scale.size(0), g.out_height, g.out_width}, output.scalar_type(),
                            MemoryFormat::Contiguous);
  return torch::stable::copy_(result, output);
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
  const Tensor w = dense(weight, type);
  const auto compute = [&]<typename T>(T) {
    const Dense<T> dy(grad, type), x(input, type);
    backward_input<T>(function, g, dy.view, x.view, w.const_data_ptr<T>(), view<T>(grad_input, format));
  };
  type == ScalarType::Double ? compute(double()) : compute(float());
  return of_type(grad_input, input.scalar_type());
}

Tensor adder2d_backward_weight(const Tensor& grad, const Tensor& input, const Tensor& weight, Pair stride, Pair padding,
                               Pair dilation, int64_t groups, std::string weight_grad) {
  check_mode("weight_grad", weight_grad, "full", "sign");
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_grad(grad, g);
  const ScalarType type = accumulation_type(input);
  Tensor grad_weight =
      new_empty(weight, {weight.size(0), g.channels, g.kernel_h, g.kernel_w}, type, MemoryFormat::Contiguous);
  const bool full = weight_grad == "full";
  const Tensor dy = dense(grad, type, MemoryFormat::ChannelsLast), x = dense(input, type, MemoryFormat::ChannelsLast);
  const Tensor w = dense(weight, type);
  if (type == ScalarType::Double) {
    backward_weight<double>(g, full, dy, x, w, grad_weight);
  } else {
    backward_weight<float>(g, full, dy, x, w, grad_weight);
  }
  return of_type(grad_weight, weight.scalar_type());
}

std::string cpu_capability() { return loops<float>().capability; }

}  // namespace
}  // namespace adderzoo::cpu

STABLE_TORCH_LIBRARY_IMPL(adderzoo, CPU, m) {
  m.impl("adder2d", TORCH_BOX(&adderzoo::cpu::adder2d));
  m.impl("adder2d_affine", TORCH_BOX(&adderzoo::cpu::adder2d_affine));
  m.impl("adder2d_u8", TORCH_BOX(&adderzoo::cpu::adder2d_u8));
  m.impl("_adder2d_backward_input", TORCH_BOX(&adderzoo::cpu::adder2d_backward_input));
  m.impl("_adder2d_backward_weight", TORCH_BOX(&adderzoo::cpu::adder2d_backward_weight));
}

STABLE_TORCH_LIBRARY_IMPL(adderzoo, CompositeExplicitAutograd, m) {
  m.impl("_cpu_capability", TORCH_BOX(&adderzoo::cpu::cpu_capability));
}
