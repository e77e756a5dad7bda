"""torch.nn modules."""

from torch import nn

from adderzoo import ops as ops  # registers the operator that the layers call

from .adder import Adder2d, AdderLinear
from .affine import AdderAffine2d, AdderAffineLinear
from .norm import BatchNorm2d
from .quantized import QuantizedAdder2d, QuantizedAdderLinear
from .replace import replace_conv

__all__ = [
    "Adder2d",
    "AdderAffine2d",
    "AdderAffineLinear",
    "AdderLinear",
    "BatchNorm2d",
    "QuantizedAdder2d",
    "QuantizedAdderLinear",
    "get_conv_layer",
    "replace_conv",
]

_CONV_LAYERS: dict[str, type[nn.Module]] = {"adder": Adder2d, "conv": nn.Conv2d}


def get_conv_layer(kind: str) -> type[nn.Module]:
    """The layer that a network's argument `conv_layer` names: "adder" or "conv".

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in _CONV_LAYERS:
        raise ValueError(f"conv_layer must be one of {', '.join(map(repr, _CONV_LAYERS))}, got {kind!r}")
    return _CONV_LAYERS[kind]
