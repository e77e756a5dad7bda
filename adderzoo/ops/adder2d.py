"""The adder operator: negative L1 distance between patch and filter, with the gradients that train it."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._library import LIBRARY
from ._pytorch import below_autograd, transforms_are_active, without
from ._schema import fill_defaults, takes_arguments_of
from .checks import accumulation_dtype, check, check_grad, check_modes
from .reference import empty_output, memory_format_like

# Of the operator's dimensions that are mapped and its arguments: the outputs, and their mapped dimension.
_VmapRule = Callable[..., tuple[Tensor, int]]


def adder2d(
    input: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    input_grad: str = "hardtanh",
    weight_grad: str = "full",
) -> Tensor:
    r"""Negative L1 distance between the patches of an image and filters ("AdderNet", CVPR 2020, eq. 2).

    .. math::
        Y_{n,o,p} = -\sum_{c,i,j} |X_{n,\,c,\,p \cdot stride + (i,j) \cdot dilation - padding} - W_{o,c,i,j}|

    A padded pixel is 0 and contributes -\|W\|. The gradients are the paper's, not the derivatives:
    dY/dW = X - W (eq. 5) and dY/dX = hardtanh(W - X) (eq. 6 and 7). The former is computed as a convolution's, on
    NVIDIA GPUs by cuDNN, with X and the gradient of Y rounded to TF32 unless
    `torch.backends.cudnn.conv.fp32_precision` is "ieee". Everything else is in float32 there, whatever the settings.

    In float32 the error of an output of 4608 terms is at most 1e-6 of sum(\|X\| + \|W\|) for random X and W, and 5e-6
    of it for constants and ramps, whose roundings have one sign; of the output, where that is less than a 64th of the
    sum. No output is infinite whose exact value is not.

    Args:
        input: (N, C, H, W) in float32, float64, bfloat16 or float16, in any memory format.
        weight: (O, C / groups, kH, kW), with the dtype and on the device of `input`.
        stride: Of the patches, an integer or (height, width).
        padding: Zeros added on each side, an integer or (height, width).
        dilation: Distance between the taps of a filter, an integer or (height, width).
        groups: Number of groups of channels that do not see each other; `groups=C` is the depthwise form.
        input_grad: "hardtanh" (the paper's) or "sign" of W - X.
        weight_grad: "full" (X - W, the paper's) or "sign" of it (eq. 4).

    Returns:
        (N, O, H', W') with H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1: float64 for float64, otherwise
        float32, under autocast too (outputs lie near -1000 with a spread of a few units, which half precision would
        round away). channels_last if `input` is, else contiguous.

    Raises:
        RuntimeError: if a shape, dtype, device or mode does not fit; the message names the argument.
    """
    return torch.ops.adderzoo.adder2d(
        input, weight, pair(stride), pair(padding), pair(dilation), groups, input_grad, weight_grad
    )


def pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


@torch.library.register_fake("adderzoo::adder2d", lib=LIBRARY)
@takes_arguments_of("adder2d")
def _(
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_grad: str,
    weight_grad: str,
) -> Tensor:
    check_modes(input_grad, weight_grad)
    check(input, weight, stride, padding, dilation, groups)
    return empty_output(
        input, weight.shape[0], weight.shape[2:], stride, padding, dilation, accumulation_dtype(input.dtype)
    )


@torch.library.register_fake("adderzoo::_adder2d_backward_input", lib=LIBRARY)
def _(grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    *geometry, _, input_grad = arguments
    check_modes(input_grad)
    check(input, weight, *arguments[:4])
    check_grad(grad, input, weight, *geometry)
    return torch.empty_like(input, memory_format=memory_format_like(input))


@torch.library.register_fake("adderzoo::_adder2d_backward_weight", lib=LIBRARY)
def _(grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    *geometry, _, weight_grad = fill_defaults("_adder2d_backward_weight", (grad, input, weight, *arguments))[3:]
    check_modes(weight_grad=weight_grad)
    check(input, weight, *arguments[:4])
    check_grad(grad, input, weight, *geometry)
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _not_a_derivative(what: str) -> Any:
    raise RuntimeError(
        f"adder2d: {what} is not defined, because the gradients are the paper's and not a derivative; "
        "use backward() or torch.autograd.grad() without create_graph"
    )


class _Adder2d(torch.autograd.Function):
    """Where `torch.library.register_autograd` serves, a second derivative and a tangent are silently zero."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        _, _, *ctx.geometry, ctx.input_grad, ctx.weight_grad = fill_defaults("adder2d", (input, weight, *arguments))
        ctx.num_arguments = len(arguments)
        ctx.save_for_backward(input, weight)
        with below_autograd():
            return torch.ops.adderzoo.adder2d(input, weight, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        modes = [
            mode if needed else None
            for mode, needed in zip((ctx.input_grad, ctx.weight_grad), ctx.needs_input_grad[:2], strict=True)
        ]
        gradients = _Gradients.apply(grad, *ctx.saved_tensors, ctx.geometry, *modes)
        return *gradients, *[None] * ctx.num_arguments

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _not_a_derivative("forward-mode differentiation")


class _Gradients(torch.autograd.Function):
    """The gradients of input and weight, each with its mode, or None where it is not wanted."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, input: Tensor, weight: Tensor, geometry: Any, input_grad: str | None, weight_grad: str | None
    ) -> tuple[Tensor | None, Tensor | None]:
        of_input = of_weight = None
        if input_grad is not None:
            of_input = torch.ops.adderzoo._adder2d_backward_input(grad, input, weight, *geometry, input_grad)
        if weight_grad == "sign":
            of_weight = torch.ops.adderzoo._adder2d_backward_weight(grad, input, weight, *geometry)
        elif weight_grad == "full":
            of_weight = full_weight_gradient(grad, input, weight, *geometry)
        return of_input, of_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        _not_a_derivative("double backward")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _not_a_derivative("forward-mode differentiation")


def full_weight_gradient(
    grad: Tensor, input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Eq. 5: the sum of g (X - W) is a convolution's weight gradient less W times the sum of g, its bias gradient."""
    if input.device.type == "cpu":
        if groups == weight.shape[0] == input.shape[1]:
            # A convolution's is several times slower (oneDNN).
            return torch.ops.adderzoo._adder2d_backward_weight(
                grad, input, weight, stride, padding, dilation, groups, "full"
            )
        if weight.shape[2:] == (1, 1) and not any(padding):
            # The pixels between are read by none, but slow the convolution down.
            input, stride = input[:, :, :: stride[0], :: stride[1]], [1, 1]
    x, w = input.to(grad.dtype), weight.to(grad.dtype)
    _, of_convolution, of_bias = torch.ops.aten.convolution_backward(
        grad, x, w, [w.shape[0]], stride, padding, dilation, False, [0, 0], groups, [False, True, True]
    )
    return torch.addcmul(of_convolution, w, of_bias[:, None, None, None], value=-1).to(weight.dtype)


def _autograd(*arguments: Any) -> Tensor:
    if transforms_are_active():
        _not_a_derivative("torch.func's differentiation (grad, vjp, jvp ...)")
    return _Adder2d.apply(*arguments)


LIBRARY.impl("adder2d", _autograd, "Autograd")


def _register_autocast(key: str) -> None:
    """Casts like a convolution's: to the region's lower precision, float64 excepted. The output stays float32."""

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(torch.get_autocast_dtype(tensor.device.type)) if eligible else tensor

    def kernel(input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        with without(key):
            return torch.ops.adderzoo.adder2d(cast(input), cast(weight), *arguments)

    LIBRARY.impl("adder2d", kernel, key)


for _key in ("AutocastCPU", "AutocastCUDA", "AutocastXPU", "AutocastMPS", "AutocastPrivateUse1"):
    _register_autocast(_key)


def fold_into_batch(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """(N, ...) with a mapped dimension, or without one, to (B * N, ...)."""
    mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return mapped.flatten(0, 1)


def register_vmap(name: str) -> Callable[[_VmapRule], _VmapRule]:
    """Registers the rule of an operator for some examples; that for none is the same for all operators."""
    operator = getattr(torch.ops.adderzoo, name)

    def register(rule: _VmapRule) -> _VmapRule:
        def of_any(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
            if info.batch_size:
                return rule(info, in_dims, *arguments)
            # No outputs, of the shape that one would have.
            output = operator(
                *(
                    value.new_zeros(value.movedim(dim, 0).shape[1:]) if isinstance(dim, int) else value
                    for value, dim in itertools.zip_longest(arguments, in_dims)
                )
            )
            return output.new_empty((0, *output.shape)), 0

        torch.library.register_vmap(f"adderzoo::{name}", of_any, lib=LIBRARY)
        return rule

    return register


def _fold_into_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """(N, C, H, W) with a mapped dimension, or without one, to (N, B * C, H, W)."""
    mapped = tensor.unsqueeze(1).expand(-1, size, -1, -1, -1) if dim is None else tensor.movedim(dim, 1)
    return mapped.flatten(1, 2)


@register_vmap("adder2d")
def _(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    input, weight, stride, padding, dilation, groups, *modes = fill_defaults("adder2d", arguments)
    size = info.batch_size
    if in_dims[1] is None:
        folded = fold_into_batch(input, in_dims[0], size)
        output = torch.ops.adderzoo.adder2d(folded, weight, stride, padding, dilation, groups, *modes)
        return output.unflatten(0, (size, -1)), 0
    # Every example has filters of its own: one more kind of groups.
    folded, filters = _fold_into_channels(input, in_dims[0], size), fold_into_batch(weight, in_dims[1], size)
    output = torch.ops.adderzoo.adder2d(folded, filters, stride, padding, dilation, size * groups, *modes)
    return output.unflatten(1, (size, -1)), 1


@register_vmap("_adder2d_backward_input")
def _(
    info: Any, in_dims: tuple[Any, ...], grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, int]:
    *geometry, groups, mode = arguments
    size = info.batch_size
    if in_dims[2] is None:
        grad, input = fold_into_batch(grad, in_dims[0], size), fold_into_batch(input, in_dims[1], size)
        output = torch.ops.adderzoo._adder2d_backward_input(grad, input, weight, *geometry, groups, mode)
        return output.unflatten(0, (size, -1)), 0
    grad, input = _fold_into_channels(grad, in_dims[0], size), _fold_into_channels(input, in_dims[1], size)
    filters = fold_into_batch(weight, in_dims[2], size)
    output = torch.ops.adderzoo._adder2d_backward_input(grad, input, filters, *geometry, size * groups, mode)
    return output.unflatten(1, (size, -1)), 1


@register_vmap("_adder2d_backward_weight")
def _(
    info: Any, in_dims: tuple[Any, ...], grad: Tensor, input: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, int]:
    *geometry, groups, mode = fill_defaults("_adder2d_backward_weight", (grad, input, weight, *arguments))[3:]
    size = info.batch_size
    grad, input = _fold_into_channels(grad, in_dims[0], size), _fold_into_channels(input, in_dims[1], size)
    filters = fold_into_batch(weight, in_dims[2], size)
    output = torch.ops.adderzoo._adder2d_backward_weight(grad, input, filters, *geometry, size * groups, mode)
    return output.unflatten(0, (size, -1)), 0


@register_flop_formula(torch.ops.adderzoo.adder2d)
def _(input_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Two additions an element, where a convolution has a multiplication and an addition: the same count."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


@register_flop_formula([torch.ops.adderzoo._adder2d_backward_input, torch.ops.adderzoo._adder2d_backward_weight])
def _(grad_shape: Any, input_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(grad_shape) * math.prod(weight_shape[1:])
