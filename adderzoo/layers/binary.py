"""Binary layers: one bit for every weight and activation, the baseline that adder networks are compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._straight_through import straight_through
from .modules import TensorModule


class BinaryConv2d(TensorModule, nn.Conv2d):
    """Two-dimensional convolution of one-bit weights and activations ("DoReFa-Net", arXiv:1606.06160, with W = A = 1).

    It takes the arguments of :class:`torch.nn.Conv2d` and computes

        conv2d(round(clip(x, 0, 1)), sign(w) * E|w|),   sign(0) = 1,

    where E|w| is the mean over all of `weight`. Gradients pass straight through sign and E|w| to `weight`, and through
    the rounding to `x` where that is between 0 and 1. `weight` and its gradient are what is trained, in float.

    Activations are 0 or 1, with the step at 0.5: behind BatchNorm and ReLU about a third of them are 1. Of what a ReLU
    gives, clip(x, 0, 1) is the bounded activation that the paper asks for, and padding with zeros is one of the two
    values. A product is an AND of two bits with a sign, and E|w| a factor of the output, which a BatchNorm behind the
    layer takes up.

    This is a simulation in float, like the paper's own: every value is exact, no kernel for bits is behind it.

    Shape: (N, in_channels, H, W) to (N, out_channels, H', W').

    Args:
        in_channels: Channels of the input.
        out_channels: Number of filters.
        kernel_size: Of the filters, an integer or (height, width).
        stride: Of the patches, an integer or (height, width).
        padding: Zeros added on each side, an integer, (height, width), "valid" or "same".
        dilation: Distance between the taps of a filter, an integer or (height, width).
        groups: Number of groups of channels that do not see each other.
        bias: Whether to add a learned bias to the output, in float.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: Of the parameters.
        dtype: Of the parameters.
        scale_per_filter: Take E|w| over each filter by itself: the scaling factors of "XNOR-Net" (arXiv:1603.05279).

    Raises:
        ValueError: as :class:`torch.nn.Conv2d`, which refuses other numbers in the first call, by a RuntimeError.
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
        *,
        scale_per_filter: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self.scale_per_filter = scale_per_filter

    def forward(self, input: Tensor) -> Tensor:
        bits = _binary_activations(input)
        return self._conv_forward(bits, _binary_weight(self.weight, self.scale_per_filter), self.bias)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", scale_per_filter=True" if self.scale_per_filter else "")


def _binary_activations(input: Tensor) -> Tensor:
    """0 or 1, of the same shape (DoReFa-Net, section 2.4, with k = 1 and h(x) = clip(x, 0, 1))."""
    bounded = F.hardtanh(input, 0.0, 1.0)  # clamp(), but the ONNX exporter breaks a clamp() behind a ReLU
    return straight_through(bounded.round(), bounded)


def _binary_weight(weight: Tensor, scale_per_filter: bool) -> Tensor:
    """Two values a layer (DoReFa-Net, section 2.3, k = 1), or a filter (XNOR-Net); of the same shape."""
    scale = weight.abs().mean((1, 2, 3), keepdim=True) if scale_per_filter else weight.abs().mean()
    return straight_through(torch.where(weight >= 0, scale, -scale), weight)
