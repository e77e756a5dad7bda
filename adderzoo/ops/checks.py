"""What the operators take, in words that are those of the compiled library's own checks."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ._pytorch import check as torch_check
from .geometry import output_size
from .packing import LANES, bytes_of_lane

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Elements of a filter of bytes: their distances, of at most 255, sum up to a signed integer of 32 bits.
LARGEST_FILTER = (2**31 - 1) // 255

# What sizes, strides, paddings and dilations are at most, and how many elements a tensor has at most: the kernels' own
# integers hold every index and every product of them.
LARGEST_SIZE = 2**31 - 1
MOST_ELEMENTS = 2**48


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower.

    Adder outputs lie near -1000 with a spread of a few units: a half-precision output would round the spread away.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def check(
    input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> None:
    """What csrc/adder2d_checks.cpp checks, in the same words, and the devices."""
    w = tuple(weight.shape)
    _check_dimensions("adder2d", input)
    torch_check(
        weight.dim() == 4, lambda: f"adder2d: weight must have 4 dimensions (O, C / groups, kH, kW), got shape {w}"
    )
    _check_dtype("adder2d", input)
    torch_check(
        weight.dtype == input.dtype,
        lambda: f"adder2d: weight must have the dtype of input, {_name(input.dtype)}, got {_name(weight.dtype)}",
    )
    _check_device("adder2d", "weight", weight, input)
    _check_sizes("adder2d", "weight", weight)
    _check_pairs("adder2d", stride, padding, dilation)
    torch_check(weight.numel() > 0, lambda: f"adder2d: weight must not be empty, got shape {w}")
    _check_groups("adder2d", input, w[0], groups)
    _check_channels("adder2d", input, weight, w[1], groups)
    _check_geometry("adder2d", input, weight, w[0], w[2:], stride, padding, dilation, groups)


def check_affine(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    addend: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> None:
    """The same for `adder2d_affine`."""
    name, w, filters = "adder2d_affine", tuple(weight.shape), scale.numel()
    _check_dimensions(name, input)
    _check_affine_map(name, scale, shift)
    torch_check(
        weight.dim() == 5 and w[0] == -(-filters // LANES) and w[4] == LANES and weight.numel() > 0,
        lambda: (
            "adder2d_affine: weight must be packed filters, (ceil(O / 16), kH, kW, C / groups, 16), "
            f"got shape {w} with O = {filters}"
        ),
    )
    _check_dtype(name, input)
    dtype = accumulation_dtype(input.dtype)
    for parameter, tensor in (("weight", weight), ("scale", scale), ("shift", shift)):
        _check_parameter(name, parameter, tensor, dtype, input)
    _check_sizes(name, "weight", weight)
    _check_pairs(name, stride, padding, dilation)
    _check_groups(name, input, filters, groups)
    _check_channels(name, input, weight, w[3], groups)
    _check_geometry(name, input, weight, filters, w[1:3], stride, padding, dilation, groups)
    if addend is not None:
        shape = (input.shape[0], filters, *output_size(input.shape[2:], w[1:3], stride, padding, dilation))
        _check_addend(name, addend, input, shape)


def check_u8(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    addend: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    zero_point: int,
    out_zero_point: int | None,
    out_max: int,
) -> None:
    """The same for `adder2d_u8`."""
    name, w, filters = "adder2d_u8", tuple(weight.shape), scale.numel()
    _check_dimensions(name, input)
    _check_affine_map(name, scale, shift)
    torch_check(input.dtype == torch.uint8, lambda: f"{name}: input must be uint8, got {_name(input.dtype)}")
    _check_parameter(name, "weight", weight, torch.uint8, input)
    _check_parameter(name, "scale", scale, torch.float32, input)
    _check_parameter(name, "shift", shift, torch.float32, input)
    _check_sizes(name, "weight", weight)
    _check_pairs(name, stride, padding, dilation)
    _check_groups(name, input, filters, groups)
    channels, lane = input.shape[1] // groups, bytes_of_lane(filters, groups)
    torch_check(
        weight.dim() == 6
        and (w[0], *w[3:]) == (-(-filters // LANES), -(-channels // lane), LANES, lane)
        and weight.numel() > 0,
        lambda: (
            f"{name}: weight must be packed filters, ({-(-filters // LANES)}, kH, kW, {-(-channels // lane)}, {LANES}, "
            f"{lane}) for {filters} filters of {channels} channels in {groups} groups, got shape {w}"
        ),
    )
    torch_check(
        channels * w[1] * w[2] <= LARGEST_FILTER,
        lambda: (
            f"{name}: a filter of weight must have at most {LARGEST_FILTER} elements, got (C / groups, kH, kW) = "
            f"{(channels, w[1], w[2])}"
        ),
    )
    _check_byte(name, "out_max", out_max, 255)
    _check_byte(name, "zero_point", zero_point, 255)
    if out_zero_point is not None:
        _check_byte(name, "out_zero_point", out_zero_point, out_max)
    _check_geometry(name, input, weight, filters, w[1:3], stride, padding, dilation, groups)
    if addend is not None:
        shape = (input.shape[0], filters, *output_size(input.shape[2:], w[1:3], stride, padding, dilation))
        _check_addend(name, addend, input, shape)


def check_quantize_u8(input: Tensor, zero_point: int, top: int) -> None:
    """The same for `quantize_u8`."""
    torch_check(input.dtype == torch.float32, lambda: f"quantize_u8: input must be float32, got {_name(input.dtype)}")
    _check_byte("quantize_u8", "top", top, 255)
    _check_byte("quantize_u8", "zero_point", zero_point, top)


def check_grad(
    grad: Tensor, input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> None:
    """What the private operators for the gradients check beside the arguments of `adder2d`."""
    shape = (
        input.shape[0],
        weight.shape[0],
        *output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation),
    )
    torch_check(
        tuple(grad.shape) == shape,
        lambda: f"adder2d: grad must have the shape of the output, {shape}, got {tuple(grad.shape)}",
    )
    _check_device("adder2d", "grad", grad, input)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_dimensions(operator: str, input: Tensor) -> None:
    torch_check(
        input.dim() == 4,
        lambda: f"{operator}: input must have 4 dimensions (N, C, H, W), got shape {tuple(input.shape)}",
    )
    _check_sizes(operator, "input", input, 1)


def _holds(condition: bool | torch.SymBool) -> bool:
    """A bound that is far away restricts no program for sizes that are not known yet: the kernel will check them."""
    return isinstance(condition, torch.SymBool) or condition


def _check_sizes(operator: str, name: str, tensor: Tensor, first: int = 0) -> None:
    """Of all dimensions from `first` on."""
    torch_check(
        all(_holds(size <= LARGEST_SIZE) for size in tensor.shape[first:]),
        lambda: (
            f"{operator}: {name} must have sizes of at most {LARGEST_SIZE}{' behind the first' if first else ''}, "
            f"got shape {tuple(tensor.shape)}"
        ),
    )


def _fits(sizes: Iterable[int]) -> bool:
    """Whether a tensor has no more than MOST_ELEMENTS. A size of 0 counts as 1, as it does in strides."""
    return math.prod(size for size in sizes if not isinstance(size, torch.SymInt) and size > 0) <= MOST_ELEMENTS


def _check_dtype(operator: str, input: Tensor) -> None:
    torch_check(
        input.dtype in DTYPES,
        lambda: f"{operator}: input must be float32, float64, bfloat16 or float16, got {_name(input.dtype)}",
    )


def _check_device(operator: str, name: str, tensor: Tensor, input: Tensor) -> None:
    torch_check(
        tensor.device == input.device,
        lambda: f"{operator}: {name} must be on the device of input, {input.device}, got {tensor.device}",
    )


def _check_pairs(operator: str, stride: list[int], padding: list[int], dilation: list[int]) -> None:
    _check_pair(operator, "stride", stride, 1)
    _check_pair(operator, "padding", padding, 0)
    _check_pair(operator, "dilation", dilation, 1)


def _check_pair(operator: str, name: str, pair: list[int], least: int) -> None:
    torch_check(
        len(pair) == 2 and all(least <= number <= LARGEST_SIZE for number in pair),
        lambda: f"{operator}: {name} must be two integers from {least} to {LARGEST_SIZE}, got {tuple(pair)}",
    )


def _check_geometry(
    operator: str,
    input: Tensor,
    weight: Tensor,
    filters: int,
    kernel: Sequence[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> None:
    """That the kernel fits, and that input, filters and output are not too large. The fake kernels ask for more."""
    x, w = tuple(input.shape), tuple(weight.shape)
    padded = [x[2 + d] + 2 * padding[d] for d in (0, 1)]
    torch_check(
        all(_holds(size <= LARGEST_SIZE) for size in padded) and _fits([*x[:2], *padded]),
        lambda: (
            f"{operator}: padding must leave an input of at most {LARGEST_SIZE} rows and columns and {MOST_ELEMENTS} "
            f"elements, got input {x} and padding {tuple(padding)}"
        ),
    )
    torch_check(
        _fits([filters, x[1] // groups, *kernel]),
        lambda: f"{operator}: weight must have at most {MOST_ELEMENTS} elements, got shape {w}",
    )
    torch_check(
        all(padded[d] >= dilation[d] * (kernel[d] - 1) + 1 for d in (0, 1)),
        lambda: (
            f"{operator}: the dilated kernel must fit into the padded input, got input {x}, "
            f"weight {w}, padding {tuple(padding)} and dilation {tuple(dilation)}"
        ),
    )
    torch_check(
        _fits([x[0], filters, *output_size(input.shape[2:], kernel, stride, padding, dilation)]),
        lambda: (
            f"{operator}: the output must have at most {MOST_ELEMENTS} elements, got input {x}, weight {w}, "
            f"stride {tuple(stride)} and padding {tuple(padding)}"
        ),
    )


def _check_affine_map(operator: str, scale: Tensor, shift: Tensor) -> None:
    torch_check(
        scale.dim() == 1 and scale.numel() > 0,
        lambda: f"{operator}: scale must have a value for each filter, (O,), got shape {tuple(scale.shape)}",
    )
    torch_check(
        shift.shape == scale.shape,
        lambda: f"{operator}: shift must have the shape of scale, {tuple(scale.shape)}, got {tuple(shift.shape)}",
    )
    _check_sizes(operator, "scale", scale)


def _check_groups(operator: str, input: Tensor, filters: int, groups: int) -> None:
    torch_check(
        groups >= 1 and filters % groups == 0 and input.shape[1] % groups == 0,
        lambda: (
            f"{operator}: groups must divide the channels of input and the filters, got groups {groups}, "
            f"input {tuple(input.shape)} and {filters} filters"
        ),
    )


def _check_channels(operator: str, input: Tensor, weight: Tensor, channels: int, groups: int) -> None:
    """`channels` are those of weight."""
    torch_check(
        input.shape[1] // groups == channels,
        lambda: (
            f"{operator}: input must have groups times the channels of weight, {groups * channels}, got "
            f"{input.shape[1]}: groups {groups}, input {tuple(input.shape)} and weight {tuple(weight.shape)}"
        ),
    )


def _check_parameter(operator: str, name: str, tensor: Tensor, dtype: torch.dtype, input: Tensor) -> None:
    torch_check(
        tensor.dtype == dtype,
        lambda: (
            f"{operator}: {name} must be {_name(dtype)} for an input of {_name(input.dtype)}, got {_name(tensor.dtype)}"
        ),
    )
    _check_device(operator, name, tensor, input)


def _check_byte(operator: str, name: str, number: int, most: int) -> None:
    torch_check(0 <= number <= most, lambda: f"{operator}: {name} must be from 0 to {most}, got {number}")


def _check_addend(operator: str, addend: Tensor, input: Tensor, shape: tuple[int, ...]) -> None:
    torch_check(
        tuple(addend.shape) == shape,
        lambda: f"{operator}: addend must have the shape of the output, {shape}, got {tuple(addend.shape)}",
    )
    torch_check(
        addend.dtype in (input.dtype, torch.float32),
        lambda: (
            f"{operator}: addend must have the dtype of input, {_name(input.dtype)}, or be float32, "
            f"got {_name(addend.dtype)}"
        ),
    )
    _check_device(operator, "addend", addend, input)


def check_modes(input_grad: str = "hardtanh", weight_grad: str = "full") -> None:
    torch_check(
        input_grad in ("hardtanh", "sign"),
        lambda: f"adder2d: input_grad must be 'hardtanh' or 'sign', got '{input_grad}'",
    )
    torch_check(
        weight_grad in ("full", "sign"), lambda: f"adder2d: weight_grad must be 'full' or 'sign', got '{weight_grad}'"
    )
