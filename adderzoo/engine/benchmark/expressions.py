"""Adder layers in PyTorch's own operations, as they are written where there is no operator: what it is compared with.

The authors' form broadcasts filters against patches and so needs memory for every |x - w|, four bytes each, more than
once.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderzoo.layers import Adder2d
from adderzoo.ops.geometry import output_size

Network = TypeVar("Network", bound=nn.Module)


class _Broadcast(torch.autograd.Function):
    """Filters (O, K) and patches (K, P) to (O, P), with the paper's gradients."""

    @staticmethod
    def forward(ctx: Any, filters: Tensor, patches: Tensor) -> Tensor:
        ctx.save_for_backward(filters, patches)
        return _distances(filters, patches)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        filters, patches = ctx.saved_tensors
        g = grad.unsqueeze(1)
        of_filters = ((patches.unsqueeze(0) - filters.unsqueeze(2)) * g).sum(2)
        of_patches = (-(patches.unsqueeze(0) - filters.unsqueeze(2)).clamp(-1, 1) * g).sum(0)
        return of_filters, of_patches


def _distances(filters: Tensor, patches: Tensor) -> Tensor:
    return -(filters.unsqueeze(2) - patches.unsqueeze(0)).abs().sum(1)


class Authors(nn.Module):
    """unfold, broadcast, subtract, abs, sum: as the authors' demonstration computes an adder layer."""

    def __init__(self, layer: Adder2d) -> None:
        super().__init__()
        if layer.groups > 1 or layer.pad_first or layer.bias is not None:
            raise ValueError(f"the authors' layer has no groups, no bias and zeros as padding, got {layer}")
        self.weight = layer.weight  # the same Parameter, with its mark as an adder filter
        self.kernel_size = layer.kernel_size
        self.geometry = {"dilation": layer.dilation, "padding": layer.operator_padding, "stride": layer.stride}

    def _size(self, x: Tensor) -> list[int]:
        """Rows and columns of the output."""
        return output_size(x.shape[2:], self.kernel_size, **self.geometry)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel_size, **self.geometry)  # (N, K, L)
        columns = patches.permute(1, 2, 0).flatten(1)  # (K, L * N)
        filters = self.weight.flatten(1)
        output = _Broadcast.apply(filters, columns) if self.training else _distances(filters, columns)
        return output.view(len(filters), *self._size(x), len(x)).permute(3, 0, 1, 2).contiguous()


class Cdist(Authors):
    """unfold and torch.cdist. For inference: the gradients of cdist are not the paper's."""

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel_size, **self.geometry).mT  # (N, L, K)
        output = -torch.cdist(patches, self.weight.flatten(1), p=1.0)  # (N, L, O)
        return output.mT.unflatten(2, self._size(x))


EXPRESSIONS = {"authors": Authors, "cdist": Cdist}


def replace_operator(model: Network, expression: str) -> Network:
    """The network, changed in place, with its adder layers computed by an expression; it shares their filters."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Adder2d):
            model.set_submodule(name, EXPRESSIONS[expression](module).train(module.training), strict=True)
    return model
