"""What the operators for inference share: they refuse gradients, and take several inputs at once under vmap."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._library import LIBRARY
from ._pytorch import below_autograd, forward_mode_is_active, transforms_are_active
from .adder2d import fold_into_batch, register_vmap

# Input, weight, scale, shift and addend are the first arguments of all of them.
_TENSORS = 5


def register_inference(name: str, maker: str) -> None:
    """Registers autograd and vmap of an operator.

    Args:
        name: Of the operator, in the namespace `adderzoo`.
        maker: What made the network that calls it; a message names it.
    """
    operator = getattr(torch.ops.adderzoo, name)

    def refuse(what: str) -> Any:
        raise RuntimeError(
            f"{name}: {what} is not defined, because it is for inference; train the network from which "
            f"{maker} made this one, or run this one under torch.no_grad()"
        )

    LIBRARY.impl(name, _autograd_of(operator, refuse), "Autograd")
    register_vmap(name)(_vmap_of(operator))


def _autograd_of(operator: Any, refuse: Callable[[str], Any]) -> Callable[..., Tensor]:
    def plain(*arguments: Any) -> Tensor:
        with below_autograd():
            return operator.default(*arguments)

    class Inference(torch.autograd.Function):
        """Without it a backward pass would go by with a warning and no gradients."""

        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            output = plain(*arguments)
            if not output.is_floating_point():
                ctx.mark_non_differentiable(output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            refuse("a gradient")

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            refuse("forward-mode differentiation")

    def autograd(*arguments: Any) -> Tensor:
        if transforms_are_active():
            refuse("torch.func's differentiation (grad, vjp, jvp ...)")
        if not forward_mode_is_active() and not any(_requires_grad(argument) for argument in arguments[:_TENSORS]):
            return plain(*arguments)  # apply() costs microseconds, which a small network notices
        return Inference.apply(*arguments)

    return autograd


def _requires_grad(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


def _vmap_of(operator: Any) -> Callable[..., tuple[Tensor, int]]:
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        """Of several inputs. Filters are packed once for all inputs: several sets of them are taken one by one."""
        missing = [None] * (_TENSORS - len(arguments))
        tensors, others = (*arguments[:_TENSORS], *missing), arguments[_TENSORS:]
        dims = (*in_dims[:_TENSORS], *missing)
        input, weight, scale, shift, addend = tensors
        if dims[1:4] == (None, None, None):
            images = fold_into_batch(input, dims[0], info.batch_size)
            addends = None if addend is None else fold_into_batch(addend, dims[4], info.batch_size)
            output = operator(images, weight, scale, shift, addends, *others)
            return output.unflatten(0, (info.batch_size, -1)), 0
        outputs = []
        for index in range(info.batch_size):
            own = [
                t if t is None or dim is None else t.select(dim, index) for t, dim in zip(tensors, dims, strict=True)
            ]
            outputs.append(operator(*own, *others))
        return torch.stack(outputs), 0

    return vmap
