"""What a network costs, and pictures of its filters and outputs."""

from typing import TYPE_CHECKING

from adderzoo._lazy import lazy

if TYPE_CHECKING:
    from . import costs, energy, plots

__all__ = ["costs", "energy", "plots"]

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name
    __getattr__, __dir__ = lazy(__name__, __all__)
