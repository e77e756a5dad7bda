"""Turns a CNN into an adder network."""

from collections.abc import Iterable
from typing import TypeVar

from timm.layers import CondConv2d, Conv2dSame, EffectiveSEModule, SEModule, pad_same
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, fx, nn
from torchvision.ops import DeformConv2d, SqueezeExcitation

from .adder import Adder2d, AdderLinear

fx.wrap("pad_same")  # what it does depends on sizes: a node of a traced graph

Network = TypeVar("Network", bound=nn.Module)

# A sigmoid follows their last layer with no BatchNorm between: of an adder layer's output it would make zero.
_GATES = (EffectiveSEModule, SEModule, SqueezeExcite, SqueezeExcitation)

# Convolutions that are no torch.nn.Conv2d.
_SPECIAL = (CondConv2d, DeformConv2d)


class Adder2dSame(Adder2d):
    """Adder layer that pads for each input as TensorFlow does: timm's `Conv2dSame`, with L1 distances."""

    def _pad(self, batch: Tensor) -> Tensor:
        return pad_same(batch, self.kernel_size, self.stride, self.dilation)


def replace_conv(
    model: Network, keep_first: bool = True, keep_last: bool = True, keep: str | Iterable[str] = ()
) -> Network:
    """Replace the convolutions of a network by adder layers of the same geometry, in place.

    The filters are new, N(0, 1): the network has to be trained (a CNN's filters mean nothing to an adder layer). The
    layers of squeeze-and-excitation gates stay as they are. A layer that several names share becomes one adder layer
    that they share.

    First and last are by the order in which the network registers its convolutions and linear layers (that of
    `model.named_modules()`), which may not be the order in which it runs them: of a network with several heads, such as
    torchvision's `fcn_resnet50(aux_loss=True)`, the auxiliary one may be the last. Name the layers of the others in
    `keep`.

    Args:
        model: Any network built from `torch.nn.Conv2d`, such as timm's and torchvision's. It needs a BatchNorm behind
            its convolutions to train.
        keep_first: Keep the first layer as it is, as the paper does.
        keep_last: Keep the last layer as it is, as the paper does. With False it becomes an adder layer too, an
            `AdderLinear` where it is a `torch.nn.Linear`. Other linear layers are never replaced.
        keep: Names of further modules to keep as they are, with all layers in them, or a single name.

    Returns:
        `model`.

    Raises:
        TypeError: for a convolution that does more than `torch.nn.Conv2d`, such as a weight-standardized one; the
            network is left as it was.
        ValueError: if there is nothing to replace, or `keep` names no module.
    """
    modules = list(model.named_modules(remove_duplicate=False))
    keep = [keep] if isinstance(keep, str) else list(keep)
    for name in keep:
        if name not in dict(modules):
            raise ValueError(f"keep must name modules of the network, got {name!r}")
    gated = {part for _, module in modules if isinstance(module, _GATES) for part in module.modules()}
    names: dict[nn.Module, list[str]] = {}
    for name, module in modules:
        if isinstance(module, (nn.Conv2d, nn.Linear, *_SPECIAL)) and module not in gated:
            names.setdefault(module, []).append(name)
    layers = list(names)
    kept = {part for name in keep for part in model.get_submodule(name).modules()}
    kept.update(layers[:1] if keep_first else [], layers[-1:] if keep_last else [])
    replacements: dict[nn.Module, nn.Module] = {}
    for layer in layers:
        if layer in kept:
            continue
        if not isinstance(layer, nn.Linear):
            replacements[layer] = _adder_of_conv(names[layer][0], layer)
        elif layer is layers[-1]:
            bias = layer.bias is not None
            replacements[layer] = AdderLinear(
                layer.in_features, layer.out_features, bias, layer.weight.device, layer.weight.dtype
            )
    if not replacements:
        raise ValueError(
            f"model must have a convolution to replace, got {type(model).__name__} with {len(layers)} convolutions and "
            f"linear layers, keep_first={keep_first} and keep_last={keep_last}"
        )
    for layer, replacement in replacements.items():
        replacement.train(layer.training)
        for name in names[layer]:
            model.set_submodule(name, replacement, strict=True)
    return model


def _adder_of_conv(name: str, conv: nn.Module) -> Adder2d:
    kinds: dict[type, type[Adder2d]] = {nn.Conv2d: Adder2d, Conv2dSame: Adder2dSame}
    if not isinstance(conv, nn.Conv2d) or type(conv) not in kinds:
        raise TypeError(f"model must be built from torch.nn.Conv2d, but {name} is a {type(conv).__name__}")
    return kinds[type(conv)](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        conv.weight.device,
        conv.weight.dtype,
    )
