"""The registered networks, and small ones of every family of classifiers."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

from adderzoo.layers import Adder2d, BinaryConv2d, ShiftAdd2d, ShiftConv2d  # the package registers its networks

MODULES = sorted(str(module) for module in timm.list_modules() if str(module).startswith("adder_"))
EVERY_NAME = sorted(name for module in MODULES for name in timm.list_models(module=module))
SUPER_RESOLUTION = [name for name in EVERY_NAME if timm.get_pretrained_cfg(name).num_classes == 0]
NAMES = [name for name in EVERY_NAME if name not in SUPER_RESOLUTION]  # the classifiers
TAGS = sorted(
    tag
    for module in MODULES
    for tag in timm.list_models(module=module, pretrained=True)
    if tag.partition(".")[0] in NAMES
)
ADDERS = [name for name in NAMES if name.startswith("adder_")]
BINARY = [name for name in NAMES if name.startswith("bnn_")]
# By the first part of a network's name, what its layers are but the first and the last.
KINDS: dict[str, type[nn.Module]] = {
    "adder": Adder2d, "cnn": nn.Conv2d, "bnn": BinaryConv2d, "shift": ShiftConv2d, "shiftadd": ShiftAdd2d
}  # fmt: skip
# What is tested of all classifiers but those that differ from others in depth alone.
CONTRACT = [name for name in NAMES if name not in ("bnn_resnet32", "bnn_resnet50")]
LENETS = [name for name in NAMES if "lenet" in name]
VGGS = [name for name in NAMES if "vgg" in name]
RESNETS = [name for name in NAMES if "resnet" in name]
CIFAR_RESNETS = [name for name in RESNETS if name.endswith(("resnet8", "20", "32"))]
IMAGENET_RESNETS = [name for name in RESNETS if name not in CIFAR_RESNETS]


def kind(name: str) -> str:
    """The first part of its name: "adder", "cnn" ..."""
    return name.partition("_")[0]


def twin(name: str) -> str:
    """The CNN of the same definition."""
    return f"cnn_{name.partition('_')[2]}"


def small(name: str) -> dict[str, Any]:
    """Arguments that make an ImageNet ResNet narrow, and the deepest less deep; the others are small as they are."""
    if name not in IMAGENET_RESNETS:
        return {}
    depth = {"layers": (1, 2, 3, 2)} if name.endswith("101") else {}
    return {"widths": (4, 6, 8, 10), "num_classes": 10} | depth


def is_layer(module: nn.Module) -> bool:
    """With filters or weights: what is an adder layer or a convolution, or the classifier of VGG-small."""
    return isinstance(module, Adder2d | nn.Conv2d | nn.Linear)


def build(name: str, **kwargs: Any) -> nn.Module:
    """A new network, small."""
    torch.manual_seed(0)
    return timm.create_model(name, **small(name) | kwargs)


def make(name: str, **kwargs: Any) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics that fit, so that the logits have a spread of 1."""
    network = build(name, **kwargs).train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    with torch.no_grad():
        network(images(network, 8))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def image_size(network: nn.Module) -> int:
    """As small as the network takes them."""
    if network.pretrained_cfg["input_size"][1] == 224:
        return 64
    return 16 if network.feature_info[-1]["reduction"] in (4, 8) else network.pretrained_cfg["input_size"][1]


def images(network: nn.Module, batch: int = 2, size: int | None = None, channels: int | None = None) -> Tensor:
    size = size or image_size(network)
    shape = (batch, channels or network.in_chans, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def logits_norm_name(network: nn.Module) -> str | None:
    """The BatchNorm that is registered behind the classifier; VGG-small has none."""
    names = [name for name, _ in network.named_children()]
    return next((name for name in names[names.index("fc") :] if name.startswith("bn")), None)


def head_keys(network: nn.Module) -> set[str]:
    """Of the state dict: what depends on the number of classes, and the count of batches that goes with it."""
    head = ("fc.", f"{logits_norm_name(network)}.")
    return {key for key in network.state_dict() if key.startswith(head)}
