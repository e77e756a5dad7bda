"""BatchNorm behind adder layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.fx.wrap  # one node of a traced graph: what it does depends on a dtype
def _batch_norm(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    if weight.dtype == torch.float32 or weight.dtype == torch.float64:
        return F.batch_norm(input, mean, var, weight, bias, training, momentum, eps)
    mean32, var32 = mean.float(), var.float()
    output = F.batch_norm(input.float(), mean32, var32, weight.float(), bias.float(), training, momentum, eps)
    if training:
        mean.copy_(mean32)
        var.copy_(var32)
    return output.to(weight.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` that takes an adder layer's float32 output in a half-precision network.

    Such a network's BatchNorm works in float32 and returns the network's own type: it centres what half precision could
    not hold.

    Args:
        num_features: Channels.
        eps: Added to the variance.
        momentum: Of the running statistics.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return _batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,  # type: ignore[arg-type]
            self.eps,
        )
