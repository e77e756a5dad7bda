"""LeNet-5 with BatchNorm, adder network and CNN twin.

LeNet-5-BN of "AdderNet: Do We Really Need Multiplications in Deep Learning?" (CVPR 2020, section 4.1): every layer is
an adder layer, first and last included, and a BatchNorm follows each.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from adderzoo.layers import get_conv_layer

from ._builder import build_model, drop_other_classes, from_original, repeat_input_channels, weights_file

__all__ = ["LeNet5"]


class LeNet5(nn.Module):
    """LeNet-5-BN.

    Shape: (N, in_chans, H, W) to (N, num_classes), H and W at least 32, which is the paper's.

    Args:
        conv_layer: Kind of every layer, "adder" or "conv".
        num_classes: Number of classes; 0 for features, (N, 84).
        in_chans: Channels of the input.
        global_pool: "avg", "max", "avgmax", "catavgmax" or "" for none.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        conv_layer: str = "adder",
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv_layer = conv_layer
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = 120
        self.head_hidden_size = 84

        conv = get_conv_layer(conv_layer)
        self.conv1 = conv(in_chans, 6, 5, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.act1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = conv(6, 16, 5, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.act2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = conv(16, 120, 5, bias=False)
        self.bn3 = nn.BatchNorm2d(120)
        self.act3 = nn.ReLU(inplace=True)
        self.feature_info = [
            {"num_chs": 6, "reduction": 1, "module": "act1"},
            {"num_chs": 16, "reduction": 2, "module": "act2"},
            {"num_chs": 120, "reduction": 4, "module": "act3"},
        ]
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.fc1 = conv(self.num_features * self.global_pool.feat_mult(), 84, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(84)
        self.act4 = nn.ReLU(inplace=True)
        self.reset_classifier(num_classes)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^conv1|bn1", "blocks": [(r"^conv2|bn2", (0,)), (r"^conv3|bn3", (1,)), (r"^fc1|bn4", (2,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("LeNet-5 is too small for gradient checkpointing, got enable=True")

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc2

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier (and BatchNorm on its logits) for `num_classes` classes."""
        if global_pool is not None and global_pool != self.global_pool.pool_type:
            raise ValueError(f"global_pool cannot change, fc1 depends on it: got {global_pool!r}")
        self.num_classes = num_classes
        self.fc2: nn.Module = nn.Identity()
        self.bn5: nn.Module = nn.Identity()
        if num_classes > 0:
            like, conv = next(self.parameters()), get_conv_layer(self.conv_layer)
            self.fc2 = conv(self.head_hidden_size, num_classes, 1, bias=False).to(like).train(self.training)
            self.bn5 = nn.BatchNorm2d(num_classes).to(like).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, 32, 32) to (N, 120, 1, 1)."""
        x = self.pool1(self.act1(self.bn1(self.conv1(x))))
        x = self.pool2(self.act2(self.bn2(self.conv2(x))))
        return self.act3(self.bn3(self.conv3(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 120, H, W) to (N, num_classes), or to the 84 features before the classifier."""
        x = self.act4(self.bn4(self.fc1(self.global_pool(x))))
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        if not pre_logits:
            x = self.bn5(self.fc2(x))
        return x.flatten(1) if self.global_pool.pool_type else x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Checkpoints in the authors' format, or for another number of classes, as `model` takes them."""
    return drop_other_classes(from_original(state_dict), model, "bn5")


def _pretrained_filter_fn(state_dict: dict[str, Tensor], model: LeNet5) -> dict[str, Tensor]:
    state_dict = checkpoint_filter_fn(state_dict, model)
    if model.conv_layer == "adder":
        return repeat_input_channels(state_dict, "conv1", "bn1", model.in_chans)
    return state_dict


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (1, 32, 32),
        "pool_size": (1, 1),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "first_conv": "conv1",
        "classifier": "fc2",
        "paper_ids": "arXiv:1912.13200",
        "paper_name": "AdderNet: Do We Really Need Multiplications in Deep Learning?",
        **kwargs,
    }


def _digits(tag: str, **kwargs: Any) -> dict[str, Any]:
    # Trained by scripts/reproduce/digits.py on scikit-learn's handwritten digits.
    return _cfg(file=weights_file(tag), mean=(0.3112,), std=(0.3502,), license="apache-2.0", **kwargs)


default_cfgs = generate_default_cfgs(
    {
        # timm would adapt the first layer to other channels as a convolution; `repeat_input_channels` does.
        "adder_lenet5.digits": _digits("adder_lenet5.digits", first_conv=None),
        "cnn_lenet5.digits": _digits("cnn_lenet5.digits"),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> LeNet5:
    return build_model(
        LeNet5,
        variant,
        pretrained,
        pretrained_filter_fn=_pretrained_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2)},
        **kwargs,
    )


@register_model
def adder_lenet5(pretrained: bool = False, **kwargs: Any) -> LeNet5:
    """Adder LeNet-5-BN: CVPR 2020 section 4.1, 99.40 % on MNIST."""
    return _create("adder_lenet5", pretrained, **dict({"conv_layer": "adder"}, **kwargs))


@register_model
def cnn_lenet5(pretrained: bool = False, **kwargs: Any) -> LeNet5:
    """The CNN twin of `adder_lenet5`: CVPR 2020 section 4.1, 99.40 % on MNIST."""
    return _create("cnn_lenet5", pretrained, **dict({"conv_layer": "conv"}, **kwargs))
