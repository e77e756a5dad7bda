"""Shift layers, whose weights are powers of two, and shift layers followed by adder layers."""

import math

import torch
from torch import Tensor, nn

from ._straight_through import straight_through
from .adder import Adder2d, _check_sizes
from .modules import TensorModule


class ShiftConv2d(TensorModule, nn.Conv2d):
    """Two-dimensional convolution by shifts of bits: DeepShift-PS (arXiv:1905.13298), with weights of 5 bits.

    It takes the arguments of :class:`torch.nn.Conv2d`. A weight is zero or a power of two with a sign,

        weight = sign(round(sign)) * 2 ** round(shift),   shift from -14 to 0,

    which 5 bits can tell apart (15 shifts with two signs, and zero). `shift` and `sign` are the parameters that are
    trained; the attribute `weight` is what they make. With g the gradient of `weight`, that of `shift` is
    g * weight * ln 2, straight through the rounding, and that of `sign` is g, as in the authors' code: a sign's step
    does not depend on how small its weight is. Both start as the authors' do, uniform in [-14, 0] and [-1, 1], so that
    half of the weights are zero.

    `shift` is held in its range where it is used, with its gradient, while the authors' code writes the limit into the
    parameter. Weight decay would draw `shift` to weights of 1: leave both parameters out, as networks of this package
    say by `no_weight_decay`.

    This is a simulation in float, like the authors' own, with inputs of any value: a product with a power of two is
    exact.

    Shape: (N, in_channels, H, W) to (N, out_channels, H', W').

    Args:
        in_channels: Channels of the input.
        out_channels: Number of filters.
        kernel_size: Of the filters, an integer or (height, width).
        stride: Of the patches, an integer or (height, width).
        padding: Zeros added on each side, an integer, (height, width), "valid" or "same".
        dilation: Distance between the taps of a filter, an integer or (height, width).
        groups: Number of groups of channels that do not see each other.
        bias: Whether to add a learned bias to the output.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: as :class:`torch.nn.Conv2d`, which refuses other numbers in the first call, by a RuntimeError.
    """

    shift: Tensor
    sign: Tensor

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name != "weight" or param is None:
            super().register_parameter(name, param)
        elif "shift" in self._parameters:
            raise AttributeError("weight is what shift and sign make: set these instead")
        else:  # by Conv2d's constructor; in its place there are two
            self.shift, self.sign = (nn.Parameter(torch.empty_like(param)) for _ in range(2))

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.shift, -14, 0)
        nn.init.uniform_(self.sign, -1, 1)
        if self.bias is not None:  # as Conv2d's
            bound = max(1, math.prod(self.shift.shape[1:])) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out_channels, in_channels / groups, kH, kW): zeros and powers of two, in the type of the parameters."""
        shift = straight_through(self.shift.round().clamp(-14, 0), self.shift)
        sign = self.sign.detach().round().sign()
        return torch.exp2(shift) * sign + (self.sign - self.sign.detach())  # plus 0, whose gradient is that of sign

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias)


class ShiftAdd2d(TensorModule):
    """A shift layer followed by an adder layer of the same kernel ("ShiftAddNet", NeurIPS 2020, arXiv:2010.12785).

    It takes the arguments of :class:`torch.nn.Conv2d`, and its output has the shape of that layer's. Stride, padding
    and the change of channels are the shift layer's, :class:`ShiftConv2d`; the adder layer behind it, an
    :class:`Adder2d` from `out_channels` to `out_channels`, pads to keep the size. As behind any adder layer, a
    BatchNorm has to follow the pair; there is none within it.

    Shape: (N, in_channels, H, W) to (N, out_channels, H', W'), of at least float32 as an adder layer's.

    Args:
        in_channels: Channels of the input.
        out_channels: Number of filters of either layer.
        kernel_size: Of the filters of both, an integer or (height, width).
        stride: Of the patches of the shift layer, an integer or (height, width).
        padding: Zeros added on each side of its input, an integer, (height, width), "valid" or "same".
        dilation: Distance between the taps of a filter, of both, an integer or (height, width).
        groups: Number of groups of channels that do not see each other, in both.
        bias: Whether to add a learned bias to the output.
        padding_mode: "zeros", "reflect", "replicate" or "circular", of both.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: as :class:`ShiftConv2d` and :class:`Adder2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_sizes(in_channels=in_channels, out_channels=out_channels)
        super().__init__()
        self.shift = ShiftConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            False,
            padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self.adder = Adder2d(
            out_channels,
            out_channels,
            kernel_size,
            1,
            "same",
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.adder(self.shift(input))
