// The forward operators in floating point on NVIDIA GPUs.
#include "adder2d_distances.h"
#include "adder2d_launch.h"
#include "adder2d_packing.h"

namespace adderzoo::cuda {
namespace {

using Wide = Tile<128, 128, 8, 8, 8>;
using Square = Tile<64, 64, 8, 4, 8>;
using Slim = Tile<128, 32, 8, 4, 8>;
using Thin = Tile<128, 16, 4, 4, 8>;

template <typename S, typename Out>
void run_forward(const Queue& queue, const Walk& walk, const S* source, const float* filters,
                 const Epilogue<float>& epilogue, Out* output) {
  if (walk.points == 0) return;
  if (walk.outputs < kNarrow || !fits_tiles<Wide, Square, Slim, Thin>(walk)) {
    queue.run(direct<Distance, float, S, S, Out>, blocks_of_outputs(walk.points * walk.groups * walk.outputs), kThreads,
              0, walk, source, filters, source, epilogue, output, walk.output.channel == 1);
    return;
  }
  with_best_tile<Wide, Square, Slim, Thin>(walk, queue.processors(), [&]<typename T>(T) {
    const auto kernel = by_fours(walk, source) ? distances<T, S, true, Out> : distances<T, S, false, Out>;
    queue.run(kernel, blocks_of_tiles<T>(walk), T::kThreads, sizeof(Shared<T>), walk, source, filters, epilogue,
              output);
  });
}

Tensor adder2d(const Tensor& input, const Tensor& weight, Pair stride, Pair padding, Pair dilation, int64_t groups,
               std::string input_grad, std::string weight_grad) {
  check_mode("input_grad", input_grad, "hardtanh", "sign");
  check_mode("weight_grad", weight_grad, "full", "sign");
  const Geometry g = check(input, weight, stride, padding, dilation, groups);
  check_devices("adder2d", input, {{"weight", &weight}});
  const Queue queue(input);
  const ScalarType type = accumulation_type(input);
  const MemoryFormat format = format_like(input);
  Tensor output = new_empty(input, {g.batch, weight.size(0), g.out_height, g.out_width}, type, format);
  const Dense x(input, format);
  const Tensor filters = packed_filters(queue, g, torch::stable::contiguous(weight), type, false, all_taps(g.kernel_h),
                                        all_taps(g.kernel_w));
  const Walk walk = forward_walk(g, x.strides, dense_strides(output, format));
  if (walk.points == 0) return output;
  if (type == ScalarType::Double) {
    const double* const source = x.tensor.const_data_ptr<double>();
    queue.run(direct<Distance, double, double, double, double>, blocks_of_outputs(output.numel()), kThreads, 0, walk,
              source, filters.const_data_ptr<double>(), source, Epilogue<double>{}, output.mutable_data_ptr<double>(),
              walk.output.channel == 1);
    return output;
  }
  with_pointer(x.tensor, [&]<typename S>(const S* source) {
    run_forward<S, float>(queue, walk, source, filters.const_data_ptr<float>(), {}, output.mutable_data_ptr<float>());
  });
  return output;
}

Tensor adder2d_affine(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                      std::optional<Tensor> addend, Pair stride, Pair padding, Pair dilation, int64_t groups,
                      bool relu) {
  const Geometry g = check_affine(input, weight, scale, shift, addend, stride, padding, dilation, groups);
  check_devices("adder2d_affine", input,
                {{"weight", &weight}, {"scale", &scale}, {"shift", &shift}, {"addend", addend ? &*addend : nullptr}});
  const Queue queue(input);
  const MemoryFormat format = format_like(input);
  Tensor output = new_empty(input, {g.batch, scale.size(0), g.out_height, g.out_width}, input.scalar_type(), format);
  const Dense x(input, format);
  const Tensor filters = aligned_filters(weight), a = torch::stable::contiguous(scale),
               b = torch::stable::contiguous(shift);
  const Walk walk = forward_walk(g, x.strides, dense_strides(output, format));
  if (walk.points == 0) return output;
  std::optional<Dense> added;
  if (addend.has_value()) added.emplace(torch::stable::to(*addend, accumulation_type(input)), format);
  const auto epilogue = [&]<typename T>(T) {
    return Epilogue<T>{a.const_data_ptr<T>(), b.const_data_ptr<T>(),
                       added ? added->tensor.template const_data_ptr<T>() : nullptr, relu};
  };
  if (input.scalar_type() == ScalarType::Double) {
    const double* const source = x.tensor.const_data_ptr<double>();
    queue.run(direct<Distance, double, double, double, double>, blocks_of_outputs(output.numel()), kThreads, 0, walk,
              source, filters.const_data_ptr<double>(), source, epilogue(0.0), output.mutable_data_ptr<double>(),
              walk.output.channel == 1);
    return output;
  }
  with_pointer(x.tensor, [&]<typename S>(const S* source) {
    run_forward<S, S>(queue, walk, source, filters.const_data_ptr<float>(), epilogue(0.0f),
                      static_cast<S*>(output.mutable_data_ptr()));
  });
  return output;
}

}  // namespace
}  // namespace adderzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(adderzoo, ADDERZOO_DEVICE, m) {
  m.impl("adder2d", TORCH_BOX(&adderzoo::cuda::adder2d));
  m.impl("adder2d_affine", TORCH_BOX(&adderzoo::cuda::adder2d_affine));
}
