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


def bytes_of_lane(filters: int, groups: int) -> int:
    """Successive channels of a filter that lie side by side among packed bytes.

    Eight, whose differences one instruction sums up; one where the filters of a panel of 16 belong to several groups
    and so see different channels.

    Args:
        filters: O, of all groups.
        groups: Of the layer.
    """
    return 8 if groups == 1 or filters // groups >= LANES else 1


def pack_byte_filters(weight: Tensor, groups: int = 1) -> Tensor:
    """Filters of bytes in panels of 16, for :func:`adderzoo.ops.adder2d_u8`.

    Args:
        weight: (O, C / groups, kH, kW), uint8.
        groups: Of the layer.

    Returns:
        (ceil(O / 16), kH, kW, ceil(C / groups / B), 16, B), contiguous, B being 8, or 1 for more than one group of less
        than 16 filters. Byte b of lane l of panel p is of filter 16 p + l; lanes without a filter and bytes without a
        channel are zero.
    """
    size = bytes_of_lane(weight.shape[0], groups)
    padded = F.pad(weight, (0, 0, 0, 0, 0, -weight.shape[1] % size, 0, -weight.shape[0] % LANES))
    return padded.unflatten(0, (-1, LANES)).unflatten(2, (-1, size)).permute(0, 4, 5, 2, 1, 3).contiguous()


def unpack_byte_filters(packed: Tensor, out_channels: int, channels: int) -> Tensor:
    """The inverse of :func:`pack_byte_filters`.

    Args:
        packed: (ceil(O / 16), kH, kW, ceil(C / groups / B), 16, B).
        out_channels: O.
        channels: C / groups.

    Returns:
        (O, C / groups, kH, kW), contiguous.
    """
    filters = packed.permute(0, 4, 3, 5, 1, 2).flatten(2, 3).flatten(0, 1)
    return filters[:out_channels, :channels].contiguous()
