"""Adder layers for inference, with what follows them: what `adderzoo.fuse` makes of adder layers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from adderzoo.ops import pack_filters
from adderzoo.ops.geometry import output_size

from ._float32 import keep_float32
from ._inference import PackedAdder2d, PackedFilters, SamePadding, fitting
from ._input import rows
from .adder import Adder2d, AdderLinear

torch.fx.wrap("rows")


class _Affine(PackedFilters):
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

    def _keep_types(self, before: Mapping[str, Tensor | None]) -> None:
        keep_float32(self, ("weight", "scale", "shift"), before)


class AdderAffine2d(_Affine, PackedAdder2d):
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
        self._take_geometry(layer)
        self.relu = relu
        self.float_output, self.in_place = float_output, in_place
        self.description = layer.extra_repr().replace(", bias=False", "")

    def _adder_forward(self, input: Tensor, addend: Tensor | None) -> Tensor:
        if self.float_output:
            input = input.to(self.scale.dtype)
        return _affine(
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

    def extra_repr(self) -> str:
        text = self.description
        if self.relu:
            text += ", relu=True"
        if self.float_output:
            text += ", float_output=True"
        if self.in_place:
            text += ", in_place=True"
        return text


class AdderAffine2dSame(SamePadding, AdderAffine2d):
    """Of an adder layer that pads for each input as TensorFlow does."""


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


@torch.fx.wrap  # one node of a traced graph: what it does depends on sizes and dtypes,
@torch.jit.script_if_tracing  # which a trace is to look at again when it runs
def _affine(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    addend: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    relu: bool,
    in_place: bool,
) -> Tensor:
    """An addend is added in the operator if it can be expanded to the output, else as PyTorch adds what it expands."""
    fused = addend
    if addend is not None:
        if addend.dtype == torch.float32 and weight.dtype == torch.float32 and not in_place:
            input = input.float()
        patches = output_size(list(input.shape[2:]), list(weight.shape[1:3]), stride, padding, dilation)
        if addend.dtype == input.dtype or addend.dtype == torch.float32:
            fused = fitting(addend, [input.shape[0], scale.shape[0]] + patches)  # noqa: RUF005 - TorchScript
        else:
            fused = None
    apart = addend is not None and fused is None
    output = torch.ops.adderzoo.adder2d_affine(
        input, weight, scale, shift, fused, stride, padding, dilation, groups, relu and not apart
    )
    if addend is None or fused is not None:
        return output
    output = (output + addend).to(output.dtype) if in_place else output + addend
    return output.relu() if relu else output
