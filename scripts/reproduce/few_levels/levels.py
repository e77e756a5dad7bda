"""Adder layers whose filters take m levels, as convolutions.

The levels of filters are v_1 = 0 < ... < v_m = 255, the bytes of the input's range. For x in that range

    |x - v_1| = x,    |x - v_m| = 255 - x,    |x - v_j| = 2 relu(x - v_j) - x + v_j,

so the layer is one convolution, with filters of -1, 0, 1 and 2, of the m - 1 activations x and relu(x - v_j), and a
constant for each filter: the sum of its levels but the first, which is 0.
"""

import torch
from torch import Tensor


def levels_of(m: int) -> Tensor:
    """m bytes from 0 to 255."""
    return torch.linspace(0, 255, m).round().to(torch.uint8)


def convolution_filters(indices: Tensor, m: int) -> Tensor:
    """Filters over the m - 1 activations of every channel, one activation's channels side by side.

    Args:
        indices: (O, C, kH, kW), of the level of every number.

    Returns:
        (O, (m - 1) C, kH, kW) int8.
    """
    first = torch.where(indices == 0, 1, -1)
    others = [2 * (indices == j) for j in range(1, m - 1)]
    return torch.cat([first, *others], 1).to(torch.int8)


def activations(x: Tensor, levels: Tensor, dtype: torch.dtype) -> Tensor:
    """x and relu(x - v) for all levels but the ends, for which float16 is exact.

    Args:
        x: (N, C, H, W) uint8.
        levels: (m,) uint8, ascending.

    Returns:
        (N, (m - 1) C, H, W) of this dtype.
    """
    x = x.to(dtype)
    return torch.cat([x, *((x - level).relu() for level in levels[1:-1].tolist())], 1)
