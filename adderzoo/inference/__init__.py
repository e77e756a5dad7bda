"""Networks for inference: tracing, fusion, integers."""

from typing import TYPE_CHECKING

from adderzoo._lazy import lazy

if TYPE_CHECKING:
    from . import fusion, quantization, tracing

__all__ = ["fusion", "quantization", "tracing"]

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name
    __getattr__, __dir__ = lazy(__name__, __all__)
