"""Inputs for the operators, in every memory format."""

import os

import hypothesis.strategies as st
import torch
from torch import Tensor

# Of random cases of an operator; scripts/check_operators.sh asks for more.
CASES = int(os.environ.get("ADDERZOO_CASES", 300))

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMATS = ("contiguous", "channels_last", "slice")

# (stride, padding, dilation, groups), the channels of input and output and the kernel
GEOMETRIES = {
    "plain": (((1, 1), (0, 0), (1, 1), 1), 3, 4, (3, 3)),
    "strided": (((2, 1), (1, 2), (1, 1), 1), 5, 2, (3, 2)),
    "dilated": (((1, 3), (2, 0), (2, 3), 1), 2, 3, (2, 2)),
    "grouped": (((2, 2), (1, 1), (1, 1), 3), 6, 9, (1, 3)),
    "depthwise": (((1, 1), (1, 1), (2, 1), 4), 4, 4, (3, 3)),
}

# Channels of input and output for which the kernels of GPUs have code of its own, in the forward pass and for the input
# gradient, if there are 65 to 128 points: tiles of 16 to 128 outputs, fed by fours or one by one, and outputs that are
# computed one by one.
WIDTHS = [(8, 20), (12, 50), (52, 100), (50, 18), (9, 60), (7, 100), (24, 12), (21, 10), (3, 3)]


def in_format(tensor: Tensor, memory_format: str) -> Tensor:
    """The same values: contiguous, channels_last, or a slice of a wider tensor, which is dense in no format."""
    if memory_format == "contiguous":
        return tensor.contiguous()
    if memory_format == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    other = torch.nan if tensor.is_floating_point() else 99
    wider = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), other)
    inner = wider[..., 2:-1]
    return inner.copy_(tensor)


def has_format_like(result: Tensor, input: Tensor) -> bool:
    """channels_last where `input` is, contiguous for a slice; if it is both (one channel, one pixel) by type."""
    is_channels_last = input.is_contiguous(memory_format=torch.channels_last)
    if input.is_floating_point():
        is_channels_last = is_channels_last and not input.is_contiguous()
    wanted = torch.channels_last if is_channels_last else torch.contiguous_format
    return result.is_contiguous(memory_format=wanted)


def sample(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_format: str = "contiguous",
    batch: int = 2,
    size: tuple[int, int] = (9, 8),
) -> tuple[Tensor, Tensor, tuple]:
    """Input, weight and geometry of one of the GEOMETRIES."""
    geometry, in_channels, out_channels, kernel = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(sum(name.encode()))
    input = torch.randn(batch, in_channels, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(out_channels, in_channels // geometry[3], *kernel, generator=generator, dtype=torch.float64)
    return in_format(input.to(device, dtype), memory_format), weight.to(device, dtype), geometry


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple, tuple[int, ...], tuple[int, ...]]:
    """(stride, padding, dilation, groups), the shape of the input and that of the filters (O, C / groups, kH, kW)."""
    pair = st.tuples
    stride = draw(pair(st.integers(1, 4), st.integers(1, 3)))
    padding = draw(pair(st.integers(0, 3), st.integers(0, 3)))
    dilation = draw(pair(st.integers(1, 3), st.integers(1, 3)))
    kernel = draw(pair(st.integers(1, 4), st.integers(1, 3)))
    least = [max(1, dilation[d] * (kernel[d] - 1) + 1 - 2 * padding[d]) for d in (0, 1)]
    size = [draw(st.integers(least[d], least[d] + 5)) for d in (0, 1)]
    channels = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 16, 18, 33]))  # of a group, as the filters are
    filters = draw(st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 24, 32, 35]))
    groups = draw(st.integers(1, max(1, min(36, 1200 // (channels * filters)))))
    batch = draw(st.integers(1, 3))
    geometry = (stride, padding, dilation, groups)
    return geometry, (batch, groups * channels, *size), (groups * filters, channels, *kernel)
