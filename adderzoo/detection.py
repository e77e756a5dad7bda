"""Object detection with adder backbones: torchvision's detectors on the networks of this package."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from adderzoo.checkpoints import create_model, load
from adderzoo.files.foreign import weights_in
from adderzoo.files.weights import read_model_args

__all__ = ["BackboneWithFPN", "fcos", "fpn_backbone"]


class BackboneWithFPN(nn.Module):
    """torchvision's module of this name, over a network of timm's interface.

    The pyramid ("Feature Pyramid Networks for Object Detection", CVPR 2017) has a level for each feature map of the
    network and two coarser ones, P6 and P7, as FCOS and RetinaNet have them. Its layers are convolutions.

    Shape: (N, in_chans, H, W) to a dictionary of feature maps (N, out_channels, ceil(H / stride), ceil(W / stride)) by
    level, the finest first: "0", "1" ..., "p6", "p7".

    Args:
        body: What `timm.create_model(..., features_only=True, out_indices=...)` returns, levels in rising order.
        out_channels: Channels of every level.

    Attributes:
        out_channels: Likewise; torchvision's detectors look for it.
        strides: Pixels of the image from one point to the next, by level.
    """

    def __init__(self, body: nn.Module, out_channels: int = 256) -> None:
        super().__init__()
        info: Any = body.feature_info
        finer = [int(reduction) for reduction in info.reduction()]
        self.body = body
        self.fpn = FeaturePyramidNetwork(info.channels(), out_channels, LastLevelP6P7(out_channels, out_channels))
        self.out_channels = out_channels
        self.strides = (*finer, 2 * finer[-1], 4 * finer[-1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The pyramid of a batch of images."""
        return self.fpn({str(level): features for level, features in enumerate(self.body(x))})


def fpn_backbone(
    name: str, pretrained: bool = False, checkpoint: Path | str | None = None, out_channels: int = 256, **arguments: Any
) -> BackboneWithFPN:
    """A backbone for torchvision's FCOS, RetinaNet and their like, in the place of its `resnet_fpn_backbone`.

    The pyramid stands on the network's last three levels, of strides 8, 16 and 32 in the ImageNet networks. Nothing is
    frozen: torchvision freezes BatchNorm in pretrained backbones, but the features of adder layers vary too much for
    that ("An Empirical Study of Adder Neural Networks for Object Detection", NeurIPS 2021, arXiv:2112.13608). So a step
    wants several images; `torch.nn.SyncBatchNorm.convert_sync_batchnorm` makes those of all GPUs count.

    Args:
        name: Network, as `timm.create_model` takes it: "adder_resnet18", "cnn_resnet50" ...
        pretrained: With the published weights of its tag.
        checkpoint: With the weights of this classifier, in either format; how many classes it has does not matter.
        out_channels: Channels of the pyramid.
        arguments: Further ones of `timm.create_model`, before those that the checkpoint's metadata has.

    Raises:
        ValueError: if there is no such network or tag, or it has no feature maps; if `pretrained` and `checkpoint` are
            both given; if the weights cannot be had, or do not fit exactly.
    """
    if pretrained and checkpoint:
        raise ValueError(f"checkpoint must be None with pretrained=True, got {checkpoint}")
    if out_channels < 1:
        raise ValueError(f"out_channels must be at least 1, got {out_channels}")
    classifier: Any = None
    if checkpoint:
        # By way of the classifier, since timm loads features without a word on keys that do not fit.
        classifier = load(checkpoint, name, other_classes=True, **arguments)
        arguments = read_model_args(weights_in(checkpoint)) | arguments
    body: Any = create_model(name, pretrained=pretrained, features_only=True, out_indices=(-3, -2, -1), **arguments)
    if classifier is not None:
        weights = classifier.state_dict()
        body.load_state_dict({key: weights[key] for key in body.state_dict()})
        body.pretrained_cfg.update(classifier.pretrained_cfg)
    return BackboneWithFPN(body, out_channels)


def fcos(backbone: BackboneWithFPN, num_classes: int, **kwargs: Any) -> FCOS:
    """torchvision's FCOS ("FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019) on such a backbone.

    What it takes and returns, in training and in evaluation, is described there. The filters of an adder backbone need
    their adaptive learning rate: :func:`adderzoo.optim.adaptive_lr`.

    Args:
        backbone: As :func:`fpn_backbone` makes it.
        num_classes: As torchvision counts them, with the background as number 0.
        kwargs: Further arguments of `torchvision.models.detection.FCOS`: `min_size`, `score_thresh` ... By default
            images are normalized as the backbone's weights want it, and every level has one anchor of its stride.

    Raises:
        ValueError: if `num_classes` is less than 2, or torchvision's head does not take the backbone's channels, which
            have to be a multiple of 32.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, one of them the background, got {num_classes}")
    if "head" not in kwargs and backbone.out_channels % 32:  # GroupNorm in torchvision's head has 32 groups
        raise ValueError(f"backbone must have out_channels divisible by 32, got {backbone.out_channels}")
    cfg: Any = backbone.body.pretrained_cfg
    anchors = AnchorGenerator(tuple((stride,) for stride in backbone.strides), ((1.0,),) * len(backbone.strides))
    defaults = {"image_mean": list(cfg["mean"]), "image_std": list(cfg["std"]), "anchor_generator": anchors}
    return FCOS(backbone, num_classes, **defaults | kwargs)
