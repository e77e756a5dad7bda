"""Networks on a user's images in one call: classes and embeddings of them, and larger images.

Names are imported where they are first used: the command answers before PyTorch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

    def __getattr__(name: str) -> Any:
        for module, names in _MODULES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"adderzoo.pipelines.{module}"), name)
                return value
        raise AttributeError(f"module 'adderzoo.pipelines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
