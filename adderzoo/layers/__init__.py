"""torch.nn modules."""

from adderzoo import ops as ops  # registers the operator that the layers call

from .adder import Adder2d, AdderLinear, get_conv_layer
from .affine import AdderAffine2d, AdderAffineLinear
from .norm import BatchNorm2d
from .power import PowerActivation
from .quantized import QuantizedAdder2d, QuantizedAdderLinear
from .replace import replace_conv
from .unit import ConvUnit

__all__ = [
    "Adder2d",
    "AdderAffine2d",
    "AdderAffineLinear",
    "AdderLinear",
    "BatchNorm2d",
    "ConvUnit",
    "PowerActivation",
    "QuantizedAdder2d",
    "QuantizedAdderLinear",
    "get_conv_layer",
    "replace_conv",
]
