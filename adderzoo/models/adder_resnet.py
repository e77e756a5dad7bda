"""ResNets, adder networks, their CNN twins and binary networks.

The networks of "AdderNet: Do We Really Need Multiplications in Deep Learning?" (CVPR 2020, Table 3): torchvision's
ResNets (stride on the 3x3 layer, "v1.5"); the first convolution and the classifier stay convolutions; BatchNorm on the
logits.
"""

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.models import checkpoint_seq, generate_default_cfgs
from torch import Tensor, nn

from adderzoo.layers import BatchNorm2d, get_conv_layer

from ._arguments import ResNetArguments, register_model
from ._base import ConvNet
from ._builder import build_model, drop_other_classes, own_names


class BasicBlock(nn.Module):
    """Two 3x3 layers and a shortcut.

    Args:
        in_channels: Channels of the input.
        width: Channels of the layers.
        conv_layer: Kind of the layers.
        stride: Of the first 3x3 layer.
        first_dilation: Of the first 3x3 layer.
        dilation: Of the second one.
        dd: Device and dtype.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, conv_layer: str, stride: int, first_dilation: int, dilation: int, **dd: Any
    ) -> None:
        super().__init__()
        conv = get_conv_layer(conv_layer)
        self.conv1 = conv(
            in_channels, width, 3, stride=stride, padding=first_dilation, dilation=first_dilation, bias=False, **dd
        )
        self.bn1 = BatchNorm2d(width, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3, padding=dilation, dilation=dilation, bias=False, **dd)
        self.bn2 = BatchNorm2d(width, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, conv_layer, stride, **dd)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x + shortcut)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 layer with four times as many channels, and a shortcut. Arguments as `BasicBlock`'s."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, conv_layer: str, stride: int, first_dilation: int, dilation: int, **dd: Any
    ) -> None:
        super().__init__()
        conv = get_conv_layer(conv_layer)
        channels = self.expansion * width
        self.conv1 = conv(in_channels, width, 1, bias=False, **dd)
        self.bn1 = BatchNorm2d(width, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(
            width, width, 3, stride=stride, padding=first_dilation, dilation=first_dilation, bias=False, **dd
        )
        self.bn2 = BatchNorm2d(width, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv(width, channels, 1, bias=False, **dd)
        self.bn3 = BatchNorm2d(channels, **dd)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, conv_layer, stride, **dd)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.act3(x + shortcut)


def _shortcut(in_channels: int, channels: int, conv_layer: str, stride: int, **dd: Any) -> nn.Module:
    """The identity, or a 1x1 layer with BatchNorm where the shape changes."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    conv = get_conv_layer(conv_layer)
    return nn.Sequential(conv(in_channels, channels, 1, stride=stride, bias=False, **dd), BatchNorm2d(channels, **dd))


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(ConvNet):
    """ResNet.

    Shape: (N, in_chans, H, W) to (N, num_classes).

    Args:
        layers: Number of blocks of each stage, three or four of them.
        block: "basic" or "bottleneck".
        conv_layer: Kind of all layers but the first and the last, as :func:`adderzoo.layers.get_conv_layer` names them.
        widths: Channels of each stage (a bottleneck's stage has four times as many).
        small_images: Begin with a 3x3 convolution of stride 1, as for 32x32 images, instead of a 7x7 one of stride 2
            and a max pooling.
        head_bias: Whether the classifier has a bias.
        num_classes: Number of classes; 0 for pooled features.
        in_chans: Channels of the input.
        output_stride: 8, 16 or 32: dilate the layers instead of shrinking the image further.
        global_pool: "avg", "max", "avgmax", "catavgmax" or "" for none.
        drop_rate: Dropout before the classifier.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        block: str = "basic",
        conv_layer: str = "adder",
        widths: tuple[int, ...] = (64, 128, 256, 512),
        small_images: bool = False,
        head_bias: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.head_bias = head_bias
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_chans, widths[0], kernel, stride, padding=kernel // 2, bias=False, **dd)
        self.bn1 = BatchNorm2d(widths[0], **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        self.feature_info = [{"num_chs": widths[0], "reduction": stride, "module": "act1"}]

        channels, reduction, dilation = widths[0], 1 if small_images else 4, 1
        stages: list[nn.Module] = []
        for stage, (blocks, width) in enumerate(zip(layers, widths, strict=True)):
            first_dilation, stride = dilation, 1 if stage == 0 else 2
            if stride * reduction > output_stride:
                dilation, stride = dilation * stride, 1
            reduction *= stride
            kind = BLOCKS[block]
            first = kind(channels, width, conv_layer, stride, first_dilation, dilation, **dd)
            channels = width * kind.expansion
            rest = (kind(channels, width, conv_layer, 1, dilation, dilation, **dd) for _ in range(1, blocks))
            stages.append(nn.Sequential(first, *rest))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"layer{stage + 1}"})
        self.layer1, self.layer2, self.layer3 = stages[:3]
        self.layer4 = stages[3] if len(stages) > 3 else nn.Sequential()
        self.levels = [
            ["conv1", "bn1", "act1"],
            ["maxpool", "layer1"],
            *([f"layer{stage}"] for stage in range(2, len(stages) + 1)),
        ]
        self.num_features = channels
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.reset_classifier(num_classes)
        self.init_weights()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth, for layer-wise learning rates."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (and BatchNorm on its logits) for `num_classes` classes; None keeps the pooling."""
        dd = self._factory()
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool).train(self.training)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc: nn.Module = nn.Identity()
        self.bn2: nn.Module = nn.Identity()
        if num_classes > 0:
            self.fc = nn.Conv2d(self.head_hidden_size, num_classes, 1, bias=self.head_bias, **dd).train(self.training)
            self.bn2 = BatchNorm2d(num_classes, **dd).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to (N, num_features, H / reduction, W / reduction)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3, self.layer4], x, flatten=True)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, H, W) to (N, num_classes), or to pooled features."""
        x = self.global_pool(x)
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        if not pre_logits:
            x = self.bn2(self.fc(x))
        return x.flatten(1) if self.global_pool.pool_type else x


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The authors' checkpoints, and checkpoints for another number of classes, as `model` takes them."""
    return drop_other_classes(own_names(state_dict, model), model, "bn2")


def create_resnet(variant: str, pretrained: bool, **kwargs: Any) -> ResNet:
    """A ResNet of this family or of `adder_resnet_cifar`."""
    levels = len(kwargs["layers"]) + 1
    return build_model(
        ResNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": tuple(range(levels))},
        **kwargs,
    )


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "paper_ids": "arXiv:1912.13200",
        "paper_name": "AdderNet: Do We Really Need Multiplications in Deep Learning?",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "adder_resnet18.untrained": _cfg(),
        "adder_resnet34.untrained": _cfg(),
        # The authors' own file is on file sharing sites only: get it there (their README links it) and name it with
        # `pretrained_cfg_overlay={"file": "ResNet50-AdderNet.pth"}` or `adderzoo validate --checkpoint`.
        "adder_resnet50.huawei_in1k": _cfg(
            license="bsd-3-clause", origin_url="https://github.com/huawei-noah/AdderNet"
        ),
        "adder_resnet101.untrained": _cfg(),
        "bnn_resnet18.untrained": _cfg(),
        "bnn_resnet50.untrained": _cfg(),
        "cnn_resnet18.untrained": _cfg(),
        "cnn_resnet34.untrained": _cfg(),
        "cnn_resnet50.untrained": _cfg(),
        "cnn_resnet101.untrained": _cfg(),
    }
)

_LAYERS: dict[int, dict[str, Any]] = {
    18: {"layers": (2, 2, 2, 2), "block": "basic"},
    34: {"layers": (3, 4, 6, 3), "block": "basic"},
    50: {"layers": (3, 4, 6, 3), "block": "bottleneck"},
    101: {"layers": (3, 4, 23, 3), "block": "bottleneck"},
}


@register_model
def adder_resnet18(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """Adder ResNet-18: CVPR 2020 Table 3, 67.0 % on ImageNet."""
    return create_resnet("adder_resnet18", pretrained, **{**_LAYERS[18], "conv_layer": "adder", **kwargs})


@register_model
def adder_resnet34(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """Adder ResNet-34."""
    return create_resnet("adder_resnet34", pretrained, **{**_LAYERS[34], "conv_layer": "adder", **kwargs})


@register_model
def adder_resnet50(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """Adder ResNet-50: CVPR 2020 Table 3, 74.9 % on ImageNet."""
    return create_resnet("adder_resnet50", pretrained, **{**_LAYERS[50], "conv_layer": "adder", **kwargs})


@register_model
def adder_resnet101(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """Adder ResNet-101."""
    return create_resnet("adder_resnet101", pretrained, **{**_LAYERS[101], "conv_layer": "adder", **kwargs})


@register_model
def bnn_resnet18(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """`adder_resnet18` with binary layers: CVPR 2020 Table 3, 51.2 % on ImageNet."""
    return create_resnet("bnn_resnet18", pretrained, **{**_LAYERS[18], "conv_layer": "binary", **kwargs})


@register_model
def bnn_resnet50(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """`adder_resnet50` with binary layers: CVPR 2020 Table 3, 55.8 % on ImageNet."""
    return create_resnet("bnn_resnet50", pretrained, **{**_LAYERS[50], "conv_layer": "binary", **kwargs})


@register_model
def cnn_resnet18(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """The CNN twin of `adder_resnet18`: CVPR 2020 Table 3, 69.8 % on ImageNet."""
    return create_resnet("cnn_resnet18", pretrained, **{**_LAYERS[18], "conv_layer": "conv", **kwargs})


@register_model
def cnn_resnet34(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """The CNN twin of `adder_resnet34`."""
    return create_resnet("cnn_resnet34", pretrained, **{**_LAYERS[34], "conv_layer": "conv", **kwargs})


@register_model
def cnn_resnet50(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """The CNN twin of `adder_resnet50`: CVPR 2020 Table 3, 76.2 % on ImageNet."""
    return create_resnet("cnn_resnet50", pretrained, **{**_LAYERS[50], "conv_layer": "conv", **kwargs})


@register_model
def cnn_resnet101(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """The CNN twin of `adder_resnet101`."""
    return create_resnet("cnn_resnet101", pretrained, **{**_LAYERS[101], "conv_layer": "conv", **kwargs})
