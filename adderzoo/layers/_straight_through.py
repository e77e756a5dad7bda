"""The straight-through estimator, by which what is quantized can be trained."""

from torch import Tensor


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`, to the bit, whose gradient goes to `source` as it is. Both have one shape; `source` is finite."""
    return value.detach() + (source - source.detach())
