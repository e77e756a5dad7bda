"""The operators in plain PyTorch: for devices and machines that the compiled library does not serve.

Memory is bounded: the filter's taps are taken one by one, and what a tap broadcasts is cut into pieces.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._schema import takes_arguments_of
from .checks import accumulation_dtype, check, check_affine, check_grad, check_modes, check_quantize_u8, check_u8
from .geometry import output_size
from .packing import unpack_byte_filters, unpack_filters

# Elements of the largest tensor that a gradient broadcasts: 64 MiB of float32.
_PIECE = 1 << 24


def memory_format_like(input: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is dense in this format, and of floats in this one alone, else contiguous."""
    if input.dtype != torch.uint8 and input.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if input.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def _like(input: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Not written yet, on the device and in the memory format of an input."""
    return torch.empty(list(size), dtype=dtype, device=input.device, memory_format=memory_format_like(input))


def empty_output(
    input: Tensor,
    filters: int,
    kernel: Sequence[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    dtype: torch.dtype,
) -> Tensor:
    """(N, O, H', W'), not written yet, of O filters of the size of a kernel (kH, kW)."""
    patches = output_size(input.shape[2:], kernel, stride, padding, dilation)
    return _like(input, [input.shape[0], filters, *patches], dtype)


class _Patches:
    """The input, padded, seen through one tap of the filter at a time: views of shape (N, G, C / G, OH, OW)."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        check(input, weight, stride, padding, dilation, groups)
        self.dtype = accumulation_dtype(input.dtype)
        self.padded = F.pad(input.to(self.dtype), (padding[1], padding[1], padding[0], padding[0]))
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
        self.kernel = tuple(weight.shape[2:])
        # (taps, G, O / G, C / G)
        filters = weight.to(self.dtype).permute(2, 3, 0, 1)
        self.filters = filters.reshape(-1, groups, weight.shape[0] // groups, weight.shape[1])

    def taps(self, padded: Tensor) -> list[Tensor]:
        views = []
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                top, left = i * self.dilation[0], j * self.dilation[1]
                rows = slice(top, top + (self.size[0] - 1) * self.stride[0] + 1, self.stride[0])
                columns = slice(left, left + (self.size[1] - 1) * self.stride[1] + 1, self.stride[1])
                views.append(padded[:, :, rows, columns].unflatten(1, (self.groups, -1)))
        return views

    def pieces(self, grad: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
        """Tap, some filters of each group, and x, w and g, which broadcast to (N, G, O / G, C / G, OH, OW)."""
        g = grad.to(self.dtype).unflatten(1, (self.groups, -1)).unsqueeze(3)
        for tap, (x, w) in enumerate(zip(self.taps(self.padded), self.filters, strict=True)):
            step = max(1, _PIECE // max(1, x.numel()))
            for first in range(0, w.shape[1], step):
                some = slice(first, first + step)
                yield tap, some, x.unsqueeze(2), w[None, :, some, :, None, None], g[:, :, some]


def _sign(difference: Tensor) -> Tensor:
    """The sign, and NaN of a NaN, of which `torch.sign` makes 0."""
    return torch.where(difference.isnan(), difference, difference.sign())


@takes_arguments_of("adder2d")
def adder2d(
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_grad: str,
    weight_grad: str,
) -> Tensor:
    """Eq. 2, as L1 distances between the rows of two matrices, summed over the taps."""
    check_modes(input_grad, weight_grad)
    patches = _Patches(input, weight, stride, padding, dilation, groups)
    batch, filters = input.shape[0], weight.shape[0] // groups
    distance = input.new_zeros((groups, batch * patches.size[0] * patches.size[1], filters), dtype=patches.dtype)
    for x, w in zip(patches.taps(patches.padded), patches.filters, strict=True):
        rows = x.permute(1, 0, 3, 4, 2).flatten(1, 3)  # (G, N * OH * OW, C / G)
        distance += torch.cdist(rows, w, p=1.0)
    output = -distance.unflatten(1, (batch, *patches.size)).permute(1, 0, 4, 2, 3).flatten(1, 2)
    return output.contiguous(memory_format=memory_format_like(input))


@takes_arguments_of("adder2d_affine")
def affine(
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
) -> Tensor:
    """`adder2d`, and what follows it in float32 or float64 up to the end."""
    check_affine(input, weight, scale, shift, addend, stride, padding, dilation, groups)
    filters = unpack_filters(weight, scale.shape[0])
    result = adder2d(input.to(weight.dtype), filters, stride, padding, dilation, groups)
    result = result * scale[:, None, None] + shift[:, None, None]
    if addend is not None:
        result = result + addend
    if relu:
        result = result.relu()
    return _like(input, result.shape, input.dtype).copy_(result)


@takes_arguments_of("adder2d_u8")
def u8(
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
    """`adder2d` of integers, which float64 adds up exactly, and what follows it in float32."""
    check_u8(
        input, weight, scale, shift, addend, stride, padding, dilation, groups, zero_point, out_zero_point, out_max
    )
    filters = unpack_byte_filters(weight, scale.shape[0], input.shape[1] // groups)
    padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0]), value=zero_point)
    distance = -adder2d(padded.double(), filters.double(), stride, [0, 0], dilation, groups)
    result = distance.float() * scale[:, None, None]
    result = result + shift[:, None, None]
    if addend is not None:
        result = result + addend.float() * addend_scale
    dtype = torch.float32
    if out_zero_point is not None:
        dtype = torch.uint8
        lowest = 0 if relu else -out_zero_point
        result = torch.where(result > lowest, result, lowest)  # a NaN becomes the lowest
        result = result.clamp(max=out_max - out_zero_point).round() + out_zero_point
    elif relu:
        result = result.relu()
    return _like(input, result.shape, dtype).copy_(result)


def byte_steps(x: Tensor, inverse: float, zero_point: int, top: int) -> Tensor:
    """Bytes, still in float32. The order of operations is that of :func:`torch.fake_quantize_per_tensor_affine`."""
    return (x * inverse).round_().add_(zero_point).clamp_(0, top)


def quantize_u8(input: Tensor, inverse: float, zero_point: int, top: int) -> Tensor:
    """The bytes, in the memory format of the input."""
    check_quantize_u8(input, zero_point, top)
    return _like(input, input.shape, torch.uint8).copy_(byte_steps(input, inverse, zero_point, top))


def backward_input(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_grad: str,
) -> Tensor:
    """Eq. 6 and 7: sum of g * hardtanh(F - X), or of g * sign(F - X)."""
    check_modes(input_grad=input_grad)
    patches = _Patches(input, weight, stride, padding, dilation, groups)
    check_grad(grad, input, weight, stride, padding, dilation)
    padded = torch.zeros_like(patches.padded)
    sums = patches.taps(padded)
    for tap, _, x, w, g in patches.pieces(grad):
        slope = _sign(w - x) if input_grad == "sign" else (w - x).clamp(-1, 1)
        sums[tap] += (g * slope).sum(2)
    height, width = input.shape[2:]
    inner = padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return torch.empty_like(input, memory_format=memory_format_like(input)).copy_(inner)


@takes_arguments_of("_adder2d_backward_weight")
def backward_weight(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    weight_grad: str,
) -> Tensor:
    """Eq. 4: sum of g * sign(X - F); or eq. 5, without the sign."""
    check_modes(weight_grad=weight_grad)
    patches = _Patches(input, weight, stride, padding, dilation, groups)
    check_grad(grad, input, weight, stride, padding, dilation)
    sums = torch.empty_like(patches.filters, memory_format=torch.contiguous_format)  # (taps, G, O / G, C / G)
    for tap, some, x, w, g in patches.pieces(grad):
        slope = _sign(x - w) if weight_grad == "sign" else x - w
        sums[tap, :, some] = (g * slope).sum((0, 4, 5))
    gradient = sums.flatten(1, 2).movedim(0, -1).unflatten(-1, patches.kernel)
    return gradient.to(weight.dtype, memory_format=torch.contiguous_format)
