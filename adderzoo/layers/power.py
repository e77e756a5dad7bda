"""The learned activation of adder networks for super-resolution."""

import torch
from torch import Tensor, nn

from .modules import TensorModule


@torch.fx.wrap  # one node of a traced graph: what it does depends on the dtype
def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """Of a base above 0. PyTorch takes more than twice as long for `pow`."""
    if base.dtype == torch.float16 or base.dtype == torch.bfloat16:  # an error of the logarithm grows
        return torch.exp(torch.xlogy(exponent.float(), base.float())).to(base.dtype)
    return torch.exp(torch.xlogy(exponent, base))


class PowerActivation(TensorModule):
    """sign(x) |x|^a with a learned exponent a ("AdderSR", CVPR 2021, eq. 11): widens or narrows the spread of features.

    An adder layer makes a poor high-pass filter; a > 1 brings out what differs from its surroundings. a starts at 1,
    where this is the identity to the bit.

    Both derivatives of the function itself, a |x|^(a - 1) and sign(x) |x|^a ln|x|, have no finite value at x = 0 for
    a < 1, and behind a ReLU half of all x are 0. So below `eps` the function is a straight line through 0:
    x |x|^(a - 1) with max(|x|, eps) for |x|.

    Shape: any, to the same.

    Args:
        eps: Where the straight part begins, in the units of x.
        device: Of the exponent.
        dtype: Of the exponent.

    Raises:
        ValueError: if `eps` is not above 0.
    """

    def __init__(
        self, eps: float = 1e-4, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.eps = eps
        self.exponent = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.exponent)

    def forward(self, input: Tensor) -> Tensor:
        return input * _power(input.abs().clamp(min=self.eps), self.exponent - 1)

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"
