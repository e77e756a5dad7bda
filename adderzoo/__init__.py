"""Adder networks for PyTorch. Importing this package registers its networks with timm."""

from adderzoo import layers, models, ops

__all__ = ["layers", "models", "ops"]
__version__ = "0.1.0.dev0"
