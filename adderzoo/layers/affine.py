"""Adder layers for inference, with what follows them: what `adderzoo.fuse` makes of adder layers."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from timm.layers import pad_same
from torch import Tensor

from adderzoo.ops import pack_filters

from ._float32 import keep_float32
from ._input import batched, rows, unbatched
from ._tensor_module import TensorModule
from .adder import Adder2d, AdderLinear

torch.fx.wrap("batched")
torch.fx.wrap("rows")
torch.fx.wrap("unbatched")


class _Affine(TensorModule):
    """Packed filters, scale and shift: buffers, because nothing trains them."""

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, filters: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> None:
        super().__init__()
        with torch.no_grad():
            dtype = torch.float64 if filters.dtype == torch.float64 else torch.float32
            self.register_buffer("weight", pack_filters(filters.to(dtype)))
            self.register_buffer("scale", self.weight.new_ones(filters.shape[0]))
            self.register_buffer("shift", self.weight.new_zeros(filters.shape[0]))
            if scale is not None:
                self.scale.copy_(scale)
            if shift is None:
                shift = bias if bias is None else bias * self.scale
            if shift is not None:
                self.shift.copy_(shift)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        taps_and_channels = self.weight.shape[1:4]
        self.weight = self.weight.flatten(1, 3)  # of five dimensions, to(memory_format=...) would change the order
        try:
            super()._apply(fn, recurse)
        finally:
            self.weight = self.weight.unflatten(1, taps_and_channels)
        keep_float32(self, ("weight", "scale", "shift"), before)
        return self


class AdderAffine2d(_Affine):
    """An adder layer and what follows it in a trained network, in one operator: relu(scale * adder + shift + addend).

    :func:`adderzoo.fuse` makes it, for inference: it has no gradients. Filters (packed, see
    :func:`adderzoo.ops.pack_filters`), scale and shift are buffers, and stay in float32 in a half-precision network, as
    BatchNorm's statistics do.

    Shape: (N, in_channels, H, W), and as addend (N, out_channels, H', W') or what broadcasts with it, to
    (N, out_channels, H', W') with the dtype of the input, or of an addend that is wider; or all of it without N.

    Args:
        layer: The adder layer, of which filters, bias and geometry are copied.
        scale: (O,), of the layer's output without its bias; None for ones.
        shift: (O,), which a bias has been made part of; None for the bias.
        relu: Whether a ReLU is the end of it.
        float_output: Whether the output is at least float32 in half precision too, as the adder layer's is: where no
            scale and shift center it, or a BatchNorm of float32 does.
        in_place: Whether the addend is added in place, so that it does not change the dtype.
    """

    def __init__(
        self,
        layer: Adder2d,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        relu: bool = False,
        float_output: bool = False,
        in_place: bool = False,
    ) -> None:
        super().__init__(layer.weight, layer.bias, scale, shift)
        self.kernel_size, self.stride, self.dilation = list(layer.kernel_size), list(layer.stride), list(layer.dilation)
        self.in_channels, self.groups = layer.in_channels, layer.groups
        self.operator_padding = list(layer.operator_padding)
        self.pad_first = layer.pad_first
        self.sides = layer._reversed_padding_repeated_twice
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        self.relu = relu
        self.float_output, self.in_place = float_output, in_place
        self.description = layer.extra_repr().replace(", bias=False", "")

    def forward(self, input: Tensor, addend: Tensor | None = None) -> Tensor:
        batch = batched(input, self.in_channels)
        if self.pad_first:
            batch = F.pad(batch, self.sides, mode=self.padding_mode)
        return unbatched(self._affine_forward(batch, addend), input, addend)

    def _affine_forward(self, input: Tensor, addend: Tensor | None) -> Tensor:
        """The layer behind its padding."""
        if self.float_output:
            input = input.to(self.scale.dtype)
        if addend is not None:
            return _add(
                input,
                self.weight,
                self.scale,
                self.shift,
                addend,
                self.stride,
                self.operator_padding,
                self.dilation,
                self.groups,
                self.relu,
                self.in_place,
            )
        return torch.ops.adderzoo.adder2d_affine(
            input,
            self.weight,
            self.scale,
            self.shift,
            None,
            self.stride,
            self.operator_padding,
            self.dilation,
            self.groups,
            self.relu,
        )

    def extra_repr(self) -> str:
        text = self.description
        if self.relu:
            text += ", relu=True"
        if self.float_output:
            text += ", float_output=True"
        if self.in_place:
            text += ", in_place=True"
        return text


class AdderAffine2dSame(AdderAffine2d):
    """Of an adder layer that pads for each input as TensorFlow does."""

    def forward(self, input: Tensor, addend: Tensor | None = None) -> Tensor:
        padded = _pad_same(batched(input, self.in_channels), self.kernel_size, self.stride, self.dilation)
        return unbatched(self._affine_forward(padded, addend), input, addend)


class AdderAffineLinear(_Affine):
    """A fully connected adder layer with packed filters, and a ReLU behind it.

    Shape: (..., in_features) to (..., out_features), of at least float32.

    Args:
        layer: The adder layer, of which filters and bias are copied.
        relu: Whether a ReLU is the end of it.
    """

    def __init__(self, layer: AdderLinear, relu: bool = False) -> None:
        super().__init__(layer.weight[:, :, None, None], layer.bias, None, None)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.relu = relu
        self.description = f"in_features={layer.in_features}, out_features={layer.out_features}"

    def forward(self, input: Tensor) -> Tensor:
        pixels = rows(input.to(self.scale.dtype), self.in_features)
        output = torch.ops.adderzoo.adder2d_affine(pixels, self.weight, self.scale, self.shift, relu=self.relu)
        return output.reshape(input.shape[:-1] + (self.out_features,))  # noqa: RUF005 - TorchScript

    def extra_repr(self) -> str:
        return self.description + (", relu=True" if self.relu else "")


@torch.fx.wrap  # one node of a traced graph: what it pads depends on a size
def _pad_same(
    input: Tensor, kernel_size: list[int], stride: list[int], dilation: list[int], value: float = 0.0
) -> Tensor:
    return pad_same(input, kernel_size, stride, dilation, value)


def output_size(
    input: Tensor, scale: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    """(N, O, H', W') of a layer with a `scale` for each of its O filters."""
    height = (input.shape[2] + 2 * padding[0] - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    width = (input.shape[3] + 2 * padding[1] - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
    return [input.shape[0], scale.shape[0], height, width]


@torch.fx.wrap  # the same: what it does depends on sizes and dtypes,
@torch.jit.script_if_tracing  # which a trace is to look at again when it runs
def _add(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    addend: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    relu: bool,
    in_place: bool,
) -> Tensor:
    """With an addend: in the operator if it is as large as the output, else as PyTorch adds what it broadcasts."""
    if len(addend.shape) == 3:
        addend = addend.unsqueeze(0)
    if addend.dtype == torch.float32 and weight.dtype == torch.float32 and not in_place:
        input = input.float()
    shape = output_size(input, scale, list(weight.shape[1:3]), stride, padding, dilation)
    if list(addend.shape) == shape and (addend.dtype == input.dtype or addend.dtype == torch.float32):
        return torch.ops.adderzoo.adder2d_affine(
            input, weight, scale, shift, addend, stride, padding, dilation, groups, relu
        )
    output = torch.ops.adderzoo.adder2d_affine(
        input, weight, scale, shift, None, stride, padding, dilation, groups, False
    )
    output = (output + addend).to(output.dtype) if in_place else output + addend
    return output.relu() if relu else output
