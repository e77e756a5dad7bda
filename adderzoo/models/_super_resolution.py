"""What the networks for super-resolution share."""

from typing import Any, TypeVar

import torch
from torch import nn

from adderzoo.layers.modules import Network

from ._builder import build_model

Kind = TypeVar("Kind", bound="SuperResolutionNet")


class SuperResolutionNet(Network):
    """A network that makes images larger.

    Shape: (N, 3, H, W), RGB in [0, 1], of any H and W, to (N, 3, scale * H, scale * W) in the same range but for
    overshoot: what is left to do to make an image of it is to clip it.

    It is registered with timm as the classifiers are, with a `pretrained_cfg` of `num_classes` 0, which is how a
    network that is none can be told by its name: timm's has no field for a task.

    Attributes:
        scale: How many times as large its output is.
        radius: How far it looks: a pixel of the output depends on no pixel of the input further than this from its own,
            along rows and columns. Tiles that overlap by as much are the whole image's result but for rounding.
    """

    scale: int
    radius: int
    num_classes: int
    in_chans: int
    grad_checkpointing: bool

    def __init__(self, scale: int, num_classes: int = 0, in_chans: int = 3) -> None:
        super().__init__()
        if num_classes != 0:
            raise ValueError(f"num_classes must be 0, since the network classifies nothing, got {num_classes}")
        if in_chans != 3:
            raise ValueError(f"in_chans must be 3, for RGB, got {in_chans}")
        self.scale = scale
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute every block in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The exponents of the power activations, which decay would drive to 0, where the activation is a step."""
        return {name for name, _ in self.named_parameters() if name.endswith(".exponent")}


def reset_parameters(network: nn.Module) -> None:
    """Initial values of all modules inside, the innermost first: a unit has its own idea of what is in it."""
    for module in reversed([*network.modules()][1:]):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]


def is_super_resolution(model: nn.Module) -> bool:
    """Whether a network makes images larger; also of what `adderzoo.fuse` and `quantize` have made of one."""
    return isinstance(model, SuperResolutionNet) or (hasattr(model, "scale") and getattr(model, "num_classes", 1) == 0)


def check_classifier(model: nn.Module, name: str) -> None:
    """Refuse a network for super-resolution where classes are the matter.

    Raises:
        ValueError: naming the network.
    """
    if is_super_resolution(model):
        raise ValueError(f"model must be a classifier, got {name!r}, which is a network for super-resolution")


def check_scale(scale: int, scales: tuple[int, ...] = (2, 3, 4)) -> None:
    """Refuse a scale that there is no network for.

    Raises:
        ValueError: naming those that there are.
    """
    if scale not in scales:
        raise ValueError(f"scale must be one of {', '.join(map(str, scales))}, got {scale!r}")


def additions(conv_layer: str, norm: bool | None, self_shortcut: bool | None, power: bool | None) -> dict[str, bool]:
    """Arguments of a `ConvUnit`: what is None is there in adder networks, and absent in the published CNNs.

    Raises:
        ValueError: for other kinds of layers, of which neither is published. (A network's radius counts one per layer.)
    """
    if conv_layer not in ("adder", "conv"):
        raise ValueError(f"conv_layer must be one of 'adder', 'conv', got {conv_layer!r}")
    given = {"norm": norm, "self_shortcut": self_shortcut, "power": power}
    return {name: conv_layer == "adder" if value is None else value for name, value in given.items()}


def super_resolution_cfg(**kwargs: Any) -> dict[str, Any]:
    """`pretrained_cfg` of a network; `input_size` is what becomes 1280x720, by which the field counts operations."""
    return {
        "num_classes": 0,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        **kwargs,
    }


def create_super_resolution(network: type[Kind], variant: str, pretrained: bool, **kwargs: Any) -> Kind:
    """timm's `build_model_with_cfg`, behind the SHA-256 of a tag's weights.

    Raises:
        ValueError: if features are asked for, which are a classifier's.
    """
    if kwargs.get("features_only"):
        raise ValueError(f"features_only must be False for {variant}, which is no classifier and has no pyramid")
    return build_model(network, variant, pretrained, **kwargs)
