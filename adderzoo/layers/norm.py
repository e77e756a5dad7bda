"""BatchNorm behind adder layers."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._float32 import keep_float32
from .modules import TensorModule


@torch.fx.wrap  # one node of a traced graph: what it does depends on a dtype
def _batch_norm(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    batches: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Tensor:
    if input.dim() != 4:
        raise ValueError(f"input must be (N, C, H, W), got {input.dim()} dimensions")
    factor = 0.0  # the share of this batch in the running statistics
    if training:
        batches.add_(1)
        factor = 1.0 / float(batches) if momentum is None else momentum
    if weight.dtype == torch.float32 or weight.dtype == torch.float64:
        return F.batch_norm(input, mean, var, weight, bias, training, factor, eps)
    mean32, var32 = mean.float(), var.float()
    output = F.batch_norm(input.float(), mean32, var32, weight.float(), bias.float(), training, factor, eps)
    if training and mean.dtype != torch.float32:  # assigned so: the module itself keeps them in float32
        mean.copy_(mean32)
        var.copy_(var32)
    return output.to(weight.dtype)


class BatchNorm2d(TensorModule, nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` that takes an adder layer's float32 output in a half-precision network.

    Such a network's BatchNorm works in float32 and returns the network's own type: it centers what half precision could
    not hold. The running statistics stay in float32 for the same reason, whatever type the module is made of or turned
    into: a mean near -1000 that is rounded to bfloat16 is off by as much as the outputs deviate from it.

    Args:
        num_features: Channels.
        eps: Added to the variance.
        momentum: Share of a new batch in the running statistics; None for the mean of all batches.
        device: Of the parameters.
        dtype: Of the parameters; the running statistics are of at least float32.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        keep_float32(self, ("running_mean", "running_var"), self._buffers)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        keep_float32(self, ("running_mean", "running_var"), before)
        return self

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.num_batches_tracked,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
