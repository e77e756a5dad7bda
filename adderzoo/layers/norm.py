"""BatchNorm behind adder layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` that takes an adder layer's float32 output in a half-precision network.

    Such a network's BatchNorm works in float32 and returns the network's own type: it centres what half precision could
    not hold.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        # Asks the parameters, not the input, so that symbolic tracing passes.
        if self.weight.dtype == torch.bfloat16 or self.weight.dtype == torch.float16:
            mean, var = self.running_mean.float(), self.running_var.float()
            output = F.batch_norm(
                input.float(), mean, var, self.weight.float(), self.bias.float(), self.training, self.momentum, self.eps
            )
            if self.training:
                self.running_mean.copy_(mean)
                self.running_var.copy_(var)
            return output.to(self.weight.dtype)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
