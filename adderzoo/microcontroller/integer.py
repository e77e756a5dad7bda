"""Networks of integers to the end: what a processor without floating-point numbers runs, defined, and run in PyTorch.

A tensor is bytes that stand for ``scale * (byte - zero_point)``. A layer adds up an accumulator A of 32 bits for every
output, the distance of bytes or their products with weights from -127 to 127, and turns it into a byte:

.. math::
    A_{o,p} &= \\sum_{c,i,j} |X_{c,\\,p \\cdot stride + (i,j) \\cdot dilation - padding} - W_{o,c,i,j}| \\quad
        \\text{or} \\quad \\sum_{c,i,j} X_{c,\\,\\ldots} W_{o,c,i,j} \\\\
    Y_{o,p} &= \\mathrm{clamp}\\big((bias_o + \\lfloor A_{o,p} / 2^{drop} \\rfloor multiplier_o
        + addend_{o,p} \\cdot addend\\_multiplier) \\gg shift,\\; low,\\; top\\big)

- Padding is with the byte that stands for 0, so a padded pixel is like any other.
- ``>>`` rounds towards minus infinity; half a step is part of `bias`, so Y is rounded to the nearest, halves upwards.
- `multiplier` and `bias` are of 32 bits, one for every channel; `shift`, `drop` and `addend_multiplier` are of the
  layer. `drop` is 0 but for sums of products that would leave the multiplier less than ten bits.
- `shift` is 16, or as much less as it takes that no input whatever lets a product or a sum, from left to right, leave
  32 bits.
- The last layer has no clamp and no shift: logits are of 32 bits, in units of `IntegerNetwork.logit_scale`.

Distances have a mean of thousands and a spread of hundreds, so the rounding of a multiplier, from s to s', would move a
channel as a whole: `bias` has ``(s - s')`` times the channel's mean distance, seen in calibration, added to it.

Pooling is of bytes: the greatest of a window (the least, for channels whose BatchNorm behind the pooling turns the
order round), or its sum, with a multiplier and a shift as above.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from adderzoo.ops import pack_byte_filters


@dataclass(frozen=True, eq=False)
class Plane:
    """A tensor of bytes in an integer network.

    Attributes:
        name: Of the call in the network that makes it.
        shape: (C, H, W).
        padding: The byte of every channel that stands for 0, or nearly: of the image, whose 0 is the mean color.
        top: The largest byte.
        scale: What a step of a byte stands for; 0 for the image, whose channels differ.
    """

    name: str
    shape: tuple[int, int, int]
    padding: tuple[int, ...]
    top: int = 255
    scale: float = 0.0


@dataclass(frozen=True, eq=False)
class Affine:
    """The way from an accumulator to a byte, or to a logit.

    Attributes:
        multiplier: (O,), int64 that fits into 32 bits, as all numbers here do.
        bias: (O,).
        shift: Bits.
        drop: Bits of the accumulator that are dropped first.
        low: The least byte.
        top: The largest byte; None for logits.
        addend_multiplier: Of the addend.
    """

    multiplier: Tensor
    bias: Tensor
    shift: int
    drop: int = 0
    low: int = 0
    top: int | None = 255
    addend_multiplier: int = 0

    def __call__(self, accumulator: Tensor, addend: Tensor | None = None) -> Tensor:
        """(N, O, H, W) in int64 to the same; with the addend, bytes."""
        y = (accumulator >> self.drop) * self.multiplier[:, None, None] + self.bias[:, None, None]
        _check_32_bits(y)
        if addend is not None:
            y = y + addend.long() * self.addend_multiplier
            _check_32_bits(y)
        return y if self.top is None else (y >> self.shift).clamp(self.low, self.top)


def _check_32_bits(x: Tensor) -> None:
    assert x.numel() == 0 or (int(x.min()) >= -(2**31) and int(x.max()) < 2**31)


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """What makes a tensor of others.

    Attributes:
        output: What it makes.
        inputs: What it reads: its input, and the addend where there is one.
    """

    output: Plane
    inputs: tuple[Plane, ...]

    @abstractmethod
    def __call__(self, *inputs: Tensor) -> Tensor:
        """(N, C, H, W) in uint8 to (N, C', H', W') in uint8, or in int64 for logits."""


@dataclass(frozen=True, eq=False)
class Image(Step):
    """The bytes of the image, or what a table makes of them.

    Attributes:
        table: (C, 256), uint8; None for the bytes themselves.
    """

    table: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.table is None:
            return inputs[0]
        return torch.stack([self.table[c][inputs[0][:, c].long()] for c in range(len(self.table))], 1)


@dataclass(frozen=True, eq=False)
class Layer(Step):
    """An adder layer, a convolution or a fully connected layer, with what follows it.

    Attributes:
        kind: "adder" or "conv".
        weight: (O, C / groups, kH, kW), uint8 for an adder layer, int8 for a convolution.
        affine: The way to bytes.
        stride: Height and width.
        padding: Pixels on the top, left, bottom, right.
        dilation: Height and width.
        groups: Of channels that do not see each other.
    """

    kind: str = "adder"
    weight: Tensor = field(default_factory=lambda: torch.zeros(0))
    affine: Affine = field(default_factory=lambda: Affine(torch.zeros(0), torch.zeros(0), 0))
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def accumulator(self, input: Tensor) -> Tensor:
        """A of all outputs, (N, O, H', W') in int64."""
        top, left, bottom, right = self.padding
        # Channel by channel: an image's differ in what they are padded with.
        padded = torch.stack(
            [
                F.pad(plane, (left, right, top, bottom), value=value)
                for plane, value in zip(input.unbind(1), self.inputs[0].padding, strict=True)
            ],
            1,
        )
        if self.kind == "conv":  # float64 holds these sums exactly
            products = F.conv2d(padded.double(), self.weight.double(), None, self.stride, 0, self.dilation, self.groups)
            return products.long()
        ones = torch.ones(len(self.weight))
        distances = torch.ops.adderzoo.adder2d_u8(  # exact below 2^24, which conversion sees to
            padded.contiguous(memory_format=torch.channels_last),
            pack_byte_filters(self.weight, self.groups),
            ones,
            torch.zeros_like(ones),
            None,
            self.stride,
            (0, 0),
            self.dilation,
            self.groups,
        )
        return distances.long()

    def __call__(self, *inputs: Tensor) -> Tensor:
        y = self.affine(self.accumulator(inputs[0]), *inputs[1:])
        return y if self.affine.top is None else y.to(torch.uint8)


@dataclass(frozen=True, eq=False)
class MaxPool(Step):
    """The greatest byte of every window, of what of it lies in the image.

    Attributes:
        kernel_size: Height and width.
        stride: Height and width.
        padding: Pixels above and left of the image that the first window begins at.
        least: (C,), bool: channels whose least byte is taken.
    """

    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    least: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __call__(self, *inputs: Tensor) -> Tensor:
        (_, height, width), (_, rows, columns) = self.inputs[0].shape, self.output.shape
        flip = torch.where(self.least, 255, 0)[:, None, None]
        x = inputs[0].long() ^ flip
        below = (rows - 1) * self.stride[0] + self.kernel_size[0] - self.padding[0] - height
        beyond = (columns - 1) * self.stride[1] + self.kernel_size[1] - self.padding[1] - width
        x = F.pad(x, (self.padding[1], beyond, self.padding[0], below), value=-1)
        windows = x.unfold(2, self.kernel_size[0], self.stride[0]).unfold(3, self.kernel_size[1], self.stride[1])
        return (windows.amax((4, 5)) ^ flip).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class AveragePool(Step):
    """The mean of every window, of windows that lie in the image.

    Attributes:
        kernel_size: Height and width.
        stride: Height and width.
        affine: Of the window's sum; of all channels the same.
    """

    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    affine: Affine = field(default_factory=lambda: Affine(torch.zeros(0), torch.zeros(0), 0))

    def __call__(self, *inputs: Tensor) -> Tensor:
        x = inputs[0].long()
        windows = x.unfold(2, self.kernel_size[0], self.stride[0]).unfold(3, self.kernel_size[1], self.stride[1])
        return self.affine(windows.sum((4, 5))).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A network of integers, for one image size.

    Attributes:
        steps: In order; the first reads the image, the last makes the logits.
        logit_scale: What a logit of 1 stands for.
    """

    steps: tuple[Step, ...]
    logit_scale: float

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.steps[0].output.shape

    @property
    def num_classes(self) -> int:
        return self.steps[-1].output.shape[0]

    def tensors(self, images: Tensor) -> Iterator[tuple[Step, Tensor]]:
        """What every step makes of images.

        Args:
            images: (N, C, H, W), uint8.

        Raises:
            ValueError: if they are not.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"images must be (N, {', '.join(map(str, self.input_shape))}) of uint8, "
                f"got {tuple(images.shape)} of {images.dtype}"
            )
        made: dict[Plane, Tensor] = {}
        for step in self.steps:
            made[step.output] = step(*(made[plane] for plane in step.inputs) if step.inputs else (images,))
            yield step, made[step.output]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images: (N, C, H, W), uint8: as files have them, without normalization.

        Returns:
            (N, num_classes), int32, in units of `logit_scale`.

        Raises:
            ValueError: if the images are not of the network's size.
        """
        *_, (_, logits) = self.tensors(images)
        return logits.flatten(1).to(torch.int32)
