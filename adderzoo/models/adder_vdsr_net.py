"""VDSR, adder network and CNN twin.

"Accurate Image Super-Resolution Using Very Deep Convolutional Networks" (CVPR 2016), with adder layers as "AdderSR:
Towards Energy Efficient Image Super-Resolution" (CVPR 2021) has them. The first and the last layer stay convolutions.
"""

from typing import Any, Unpack

import torch
from timm.models import checkpoint_seq, generate_default_cfgs
from torch import Tensor, nn

from adderzoo.hub import hub_id
from adderzoo.layers import ConvUnit
from adderzoo.layers.image import LUMA_RANGE, BicubicUpsample, luma

from ._arguments import VDSRArguments, register_model
from ._builder import own_names, weights_file
from ._super_resolution import (
    SuperResolutionNet,
    additions,
    check_scale,
    create_super_resolution,
    reset_parameters,
    super_resolution_cfg,
)


class VDSR(SuperResolutionNet):
    """VDSR: what bicubic interpolation misses of the luminance.

    The image is interpolated as MATLAB does (:class:`adderzoo.layers.image.BicubicUpsample`); the layers see the Y of
    its YCbCr (BT.601) and find what to add to it. Cb and Cr stay interpolated. One network serves all scales, since its
    layers see an image of the final size.

    Shape: (N, 3, H, W), RGB in [0, 1], to (N, 3, scale * H, scale * W).

    Args:
        conv_layer: Kind of all layers but the first and the last, "adder" or "conv".
        scale: 2, 3 or 4.
        depth: Number of layers, from 2.
        width: Channels.
        norm: BatchNorm behind the layers of `conv_layer`; None for adder layers only, likewise below.
        self_shortcut: The input of such a layer is added to its output.
        power: Power activation behind such a layer.
        num_classes: 0.
        in_chans: 3.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: if an argument is none of what it takes.
    """

    def __init__(
        self,
        conv_layer: str = "adder",
        scale: int = 2,
        depth: int = 20,
        width: int = 64,
        norm: bool | None = None,
        self_shortcut: bool | None = None,
        power: bool | None = None,
        num_classes: int = 0,
        in_chans: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_scale(scale)
        for name, value, least in (("depth", depth, 2), ("width", width, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        super().__init__(scale, num_classes, in_chans)
        self.num_features = width  # timm writes it into the configuration of what it saves for the Hub
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        unit = {"conv_layer": conv_layer, **additions(conv_layer, norm, self_shortcut, power), **dd}
        self.bicubic = BicubicUpsample(scale, **dd)
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.units = nn.Sequential(*[ConvUnit(width, width, **unit) for _ in range(depth - 2)])
        self.conv2 = nn.Conv2d(width, 1, 3, padding=1, **dd)
        self.gain = 255 / LUMA_RANGE  # more Y with the same Cb and Cr is as much more R, G and B, in their wider range
        self.radius = -(-depth // scale) + 2  # a fine pixel a layer, and the interpolation's two
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initial values: N(0, 1) for adder filters, Kaiming's for convolutions as in the VDSR paper, biases 0.

        The last layer starts from 0, unlike the paper's: the network begins as bicubic interpolation. The features of
        adder layers are large, and their random sums would hide the image for long.
        """
        reset_parameters(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.conv2.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """The interpolated image (N, 3, H, W) to (N, width, H, W)."""
        x = self.act1(self.conv1(luma(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.units, x)
        return self.units(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bicubic(x)
        return x + self.gain * self.conv2(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights that were trained at any scale as `model` takes them: the interpolation is its own."""
    return own_names(state_dict, model) | {
        key: value for key, value in model.state_dict().items() if key == "bicubic.weight"
    }


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return super_resolution_cfg(
        input_size=(3, 360, 640),
        first_conv="conv1",
        paper_ids=("arXiv:1511.04587", "arXiv:2009.08891"),
        paper_name="AdderSR: Towards Energy Efficient Image Super-Resolution",
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        f"{name}.bsds400": _cfg(
            file=weights_file(f"{name}.bsds400"), hf_hub_id=hub_id(f"{name}.bsds400"), license="apache-2.0"
        )
        for name in ("adder_vdsr", "cnn_vdsr")
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VDSR:
    return create_super_resolution(VDSR, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def adder_vdsr(pretrained: bool = False, **kwargs: Unpack[VDSRArguments]) -> VDSR:
    """Adder VDSR, `scale` 2 unless it is given: AdderSR, 37.37 dB on Set5 x2."""
    return _create("adder_vdsr", pretrained, **{"conv_layer": "adder", **kwargs})


@register_model
def cnn_vdsr(pretrained: bool = False, **kwargs: Unpack[VDSRArguments]) -> VDSR:
    """The CNN twin of `adder_vdsr`: VDSR, 37.53 dB on Set5 x2."""
    return _create("cnn_vdsr", pretrained, **{"conv_layer": "conv", **kwargs})
