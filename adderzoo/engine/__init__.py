"""Loops over data."""

from .evaluation import Result, evaluate

__all__ = ["Result", "evaluate"]
