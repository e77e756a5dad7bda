"""Loops over data."""

from .evaluation import Result, evaluate
from .training import Epoch, Training, create_optimizer, create_scheduler, train, write_epoch

__all__ = ["Epoch", "Result", "Training", "create_optimizer", "create_scheduler", "evaluate", "train", "write_epoch"]
