"""Training, evaluation and distillation of networks, and what they are measured by.

Names are imported where they are first used: the options of a training (:class:`TrainConfig`) need no PyTorch.
"""

from typing import TYPE_CHECKING

from adderzoo._lazy import lazy

if TYPE_CHECKING:
    from .config import TrainConfig
    from .distillation import EnsembleTeacher, KernelDistillationTask, LogitDistillationTask
    from .evaluation import Execution, Result, check_results, evaluate
    from .files import best_epoch, read_config, read_state, write_epoch
    from .fitting import TrainResult, fit, train
    from .image_quality import psnr, quality, ssim
    from .optimization import create_optimizer, create_scheduler
    from .super_resolution import SuperResolutionResult, evaluate_super_resolution, upscale
    from .training import Epoch, Recipe, Training, run_epochs

_MODULES = {
    "config": ("TrainConfig",),
    "distillation": ("EnsembleTeacher", "KernelDistillationTask", "LogitDistillationTask"),
    "evaluation": ("Execution", "Result", "check_results", "evaluate"),
    "files": ("best_epoch", "read_config", "read_state", "write_epoch"),
    "fitting": ("TrainResult", "fit", "train"),
    "image_quality": ("psnr", "quality", "ssim"),
    "optimization": ("create_optimizer", "create_scheduler"),
    "super_resolution": ("SuperResolutionResult", "evaluate_super_resolution", "upscale"),
    "training": ("Epoch", "Recipe", "Training", "run_epochs"),
}

__all__ = [
    "EnsembleTeacher",
    "Epoch",
    "Execution",
    "KernelDistillationTask",
    "LogitDistillationTask",
    "Recipe",
    "Result",
    "SuperResolutionResult",
    "TrainConfig",
    "TrainResult",
    "Training",
    "best_epoch",
    "check_results",
    "create_optimizer",
    "create_scheduler",
    "evaluate",
    "evaluate_super_resolution",
    "fit",
    "psnr",
    "quality",
    "read_config",
    "read_state",
    "run_epochs",
    "ssim",
    "train",
    "upscale",
    "write_epoch",
]

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name
    __getattr__, __dir__ = lazy(__name__, names=_MODULES)
