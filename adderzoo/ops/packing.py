"""The layout of filters that are packed ahead of time: one for all processors, so that a saved network runs on any."""

import torch.nn.functional as F
from torch import Tensor

# Filters of a panel: the lanes of one AVX-512 vector of float32, two of AVX2, four of NEON.
LANES = 16


def pack_filters(weight: Tensor) -> Tensor:
    """Filters in panels of 16, side by side: the order in which the kernels read them.

    Args:
        weight: (O, C / groups, kH, kW).

    Returns:
        (ceil(O / 16), kH, kW, C / groups, 16), contiguous. Lane l of panel p is filter 16 p + l; lanes without a
        filter are zero.
    """
    missing = -weight.shape[0] % LANES
    padded = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing))
    return padded.unflatten(0, (-1, LANES)).permute(0, 3, 4, 2, 1).contiguous()


def unpack_filters(packed: Tensor, out_channels: int) -> Tensor:
    """The inverse of :func:`pack_filters`.

    Args:
        packed: (ceil(O / 16), kH, kW, C / groups, 16).
        out_channels: O.

    Returns:
        (O, C / groups, kH, kW), contiguous.
    """
    return packed.permute(0, 4, 3, 1, 2).flatten(0, 1)[:out_channels].contiguous()
