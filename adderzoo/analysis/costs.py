"""What a network costs for one image, layer by layer: operations, energy, latency, size."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from adderzoo.analysis.energy import PICOJOULES, Operations
from adderzoo.layers import (
    AdderAffine2d,
    AdderAffineLinear,
    BinaryConv2d,
    QuantizedAdder2d,
    QuantizedAdderLinear,
    ShiftConv2d,
)
from adderzoo.layers.quantized import QuantizedConv2d, QuantizedLinear

# What takes the place of a product w * x and its addition to a sum, by the kind of layer.
_INSTEAD = {
    "conv": Operations(mul=1, add=1),
    "adder": Operations(add=2),  # a subtraction, and the absolute value added
    "binary": Operations(xnor=1, add=1),
    "shift": Operations(shift=1, add=1),
}

# The kinds of layers that compute in float what stands for something else.
_SIMULATIONS = {BinaryConv2d: "binary", ShiftConv2d: "shift"}

# Bits of a filter's parameter in a network for integer inference, where they are not 8. Five are two parameters of a
# shift layer, shift and sign.
_BITS: Mapping[str, float] = {"binary": 1, "shift": 2.5}

# Scale and shift of a value, as of BatchNorm.
_SCALE_AND_SHIFT = Operations(mul=1, add=1)


@dataclass(frozen=True)
class Layer:
    """A module that computes something itself, not by other modules, or has parameters of its own.

    Attributes:
        name: As `model.get_submodule` takes it.
        type: Its class.
        products: How often it multiplies and adds up, or does what takes the place of that, by kind: "conv" for
            convolutions, linear layers and other products of matrices, "adder", "binary", "shift".
        scaled: How many values it scales and shifts, one by one: BatchNorm's, and the outputs of fused adder layers.
        parameters: Numbers that were trained.
        weights: How many of these are a filter's or a matrix's, and not a bias, scale or shift.
    """

    name: str
    type: str
    products: Mapping[str, int]
    scaled: int
    parameters: int
    weights: int

    @property
    def kind(self) -> str:
        """Of most of its products; "" if it has none."""
        return max(self.products, key=lambda kind: self.products[kind], default="")

    @property
    def operations(self) -> Operations:
        """All that it does."""
        return sum((_INSTEAD[kind] * count for kind, count in self.products.items()), _SCALE_AND_SHIFT * self.scaled)

    def size(self, type: str = "float32") -> int:
        """Bytes of its parameters, without the statistics of a BatchNorm.

        Args:
            type: Of all numbers, "float32", or "int8": of filters and matrices, all others staying in float32, as
                :func:`adderzoo.inference.quantization.quantize` has it. Weights of binary layers are one bit then, of
                shift layers five.

        Raises:
            ValueError: if it is neither.
        """
        if type not in PICOJOULES:
            raise ValueError(f"type must be one of {', '.join(PICOJOULES)}, got {type!r}")
        bits = 32 if type == "float32" else _BITS.get(self.kind, 8)
        return 4 * (self.parameters - self.weights) + math.ceil(self.weights * bits / 8)


@dataclass(frozen=True)
class Profile:
    """What a network costs for one image.

    Attributes:
        input_size: Of the image, (C, H, W).
        layers: In the order in which the network registers them.
    """

    input_size: tuple[int, ...]
    layers: tuple[Layer, ...]

    @property
    def operations(self) -> Operations:
        """Of all layers."""
        return sum((layer.operations for layer in self.layers), Operations())

    def products(self, kind: str) -> int:
        """Those of one kind, of all layers, see :class:`Layer`."""
        return sum(layer.products.get(kind, 0) for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Of all layers."""
        return sum(layer.parameters for layer in self.layers)

    def size(self, type: str = "float32") -> int:
        """Bytes of the parameters of all layers, see :meth:`Layer.size`."""
        return sum(layer.size(type) for layer in self.layers)


def profile(model: nn.Module, input_size: tuple[int, ...]) -> Profile:
    """What a network costs for one image, in evaluation mode.

    Products are counted by :class:`torch.utils.flop_counter.FlopCounterMode`, in modules and functions alike: those of
    convolutions, linear layers, attention and adder layers. A sum of K products is K additions, the first of them that
    of a bias. The zeros that a transposed adder layer puts between pixels are counted like pixels.

    BatchNorm, LayerNorm and GroupNorm are a multiplication and an addition for each value: where layers only add, these
    are the multiplications that are left. A network that :func:`adderzoo.fuse` has made has none behind its
    convolutions, and those behind adder layers as part of these. Activations, pooling, the additions of shortcuts and
    what a LayerNorm does to find mean and variance are not counted.

    Nothing is computed, and the network stays as it is: it runs on the meta device.

    Args:
        model: Any network that takes one tensor of images.
        input_size: Of an image, (C, H, W).

    Raises:
        ValueError: if a size is less than 1, or the network does not run on such an image.
    """
    if not input_size or min(input_size) < 1:
        raise ValueError(f"input_size must be of sizes of at least 1, got {tuple(input_size)}")
    counts = _count(model, input_size)
    layers: list[Layer] = []
    known: set[int] = set()  # parameters that several layers share are the first one's
    for name, module in model.named_modules():
        here = counts.get(module, Counter())
        for simulation, kind in _SIMULATIONS.items():
            if isinstance(module, simulation):
                here[kind] = here.pop("conv", 0)
        products = {kind: here[kind] for kind in _INSTEAD if here[kind]}
        own = {id(each): each for each in module.parameters(recurse=False) if id(each) not in known}
        known |= own.keys()
        weights = sum(each.numel() for each in own.values() if each.dim() > 1)
        parameters = sum(each.numel() for each in own.values())
        if isinstance(module, _IN_BUFFERS):
            weights, parameters = _of_buffers(module, here)
        if products or here["scaled"] or parameters:
            layers.append(Layer(name, type(module).__name__, products, here["scaled"], parameters, weights))
    return Profile(tuple(input_size), tuple(layers))


# Of trained layers for inference: their numbers are buffers.
_INT8 = (QuantizedConv2d, QuantizedLinear)
_PACKED = (AdderAffine2d, AdderAffineLinear, QuantizedAdder2d, QuantizedAdderLinear)
_IN_BUFFERS = (*_INT8, *_PACKED)


def _of_buffers(module: nn.Module, counts: Mapping[str, int]) -> tuple[int, int]:
    """(of filters, of all) numbers of a layer for inference."""
    buffers = {name: buffer.numel() for name, buffer in module.named_buffers(recurse=False)}
    if isinstance(module, _PACKED) and counts["scaled"]:  # filters are packed with padding
        buffers["weight"] = counts["adder"] // counts["scaled"] * buffers["scale"]
    return buffers["weight"], sum(buffers.values())


# --------------------------------------------------------------------------------------------------------- counting


_OPERATORS = torch.ops.adderzoo
_ADDERS = (_OPERATORS.adder2d, _OPERATORS.adder2d_affine, _OPERATORS.adder2d_u8)


def _values(*_: Any, out_shape: Any, **__: Any) -> int:
    """Of the output of an operator, which may have statistics behind it."""
    return math.prod(out_shape if isinstance(out_shape, torch.Size) else out_shape[0])


# What scales and shifts each value. PyTorch 2.11 counts what native_batch_norm is made of.
_SCALING = dict.fromkeys(
    (
        _OPERATORS.adder2d_affine,
        _OPERATORS.adder2d_u8,
        torch.ops.aten.native_batch_norm,
        torch.ops.aten._native_batch_norm_legit,
        torch.ops.aten._native_batch_norm_legit_no_training,
        torch.ops.aten.native_group_norm,
        torch.ops.aten.native_layer_norm,
    ),
    _values,
)


def _count(model: nn.Module, input_size: tuple[int, ...]) -> dict[nn.Module, Counter[str]]:
    """Products by kind, and values that are scaled, of each module without those in it."""
    tensors = {
        name: tensor.detach().to("meta")
        for part in (model.named_parameters, model.named_buffers)
        for name, tensor in part()
    }
    image = torch.empty(1, *input_size, device="meta")
    with ExitStack() as stack:
        stack.enter_context(_evaluation(model))
        stack.enter_context(torch.no_grad())
        products = stack.enter_context(FlopCounterMode(display=False))
        scaled = stack.enter_context(FlopCounterMode(display=False, custom_mapping=_SCALING))

        def seen() -> Counter[str]:
            """All that has been counted so far."""
            so_far: Counter[str] = Counter()
            for packet, flops in products.get_flop_counts().get("Global", {}).items():
                so_far["adder" if packet in _ADDERS else "conv"] += flops // 2
            for packet, values in scaled.get_flop_counts().get("Global", {}).items():
                so_far["scaled"] += values if packet in _SCALING else 0
            return so_far

        counts = stack.enter_context(_by_module(model, seen))
        try:
            functional_call(model, tensors, (image,))
        except Exception as error:  # the network's own code may raise any
            size = "x".join(map(str, input_size))
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"model must take one image of {size} on the meta device: {reason}") from error
    return counts


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """The network in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _by_module(model: nn.Module, seen: Callable[[], Counter[str]]) -> Iterator[dict[nn.Module, Counter[str]]]:
    """What is counted while a module runs, and none of those in it.

    Args:
        model: The network.
        seen: All that has been counted so far.
    """
    counts: dict[nn.Module, Counter[str]] = {}
    running: list[nn.Module] = []
    before: Counter[str] = Counter()

    def assign() -> None:
        nonlocal before
        now = seen()
        if running:
            counts.setdefault(running[-1], Counter()).update(now - before)
        before = now

    def enter(module: nn.Module, _: Any) -> None:
        assign()
        running.append(module)

    def leave(module: nn.Module, _: Any, __: Tensor) -> None:
        assign()
        running.pop()

    handles = [module.register_forward_pre_hook(enter) for module in model.modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
