"""Networks on a user's images in one call: classes and embeddings of them, and larger images.

Names are imported where they are first used: the command answers before PyTorch is imported.
"""

from typing import TYPE_CHECKING

from adderzoo._lazy import lazy

if TYPE_CHECKING:
    from .classifier import Classifier, ClassProbability, Prediction
    from .comparison import compare
    from .upscaler import Upscaled, Upscaler, choose_network, name_outputs

_MODULES = {
    "classifier": ("ClassProbability", "Classifier", "Prediction"),
    "comparison": ("compare",),
    "upscaler": ("Upscaled", "Upscaler", "choose_network", "name_outputs"),
}

__all__ = [
    "ClassProbability",
    "Classifier",
    "Prediction",
    "Upscaled",
    "Upscaler",
    "choose_network",
    "compare",
    "name_outputs",
]

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name
    __getattr__, __dir__ = lazy(__name__, names=_MODULES)
