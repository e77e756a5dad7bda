"""Layers on bytes, for integer inference: what `adderzoo.inference.quantization` makes of a network's layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderzoo.ops import pack_byte_filters, quantize_u8
from adderzoo.ops.geometry import output_size

from ._inference import PackedAdder2d, PackedFilters, SamePadding, fitting
from ._input import rows
from .adder import Adder2d, AdderLinear, _pair
from .modules import TensorModule

torch.fx.wrap("rows")


@dataclass(frozen=True)
class Quantizer:
    """What bytes stand for: scale * (byte - zero_point).

    Attributes:
        scale: A number that float32 holds exactly.
        zero_point: The byte that stands for 0.
        top: The largest byte, 2^bits - 1.
    """

    scale: float
    zero_point: int
    top: int

    @classmethod
    def of_range(cls, low: float, high: float, bits: int) -> Self:
        """Of the numbers from `low` to `high`, and 0 if it is not among them, in equal steps."""
        low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
        scale = _float32((high - low) / top) if high > low else 1.0
        scale = max(scale, 2.0**-100)  # of which float32 holds the inverse too
        return cls(scale, min(round(-low / scale), top), top)

    @property
    def is_valid(self) -> bool:
        """Whether bytes can stand for it."""
        return 2.0**-100 <= self.scale <= torch.finfo(torch.float32).max and self.zero_point in range(self.top + 1)

    @property
    def low(self) -> float:
        """What byte 0 stands for."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """What byte `top` stands for."""
        return (self.top - self.zero_point) * self.scale

    @property
    def inverse(self) -> float:
        """1 / scale, as float32 has it."""
        return float(1 / torch.tensor(self.scale, dtype=torch.float32, device="cpu"))

    def beyond(self, filters: Tensor) -> Tensor:
        """(O,): how far the elements of each filter lie outside of the range, in sum."""
        return (filters - filters.clamp(self.low, self.high)).abs().flatten(1).sum(1)

    def bytes_of(self, x: Tensor) -> Tensor:
        """The nearest bytes, of the shape of `x` in uint8; halves go to the even neighbor."""
        return quantize_u8(x.float(), self.inverse, self.zero_point, self.top)


def _float32(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32, device="cpu"))


@torch.fx.wrap  # one node of a traced graph: what it does depends on a device and a number of dimensions
def _quantize(x: Tensor, inverse: float, zero_point: int, top: int) -> Tensor:
    result = quantize_u8(x.float(), inverse, zero_point, top)
    if len(result.shape) != 4:
        return result
    # What memory_format=torch.channels_last gives, which vmap does not take.
    return result.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@torch.fx.wrap  # the same: on sizes,
@torch.jit.script_if_tracing  # which a trace is to look at again when it runs
def _max_pool(x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """Axis by axis, the greatest of shifted views. 0, the least byte, is what is in the padding."""
    size = output_size(list(x.shape[-2:]), kernel_size, stride, padding, dilation)
    if size[0] < 1 or size[1] < 1:
        raise RuntimeError(
            f"the dilated kernel must fit into the padded input, got input {list(x.shape)}, kernel_size {kernel_size}, "
            f"padding {padding} and dilation {dilation}"
        )
    if padding[0] > 0 or padding[1] > 0:
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    for axis in range(2):
        taps: list[Tensor] = []
        for tap in range(kernel_size[axis]):
            begin = tap * dilation[axis]
            end = begin + (size[axis] - 1) * stride[axis] + 1
            taps.append(x[..., begin : end : stride[axis], :] if axis == 0 else x[..., begin : end : stride[axis]])
        x = taps[0]
        for other in taps[1:]:
            x = torch.maximum(x, other)
    return x


@torch.fx.wrap  # the same: on dtypes and sizes
@torch.jit.script_if_tracing
def _adder(
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
    zero_point: int,
    out_zero_point: int | None,
    out_max: int,
    addend_scale: float,
) -> Tensor:
    """An addend is added in the operator if it can be expanded to the output, else as PyTorch adds what it expands."""
    fused = addend
    if addend is not None:
        addend = addend if addend.dtype == torch.uint8 else addend.float()
        patches = output_size(list(input.shape[2:]), list(weight.shape[1:3]), stride, padding, dilation)
        fused = fitting(addend, [input.shape[0], scale.shape[0]] + patches)  # noqa: RUF005 - TorchScript
    if addend is None or fused is not None:
        return torch.ops.adderzoo.adder2d_u8(
            input, weight, scale, shift, fused, stride, padding, dilation, groups, relu,
            zero_point, out_zero_point, out_max, addend_scale,
        )  # fmt: skip
    output = torch.ops.adderzoo.adder2d_u8(
        input, weight, scale, shift, None, stride, padding, dilation, groups, False, zero_point
    )
    output = output + addend.float() * addend_scale
    if relu:
        output = output.relu()
    if out_zero_point is None:
        return output
    return (output.round() + out_zero_point).clamp(0, out_max).to(torch.uint8)


class Quantize(TensorModule):
    """Bytes of a float tensor, for the adder layers behind it.

    Shape: any, to the same in uint8; images, (N, C, H, W), in channels_last, which the operator is fast in.

    Args:
        quantizer: What the bytes stand for.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.inverse, self.zero_point, self.top = quantizer.inverse, quantizer.zero_point, quantizer.top

    def forward(self, input: Tensor) -> Tensor:
        return _quantize(input, self.inverse, self.zero_point, self.top)

    def extra_repr(self) -> str:
        return f"scale={1 / self.inverse:.4g}, zero_point={self.zero_point}, top={self.top}"


class _QuantizedAdder(PackedFilters):
    """Filters in bytes, scale and shift in float32, whatever the network is turned into."""

    out_zero_point: int | None

    def __init__(
        self,
        filters: Tensor,
        groups: int,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        input: Quantizer,
        output: Quantizer | None,
    ) -> None:
        super().__init__()
        with torch.no_grad():
            self.register_buffer("weight", pack_byte_filters(input.bytes_of(filters), groups))
            self.register_buffer("scale", scale.float())
            self.register_buffer("shift", shift.float())
        self.relu = relu
        self.zero_point = input.zero_point
        self.out_zero_point = None if output is None else output.zero_point
        self.out_max = 255 if output is None else output.top

    def _keep_types(self, before: Mapping[str, Tensor | None]) -> None:
        for name, dtype in (("weight", torch.uint8), ("scale", torch.float32), ("shift", torch.float32)):
            now, then = getattr(self, name), before[name]
            if now.dtype != dtype and then is not None:
                setattr(self, name, then.to(now.device))

    def _describe(self, description: str) -> str:
        text = description.replace(", bias=False", "") + (", relu=True" if self.relu else "")
        if self.out_zero_point is not None:
            text += f", out_zero_point={self.out_zero_point}, out_max={self.out_max}"
        return text + f", zero_point={self.zero_point}"


class QuantizedAdder2d(_QuantizedAdder, PackedAdder2d):
    """An integer adder layer and what follows it in a quantized network, in one operator.

    :func:`adderzoo.inference.quantization.quantize` makes it. Filters (packed bytes, see
    :func:`adderzoo.ops.pack_byte_filters`), scale and shift are buffers, and stay in uint8 and float32 whatever the
    network is turned into; it has no gradients.

    Shape: (N, in_channels, H, W) in uint8, and as addend (N, out_channels, H', W') or what broadcasts with it, in
    uint8 or a floating-point type, to (N, out_channels, H', W') in uint8, or float32 without `output`; or all of it
    without N.

    Args:
        layer: The adder layer, of which filters and geometry are copied.
        scale: (O,), of the distance of bytes: see :func:`adderzoo.ops.adder2d_u8`.
        shift: (O,), which the layer's bias and the addend's zero point have been made part of.
        relu: Whether a ReLU is the end of it.
        input: What the bytes of the input and of the filters stand for.
        output: What the bytes of the output stand for; None for an output in float32.
        addend_scale: What the addend is multiplied by.
    """

    def __init__(
        self,
        layer: Adder2d,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        input: Quantizer,
        output: Quantizer | None,
        addend_scale: float = 1.0,
    ) -> None:
        super().__init__(layer.weight, layer.groups, scale, shift, relu, input, output)
        self._take_geometry(layer, self.zero_point)
        self.addend_scale = _float32(addend_scale)
        self.description = layer.extra_repr()

    def _adder_forward(self, input: Tensor, addend: Tensor | None) -> Tensor:
        return _adder(
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
            self.zero_point,
            self.out_zero_point,
            self.out_max,
            self.addend_scale,
        )

    def extra_repr(self) -> str:
        return self._describe(self.description)


class QuantizedAdder2dSame(SamePadding, QuantizedAdder2d):
    """Of an adder layer that pads for each input as TensorFlow does."""


class QuantizedAdderLinear(_QuantizedAdder):
    """A fully connected integer adder layer.

    Shape: (..., in_features) in uint8 to (..., out_features) in uint8, or float32 without `output`.

    Args:
        layer: The adder layer, of which the filters are copied.
        scale: (O,), of the distance of bytes.
        shift: (O,), which the layer's bias has been made part of.
        relu: Whether a ReLU is the end of it.
        input: What the bytes of the input and of the filters stand for.
        output: What the bytes of the output stand for; None for an output in float32.
    """

    def __init__(
        self,
        layer: AdderLinear,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        input: Quantizer,
        output: Quantizer | None,
    ) -> None:
        super().__init__(layer.weight[:, :, None, None], 1, scale, shift, relu, input, output)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.description = f"in_features={layer.in_features}, out_features={layer.out_features}"

    def forward(self, input: Tensor) -> Tensor:
        output = torch.ops.adderzoo.adder2d_u8(
            rows(input, self.in_features),
            self.weight,
            self.scale,
            self.shift,
            relu=self.relu,
            zero_point=self.zero_point,
            out_zero_point=self.out_zero_point,
            out_max=self.out_max,
        )
        return output.reshape(input.shape[:-1] + (self.out_features,))  # noqa: RUF005 - TorchScript

    def extra_repr(self) -> str:
        return self._describe(self.description)


class QuantizedMaxPool2d(TensorModule):
    """Max pooling of bytes. PyTorch's own has none for GPUs, nor for images beyond 127 pixels on a CPU.

    Shape: (N, C, H, W) in uint8, to (N, C, H', W'), or both without N.

    Args:
        pool: The layer, whose padding does not make its output larger (`ceil_mode`).
        scale: (C,), of a BatchNorm that follows `pool` and that the bytes have been through: where it is negative,
            what was greatest is the least byte. None if there is none.
    """

    flip: Tensor | None

    def __init__(self, pool: nn.MaxPool2d, scale: Tensor | None = None) -> None:
        super().__init__()
        self.kernel_size = list(_pair("kernel_size", pool.kernel_size))
        self.stride, self.dilation = list(_pair("stride", pool.stride)), list(_pair("dilation", pool.dilation))
        self.padding = list(_pair("padding", pool.padding, 0))
        self.register_buffer("flip", None if scale is None else torch.where(scale < 0, 255, 0).to(torch.uint8))
        self.description = pool.extra_repr()

    def forward(self, input: Tensor) -> Tensor:
        flip = self.flip
        if flip is not None:
            input = input ^ flip[:, None, None]
        output = _max_pool(input, self.kernel_size, self.stride, self.padding, self.dilation)
        return output if flip is None else output ^ flip[:, None, None]

    def extra_repr(self) -> str:
        return self.description


class _Int8Weight(nn.Module):
    """A weight in int8 with a scale for every output channel; buffers, as the bias is."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with torch.no_grad():
            steps, scale = int8_weight(weight)
            self.register_buffer("weight", steps.to(torch.int8))
            self.register_buffer("scale", scale)
            self.register_buffer("bias", None if bias is None else bias.detach().float())


def int8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of every output channel the nearest integers from -127 to 127, in float32, and what they are multiplied by.

    Args:
        weight: (O, ...).

    Returns:
        (O, ...) and (O,).
    """
    scale = weight.float().abs().flatten(1).amax(1) / 127
    scale = torch.where(scale > 0, scale, 1)
    return (weight.float() / of_filters(scale, weight)).round(), scale


def of_filters(scale: Tensor, weight: Tensor) -> Tensor:
    """(O,) as (O, 1, 1 ...), for each filter of (O, ...)."""
    return scale.view(-1, *[1] * (weight.dim() - 1))


class QuantizedConv2d(_Int8Weight):
    """A convolution of float numbers with a weight in int8, such as a classifier: a quarter of its size on disk.

    Shape: as the convolution.

    Args:
        conv: The convolution, padded with zeros or not at all.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight, conv.bias)
        self.stride, self.padding, self.dilation = list(conv.stride), conv.padding, list(conv.dilation)
        self.groups = conv.groups
        self.description = conv.extra_repr().replace(", bias=False", "")

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.to(input.dtype)
        output = F.conv2d(input, weight, None, self.stride, self.padding, self.dilation, self.groups)
        output = output * self.scale[:, None, None]
        bias = self.bias
        return output if bias is None else output + bias[:, None, None]

    def extra_repr(self) -> str:
        return self.description


class QuantizedLinear(_Int8Weight):
    """A fully connected layer of float numbers with a weight in int8, such as a classifier.

    Shape: as the layer.

    Args:
        linear: The layer.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.weight, linear.bias)
        self.description = linear.extra_repr().replace(", bias=False", "")

    def forward(self, input: Tensor) -> Tensor:
        output = F.linear(input, self.weight.to(input.dtype)) * self.scale
        bias = self.bias
        return output if bias is None else output + bias

    def extra_repr(self) -> str:
        return self.description
