"""The operators as Python sees them: the library loaded or built, gradients, shapes, and a reference."""

from ._library import backend, describe
from .adder2d import adder2d
from .adder2d_affine import adder2d_affine
from .adder2d_u8 import adder2d_u8
from .packing import pack_byte_filters, pack_filters, unpack_byte_filters, unpack_filters
from .quantize_u8 import quantize_u8

__all__ = [
    "adder2d",
    "adder2d_affine",
    "adder2d_u8",
    "backend",
    "describe",
    "pack_byte_filters",
    "pack_filters",
    "quantize_u8",
    "unpack_byte_filters",
    "unpack_filters",
]
