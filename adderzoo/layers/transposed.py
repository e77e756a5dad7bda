"""Transposed adder layers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from adderzoo.ops._pytorch import ConvTransposeNd

from ._input import batched, unbatched
from .adder import _AdderFilter, _check_sizes, _pair

torch.fx.wrap("batched")
torch.fx.wrap("unbatched")


class AdderTranspose2d(_AdderFilter, ConvTransposeNd):
    """Transposed adder layer: :class:`torch.nn.ConvTranspose2d`, with L1 distances.

    A transposed convolution of stride s is a convolution, with the filter turned around, of the input with s - 1 zeros
    between its pixels; this is an adder layer on the same. Zeros between pixels are pixels like those around the image:
    each contributes -|w|. They are computed like others, so the layer takes as long as an :class:`Adder2d` on an image
    of the size of its output.

    It takes the arguments of :class:`torch.nn.ConvTranspose2d`, and its `weight` has the shape of that layer's,
    (in_channels, out_channels / groups, kH, kW). Everything else is as in :class:`Adder2d`: `weight` starts from
    N(0, 1) and `bias` from zero, gradients are the paper's, `adderzoo.optim` knows the filters, and a BatchNorm has to
    follow.

    Shape: (N, in_channels, H, W) to (N, out_channels, H', W'), of at least float32, or without N, with

        H' = (H - 1) * stride - 2 * padding + dilation * (kH - 1) + output_padding + 1.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Of the filters, an integer or (height, width).
        stride: Distance between the input's pixels in the output, an integer or (height, width).
        padding: What is cut off each side of the output, an integer or (height, width).
        output_padding: Rows and columns that the output has more, below and on the right, an integer or
            (height, width), smaller than stride or dilation.
        groups: Number of groups of channels that do not see each other.
        bias: Whether to add a learned bias to the output.
        dilation: Distance between the taps of a filter, an integer or (height, width).
        padding_mode: "zeros".
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: if an argument is none of what it takes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_sizes(in_channels=in_channels, out_channels=out_channels)
        cut = _pair("padding", padding, 0)
        super().__init__(
            in_channels,
            out_channels,
            _pair("kernel_size", kernel_size),
            _pair("stride", stride),
            cut,
            _pair("dilation", dilation),
            True,
            _pair("output_padding", output_padding, 0),
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        # Above and on the left, behind the pixels that the padding cuts off.
        self.zeros_before = [
            apart * (size - 1) - less for apart, size, less in zip(self.dilation, self.kernel_size, cut, strict=True)
        ]
        for more, step, apart in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if more >= max(step, apart):
                raise ValueError(
                    f"output_padding must be smaller than stride or dilation, got {output_padding} with "
                    f"stride {stride} and dilation {dilation}"
                )

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`output_size`, (H', W') or the whole output's, is what sets `output_padding` for this call."""
        batch = batched(input, self.in_channels)
        more = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        top, left = self.zeros_before[0], self.zeros_before[1]
        sides = [left, left + more[1], top, top + more[0]]
        spread = _spread(batch, self.stride, sides)  # type: ignore[arg-type]
        filters = self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
        output = torch.ops.adderzoo.adder2d(spread, filters, dilation=self.dilation, groups=self.groups)
        bias = self.bias
        if bias is not None:
            output = output + bias[:, None, None]
        return unbatched(output, input)


@torch.fx.wrap  # one node of a traced graph, which cannot record an assignment to part of a tensor
def _spread(input: Tensor, stride: list[int], sides: list[int]) -> Tensor:
    """The pixels `stride` apart, with zeros between them and on the (left, right, top, bottom); below 0, cut there."""
    height, width = input.shape[2:]
    if height < 1 or width < 1:
        raise ValueError(f"input must have pixels, got {height} x {width}")
    rows, columns = (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1
    if rows + sides[2] + sides[3] < 1 or columns + sides[0] + sides[1] < 1:
        raise ValueError(f"input must be larger than what padding cuts off the output, got {height} x {width} pixels")
    # Made from the input for its memory format.
    spread = torch.zeros_like(F.pad(input, [0, columns - width, 0, rows - height]))
    spread[:, :, :: stride[0], :: stride[1]] = input
    return F.pad(spread, sides)
