"""Loops over data."""

from .distillation import EnsembleTeacher, KernelDistillationTask, LogitDistillationTask
from .evaluation import Result, evaluate
from .files import best_epoch, read_state, write_epoch
from .image_quality import psnr, quality, ssim
from .super_resolution import SuperResolutionResult, evaluate_super_resolution, upscale
from .training import Epoch, Recipe, Training, create_optimizer, create_scheduler, train

__all__ = [
    "EnsembleTeacher",
    "Epoch",
    "KernelDistillationTask",
    "LogitDistillationTask",
    "Recipe",
    "Result",
    "SuperResolutionResult",
    "Training",
    "best_epoch",
    "create_optimizer",
    "create_scheduler",
    "evaluate",
    "evaluate_super_resolution",
    "psnr",
    "quality",
    "read_state",
    "ssim",
    "train",
    "upscale",
    "write_epoch",
]
