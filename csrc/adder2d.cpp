#include <torch/csrc/stable/library.h>

// adderzoo/ops/_library.py defines the same schemas where this library cannot be had; a test compares the two.
STABLE_TORCH_LIBRARY(adderzoo, m) {
  m.def(
      "adder2d(Tensor input, Tensor weight, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, "
      "SymInt groups=1, str input_grad=\"hardtanh\", str weight_grad=\"full\") -> Tensor");
  m.def(
      "_adder2d_backward_input(Tensor grad, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, str input_grad) -> Tensor");
  m.def(
      "_adder2d_backward_weight(Tensor grad, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, str weight_grad=\"sign\") -> Tensor");
  m.def(
      "adder2d_affine(Tensor input, Tensor weight, Tensor scale, Tensor shift, Tensor? addend=None, "
      "SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, bool relu=False) -> Tensor");
  m.def(
      "adder2d_u8(Tensor input, Tensor weight, Tensor scale, Tensor shift, Tensor? addend=None, SymInt[2] stride=1, "
      "SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, bool relu=False, int zero_point=0, "
      "int? out_zero_point=None, int out_max=255, float addend_scale=1.) -> Tensor");
  m.def("quantize_u8(Tensor input, float inverse, int zero_point, int top) -> Tensor");
  m.def("_cpu_capability() -> str");
}
