"""The adder operator on unsigned bytes, with what follows it in a quantized network."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._inference import register_inference
from ._library import LIBRARY
from ._schema import takes_arguments_of
from .adder2d import pair
from .checks import check_u8
from .reference import empty_output


def adder2d_u8(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    addend: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    relu: bool = False,
    zero_point: int = 0,
    out_zero_point: int | None = None,
    out_max: int = 255,
    addend_scale: float = 1.0,
) -> Tensor:
    r"""An integer adder layer, and what follows it in a trained network, in one pass.

    .. math::
        S_{n,o,p} &= \sum_{c,i,j} |X_{n,\,c,\,p \cdot stride + (i,j) \cdot dilation - padding} - W_{o,c,i,j}| \\
        Z_{n,o,p} &= \mathrm{relu}(S_{n,o,p} \cdot scale_o + shift_o + addend_{n,o,p} \cdot addend\_scale)

    S is the distance of "AdderNet" (CVPR 2020, eq. 2) in integers, without its minus sign, and exact. Input and filters
    share a scale and a zero point; the scale of what they stand for, the minus sign, BatchNorm and bias are all parts
    of `scale` and `shift`, as :mod:`adderzoo.inference.quantization` computes them. S is rounded to float32, and then
    every multiplication and every addition is, from left to right: all processors agree in every bit. Bytes are written
    as round(Z) + out_zero_point, halves rounded to even, within 0 and `out_max`.

    It is for inference: there are no gradients.

    Args:
        input: (N, C, H, W) in uint8, in any memory format (channels_last is the fast one).
        weight: Packed filters (:func:`adderzoo.ops.pack_byte_filters`), in uint8.
        scale: (O,), float32.
        shift: (O,), float32.
        addend: None, or (N, O, H', W') in uint8 or float32, in any memory format.
        stride: Of the patches, an integer or (height, width).
        padding: Pixels added on each side, an integer or (height, width).
        dilation: Distance between the taps of a filter, an integer or (height, width).
        groups: Number of groups of channels that do not see each other; `groups=C` is the depthwise form.
        relu: Whether negative results become 0.
        zero_point: The byte that stands for 0, with which the input is padded.
        out_zero_point: The byte that stands for 0 in the output; None for an output in float32.
        out_max: The largest byte of the output; 15 makes it one of 4 bits.
        addend_scale: What the addend is multiplied by (its zero point has to be part of `shift`).

    Returns:
        (N, O, H', W') with H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1, in uint8 or float32;
        channels_last if `input` is, as is any of one channel or one pixel, else contiguous.

    Raises:
        RuntimeError: if a shape, dtype, device or number does not fit (the message names the argument), and in
            backward().
    """
    return torch.ops.adderzoo.adder2d_u8(
        input,
        weight,
        scale,
        shift,
        addend,
        pair(stride),
        pair(padding),
        pair(dilation),
        groups,
        relu,
        zero_point,
        out_zero_point,
        out_max,
        addend_scale,
    )


@torch.library.register_fake("adderzoo::adder2d_u8", lib=LIBRARY)
@takes_arguments_of("adder2d_u8")
def _(
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
    check_u8(
        input, weight, scale, shift, addend, stride, padding, dilation, groups, zero_point, out_zero_point, out_max
    )
    dtype = torch.float32 if out_zero_point is None else torch.uint8
    return empty_output(input, scale.shape[0], weight.shape[1:3], stride, padding, dilation, dtype)


register_inference("adder2d_u8", "adderzoo.inference.quantization")


@register_flop_formula(torch.ops.adderzoo.adder2d_u8)
def _(
    input_shape: Any,
    weight_shape: Any,
    scale_shape: Any,
    shift_shape: Any,
    addend_shape: Any = None,
    stride: Any = None,
    padding: Any = None,
    dilation: Any = None,
    groups: int = 1,
    *_: Any,
    out_shape: Any,
    **__: Any,
) -> int:
    """As `adder2d` counts; the packed filters' padding does not."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:3]) * (input_shape[1] // groups)
