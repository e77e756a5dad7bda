"""Adder networks for PyTorch. Importing this package registers its networks and optimisers with timm."""

from adderzoo import hub, layers, models, ops, optim
from adderzoo.fusion import fuse
from adderzoo.hub import list_models

__all__ = ["fuse", "hub", "layers", "list_models", "models", "ops", "optim"]
__version__ = "0.1.0.dev0"
