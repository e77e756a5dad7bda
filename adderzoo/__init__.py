"""Adder networks for PyTorch. Importing this package registers its networks and optimizers with timm.

What else it offers is imported where it is first used, so that a program waits for nothing that it does not call.
"""

import os
import sys
from typing import TYPE_CHECKING

from adderzoo._lazy import lazy

if TYPE_CHECKING:
    from adderzoo import analysis, catalogue, data, detection, engine, inference, layers, models, ops, optim, pipelines
    from adderzoo.catalogue import list_models
    from adderzoo.checkpoints import create_model, load, save
    from adderzoo.engine.config import TrainConfig
    from adderzoo.engine.fitting import train
    from adderzoo.inference.export import export_network as export
    from adderzoo.inference.fusion import fuse
    from adderzoo.inference.quantization import calibrate, quantize
    from adderzoo.pipelines.classifier import Classifier
    from adderzoo.pipelines.upscaler import Upscaler

__all__ = [
    "Classifier",
    "TrainConfig",
    "Upscaler",
    "analysis",
    "calibrate",
    "catalogue",
    "create_model",
    "data",
    "detection",
    "engine",
    "export",
    "fuse",
    "inference",
    "layers",
    "list_models",
    "load",
    "models",
    "ops",
    "optim",
    "pipelines",
    "quantize",
    "save",
    "train",
]
__version__ = "0.1.0.dev0"

# Where functions and classes come from; all other names of __all__ are modules.
_FUNCTIONS = {
    "catalogue": ("list_models",),
    "checkpoints": ("create_model", "load", "save"),
    "engine.config": ("TrainConfig",),
    "engine.fitting": ("train",),
    "inference.export": ("export_network as export",),
    "inference.fusion": ("fuse",),
    "inference.quantization": ("calibrate", "quantize"),
    "pipelines.classifier": ("Classifier",),
    "pipelines.upscaler": ("Upscaler",),
}

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name
    __getattr__, __dir__ = lazy(__name__, __all__, _FUNCTIONS)


def _is_command() -> bool:
    """Whether this process is `adderzoo`, or `python -m adderzoo.cli`, which imports the package before it runs it."""
    if sys.argv[:1] == ["-m"]:
        return "adderzoo.cli" in sys.orig_argv
    return bool(sys.argv) and os.path.basename(sys.argv[0]) == "adderzoo"


# The command answers before PyTorch is imported; what it runs imports the networks itself.
if not _is_command():
    from adderzoo import models, optim
