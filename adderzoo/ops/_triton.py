"""The operators as Triton kernels, for GPUs without a compiled library; imported with the first tensor of such a GPU.

Forward pass and input gradient are one walk, as in csrc/cuda/adder2d_walk.h: for every point of a lattice, for every
tap of the filter, fetch one pixel of a source and add a function of its channels and the filter's to the outputs at the
point.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from ._schema import takes_arguments_of
from .packing import LANES, pack_filters
from .reference import empty_output, memory_format_like

# Terms of a sum, before it is added to the total: the float32 sum of so many bytes is exact, too.
_BLOCK_STEPS = tl.constexpr(128)
_LANES = tl.constexpr(LANES)

# What differs from layer to layer: no kernel is compiled anew where one of them is 1 or a multiple of 16. (Where the
# source's channels lie side by side one is.)
_SIZES = (
    *("points", "channels", "outputs", "all_outputs", "height", "width", "kernel_h", "kernel_w"),
    *(
        f"{name}_{axis}"
        for axis in "hw"
        for name in ("points", "step", "taps", "tap0", "tap_step", "filter_tap0", "filter_tap_step", "out_step", "out0")
    ),
    *(f"{tensor}_stride_{axis}" for tensor in ("beside", "output") for axis in "nchw"),
    *("source_stride_n", "source_stride_h", "source_stride_w"),
    *("padding", "addend_scale", "lowest", "highest", "zero_point"),
)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=["source_stride_c"])
def _walk(  # type: ignore[no-untyped-def]
    source,
    filters,  # packed: (panels, kernel_h, kernel_w, ceil(channels / LANE_CHANNELS), lanes, LANE_CHANNELS)
    beside,  # what lies at the outputs: the inputs of slopes, or an addend, or None
    output,
    scale,
    shift,
    points,  # of all images
    channels,  # of the source, of a group
    outputs,  # of a group
    all_outputs,  # those among which a block has its own
    height,  # of the source
    width,
    kernel_h,
    kernel_w,
    points_h,  # of an image
    step_h,  # the taps of row y of points reach the rows y * step + tap0 + i * tap_step of the source
    taps_h,
    tap0_h,
    tap_step_h,
    filter_tap0_h,  # and are the rows filter_tap0 + i * filter_tap_step of the filters
    filter_tap_step_h,
    out_step_h,  # and its outputs are the row y * out_step + out0
    out0_h,
    points_w,
    step_w,
    taps_w,
    tap0_w,
    tap_step_w,
    filter_tap0_w,
    filter_tap_step_w,
    out_step_w,
    out0_w,
    source_stride_n,
    source_stride_c,
    source_stride_h,
    source_stride_w,
    beside_stride_n,
    beside_stride_c,
    beside_stride_h,
    beside_stride_w,
    output_stride_n,
    output_stride_c,
    output_stride_h,
    output_stride_w,
    padding,  # what lies around the source
    addend_scale,
    lowest,
    highest,
    zero_point,
    FORM: tl.constexpr,  # "distance", "hardtanh" or "sign"
    RELU: tl.constexpr,
    LANE_CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,  # whether the outputs of a block belong to one group
    POINTS: tl.constexpr,  # of a block of 128 threads
    OUTPUTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # of the output
    INDEX: tl.constexpr,  # int64 where 32 bits are too few
    SUM: tl.constexpr,
    TOTAL: tl.constexpr,
):
    # Threads lie along the last two axes, 8 x 16 of them, and each has every point and output of the first two: in the
    # loop it loads a number for each of these points and outputs, not for each of their pairs.
    point_shape: tl.constexpr = (POINTS // 8, 1, 8, 1) if CHANNELS_LAST else (POINTS // 16, 1, 1, 16)
    output_shape: tl.constexpr = (1, OUTPUTS // 16, 1, 16) if CHANNELS_LAST else (1, OUTPUTS // 8, 8, 1)
    shape: tl.constexpr = (point_shape[0], output_shape[1], 8, 16)
    output_blocks, point_blocks = tl.cdiv(all_outputs, OUTPUTS), tl.cdiv(points, POINTS)
    block = tl.program_id(0)
    group = (block // output_blocks // point_blocks).to(INDEX)
    point0 = (block // output_blocks % point_blocks).to(INDEX) * POINTS
    point = point0 + tl.reshape(tl.arange(0, POINTS), point_shape)
    o = block % output_blocks * OUTPUTS + tl.reshape(tl.arange(0, OUTPUTS), output_shape)
    valid, there = point < points, o < all_outputs
    channel = group * outputs + o
    channel0 = (group if SHARED else channel // outputs) * channels
    reads = valid if SHARED else valid & there

    line = point // points_w
    image, row, column = line // points_h, line % points_h, point % points_w
    out_row, out_column = row * out_step_h + out0_h, column * out_step_w + out0_w
    beside_at = image * beside_stride_n + channel * beside_stride_c
    beside_at += out_row * beside_stride_h + out_column * beside_stride_w
    x = tl.load(beside + beside_at, mask=valid & there, other=0).to(SUM) if FORM != "distance" else None

    source_at = image * source_stride_n + channel0 * source_stride_c
    channel_stride = tl.full((), source_stride_c, INDEX)
    lane_rows = tl.cdiv(channels, LANE_CHANNELS)
    panel = channel // _LANES * kernel_h
    lane = channel % _LANES * LANE_CHANNELS
    total, sums = tl.zeros(shape, TOTAL), tl.zeros(shape, SUM)
    terms = 0
    for i in range(0, taps_h):
        y = row * step_h + tap0_h + i * tap_step_h
        filter_row = (panel + filter_tap0_h + i * filter_tap_step_h) * kernel_w
        for j in range(0, taps_w):
            z = column * step_w + tap0_w + j * tap_step_w
            inside = reads & (y >= 0) & (y < height) & (z >= 0) & (z < width)
            pixel = source + (source_at + y * source_stride_h + z * source_stride_w)
            filter_at = (filter_row + filter_tap0_w + j * filter_tap_step_w) * lane_rows
            for first in range(0, channels, _BLOCK_STEPS):
                last = tl.minimum(first + _BLOCK_STEPS, channels)
                for c in tl.range(first, last, loop_unroll_factor=4):
                    s = tl.load(pixel + c * channel_stride, mask=inside, other=padding).to(SUM)
                    lane_at = (filter_at + c // LANE_CHANNELS) * (_LANES * LANE_CHANNELS) + lane + c % LANE_CHANNELS
                    f = tl.load(filters + lane_at, mask=there, other=0).to(SUM)
                    if FORM == "distance":
                        sums += tl.abs(s - f)
                    else:  # around the source lies nothing, not zero times a slope that may be NaN
                        slope = f - x
                        if FORM == "sign":
                            slope = tl.where(slope < 0, -1.0, tl.where(slope > 0, 1.0, slope))
                        else:
                            slope = tl.clamp(slope, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
                        sums = tl.where(inside, sums + s * slope, sums)
                terms += last - first
                if terms + tl.minimum(channels, _BLOCK_STEPS) > _BLOCK_STEPS:  # no room for the next ones
                    total += sums.to(TOTAL)
                    sums = tl.zeros(shape, SUM)
                    terms = 0
    total += sums.to(TOTAL)

    in_bytes: tl.constexpr = tl.int32 == TOTAL
    result = -total if FORM == "distance" and not in_bytes else total
    if scale is not None:
        result = result.to(SUM) * tl.load(scale + channel, mask=there, other=0)
        result += tl.load(shift + channel, mask=there, other=0)
        if beside is not None:
            addend = tl.load(beside + beside_at, mask=valid & there, other=0).to(SUM)
            result += addend * addend_scale if in_bytes else addend
        if output.dtype.element_ty == tl.uint8:
            result = tl.where(result > lowest, result, lowest)  # NaN becomes the lowest
            result = tl.where(result < highest, result, highest)
            result = (result + 12582912.0) - 12582912.0  # 1.5 * 2^23: beside it a float32 has no fraction
            result += zero_point
        elif RELU:
            result = tl.where(result < 0, 0.0, result)
    output_at = image * output_stride_n + channel * output_stride_c
    output_at += out_row * output_stride_h + out_column * output_stride_w
    tl.store(output + output_at, result.to(output.dtype.element_ty), mask=valid & there)


class _Axis(NamedTuple):
    """One axis of a walk, as the kernel takes it."""

    points: int
    step: int
    taps: int
    tap0: int
    tap_step: int
    filter_tap0: int = 0
    filter_tap_step: int = 1
    out_step: int = 1
    out0: int = 0


def _forward_axes(
    output: Tensor, kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[_Axis]:
    return [_Axis(output.shape[2 + d], stride[d], kernel[d], -padding[d], dilation[d]) for d in (0, 1)]


def _backward_axes(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Axis]:
    """The same taps reach the positions of the input that leave the same remainder modulo the stride: an axis each."""
    axes = []
    period = stride // math.gcd(stride, dilation)  # of the taps that reach a position
    for remainder in range(min(stride, size)):
        points = -(-(size - remainder) // stride)
        reaching = (tap for tap in range(min(period, kernel)) if (remainder + padding - tap * dilation) % stride == 0)
        first = next(reaching, kernel)
        taps = -(-(kernel - first) // period)
        output = (remainder + padding - first * dilation) // stride
        axes.append(_Axis(points, 1, taps, output, -period * dilation // stride, first, period, stride, remainder))
    return axes


def _tile(form: str, shared: bool, points: int, outputs: int) -> tuple[int, int]:
    """Points and outputs of a block of 128 threads, each of which keeps its elements in registers."""
    elements = 1024 if not shared else 4096 if form == "distance" else 2048
    width = min(64, max(16, triton.next_power_of_2(outputs)))
    return min(elements // width, max(16, triton.next_power_of_2(points))), width


def _needs_64_bits(*tensors: Tensor | None) -> bool:
    """Whether the offset of an element does."""
    return any(
        sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) >= 2**31
        for tensor in tensors
        if tensor is not None
    )


def _run(
    axes: list[_Axis],
    source: Tensor,
    filters: Tensor,
    output: Tensor,
    groups: int,
    *,
    form: str = "distance",
    beside: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    numbers: tuple[float, ...] = (0, 1.0, 0.0, 0.0, 0),
) -> None:
    """Walks over a source (N, C, H, W), and writes an output (N, O, H', W') where the axes lead."""
    points = output.shape[0] * axes[0].points * axes[1].points
    if points == 0:
        return
    channels, outputs = source.shape[1] // groups, output.shape[1] // groups
    shared = groups == 1 or outputs >= LANES
    all_outputs = outputs if shared else groups * outputs
    tile = _tile(form, shared, points, all_outputs)
    blocks = -(-points // tile[0]) * -(-all_outputs // tile[1]) * (groups if shared else 1)
    wide = points > 2**31 - tile[0] or _needs_64_bits(source, filters, beside, output)
    sums = tl.float64 if filters.dtype == torch.float64 else tl.float32
    in_bytes = source.dtype == torch.uint8
    _walk[(blocks,)](
        *(source, filters, beside, output),
        *(None if vector is None else vector.contiguous() for vector in (scale, shift)),
        *(points, channels, outputs, all_outputs, *source.shape[2:], *filters.shape[1:3], *axes[0], *axes[1]),
        *(*source.stride(), *(output if beside is None else beside).stride(), *output.stride(), *numbers),
        FORM=form,
        RELU=relu,
        LANE_CHANNELS=filters.shape[5] if in_bytes else 1,
        SHARED=shared,
        POINTS=tile[0],
        OUTPUTS=tile[1],
        CHANNELS_LAST=output.stride(1) == 1,
        INDEX=tl.int64 if wide else tl.int32,
        SUM=sums,
        TOTAL=tl.int32 if in_bytes else sums,
        enable_fp_fusion=not in_bytes,  # whose results are rounded after every operation
    )


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
    checks.check_modes(input_grad, weight_grad)
    checks.check(input, weight, stride, padding, dilation, groups)
    kernel, dtype = weight.shape[2:], checks.accumulation_dtype(input.dtype)
    output = empty_output(input, weight.shape[0], kernel, stride, padding, dilation, dtype)
    _run(_forward_axes(output, kernel, stride, padding, dilation), input, pack_filters(weight), output, groups)
    return output


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
    checks.check_affine(input, weight, scale, shift, addend, stride, padding, dilation, groups)
    kernel = weight.shape[1:3]
    output = empty_output(input, scale.numel(), kernel, stride, padding, dilation, input.dtype)
    axes = _forward_axes(output, kernel, stride, padding, dilation)
    _run(axes, input, weight.contiguous(), output, groups, beside=addend, scale=scale, shift=shift, relu=relu)
    return output


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
    checks.check_u8(
        input, weight, scale, shift, addend, stride, padding, dilation, groups, zero_point, out_zero_point, out_max
    )
    kernel, dtype, zero = weight.shape[1:3], torch.float32, 0
    if out_zero_point is not None:
        dtype, zero = torch.uint8, out_zero_point
    output = empty_output(input, scale.numel(), kernel, stride, padding, dilation, dtype)
    axes = _forward_axes(output, kernel, stride, padding, dilation)
    numbers = zero_point, float(addend_scale), 0.0 if relu else float(-zero), float(out_max - zero), zero
    filters = weight.contiguous()
    _run(axes, input, filters, output, groups, beside=addend, scale=scale, shift=shift, relu=relu, numbers=numbers)
    return output


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
    checks.check_modes(input_grad=input_grad)
    checks.check(input, weight, stride, padding, dilation, groups)
    checks.check_grad(grad, input, weight, stride, padding, dilation)
    grad_input = torch.empty_like(input, memory_format=memory_format_like(input))
    filters = pack_filters(weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1))  # input channels as lanes
    rows, columns = (
        _backward_axes(input.shape[2 + d], weight.shape[2 + d], stride[d], padding[d], dilation[d]) for d in (0, 1)
    )
    for row in rows:
        for column in columns:
            _run([row, column], grad, filters, grad_input, groups, form=input_grad, beside=input)
    return grad_input


KERNELS: dict[str, Callable[..., Tensor]] = {
    "adder2d": adder2d,
    "adder2d_affine": affine,
    "adder2d_u8": u8,
    "_adder2d_backward_input": backward_input,
}
