"""Adder networks for PyTorch. Importing this package registers its networks and optimisers with timm."""

from adderzoo import layers, models, ops, optim

__all__ = ["layers", "models", "ops", "optim"]
__version__ = "0.1.0.dev0"
