"""Adder networks for PyTorch. Importing this package registers its networks and optimisers with timm."""

from adderzoo import _signals

if _signals.started_as_command():
    _signals.end_at_once()

from adderzoo import hub, layers, models, ops, optim, profile, quantization
from adderzoo.checkpoints import create_model
from adderzoo.fusion import fuse
from adderzoo.hub import list_models
from adderzoo.quantization import load

__all__ = [
    "create_model",
    "fuse",
    "hub",
    "layers",
    "list_models",
    "load",
    "models",
    "ops",
    "optim",
    "profile",
    "quantization",
]
__version__ = "0.1.0.dev0"
