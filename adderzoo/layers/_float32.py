"""Tensors that a half-precision network keeps in float32."""

from collections.abc import Iterable, Mapping

from torch import Tensor, float32, nn


def keep_float32(module: nn.Module, names: Iterable[str], before: Mapping[str, Tensor | None]) -> None:
    """Buffers that have become half precision are what they were `before`, in float32."""
    for name in names:
        now, then = getattr(module, name), before[name]
        if now.dtype.itemsize < 4 and then is not None:
            setattr(module, name, then.to(now.device, float32))
