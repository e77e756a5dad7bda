"""The bytes of a float tensor, in one pass over memory: where an integer network begins."""

from typing import Any

import torch
from torch import Tensor

from ._library import LIBRARY
from .adder2d import register_vmap
from .checks import check_quantize_u8
from .reference import byte_steps, memory_format_like


def quantize_u8(input: Tensor, inverse: float, zero_point: int, top: int = 255) -> Tensor:
    """round(input * inverse) + zero_point, halves rounded to even, within 0 and `top`.

    It has no gradients. A NaN becomes any byte.

    Args:
        input: Of any shape, float32, in any memory format.
        inverse: 1 / scale of the bytes.
        zero_point: The byte that stands for 0, up to `top`.
        top: The largest byte.

    Returns:
        uint8, of the shape of the input, and in its memory format.

    Raises:
        RuntimeError: if an argument is none of this.
    """
    if input.is_cpu:
        return torch.ops.adderzoo.quantize_u8(input, inverse, zero_point, top)
    # For torch.compile to make one kernel of, with what is in front of it.
    return byte_steps(input, inverse, zero_point, top).to(torch.uint8)


@torch.library.register_fake("adderzoo::quantize_u8", lib=LIBRARY)
def _(input: Tensor, inverse: float, zero_point: int, top: int) -> Tensor:
    check_quantize_u8(input, zero_point, top)
    return torch.empty_like(input, dtype=torch.uint8, memory_format=memory_format_like(input))


@register_vmap("quantize_u8")
def _(info: Any, in_dims: tuple[Any, ...], input: Tensor, *numbers: Any) -> tuple[Tensor, int]:
    return torch.ops.adderzoo.quantize_u8(input, *numbers), in_dims[0]
