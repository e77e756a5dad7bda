"""The layout of filters that are packed ahead of time: one for all processors, so that a saved network runs on any."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._pytorch import check as torch_check

# Filters of a panel: the lanes of one AVX-512 vector of float32, two of AVX2, four of NEON.
LANES = 16


def pack_filters(weight: Tensor) -> Tensor:
    """Filters in panels of 16, side by side: the order in which the kernels read them.

    Args:
        weight: (O, C / groups, kH, kW).

    Returns:
        (ceil(O / 16), kH, kW, C / groups, 16), contiguous. Lane l of panel p is filter 16 p + l; lanes without a
        filter are zero.

    Raises:
        RuntimeError: if `weight` has not four dimensions.
    """
    _check_weight("pack_filters", weight)
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

    Raises:
        RuntimeError: if `packed` is not such a tensor, or not of `out_channels` filters.
    """
    shape = tuple(packed.shape)
    torch_check(
        len(shape) == 5 and shape[4] == LANES,
        lambda: f"unpack_filters: packed must be (ceil(O / 16), kH, kW, C / groups, 16), got shape {shape}",
    )
    _check_number("unpack_filters", "out_channels", out_channels, LANES, shape[0])
    return packed.permute(0, 4, 3, 1, 2).flatten(0, 1)[:out_channels].contiguous()


def bytes_of_lane(filters: int, groups: int) -> int:
    """Successive channels of a filter that lie side by side among packed bytes.

    Eight, whose differences one instruction sums up; one where the filters of a panel of 16 belong to several groups
    and so see different channels.

    Args:
        filters: O, of all groups.
        groups: Of the layer, at least 1.
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

    Raises:
        RuntimeError: if `weight` has not four dimensions of bytes, or `groups` does not divide the filters.
    """
    _check_weight("pack_byte_filters", weight)
    torch_check(weight.dtype == torch.uint8, lambda: f"pack_byte_filters: weight must be uint8, got {weight.dtype}")
    torch_check(
        groups >= 1 and weight.shape[0] % groups == 0,
        lambda: f"pack_byte_filters: groups must divide the {weight.shape[0]} filters of weight, got {groups}",
    )
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

    Raises:
        RuntimeError: if `packed` is not such a tensor, or not of so many filters and channels.
    """
    shape = tuple(packed.shape)
    torch_check(
        len(shape) == 6 and shape[4] == LANES,
        lambda: (
            "unpack_byte_filters: packed must be (ceil(O / 16), kH, kW, ceil(C / groups / B), 16, B), "
            f"got shape {shape}"
        ),
    )
    _check_number("unpack_byte_filters", "out_channels", out_channels, LANES, shape[0])
    _check_number("unpack_byte_filters", "channels", channels, shape[5], shape[3])
    filters = packed.permute(0, 4, 3, 5, 1, 2).flatten(2, 3).flatten(0, 1)
    return filters[:out_channels, :channels].contiguous()


def _check_weight(function: str, weight: Tensor) -> None:
    torch_check(
        weight.dim() == 4,
        lambda: f"{function}: weight must have 4 dimensions (O, C / groups, kH, kW), got shape {tuple(weight.shape)}",
    )


def _check_number(function: str, name: str, number: int, together: int, rows: int) -> None:
    """Of what lies together in rows, the last of which may be shorter."""
    torch_check(
        (rows - 1) * together < number <= rows * together,
        lambda: f"{function}: {name} must be from {(rows - 1) * together + 1} to {rows * together}, got {number}",
    )
