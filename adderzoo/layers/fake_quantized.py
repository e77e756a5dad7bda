"""Layers of the float simulation of a quantized network: they observe ranges, and then train with what bytes can hold.

:func:`adderzoo.inference.quantization.calibrate` puts them into a network.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._input import rows
from .adder import Adder2d, AdderLinear
from .modules import TensorModule
from .quantized import Quantizer, int8_weight, of_filters
from .replace import Adder2dSame

# Of the histogram of a tensor's values: a quantile is exact to a four-thousandth of the range, or better.
_BINS = 8192


class Observer:
    """The range of a tensor's values, over all batches: from the least to the greatest, or between two quantiles.

    Quantiles come from a histogram of at most 8192 bins, whose width is a power of two and doubles as the range grows.

    Args:
        quantile: Of the upper end; 1 minus it is that of the lower one. 1 is the greatest value.
    """

    def __init__(self, quantile: float = 1.0) -> None:
        self.quantile = quantile
        self.low, self.high = math.inf, -math.inf
        self.exponent, self.first, self.counts = -100, 0, torch.zeros(0, dtype=torch.long)

    def update(self, x: Tensor) -> None:
        """Takes the values of a tensor into account.

        Raises:
            ValueError: if one of them is not finite.
        """
        if not x.numel():
            return
        low, high = (float(value) for value in torch.aminmax(x.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"values must be finite, got some from {low} to {high}")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.quantile < 1:
            self._widen()
            bins = (x.detach().double() * 2.0**-self.exponent).floor_().long().flatten().cpu()
            self._grow(int(bins.min()), int(bins.max()))
            self.counts += torch.bincount(bins - self.first, minlength=len(self.counts))

    def _widen(self) -> None:
        """Bins so wide that the range fits."""
        needed = max(self.high - self.low, 2.0**-12 * max(abs(self.low), abs(self.high))) / (_BINS - 2)
        wider = max(0, math.ceil(math.log2(needed)) - self.exponent) if needed > 0 else 0
        self.exponent += wider
        wider = min(wider, 62)
        bins = (torch.arange(len(self.counts)) + self.first) >> wider
        self.first >>= wider
        if len(bins):
            counts = torch.zeros(int(bins[-1]) - self.first + 1, dtype=torch.long)
            self.counts = counts.index_add_(0, bins - self.first, self.counts)

    def _grow(self, first: int, last: int) -> None:
        """Bins up to these two."""
        if not len(self.counts):
            self.first = first
        before, after = max(self.first - first, 0), max(last - self.first - len(self.counts) + 1, 0)
        self.counts = F.pad(self.counts, (before, after))
        self.first -= before

    @property
    def range(self) -> tuple[float, float]:
        """Its ends.

        Raises:
            ValueError: if there were no values.
        """
        if self.low > self.high:
            raise ValueError("there were no values")
        if self.quantile == 1:
            return self.low, self.high
        ranks = self.counts.cumsum(0)
        last = int(ranks[-1]) - 1
        below, above = (int((ranks <= last * share).sum()) for share in (1 - self.quantile, self.quantile))
        width = 2.0**self.exponent
        return max(self.low, (self.first + below) * width), min(self.high, (self.first + above + 1) * width)


class FakeQuantize(TensorModule):
    """A tensor as bytes would hold it, in float; as it is while its range is observed.

    The gradient passes straight through where the range holds the input, and is zero elsewhere.

    Shape: any, to the same.

    Args:
        name: Of the tensor, in messages.
        bits: Of its bytes.
        quantile: Of the range, see :class:`Observer`.

    Attributes:
        quantizer: What the bytes stand for; None while observing.
    """

    def __init__(self, name: str, bits: int, quantile: float = 1.0) -> None:
        super().__init__()
        self.name, self.bits = name, bits
        self.observer = Observer(quantile)
        self.quantizer: Quantizer | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.quantizer is None:
            try:
                self.observer.update(input)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error
            return input
        return self.quantized(input.float())

    def quantized(self, x: Tensor) -> Tensor:
        """What the nearest bytes stand for."""
        q = self.quantizer
        assert q is not None
        return torch.fake_quantize_per_tensor_affine(x, q.scale, q.zero_point, 0, q.top)

    def fix(self) -> None:
        """The end of observing: the range is what was observed.

        Raises:
            ValueError: if there was nothing to observe.
        """
        try:
            low, high = self.observer.range
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.quantizer = Quantizer.of_range(low, high, self.bits)

    def extra_repr(self) -> str:
        return f"{self.name}, bits={self.bits}, quantizer={self.quantizer}"


class FakeQuantizedAdder2d(Adder2d):
    """An adder layer whose filters are as bytes with the scale of its input would hold them.

    For x in a range, |x - w| = |x - clip(w)| + |w - clip(w)|: filters are clipped to the range of the input, and the
    second term is a constant of the filter. The gradients are the paper's at the rounded input and the filters
    themselves: X - F, and hardtanh(F - X) ("AdderNet", CVPR 2020, eq. 5 and 7). Those at the clipped filters would
    vanish where an input lies at the end of its range.

    :func:`fake_quantized` makes it, with the parameters of another layer.

    Attributes:
        quantize: Of the input.
    """

    quantize: FakeQuantize

    def _adder_forward(self, input: Tensor) -> Tensor:
        geometry = self.stride, self.operator_padding, self.dilation, self.groups
        if not torch.is_grad_enabled() and self.quantize.quantizer is not None:
            return _rounded(input, self.weight, self.bias, self.quantize, *geometry)
        output = super()._adder_forward(input)
        if self.quantize.quantizer is None:
            return output
        with torch.no_grad():
            difference = _rounded(input, self.weight, self.bias, self.quantize, *geometry) - output
        return output + difference


class FakeQuantizedAdder2dSame(FakeQuantizedAdder2d, Adder2dSame):
    """The same of a layer that pads for each input as TensorFlow does."""


class FakeQuantizedAdderLinear(AdderLinear):
    """The same of a fully connected adder layer."""

    quantize: FakeQuantize

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        if self.quantize.quantizer is None:
            return output
        with torch.no_grad():
            pixels, filters = rows(input, self.in_features), self.weight[:, :, None, None]
            difference = _rounded(pixels, filters, self.bias, self.quantize).reshape(output.shape) - output
        return output + difference


def _rounded(input: Tensor, weight: Tensor, bias: Tensor | None, quantize: FakeQuantize, *geometry: Any) -> Tensor:
    """The adder layer with filters that bytes hold. It adds up steps of the bytes, which float32 does exactly."""
    quantizer = quantize.quantizer
    assert quantizer is not None
    filters = quantize.quantized(weight.float())
    beyond = quantizer.beyond(weight)
    steps = [(tensor / quantizer.scale).round_() for tensor in (input, filters)]
    shift = -beyond if bias is None else bias - beyond
    return torch.ops.adderzoo.adder2d(*steps, *geometry) * quantizer.scale + shift[:, None, None]


def _fake_int8(weight: Tensor) -> Tensor:
    """What a weight in int8 stands for; the gradient passes straight through."""
    with torch.no_grad():
        steps, scale = int8_weight(weight)
        rounding = steps * of_filters(scale, weight) - weight
    return weight + rounding


class FakeQuantizedConv2d(nn.Conv2d):
    """A convolution whose weight is as int8 would hold it: a classifier."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, _fake_int8(weight), bias)


class FakeQuantizedLinear(nn.Linear):
    """The same of a fully connected layer."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, _fake_int8(self.weight), self.bias)


# The layers of the simulation for those of the network.
FAKE: dict[type[nn.Module], type[nn.Module]] = {
    Adder2d: FakeQuantizedAdder2d,
    Adder2dSame: FakeQuantizedAdder2dSame,
    AdderLinear: FakeQuantizedAdderLinear,
    nn.Conv2d: FakeQuantizedConv2d,
    nn.Linear: FakeQuantizedLinear,
}


def fake_quantized(layer: nn.Module, quantize: FakeQuantize | None = None) -> nn.Module:
    """A layer of the simulation, which shares its parameters with `layer`.

    Args:
        layer: An adder layer; or a convolution or a fully connected layer, whose weight will be int8.
        quantize: Of the input of an adder layer.
    """
    fake = copy.copy(layer)
    fake.__class__ = FAKE[type(layer)]
    if quantize is not None:
        fake.__dict__["quantize"] = quantize  # no module of the layer's own: the network has it by another name
    return fake
