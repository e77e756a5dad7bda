"""The adder operator for inference: packed filters, and the BatchNorm, addition and ReLU behind it."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._inference import register_inference
from ._library import LIBRARY
from ._schema import takes_arguments_of
from .adder2d import pair
from .checks import check_affine
from .reference import empty_output


def adder2d_affine(
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
) -> Tensor:
    r"""What follows :func:`adderzoo.ops.adder2d` in a trained network, in one pass with it.

    .. math::
        Z_{n,o,p} = \mathrm{relu}(scale_o \cdot Y_{n,o,p} + shift_o + addend_{n,o,p})

    where Y is `adder2d(input, filters)` ("AdderNet", CVPR 2020, eq. 2). It is for inference: there are no gradients.

    Args:
        input: (N, C, H, W) in float32, float64, bfloat16 or float16, in any memory format.
        weight: Packed filters (:func:`adderzoo.ops.pack_filters`), (ceil(O / 16), kH, kW, C / groups, 16), float64 for
            an input of float64, otherwise float32.
        scale: (O,), with the dtype of `weight`.
        shift: (O,), with the dtype of `weight`.
        addend: None, or (N, O, H', W') with the dtype of `input` or in float32, in any memory format.
        stride: Of the patches, an integer or (height, width).
        padding: Zeros added on each side, an integer or (height, width).
        dilation: Distance between the taps of a filter, an integer or (height, width).
        groups: Number of groups of channels that do not see each other; `groups=C` is the depthwise form.
        relu: Whether negative results become 0.

    Returns:
        (N, O, H', W') with H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1, with the dtype of `input`,
        to which the result is rounded once, at the end; channels_last if `input` is, else contiguous. Autocast changes
        nothing: the type is that of the layer before.

    Raises:
        RuntimeError: if a shape, dtype or device does not fit (the message names the argument), and in backward().
    """
    return torch.ops.adderzoo.adder2d_affine(
        input, weight, scale, shift, addend, pair(stride), pair(padding), pair(dilation), groups, relu
    )


@torch.library.register_fake("adderzoo::adder2d_affine", lib=LIBRARY)
@takes_arguments_of("adder2d_affine")
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
) -> Tensor:
    check_affine(input, weight, scale, shift, addend, stride, padding, dilation, groups)
    return empty_output(input, scale.shape[0], weight.shape[1:3], stride, padding, dilation, input.dtype)


register_inference("adder2d_affine", "adderzoo.fuse")


@register_flop_formula(torch.ops.adderzoo.adder2d_affine)
def _(input_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """As `adder2d` counts, which leaves out what follows, as PyTorch leaves out a bias."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:4])
