"""Bicubic interpolation as a network: what super-resolution is measured against."""

from typing import Unpack

import torch
from timm.models import generate_default_cfgs
from torch import Tensor

from adderzoo.layers.image import BicubicUpsample

from ._arguments import SuperResolutionArguments, register_model
from ._super_resolution import SuperResolutionNet, create_super_resolution, super_resolution_cfg


class Bicubic(SuperResolutionNet):
    """Bicubic interpolation, MATLAB's; nothing in it is learned.

    Shape: (N, 3, H, W), RGB in [0, 1], to (N, 3, scale * H, scale * W).

    Args:
        scale: An integer from 2.
        num_classes: 0.
        in_chans: 3.
        device: Of the weights.
        dtype: Of the weights.

    Raises:
        ValueError: if an argument is none of what it takes.
    """

    def __init__(
        self,
        scale: int = 2,
        num_classes: int = 0,
        in_chans: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(scale, num_classes, in_chans)
        self.bicubic = BicubicUpsample(scale, device, dtype)
        self.radius = 2

    def forward(self, x: Tensor) -> Tensor:
        return self.bicubic(x)


default_cfgs = generate_default_cfgs({"bicubic.untrained": super_resolution_cfg(input_size=(3, 360, 640))})


@register_model
def bicubic(pretrained: bool = False, **kwargs: Unpack[SuperResolutionArguments]) -> Bicubic:
    """Bicubic interpolation, `scale` 2 unless it is given: the baseline of super-resolution."""
    return create_super_resolution(Bicubic, "bicubic", pretrained, **kwargs)
