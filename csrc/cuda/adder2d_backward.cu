// The gradients on NVIDIA GPUs.
#include "adder2d_launch.h"
#include "adder2d_packing.h"
#include "adder2d_slopes.h"

namespace adderzoo::cuda {
namespace {

// Of the input's pixels whose row and column leave the remainders `row` and `column` modulo the stride.
Walk backward_walk(const Geometry& g, const ReachingTaps& rows, const ReachingTaps& columns, int64_t row,
                   int64_t column, const Strides& grad, const Strides& input, const Strides& output) {
  const int64_t height = divide_up(g.height - row, g.stride_h), width = divide_up(g.width - column, g.stride_w);
  return {
      .points = g.batch * height * width,
      .small = is_small(g),
      .rows = number(height),
      .columns = number(width),
      .step_h = 1,
      .step_w = 1,
      .tap_rows = number(columns.count > 0 ? rows.count : 0),
      .tap_row0 = number(rows.output0),
      .tap_row_step = -number(rows.output_step),
      .tap_columns = number(columns.count),
      .tap_column0 = number(columns.output0),
      .tap_column_step = -number(columns.output_step),
      .groups = number(g.groups),
      .channels = number(g.filters),
      .outputs = number(g.channels),
      .source_height = number(g.out_height),
      .source_width = number(g.out_width),
      .source = grad,
      .out_step_h = number(g.stride_h),
      .out_step_w = number(g.stride_w),
      .out_row0 = number(row),
      .out_column0 = number(column),
      .output = output,
      .input = input,
  };
}

using Square = Tile<64, 64, 8, 4, 16>;
using Slim = Tile<128, 32, 8, 4, 16>;
using Thin = Tile<128, 16, 4, 4, 16>;

template <typename In>
void run_backward(const Queue& queue, const Walk& walk, bool sign, const float* grad, const float* filters,
                  const In* input, In* output) {
  if (walk.points == 0) return;
  if (sign || walk.outputs < kNarrow || !fits_tiles<Square, Slim, Thin>(walk)) {
    const auto kernel = sign ? direct<SignSlope, float, float, In, In> : direct<ClippedSlope, float, float, In, In>;
    queue.run(kernel, blocks_of_outputs(walk.points * walk.groups * walk.outputs), kThreads, 0, walk, grad, filters,
              input, Epilogue<float>{}, output, walk.output.channel == 1);
    return;
  }
  with_best_tile<Square, Slim, Thin>(walk, queue.processors(), [&]<typename T>(T) {
    const auto kernel = by_fours(walk, grad) ? slopes<T, float, true, In, In> : slopes<T, float, false, In, In>;
    queue.run(kernel, blocks_of_tiles<T>(walk), T::kThreads, sizeof(Shared<T>), walk, grad, filters, input, output);
  });
}

// Input pixels that leave the same remainders modulo the stride are reached by the same taps: one launch for each pair.
Tensor adder2d_backward_input(const Tensor& grad, const Tensor& input, const Tensor& weight, Pair stride, Pair padding,
                              Pair dilation, int64_t groups, std::string input_grad) {
  check_mode("input_grad", input_grad, "hardtanh", "sign");
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_grad(grad, g);
  check_devices("adder2d", input, {{"weight", &weight}, {"grad", &grad}});
  const Queue queue(input);
  const bool sign = input_grad == "sign";
  const ScalarType type = accumulation_type(input);
  const MemoryFormat format = format_like(input);
  Tensor grad_input = new_empty(input, {g.batch, input.size(1), g.height, g.width}, input.scalar_type(), format);
  const Dense x(input, format), dy(torch::stable::to(grad, type), format);
  const Tensor dense = torch::stable::contiguous(weight);
  const Strides strides = dense_strides(grad_input, format);
  for (int64_t row = 0; row < std::min(g.stride_h, g.height); ++row) {
    const ReachingTaps rows = taps_reaching(row, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
    for (int64_t column = 0; column < std::min(g.stride_w, g.width); ++column) {
      const ReachingTaps columns = taps_reaching(column, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
      const Walk walk = backward_walk(g, rows, columns, row, column, dy.strides, x.strides, strides);
      if (walk.points == 0) continue;
      const Tensor filters = packed_filters(queue, g, dense, type, true, rows, columns);
      if (type == ScalarType::Double) {
        const auto kernel = sign ? direct<SignSlope, double, double, double, double>
                                 : direct<ClippedSlope, double, double, double, double>;
        queue.run(kernel, blocks_of_outputs(walk.points * input.size(1)), kThreads, 0, walk,
                  dy.tensor.const_data_ptr<double>(), filters.const_data_ptr<double>(),
                  x.tensor.const_data_ptr<double>(), Epilogue<double>{}, grad_input.mutable_data_ptr<double>(),
                  walk.output.channel == 1);
        continue;
      }
      with_pointer(x.tensor, [&]<typename S>(const S* source) {
        run_backward<S>(queue, walk, sign, dy.tensor.const_data_ptr<float>(), filters.const_data_ptr<float>(), source,
                        static_cast<S*>(grad_input.mutable_data_ptr()));
      });
    }
  }
  return grad_input;
}

Tensor adder2d_backward_weight(const Tensor& grad, const Tensor& input, const Tensor& weight, Pair stride, Pair padding,
                               Pair dilation, int64_t groups, std::string weight_grad) {
  check_mode("weight_grad", weight_grad, "full", "sign");
  const bool full = weight_grad == "full";
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_grad(grad, g);
  check_devices("adder2d", input, {{"weight", &weight}, {"grad", &grad}});
  const Queue queue(input);
  const ScalarType type = accumulation_type(input);
  Tensor grad_weight = new_empty(weight, {weight.size(0), g.channels, g.kernel_h, g.kernel_w}, weight.scalar_type(),
                                 MemoryFormat::Contiguous);
  const Dense x(input), dy(torch::stable::to(grad, type));
  const Tensor filters = torch::stable::contiguous(weight);
  const Walk walk = forward_walk(g, x.strides, dy.strides);
  const dim3 blocks(static_cast<unsigned>(std::min(kMaxBlocks, filters.numel())));
  if (type == ScalarType::Double) {
    queue.run(filter_gradient<double, double, double, double>, blocks, kGradientThreads, 0, walk, full,
              x.tensor.const_data_ptr<double>(), filters.const_data_ptr<double>(), dy.strides,
              dy.tensor.const_data_ptr<double>(), grad_weight.mutable_data_ptr<double>());
    return grad_weight;
  }
  with_pointer(x.tensor, [&]<typename S>(const S* source) {
    queue.run(filter_gradient<float, S, S, S>, blocks, kGradientThreads, 0, walk, full, source,
              static_cast<const S*>(filters.const_data_ptr()), dy.strides, dy.tensor.const_data_ptr<float>(),
              static_cast<S*>(grad_weight.mutable_data_ptr()));
  });
  return grad_weight;
}

}  // namespace
}  // namespace adderzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(adderzoo, ADDERZOO_DEVICE, m) {
  m.impl("_adder2d_backward_input", TORCH_BOX(&adderzoo::cuda::adder2d_backward_input));
  m.impl("_adder2d_backward_weight", TORCH_BOX(&adderzoo::cuda::adder2d_backward_weight));
}
