"""ResNets for 32x32 images, adder networks and their CNN twins.

The networks of "AdderNet: Do We Really Need Multiplications in Deep Learning?" (CVPR 2020, Table 2): three stages of
16, 32 and 64 channels; the first convolution and the classifier stay convolutions; BatchNorm on the logits.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from adderzoo.layers import get_conv_layer

from ._builder import build_model, drop_other_classes, from_original

__all__ = ["ResNetCifar"]


class BasicBlock(nn.Module):
    """Two 3x3 layers and a shortcut, which is a 1x1 layer with BatchNorm where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, conv_layer: str) -> None:
        super().__init__()
        conv = get_conv_layer(conv_layer)
        self.conv1 = conv(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                conv(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x + shortcut)


class ResNetCifar(nn.Module):
    """CIFAR ResNet of 6n + 2 layers.

    Shape: (N, in_chans, H, W) to (N, num_classes).

    Args:
        layers: Blocks of each stage, (n, n, n).
        conv_layer: Kind of all layers but the first and the last, "adder" or "conv".
        num_classes: Number of classes; 0 for features, (N, 64).
        in_chans: Channels of the input.
        global_pool: "avg", "max", "avgmax", "catavgmax" or "" for none.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        layers: tuple[int, int, int] = (3, 3, 3),
        conv_layer: str = "adder",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = 64

        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, layers[0], 1, conv_layer)
        self.layer2 = _stage(16, 32, layers[1], 2, conv_layer)
        self.layer3 = _stage(32, 64, layers[2], 2, conv_layer)
        self.feature_info = [
            {"num_chs": 16, "reduction": 1, "module": "act1"},
            {"num_chs": 16, "reduction": 1, "module": "layer1"},
            {"num_chs": 32, "reduction": 2, "module": "layer2"},
            {"num_chs": 64, "reduction": 4, "module": "layer3"},
        ]
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (and BatchNorm on its logits) for `num_classes` classes; None keeps the pooling."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc: nn.Module = nn.Identity()
        self.bn2: nn.Module = nn.Identity()
        if num_classes > 0:
            like = next(self.parameters())
            self.fc = nn.Conv2d(self.head_hidden_size, num_classes, 1, bias=False).to(like).train(self.training)
            self.bn2 = nn.BatchNorm2d(num_classes).to(like).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to (N, 64, H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 64, H, W) to (N, num_classes), or to pooled features."""
        x = self.global_pool(x)
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        if not pre_logits:
            x = self.bn2(self.fc(x))
        return x.flatten(1) if self.global_pool.pool_type else x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _stage(in_channels: int, channels: int, blocks: int, stride: int, conv_layer: str) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride, conv_layer),
        *(BasicBlock(channels, channels, 1, conv_layer) for _ in range(1, blocks)),
    )


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The authors' checkpoints, and checkpoints for another number of classes, as `model` takes them."""
    return drop_other_classes(from_original(state_dict), model, "bn2")


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
        "first_conv": "conv1",
        "classifier": "fc",
        "paper_ids": "arXiv:1912.13200",
        "paper_name": "AdderNet: Do We Really Need Multiplications in Deep Learning?",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "adder_resnet20.huawei_cifar10": _cfg(
            # The authors' own file, at the last commit before they removed it.
            url="https://github.com/huawei-noah/AdderNet/raw/d94dc43a0f2a7448c8c38bcf638062de89f2d34d/models/ResNet20-AdderNet.pth",
            license="bsd-3-clause",
            origin_url="https://github.com/huawei-noah/AdderNet",
        ),
        "adder_resnet32.untrained": _cfg(),
        "cnn_resnet20.untrained": _cfg(),
        "cnn_resnet32.untrained": _cfg(),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ResNetCifar:
    return build_model(
        ResNetCifar,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **kwargs,
    )


@register_model
def adder_resnet20(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """Adder ResNet-20: CVPR 2020 Table 2, 91.84 % on CIFAR-10."""
    return _create("adder_resnet20", pretrained, **dict({"layers": (3, 3, 3), "conv_layer": "adder"}, **kwargs))


@register_model
def adder_resnet32(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """Adder ResNet-32: CVPR 2020 Table 2, 93.01 % on CIFAR-10."""
    return _create("adder_resnet32", pretrained, **dict({"layers": (5, 5, 5), "conv_layer": "adder"}, **kwargs))


@register_model
def cnn_resnet20(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """The CNN twin of `adder_resnet20`: CVPR 2020 Table 2, 92.25 % on CIFAR-10."""
    return _create("cnn_resnet20", pretrained, **dict({"layers": (3, 3, 3), "conv_layer": "conv"}, **kwargs))


@register_model
def cnn_resnet32(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """The CNN twin of `adder_resnet32`: CVPR 2020 Table 2, 93.29 % on CIFAR-10."""
    return _create("cnn_resnet32", pretrained, **dict({"layers": (5, 5, 5), "conv_layer": "conv"}, **kwargs))
