"""The operators as Python sees them."""

from ._library import backend
from .adder2d import adder2d
from .adder2d_affine import adder2d_affine
from .packing import pack_filters, unpack_filters

__all__ = ["adder2d", "adder2d_affine", "backend", "pack_filters", "unpack_filters"]
