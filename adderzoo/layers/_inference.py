"""What adder layers for inference share, of float numbers or of bytes: packed filters, padding, addends."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from timm.layers import pad_same
from torch import Tensor, nn

from ._input import batched, unbatched
from .adder import Adder2d
from .modules import TensorModule

torch.fx.wrap("batched")  # what they do depends on sizes: nodes of a traced graph
torch.fx.wrap("pad_same")
torch.fx.wrap("unbatched")


class PackedFilters(TensorModule, ABC):
    """Packed filters, scale and shift: buffers, because nothing trains them, whose types a subclass keeps."""

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        shape = self.weight.shape
        self.weight = self.weight.flatten(1)  # of more dimensions, to(memory_format=...) might change the order
        try:
            super()._apply(fn, recurse)
        finally:
            self.weight = self.weight.view(shape)
        self._keep_types(before)
        return self

    @abstractmethod
    def _keep_types(self, before: Mapping[str, Tensor | None]) -> None:
        """Gives buffers the types that they must have, from what they were before a conversion."""


class PackedAdder2d(PackedFilters):
    """An adder layer with packed filters: its geometry, and its padding ahead of the operator.

    A subclass calls :meth:`_take_geometry`, and has :meth:`_adder_forward`.
    """

    def _take_geometry(self, layer: Adder2d, zero: int | None = None) -> None:
        """That of a layer; of one on bytes with the byte that stands for 0."""
        self.kernel_size, self.stride, self.dilation = list(layer.kernel_size), list(layer.stride), list(layer.dilation)
        self.in_channels, self.groups = layer.in_channels, layer.groups
        self.operator_padding = list(layer.operator_padding)
        self.pad_first = layer.pad_first
        self.sides = layer.sides
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        self.on_bytes, self.zero = zero is not None, float(zero or 0)

    def forward(self, input: Tensor, addend: Tensor | None = None) -> Tensor:
        batch = self._pad(batched(input, self.in_channels))
        return unbatched(self._adder_forward(batch, addend), input, addend)

    @abstractmethod
    def _adder_forward(self, input: Tensor, addend: Tensor | None) -> Tensor:
        """The layer behind its padding."""

    def _pad(self, batch: Tensor) -> Tensor:
        if not self.pad_first:
            return batch
        if self.padding_mode == "constant":
            return F.pad(batch, self.sides, value=self.zero)
        if self.on_bytes:  # which PyTorch does not pad in all of these modes
            return F.pad(batch.float(), self.sides, mode=self.padding_mode).to(torch.uint8)
        return F.pad(batch, self.sides, mode=self.padding_mode)


class SamePadding(nn.Module):
    """Pads for each input as TensorFlow does: a base ahead of :class:`PackedAdder2d`."""

    def _pad(self, batch: Tensor) -> Tensor:
        return pad_same(batch, self.kernel_size, self.stride, self.dilation, self.zero)


def fitting(addend: Tensor, size: list[int]) -> Tensor | None:
    """An addend expanded to the (N, O, H', W') of an output; None for one that PyTorch would expand the output to."""
    fits = len(addend.shape) <= 4
    for own, wanted in zip(addend.shape[::-1], size[::-1]):  # noqa: B905 - TorchScript
        fits = fits and (own == wanted or own == 1)
    return addend.expand(size) if fits else None
