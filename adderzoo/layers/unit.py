"""An adder layer with what super-resolution needs around it."""

import torch
from torch import Tensor, nn

from .kinds import get_conv_layer
from .modules import TensorModule
from .norm import BatchNorm2d
from .power import PowerActivation


class ConvUnit(TensorModule):
    """A layer of a super-resolution network: adder layer or convolution -> BatchNorm -> + input -> ReLU -> power.

    The order is that of the authors of "AdderSR" (CVPR 2021), from their answers
    (https://github.com/huawei-noah/AdderNet/issues/67); BatchNorm is there even where the convolutional network has
    none (issues/47). The addition is the paper's self-shortcut: an adder layer cannot learn the identity, which
    most of super-resolution is.

    With "conv" and none of these it is a convolution with bias and a ReLU: a layer of the published networks.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W).

    Args:
        in_channels: Channels of the input.
        out_channels: Number of filters.
        kernel_size: Side of the filters, odd; the input is padded with zeros to keep its size.
        conv_layer: "adder", "conv" or another one that :func:`get_conv_layer` names.
        relu: Whether there is a ReLU.
        norm: Whether there is a BatchNorm. The layer has a bias where there is none.
        self_shortcut: Whether the input is added, if it has as many channels as the output.
        power: Whether there is a :class:`PowerActivation`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: if `kernel_size` is even, or `conv_layer` is no such kind.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        conv_layer: str = "adder",
        relu: bool = True,
        norm: bool = True,
        self_shortcut: bool = True,
        power: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to keep the size of the input, got {kernel_size}")
        self.conv = get_conv_layer(conv_layer)(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not norm, device=device, dtype=dtype
        )
        self.norm = BatchNorm2d(out_channels, device=device, dtype=dtype) if norm else nn.Identity()
        self.self_shortcut = self_shortcut and in_channels == out_channels
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.power = PowerActivation(device=device, dtype=dtype) if power else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set BatchNorm's scale to 0.1 where the input is added; all else begins as the layers do.

        So a unit gives little more than its input, the image. At a scale of 1, random features would have the deviation
        1 that BatchNorm gives them, several times that of the image.
        """
        if self.self_shortcut and isinstance(self.norm, BatchNorm2d):
            nn.init.constant_(self.norm.weight, 0.1)

    def forward(self, input: Tensor) -> Tensor:
        x = self.norm(self.conv(input))
        if self.self_shortcut:
            x = x + input
        return self.power(self.act(x))
