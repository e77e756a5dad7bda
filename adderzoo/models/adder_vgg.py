"""VGG-small: adder network, CNN twin, and the same of binary layers and of shift and adder layers.

The network of "AdderNet: Do We Really Need Multiplications in Deep Learning?" (CVPR 2020, Table 2): six 3x3 layers, of
which the first stays a convolution, and one fully connected layer on the flattened 4x4 image.
"""

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from adderzoo.layers import BatchNorm2d, get_conv_layer

from ._arguments import ClassifierArguments, register_model
from ._base import ConvNet
from ._builder import SHIFTADDNET, build_model, own_names

# Side of the image that the fully connected layer sees.
_GRID = 4


class VGGSmall(ConvNet):
    """VGG-small.

    Shape: (N, in_chans, H, W) to (N, num_classes).

    Args:
        conv_layer: Kind of all layers but the first and the last, as :func:`adderzoo.layers.get_conv_layer` names them.
        num_classes: Number of classes; 0 for pooled features.
        in_chans: Channels of the input.
        global_pool: How images larger than 32x32 get to the 4x4 pixels that the classifier sees: "avg", "max",
            "avgmax", "catavgmax" (twice as many features) or "" for none.
        drop_rate: Dropout before the classifier.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        conv_layer: str = "adder",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        conv = get_conv_layer(conv_layer)
        self.conv1 = nn.Conv2d(in_chans, 128, 3, padding=1, bias=False, **dd)
        self.bn1 = BatchNorm2d(128, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(128, 128, 3, padding=1, bias=False, **dd)
        self.pool2 = nn.MaxPool2d(2)
        self.bn2 = BatchNorm2d(128, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv(128, 256, 3, padding=1, bias=False, **dd)
        self.bn3 = BatchNorm2d(256, **dd)
        self.act3 = nn.ReLU(inplace=True)
        self.conv4 = conv(256, 256, 3, padding=1, bias=False, **dd)
        self.pool4 = nn.MaxPool2d(2)
        self.bn4 = BatchNorm2d(256, **dd)
        self.act4 = nn.ReLU(inplace=True)
        self.conv5 = conv(256, 512, 3, padding=1, bias=False, **dd)
        self.bn5 = BatchNorm2d(512, **dd)
        self.act5 = nn.ReLU(inplace=True)
        self.conv6 = conv(512, 512, 3, padding=1, bias=False, **dd)
        self.pool6 = nn.MaxPool2d(2)
        self.bn6 = BatchNorm2d(512, **dd)
        self.act6 = nn.ReLU(inplace=True)
        self.feature_info = [
            {"num_chs": 128, "reduction": 1, "module": "act1"},
            {"num_chs": 256, "reduction": 2, "module": "act3"},
            {"num_chs": 512, "reduction": 4, "module": "act5"},
            {"num_chs": 512, "reduction": 8, "module": "act6"},
        ]
        self.levels = [
            ["conv1", "bn1", "act1"],
            ["conv2", "pool2", "bn2", "act2", "conv3", "bn3", "act3"],
            ["conv4", "pool4", "bn4", "act4", "conv5", "bn5", "act5"],
            ["conv6", "pool6", "bn6", "act6"],
        ]
        self.num_features = 512
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth, for layer-wise learning rates."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^(?:conv|bn)(\d)"}

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` classes; None keeps the pooling."""
        dd = self._factory()
        self.num_classes = num_classes
        if global_pool is not None:
            pool = SelectAdaptivePool2d(_GRID, global_pool, flatten=bool(global_pool))
            self.global_pool = pool.train(self.training)
        self.head_hidden_size = (
            self.num_features * self.global_pool.feat_mult() * (_GRID**2 if self.global_pool.pool_type else 1)
        )
        self.fc: nn.Module = nn.Identity()
        if num_classes > 0:
            self.fc = nn.Linear(self.head_hidden_size, num_classes, **dd).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to (N, 512, H / 8, W / 8)."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.pool2(self.conv2(x))))
        x = self.act3(self.bn3(self.conv3(x)))
        x = self.act4(self.bn4(self.pool4(self.conv4(x))))
        x = self.act5(self.bn5(self.conv5(x)))
        return self.act6(self.bn6(self.pool6(self.conv6(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 512, H, W) to (N, num_classes), or to pooled features."""
        x = self.global_pool(x)
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Checkpoints in the authors' format as `model` takes them."""
    return own_names(state_dict, model)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
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
        "adder_vgg_small.untrained": _cfg(),
        "bnn_vgg_small.untrained": _cfg(),
        "cnn_vgg_small.untrained": _cfg(),
        "shiftadd_vgg_small.untrained": _cfg(**SHIFTADDNET),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VGGSmall:
    return build_model(
        VGGSmall,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **kwargs,
    )


@register_model
def adder_vgg_small(pretrained: bool = False, **kwargs: Unpack[ClassifierArguments]) -> VGGSmall:
    """Adder VGG-small: CVPR 2020 Table 2, 93.72 % on CIFAR-10."""
    return _create("adder_vgg_small", pretrained, **{"conv_layer": "adder", **kwargs})


@register_model
def bnn_vgg_small(pretrained: bool = False, **kwargs: Unpack[ClassifierArguments]) -> VGGSmall:
    """`adder_vgg_small` with binary layers: CVPR 2020 Table 2, 89.80 % on CIFAR-10."""
    return _create("bnn_vgg_small", pretrained, **{"conv_layer": "binary", **kwargs})


@register_model
def cnn_vgg_small(pretrained: bool = False, **kwargs: Unpack[ClassifierArguments]) -> VGGSmall:
    """The CNN twin of `adder_vgg_small`: CVPR 2020 Table 2, 93.80 % on CIFAR-10."""
    return _create("cnn_vgg_small", pretrained, **{"conv_layer": "conv", **kwargs})


@register_model
def shiftadd_vgg_small(pretrained: bool = False, **kwargs: Unpack[ClassifierArguments]) -> VGGSmall:
    """ShiftAddNet's VGG-small (NeurIPS 2020): a shift layer in front of every adder layer of `adder_vgg_small`."""
    return _create("shiftadd_vgg_small", pretrained, **{"conv_layer": "shiftadd", **kwargs})
