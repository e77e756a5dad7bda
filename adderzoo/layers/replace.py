"""Turns a CNN into an adder network."""

from typing import TypeVar

from timm.layers import Conv2dSame, EffectiveSEModule, SEModule, pad_same
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from .adder import Adder2d, AdderLinear

Network = TypeVar("Network", bound=nn.Module)

# A sigmoid follows their last layer with no BatchNorm between: of an adder layer's output it would make zero.
_GATES = (EffectiveSEModule, SEModule, SqueezeExcite, SqueezeExcitation)


class Adder2dSame(Adder2d):
    """Adder layer that pads for each input as TensorFlow does: timm's `Conv2dSame`, with L1 distances."""

    def forward(self, input: Tensor) -> Tensor:
        return self._adder_forward(pad_same(input, self.kernel_size, self.stride, self.dilation))


def replace_conv(model: Network, keep_first: bool = True, keep_last: bool = True) -> Network:
    """Replace the convolutions of a network by adder layers of the same geometry, in place.

    The filters are new, N(0, 1): the network has to be trained (a CNN's filters mean nothing to an adder layer). The
    layers of squeeze-and-excitation gates stay as they are.

    Args:
        model: Any network built from `torch.nn.Conv2d`, such as timm's and torchvision's. It needs a BatchNorm behind
            its convolutions to train.
        keep_first: Keep the first layer as it is, as the paper does.
        keep_last: Keep the last layer as it is, as the paper does. With False it becomes an adder layer too, an
            `AdderLinear` where it is a `torch.nn.Linear`. Other linear layers are never replaced.

    Returns:
        `model`.

    Raises:
        TypeError: for a convolution that does more than `torch.nn.Conv2d`, such as a weight-standardised one; the
            network is left as it was.
        ValueError: if there is nothing to replace.
    """
    gates = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, _GATES))
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(gates)
    ]
    first, last = (layers[0][0], layers[-1][0]) if layers else ("", "")
    replacements: dict[str, nn.Module] = {}
    for name, module in layers:
        if (name == first and keep_first) or (name == last and keep_last):
            continue
        if isinstance(module, nn.Conv2d):
            replacements[name] = _adder_of_conv(name, module)
        elif name == last:
            bias = module.bias is not None
            replacements[name] = AdderLinear(
                module.in_features, module.out_features, bias, module.weight.device, module.weight.dtype
            )
    if not replacements:
        raise ValueError(
            f"model must have a convolution to replace, got {type(model).__name__} with {len(layers)} convolutions and "
            f"linear layers, keep_first={keep_first} and keep_last={keep_last}"
        )
    for name, replacement in replacements.items():
        replacement.train(model.get_submodule(name).training)
        model.set_submodule(name, replacement, strict=True)
    return model


def _adder_of_conv(name: str, conv: nn.Conv2d) -> Adder2d:
    kinds: dict[type, type[Adder2d]] = {nn.Conv2d: Adder2d, Conv2dSame: Adder2dSame}
    if type(conv) not in kinds:
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
