"""The straight-through estimator, by which what is quantised can be trained."""

from torch import Tensor


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`, to the bit, with the gradient of `source` (of the same shape, finite): the step between them is 1."""
    return value.detach() + (source - source.detach())
