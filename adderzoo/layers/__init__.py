"""Adder layers and their relatives, binary and shift layers among them, as modules."""

from adderzoo import ops as ops  # registers the operator that the layers call

from .adder import Adder2d, AdderLinear
from .affine import AdderAffine2d, AdderAffineLinear
from .binary import BinaryConv2d
from .kinds import get_conv_layer
from .norm import BatchNorm2d
from .power import PowerActivation
from .quantized import QuantizedAdder2d, QuantizedAdderLinear
from .replace import replace_conv
from .shift import ShiftAdd2d, ShiftConv2d
from .transposed import AdderTranspose2d
from .unit import ConvUnit

__all__ = [
    "Adder2d",
    "AdderAffine2d",
    "AdderAffineLinear",
    "AdderLinear",
    "AdderTranspose2d",
    "BatchNorm2d",
    "BinaryConv2d",
    "ConvUnit",
    "PowerActivation",
    "QuantizedAdder2d",
    "QuantizedAdderLinear",
    "ShiftAdd2d",
    "ShiftConv2d",
    "get_conv_layer",
    "replace_conv",
]
