"""The operator and its gradients as the paper defines them, one output pixel at a time, in float64."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = Sequence[int]


def _patches(
    padded: Tensor, weight: Tensor, stride: Pair, dilation: Pair
) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """Output rows and columns, and where in the padded input they look."""
    reach = [dilation[d] * (weight.shape[2 + d] - 1) + 1 for d in (0, 1)]
    for row in range((padded.shape[2] - reach[0]) // stride[0] + 1):
        for column in range((padded.shape[3] - reach[1]) // stride[1] + 1):
            top, left = row * stride[0], column * stride[1]
            rows = slice(top, top + reach[0], dilation[0])
            yield row, column, (slice(None), slice(None), rows, slice(left, left + reach[1], dilation[1]))


def adder2d64(x: Tensor, w: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """-sum |x - w| (eq. 2)."""
    padded, w = F.pad(x.double(), (padding[1], padding[1], padding[0], padding[0])), w.double()
    pixels = {
        (row, column): -(padded[where][:, None] - w).abs().sum((2, 3, 4))
        for row, column, where in _patches(padded, w, stride, dilation)
    }
    rows, columns = 1 + max(row for row, _ in pixels), 1 + max(column for _, column in pixels)
    return torch.stack([torch.stack([pixels[row, column] for column in range(columns)], -1) for row in range(rows)], -2)


def adder2d64_gradients(
    x: Tensor, w: Tensor, g: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[Tensor, Tensor]:
    """Of the input, sum of g * hardtanh(w - x) (eq. 6), and of the filters, sum of g * (x - w) (eq. 5)."""
    padded, w, g = F.pad(x.double(), (padding[1], padding[1], padding[0], padding[0])), w.double(), g.double()
    of_input, of_weight = torch.zeros_like(padded), torch.zeros_like(w)
    for row, column, where in _patches(padded, w, stride, dilation):
        difference = padded[where][:, None] - w
        part = g[:, :, row, column, None, None, None]
        of_weight += (part * difference).sum(0)
        of_input[where] += (part * (-difference).clamp(-1, 1)).sum(1)
    height, width = x.shape[2:]
    return of_input[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width], of_weight
