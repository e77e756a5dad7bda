"""EDSR, adder network and CNN twin.

"Enhanced Deep Residual Networks for Single Image Super-Resolution" (CVPR Workshops 2017), with adder layers as
"AdderSR: Towards Energy Efficient Image Super-Resolution" (CVPR 2021) has them. The first convolution, the upsampler
and the last layer stay convolutions.
"""

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from timm.models import checkpoint_seq, generate_default_cfgs
from torch import Tensor, nn

from adderzoo.hub import hub_id
from adderzoo.layers import ConvUnit

from ._arguments import EDSRArguments, register_model
from ._builder import weights_file
from ._state_dict import own_names, without_prefix
from ._super_resolution import (
    SuperResolutionNet,
    additions,
    check_scale,
    create_super_resolution,
    reset_parameters,
    super_resolution_cfg,
)

# Mean of DIV2K's 800 training images, RGB in [0, 1], from the EDSR authors' code.
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class _Block(nn.Module):
    """Two layers, and the input added to their output; no ReLU behind the second (EDSR, figure 2c)."""

    def __init__(self, width: int, res_scale: float, unit: dict[str, Any]) -> None:
        super().__init__()
        self.unit1 = ConvUnit(width, width, **unit)
        self.unit2 = ConvUnit(width, width, relu=False, **unit)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.unit2(self.unit1(x))


class EDSR(SuperResolutionNet):
    """EDSR.

    Shape: (N, 3, H, W), RGB in [0, 1], to (N, 3, scale * H, scale * W).

    Args:
        conv_layer: Kind of the layers of the blocks and of the one behind them, "adder" or "conv".
        scale: 2, 3 or 4.
        blocks: Number of residual blocks.
        width: Channels.
        res_scale: What the output of a block's layers is multiplied by. None is the paper's for convolutions: 0.1 for
            256 channels and more, which do not train without it, else 1. For adder layers it is 0.1: a block of layers
            that add their own input to their output would double its input, each block anew.
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

    mean: Tensor

    def __init__(
        self,
        conv_layer: str = "adder",
        scale: int = 2,
        blocks: int = 16,
        width: int = 64,
        res_scale: float | None = None,
        norm: bool | None = None,
        self_shortcut: bool | None = None,
        power: bool | None = None,
        num_classes: int = 0,
        in_chans: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_scale(scale)
        for name, value in {"blocks": blocks, "width": width}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        super().__init__(scale, num_classes, in_chans)
        self.conv_layer = conv_layer
        self.num_features = width  # timm writes it into the configuration of what it saves for the Hub
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if res_scale is None:
            res_scale = 0.1 if conv_layer == "adder" or width >= 256 else 1.0
        unit = {"conv_layer": conv_layer, **additions(conv_layer, norm, self_shortcut, power), **dd}
        self.register_buffer("mean", torch.empty(1, 3, 1, 1, **dd))  # a buffer, to be where the network is
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, **dd)
        self.blocks = nn.Sequential(*[_Block(width, res_scale, unit) for _ in range(blocks)])
        self.unit = ConvUnit(width, width, relu=False, **unit)
        self.upsample = nn.Sequential()
        for step in (2, 2) if scale == 4 else (scale,):
            self.upsample.append(nn.Conv2d(width, width * step**2, 3, padding=1, **dd))
            self.upsample.append(nn.PixelShuffle(step))
        self.conv2 = nn.Conv2d(width, 3, 3, padding=1, **dd)
        # A pixel a layer; those behind the first step of the upsampler, of finer pixels, make less than one together.
        self.radius = 2 * blocks + 4
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initial values: N(0, 1) for adder filters, PyTorch's own for convolutions, as in the EDSR authors' code."""
        reset_parameters(self)
        if not self.mean.is_meta:
            self.mean.copy_(torch.tensor(DIV2K_MEAN)[:, None, None])

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, width, H, W)."""
        x = self.conv1(x - self.mean)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return x + self.unit(checkpoint_seq(self.blocks, x))
        return x + self.unit(self.blocks(x))

    def forward_head(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to (N, 3, scale * H, scale * W)."""
        return self.conv2(self.upsample(x)) + self.mean

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Checkpoints of EDSR-PyTorch (the authors') and BasicSR as a CNN of this family takes them.

    Both compute on numbers from 0 to 255 between the mean's subtraction and addition. ReLU, sums and convolutions
    without their biases commute with a factor, so that biases over 255 give the same on numbers from 0 to 1.
    EDSR-PyTorch says of the mean what it is, and from it whether its numbers went to 255; BasicSR has both in its
    options alone, where they are these (`img_range` and `rgb_mean`) in all that it has published.

    Raises:
        ValueError: if the mean's convolutions do more than to shift.
    """
    if isinstance(model, EDSR) and model.conv_layer == "conv":
        for names in (_edsr_pytorch_names(model), _basicsr_names(model)):
            foreign = without_prefix(state_dict, set(names))
            if names.keys() <= foreign.keys():
                return _from_edsr(foreign, names)
    return own_names(state_dict, model)


def _edsr_pytorch_names(model: EDSR) -> dict[str, str]:
    blocks = len(model.blocks)
    modules = {"head.0": "conv1", f"body.{blocks}": "unit.conv", "tail.1": "conv2"}
    for index in range(blocks):
        modules |= {f"body.{index}.body.{2 * k}": f"blocks.{index}.unit{k + 1}.conv" for k in (0, 1)}
    return _with_upsampler(modules, model, "tail.0.")


def _basicsr_names(model: EDSR) -> dict[str, str]:
    modules = {"conv_first": "conv1", "conv_after_body": "unit.conv", "conv_last": "conv2"}
    for index in range(len(model.blocks)):
        modules |= {f"body.{index}.conv{k}": f"blocks.{index}.unit{k}.conv" for k in (1, 2)}
    return _with_upsampler(modules, model, "upsample.")


def _with_upsampler(modules: dict[str, str], model: EDSR, prefix: str) -> dict[str, str]:
    """Names of tensors, from names of modules without the upsampler's."""
    modules |= {f"{prefix}{index}": f"upsample.{index}" for index in range(0, len(model.upsample), 2)}
    return {f"{name}.{kind}": f"{own}.{kind}" for name, own in modules.items() for kind in ("weight", "bias")}


def _from_edsr(state_dict: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    mean, top = torch.tensor(DIV2K_MEAN), 255.0
    shifts = {key: value for key, value in state_dict.items() if key.startswith(("sub_mean.", "add_mean."))}
    if shifts:
        added = shifts.get("add_mean.bias")
        if added is None or added.shape != (3,):
            raise ValueError(f"add_mean.bias must be the mean, got {None if added is None else tuple(added.shape)}")
        top = 255.0 if added.abs().max() > 1 else 1.0
        mean = added.float() / top
        expected = {"add_mean.bias": added, "sub_mean.bias": -added}
        expected |= {f"{name}.weight": torch.eye(3)[:, :, None, None] for name in ("sub_mean", "add_mean")}
        for key, value in shifts.items():
            if (
                key not in expected
                or value.shape != expected[key].shape
                or not torch.allclose(value.float(), expected[key].float(), atol=1e-4)
            ):
                raise ValueError(f"{key} must only shift by the mean, without a deviation that divides")
    known = {own: state_dict[name] / top if name.endswith("bias") else state_dict[name] for name, own in names.items()}
    others = {key: value for key, value in state_dict.items() if key not in names and key not in shifts}
    return {"mean": mean.reshape(1, 3, 1, 1), **known, **others}


# What becomes 1280x720; 1281 for 3, which does not divide 1280.
_INPUT_SIZES = {2: (3, 360, 640), 3: (3, 240, 427), 4: (3, 180, 320)}


def _cfg(scale: int, **kwargs: Any) -> dict[str, Any]:
    return super_resolution_cfg(
        input_size=_INPUT_SIZES[scale],
        first_conv="conv1",
        paper_ids=("arXiv:1707.02921", "arXiv:2009.08891"),
        paper_name="AdderSR: Towards Energy Efficient Image Super-Resolution",
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        f"{kind}_{size}_x{scale}.untrained": _cfg(scale)
        for kind in ("adder", "cnn")
        for size in ("edsr_baseline", "edsr")
        for scale in (2, 3, 4)
    }
    | {
        f"{name}.bsds400": _cfg(
            scale, file=weights_file(f"{name}.bsds400"), hf_hub_id=hub_id(f"{name}.bsds400"), license="apache-2.0"
        )
        for scale in (2, 3, 4)
        for name in (f"adder_edsr_small_x{scale}", f"cnn_edsr_small_x{scale}")
    }
)


def _create(
    variant: str, pretrained: bool, conv_layer: str, blocks: int, width: int, kwargs: Mapping[str, Any]
) -> EDSR:
    scale = int(variant[-1])
    if kwargs.get("scale", scale) != scale:
        raise ValueError(f"scale must be {scale} for {variant}, got {kwargs['scale']}")
    args = {"conv_layer": conv_layer, "scale": scale, "blocks": blocks, "width": width}
    arguments = {**args, **kwargs, "pretrained_filter_fn": checkpoint_filter_fn}
    return create_super_resolution(EDSR, variant, pretrained, **arguments)


@register_model
def adder_edsr_small_x2(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """A smaller adder EDSR than the paper's, 8 blocks of 32, for scale 2."""
    return _create("adder_edsr_small_x2", pretrained, "adder", 8, 32, kwargs)


@register_model
def adder_edsr_small_x3(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """A smaller adder EDSR than the paper's, 8 blocks of 32, for scale 3."""
    return _create("adder_edsr_small_x3", pretrained, "adder", 8, 32, kwargs)


@register_model
def adder_edsr_small_x4(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """A smaller adder EDSR than the paper's, 8 blocks of 32, for scale 4."""
    return _create("adder_edsr_small_x4", pretrained, "adder", 8, 32, kwargs)


@register_model
def adder_edsr_baseline_x2(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """Adder EDSR-baseline, 16 blocks of 64, for scale 2."""
    return _create("adder_edsr_baseline_x2", pretrained, "adder", 16, 64, kwargs)


@register_model
def adder_edsr_baseline_x3(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """Adder EDSR-baseline, 16 blocks of 64, for scale 3."""
    return _create("adder_edsr_baseline_x3", pretrained, "adder", 16, 64, kwargs)


@register_model
def adder_edsr_baseline_x4(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """Adder EDSR-baseline, 16 blocks of 64, for scale 4."""
    return _create("adder_edsr_baseline_x4", pretrained, "adder", 16, 64, kwargs)


@register_model
def adder_edsr_x2(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """Adder EDSR, 32 blocks of 256: AdderSR, 37.92 dB on Set5 x2."""
    return _create("adder_edsr_x2", pretrained, "adder", 32, 256, kwargs)


@register_model
def adder_edsr_x3(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """Adder EDSR, 32 blocks of 256: AdderSR, 34.35 dB on Set5 x3."""
    return _create("adder_edsr_x3", pretrained, "adder", 32, 256, kwargs)


@register_model
def adder_edsr_x4(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """Adder EDSR, 32 blocks of 256: AdderSR, 32.13 dB on Set5 x4."""
    return _create("adder_edsr_x4", pretrained, "adder", 32, 256, kwargs)


@register_model
def cnn_edsr_small_x2(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_small_x2`."""
    return _create("cnn_edsr_small_x2", pretrained, "conv", 8, 32, kwargs)


@register_model
def cnn_edsr_small_x3(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_small_x3`."""
    return _create("cnn_edsr_small_x3", pretrained, "conv", 8, 32, kwargs)


@register_model
def cnn_edsr_small_x4(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_small_x4`."""
    return _create("cnn_edsr_small_x4", pretrained, "conv", 8, 32, kwargs)


@register_model
def cnn_edsr_baseline_x2(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_baseline_x2`, EDSR-baseline."""
    return _create("cnn_edsr_baseline_x2", pretrained, "conv", 16, 64, kwargs)


@register_model
def cnn_edsr_baseline_x3(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_baseline_x3`, EDSR-baseline."""
    return _create("cnn_edsr_baseline_x3", pretrained, "conv", 16, 64, kwargs)


@register_model
def cnn_edsr_baseline_x4(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_baseline_x4`, EDSR-baseline."""
    return _create("cnn_edsr_baseline_x4", pretrained, "conv", 16, 64, kwargs)


@register_model
def cnn_edsr_x2(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_x2`: EDSR, 38.11 dB on Set5 x2 (in the AdderSR paper)."""
    return _create("cnn_edsr_x2", pretrained, "conv", 32, 256, kwargs)


@register_model
def cnn_edsr_x3(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_x3`: EDSR, 34.65 dB on Set5 x3 (in the AdderSR paper)."""
    return _create("cnn_edsr_x3", pretrained, "conv", 32, 256, kwargs)


@register_model
def cnn_edsr_x4(pretrained: bool = False, **kwargs: Unpack[EDSRArguments]) -> EDSR:
    """The CNN twin of `adder_edsr_x4`: EDSR, 32.46 dB on Set5 x4 (in the AdderSR paper)."""
    return _create("cnn_edsr_x4", pretrained, "conv", 32, 256, kwargs)
