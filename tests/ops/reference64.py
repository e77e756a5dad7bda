"""The operator as the paper writes it, in float64 and without a thought for speed: what every kernel is held to."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Geometry(NamedTuple):
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class _Adder2d64(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, geometry: Geometry, input_grad: str, weight_grad: str
    ) -> Tensor:
        stride, padding, dilation, groups = geometry
        kernel = weight.shape[2:]
        patches = F.unfold(input, kernel, dilation, padding, stride)  # (N, C * kH * kW, L)
        patches = patches.unflatten(1, (groups, 1, -1))  # (N, G, 1, K, L)
        filters = weight.flatten(1).unflatten(0, (groups, -1)).unsqueeze(-1)  # (G, O / G, K, 1)
        difference = patches - filters  # (N, G, O / G, K, L): X - F
        ctx.save_for_backward(difference)
        ctx.input_shape, ctx.weight_shape, ctx.geometry = input.shape, weight.shape, geometry
        ctx.input_grad, ctx.weight_grad = input_grad, weight_grad
        size = [
            (input.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
        ]
        return -difference.abs().sum(3).flatten(1, 2).unflatten(-1, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        g = grad.flatten(2).unflatten(1, (groups, -1)).unsqueeze(3)  # (N, G, O / G, 1, L)

        slope = sign(-difference) if ctx.input_grad == "sign" else (-difference).clamp(-1, 1)
        columns = (g * slope).sum(2).flatten(1, 2)
        grad_input = F.fold(columns, ctx.input_shape[2:], ctx.weight_shape[2:], dilation, padding, stride)

        slope = sign(difference) if ctx.weight_grad == "sign" else difference
        grad_weight = (g * slope).sum((0, 4)).reshape(ctx.weight_shape)
        return grad_input, grad_weight, None, None, None


def sign(difference: Tensor) -> Tensor:
    """NaN stays NaN, which `torch.sign` turns into 0."""
    return difference.sign().masked_fill(difference.isnan(), torch.nan)


def adder2d64(
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    input_grad: str = "hardtanh",
    weight_grad: str = "full",
) -> Tensor:
    geometry = Geometry(stride, padding, dilation, groups)
    return _Adder2d64.apply(input.double(), weight.double(), geometry, input_grad, weight_grad)


def adder2d64_with_gradients(
    input: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, input_grad: str, weight_grad: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the gradient of the input and that of the weight."""
    x, w = (tensor.detach().double().requires_grad_() for tensor in (input, weight))
    y = adder2d64(x, w, *geometry, input_grad, weight_grad)
    return y.detach(), *torch.autograd.grad(y, (x, w), grad.double())


class Magnitude(NamedTuple):
    """What rounding errors are measured by, each with the shape of what it belongs to."""

    output: Tensor  # sum(|x| + |w|)
    input_grad: Tensor  # sum(|g|) * (1 + |x|)
    weight_grad: Tensor  # sum(|g| * (1 + |x| + |w|))


def magnitude(input: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> Magnitude:
    """All three come out of the operator itself: |x| - (-|w|) adds the two, and a slope of 1 adds |g|."""
    x, w, g = (tensor.detach().double().abs() for tensor in (input, weight, grad))
    y = adder2d64(x, -w, *geometry)
    _, _, grad_weight = adder2d64_with_gradients(x, -(1 + w), g, geometry, "hardtanh", "full")
    _, sum_of_g, _ = adder2d64_with_gradients(torch.zeros_like(x), torch.ones_like(w), g, geometry, "sign", "full")
    return Magnitude(-y, sum_of_g * (1 + x), grad_weight)
