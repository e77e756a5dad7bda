"""The geometry of patches, which is a convolution's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Pair = Sequence[int]
else:
    Pair = list[int]  # TorchScript knows no sequences


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> list[int]:
    """How many patches an image has, vertically and horizontally: height and width of the output.

    Args:
        size: Height and width of the image.
        kernel: Of the filters, (kH, kW).
        stride: Of the patches, (height, width).
        padding: Pixels added on each side, (height, width).
        dilation: Distance between the taps of a filter, (height, width).
    """
    return [(size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)]
