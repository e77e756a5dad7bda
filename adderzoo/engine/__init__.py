"""Loops over data."""

from .evaluation import Result, evaluate
from .files import best_epoch, read_state, write_epoch
from .training import Epoch, Recipe, Training, create_optimizer, create_scheduler, train

__all__ = [
    "Epoch",
    "Recipe",
    "Result",
    "Training",
    "best_epoch",
    "create_optimizer",
    "create_scheduler",
    "evaluate",
    "read_state",
    "train",
    "write_epoch",
]
