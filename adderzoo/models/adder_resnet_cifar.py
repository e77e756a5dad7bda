"""ResNets for 32x32 images: adder networks, their CNN twins, and the same of binary and of shift layers.

The networks of "AdderNet: Do We Really Need Multiplications in Deep Learning?" (CVPR 2020, Table 2): 6n + 2 layers in
three stages of 16, 32 and 64 channels; the first convolution and the classifier stay convolutions; BatchNorm on the
logits. ResNet-8, with one block a stage, has the size of MLPerf Tiny's network for image classification.
"""

from collections.abc import Mapping
from typing import Any, Unpack

from timm.models import generate_default_cfgs

from adderzoo.hub import hub_id

from ._arguments import ResNetArguments, register_model
from ._builder import SHIFTADDNET, weights_file
from .adder_resnet import ResNet, create_resnet


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


_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
# CIFAR-100's fine labels, in order.
_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


def _trained(tag: str, license: str = "apache-2.0", labels: str = _NAMES, **kwargs: Any) -> dict[str, Any]:
    # By scripts/reproduce/cifar10*.sh, on CIFAR-100 by cifar100.sh; those in bytes are by quantized*.sh.
    names = tuple(labels.split())
    kwargs.update(license=license, num_classes=len(names), label_names=names)
    return _cfg(file=weights_file(tag), hf_hub_id=hub_id(tag), **kwargs)


_MLPERF_TINY = {"paper_ids": "arXiv:2106.07597", "paper_name": "MLPerf Tiny Benchmark"}

default_cfgs = generate_default_cfgs(
    {
        "adder_resnet20.cifar10": _trained("adder_resnet20.cifar10"),
        "adder_resnet20.cifar10_u8": _trained("adder_resnet20.cifar10_u8"),
        "adder_resnet20.cifar100": _trained("adder_resnet20.cifar100", "bsd-3-clause", _FINE),
        "adder_resnet20.cifar100_u8": _trained("adder_resnet20.cifar100_u8", "bsd-3-clause", _FINE),
        "adder_resnet20.dist_cifar10": _trained("adder_resnet20.dist_cifar10", license="bsd-3-clause"),
        "adder_resnet20.dist_cifar10_u4": _trained("adder_resnet20.dist_cifar10_u4", license="bsd-3-clause"),
        "adder_resnet20.dist_cifar10_u8": _trained("adder_resnet20.dist_cifar10_u8", license="bsd-3-clause"),
        "adder_resnet20.huawei_cifar10": _cfg(
            # The authors' own file, at the last commit before they removed it.
            url="https://github.com/huawei-noah/AdderNet/raw/d94dc43a0f2a7448c8c38bcf638062de89f2d34d/models/ResNet20-AdderNet.pth",
            license="bsd-3-clause",
            origin_url="https://github.com/huawei-noah/AdderNet",
            label_names=tuple(_NAMES.split()),
        ),
        "adder_resnet32.untrained": _cfg(),
        "adder_resnet8.cifar10": _trained("adder_resnet8.cifar10", **_MLPERF_TINY),
        "adder_resnet8.cifar10_u8": _trained("adder_resnet8.cifar10_u8", **_MLPERF_TINY),
        "bnn_resnet20.untrained": _cfg(),
        "bnn_resnet32.untrained": _cfg(),
        "cnn_resnet20.cifar10": _trained("cnn_resnet20.cifar10"),
        "cnn_resnet20.cifar100": _trained("cnn_resnet20.cifar100", labels=_FINE),
        "cnn_resnet32.untrained": _cfg(),
        "cnn_resnet8.cifar10": _trained("cnn_resnet8.cifar10", **_MLPERF_TINY),
        "shift_resnet20.untrained": _cfg(**SHIFTADDNET),
        "shiftadd_resnet20.untrained": _cfg(**SHIFTADDNET),
    }
)


def _create(variant: str, pretrained: bool, blocks: int, conv_layer: str, kwargs: Mapping[str, Any]) -> ResNet:
    args = {
        "layers": (blocks, blocks, blocks),
        "conv_layer": conv_layer,
        "widths": (16, 32, 64),
        "small_images": True,
        "head_bias": False,
    }
    return create_resnet(variant, pretrained, **{**args, **kwargs})


@register_model
def adder_resnet20(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """Adder ResNet-20: CVPR 2020 Table 2, 91.84 % on CIFAR-10."""
    return _create("adder_resnet20", pretrained, 3, "adder", kwargs)


@register_model
def adder_resnet32(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """Adder ResNet-32: CVPR 2020 Table 2, 93.01 % on CIFAR-10."""
    return _create("adder_resnet32", pretrained, 5, "adder", kwargs)


@register_model
def adder_resnet8(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """Adder ResNet-8: the size of MLPerf Tiny's network for image classification, whose bar is 85 % on CIFAR-10."""
    return _create("adder_resnet8", pretrained, 1, "adder", kwargs)


@register_model
def bnn_resnet20(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """`adder_resnet20` with binary layers: CVPR 2020 Table 2, 84.87 % on CIFAR-10."""
    return _create("bnn_resnet20", pretrained, 3, "binary", kwargs)


@register_model
def bnn_resnet32(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """`adder_resnet32` with binary layers: CVPR 2020 Table 2, 86.74 % on CIFAR-10."""
    return _create("bnn_resnet32", pretrained, 5, "binary", kwargs)


@register_model
def cnn_resnet20(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """The CNN twin of `adder_resnet20`: CVPR 2020 Table 2, 92.25 % on CIFAR-10."""
    return _create("cnn_resnet20", pretrained, 3, "conv", kwargs)


@register_model
def cnn_resnet32(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """The CNN twin of `adder_resnet32`: CVPR 2020 Table 2, 93.29 % on CIFAR-10."""
    return _create("cnn_resnet32", pretrained, 5, "conv", kwargs)


@register_model
def cnn_resnet8(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """The CNN twin of `adder_resnet8`."""
    return _create("cnn_resnet8", pretrained, 1, "conv", kwargs)


@register_model
def shift_resnet20(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """`adder_resnet20` with shift layers: DeepShift-PS, a baseline of ShiftAddNet (NeurIPS 2020)."""
    return _create("shift_resnet20", pretrained, 3, "shift", kwargs)


@register_model
def shiftadd_resnet20(pretrained: bool = False, **kwargs: Unpack[ResNetArguments]) -> ResNet:
    """ShiftAddNet's ResNet-20 (NeurIPS 2020): a shift layer in front of every adder layer of `adder_resnet20`."""
    return _create("shiftadd_resnet20", pretrained, 3, "shiftadd", kwargs)
