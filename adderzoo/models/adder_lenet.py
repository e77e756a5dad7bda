"""LeNets with BatchNorm, adder networks and their CNN twins.

LeNet-5-BN and LeNet++ of "AdderNet: Do We Really Need Multiplications in Deep Learning?" (CVPR 2020, section 4.1 and
Figure 1): every layer is an adder layer, first and last included, and a BatchNorm follows each.
"""

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from adderzoo.hub import hub_id
from adderzoo.layers import BatchNorm2d, get_conv_layer

from ._arguments import ClassifierArguments, register_model
from ._base import ConvNet
from ._builder import build_model, weights_file
from ._state_dict import drop_other_classes, own_names, repeat_input_channels


class _LeNet(ConvNet):
    """The head of both: pooling, dropout, a 1x1 layer, BatchNorm."""

    conv_layer: str
    in_chans: int
    drop_rate: float

    def _make_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters by depth, for layer-wise learning rates."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^(?:conv|bn)(\d)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refused: there are no blocks to recompute.

        Raises:
            ValueError: if `enable` is true.
        """
        if enable:
            raise ValueError("a LeNet is too small for gradient checkpointing, got enable=True")

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
        self.bn_fc: nn.Module = nn.Identity()
        if num_classes > 0:
            conv = get_conv_layer(self.conv_layer)
            self.fc = conv(self.head_hidden_size, num_classes, 1, bias=False, **dd).train(self.training)
            self.bn_fc = BatchNorm2d(num_classes, **dd).train(self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, H, W) to (N, num_classes), or to pooled features."""
        x = self.global_pool(x)
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        if not pre_logits:
            x = self.bn_fc(self.fc(x))
        return x.flatten(1) if self.global_pool.pool_type else x


class LeNet5(_LeNet):
    """LeNet-5-BN. The first fully connected layer, 120 to 84, is a 1x1 layer and counts as a feature.

    Shape: (N, in_chans, H, W) to (N, num_classes), H and W at least 32, which is the paper's.

    Args:
        conv_layer: Kind of every layer, as :func:`adderzoo.layers.get_conv_layer` names them.
        num_classes: Number of classes; 0 for features, (N, 84).
        in_chans: Channels of the input.
        global_pool: "avg", "max", "avgmax", "catavgmax" or "" for none.
        drop_rate: Dropout before the classifier.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        conv_layer: str = "adder",
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv_layer = conv_layer
        self.in_chans = in_chans
        conv = get_conv_layer(conv_layer)
        self.conv1 = conv(in_chans, 6, 5, bias=False, **dd)
        self.bn1 = BatchNorm2d(6, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = conv(6, 16, 5, bias=False, **dd)
        self.bn2 = BatchNorm2d(16, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = conv(16, 120, 5, bias=False, **dd)
        self.bn3 = BatchNorm2d(120, **dd)
        self.act3 = nn.ReLU(inplace=True)
        self.conv4 = conv(120, 84, 1, bias=False, **dd)
        self.bn4 = BatchNorm2d(84, **dd)
        self.act4 = nn.ReLU(inplace=True)
        # Without padding, 32 pixels become 28, 10 and one.
        self.feature_info = [
            {"num_chs": 6, "reduction": 1, "module": "act1"},
            {"num_chs": 16, "reduction": 2, "module": "act2"},
            {"num_chs": 120, "reduction": 32, "module": "act3"},
            {"num_chs": 84, "reduction": 32, "module": "act4"},
        ]
        self.levels = [
            ["conv1", "bn1", "act1"],
            ["pool1", "conv2", "bn2", "act2"],
            ["pool2", "conv3", "bn3", "act3"],
            ["conv4", "bn4", "act4"],
        ]
        self.num_features = 84
        self._make_head(num_classes, global_pool, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, 32, 32) to (N, 84, 1, 1)."""
        x = self.pool1(self.act1(self.bn1(self.conv1(x))))
        x = self.pool2(self.act2(self.bn2(self.conv2(x))))
        x = self.act3(self.bn3(self.conv3(x)))
        return self.act4(self.bn4(self.conv4(x)))


class LeNetPlusPlus(_LeNet):
    """LeNet++, whose last features are two-dimensional, to be drawn.

    Shape: (N, in_chans, H, W) to (N, num_classes), H and W at least 24; the paper's is 28.

    Args:
        conv_layer: Kind of every layer, as :func:`adderzoo.layers.get_conv_layer` names them.
        num_classes: Number of classes; 0 for features, (N, 2).
        in_chans: Channels of the input.
        global_pool: "avg", "max", "avgmax", "catavgmax" or "" for none.
        drop_rate: Dropout before the classifier.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        conv_layer: str = "adder",
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv_layer = conv_layer
        self.in_chans = in_chans
        conv = get_conv_layer(conv_layer)
        self.conv1 = conv(in_chans, 32, 5, padding=2, bias=False, **dd)
        self.bn1 = BatchNorm2d(32, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(32, 32, 5, padding=2, bias=False, **dd)
        self.bn2 = BatchNorm2d(32, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = conv(32, 64, 5, padding=2, bias=False, **dd)
        self.bn3 = BatchNorm2d(64, **dd)
        self.act3 = nn.ReLU(inplace=True)
        self.conv4 = conv(64, 64, 5, padding=2, bias=False, **dd)
        self.bn4 = BatchNorm2d(64, **dd)
        self.act4 = nn.ReLU(inplace=True)
        self.pool4 = nn.MaxPool2d(2)
        self.conv5 = conv(64, 128, 5, padding=2, bias=False, **dd)
        self.bn5 = BatchNorm2d(128, **dd)
        self.act5 = nn.ReLU(inplace=True)
        self.conv6 = conv(128, 128, 5, padding=2, bias=False, **dd)
        self.bn6 = BatchNorm2d(128, **dd)
        self.act6 = nn.ReLU(inplace=True)
        self.pool6 = nn.MaxPool2d(2)
        # The fully connected layer 1152 to 2: at 28x28 pixels, three by three are left. No ReLU: the features are to
        # fill the plane.
        self.conv7 = conv(128, 2, 3, bias=False, **dd)
        self.bn7 = BatchNorm2d(2, **dd)
        self.feature_info = [
            {"num_chs": 32, "reduction": 1, "module": "act2"},
            {"num_chs": 64, "reduction": 2, "module": "act4"},
            {"num_chs": 128, "reduction": 4, "module": "act6"},
            {"num_chs": 2, "reduction": 28, "module": "bn7"},
        ]
        self.levels = [
            ["conv1", "bn1", "act1", "conv2", "bn2", "act2"],
            ["pool2", "conv3", "bn3", "act3", "conv4", "bn4", "act4"],
            ["pool4", "conv5", "bn5", "act5", "conv6", "bn6", "act6"],
            ["pool6", "conv7", "bn7"],
        ]
        self.num_features = 2
        self._make_head(num_classes, global_pool, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, 28, 28) to (N, 2, 1, 1)."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.pool2(self.act2(self.bn2(self.conv2(x))))
        x = self.act3(self.bn3(self.conv3(x)))
        x = self.pool4(self.act4(self.bn4(self.conv4(x))))
        x = self.act5(self.bn5(self.conv5(x)))
        x = self.pool6(self.act6(self.bn6(self.conv6(x))))
        return self.bn7(self.conv7(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Checkpoints in the authors' format, or for another number of classes, as `model` takes them."""
    return drop_other_classes(own_names(state_dict, model), model, "bn_fc")


def _pretrained_filter_fn(state_dict: dict[str, Tensor], model: _LeNet) -> dict[str, Tensor]:
    state_dict = checkpoint_filter_fn(state_dict, model)
    if model.conv_layer == "adder":
        # timm would adapt the first layer to other channels as a convolution's; it leaves one alone that fits.
        return repeat_input_channels(state_dict, "conv1", "bn1", model.in_chans)
    return state_dict


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (1, 32, 32),
        "pool_size": (1, 1),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.1307,),
        "std": (0.3081,),
        "first_conv": "conv1",
        "classifier": "fc",
        "paper_ids": "arXiv:1912.13200",
        "paper_name": "AdderNet: Do We Really Need Multiplications in Deep Learning?",
        **kwargs,
    }


def _digits(tag: str) -> dict[str, Any]:
    # Trained by scripts/reproduce/digits.py on scikit-learn's handwritten digits.
    names = tuple("0123456789")
    return _cfg(
        file=weights_file(tag),
        hf_hub_id=hub_id(tag),
        mean=(0.3112,),
        std=(0.3502,),
        license="apache-2.0",
        label_names=names,
    )


def _mnist(tag: str) -> dict[str, Any]:
    # Trained by scripts/reproduce/mnist.sh; the names are torchvision's.
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    names = tuple(f"{digit} - {word}" for digit, word in enumerate(words))
    return _cfg(file=weights_file(tag), hf_hub_id=hub_id(tag), license="apache-2.0", label_names=names)


default_cfgs = generate_default_cfgs(
    {
        "adder_lenet5.mnist": _mnist("adder_lenet5.mnist"),
        "cnn_lenet5.mnist": _mnist("cnn_lenet5.mnist"),
        "adder_lenet5.digits": _digits("adder_lenet5.digits"),
        "adder_lenet5.mnist_u8": _mnist("adder_lenet5.mnist_u8"),
        "cnn_lenet5.digits": _digits("cnn_lenet5.digits"),
        "adder_lenet_plus_plus.untrained": _cfg(input_size=(1, 28, 28)),
        "cnn_lenet_plus_plus.untrained": _cfg(input_size=(1, 28, 28)),
    }
)


def _create(network: type[_LeNet], variant: str, pretrained: bool, **kwargs: Any) -> _LeNet:
    return build_model(
        network,
        variant,
        pretrained,
        pretrained_filter_fn=_pretrained_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **kwargs,
    )


@register_model
def adder_lenet5(pretrained: bool = False, **kwargs: Unpack[ClassifierArguments]) -> _LeNet:
    """Adder LeNet-5-BN: CVPR 2020 section 4.1, 99.40 % on MNIST."""
    return _create(LeNet5, "adder_lenet5", pretrained, **{"conv_layer": "adder", **kwargs})


@register_model
def cnn_lenet5(pretrained: bool = False, **kwargs: Unpack[ClassifierArguments]) -> _LeNet:
    """The CNN twin of `adder_lenet5`: CVPR 2020 section 4.1, 99.40 % on MNIST."""
    return _create(LeNet5, "cnn_lenet5", pretrained, **{"conv_layer": "conv", **kwargs})


@register_model
def adder_lenet_plus_plus(pretrained: bool = False, **kwargs: Unpack[ClassifierArguments]) -> _LeNet:
    """Adder LeNet++: CVPR 2020 Figure 1, two-dimensional features of MNIST."""
    return _create(LeNetPlusPlus, "adder_lenet_plus_plus", pretrained, **{"conv_layer": "adder", **kwargs})


@register_model
def cnn_lenet_plus_plus(pretrained: bool = False, **kwargs: Unpack[ClassifierArguments]) -> _LeNet:
    """The CNN twin of `adder_lenet_plus_plus`: CVPR 2020 Figure 1."""
    return _create(LeNetPlusPlus, "cnn_lenet_plus_plus", pretrained, **{"conv_layer": "conv", **kwargs})
