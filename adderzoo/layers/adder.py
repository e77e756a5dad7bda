"""Adder layers: modules that call the operator."""

from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adderzoo.ops._pytorch import ConvNd

from ._input import batched, rows, unbatched
from .modules import TensorModule

torch.fx.wrap("batched")  # what they do depends on sizes: nodes of a traced graph
torch.fx.wrap("rows")
torch.fx.wrap("unbatched")


class _AdderFilter(TensorModule):
    """Marks the parameter `weight` as an adder filter, by which `adderzoo.optim` knows it.

    Where other parameters make the weight (pruning, weight and spectral normalization), these are marked: their
    gradients are as small as its own.

    The mark is an attribute of the Parameter, and these are the places where a module gets another Parameter, or where
    somebody looks for its parameters: FSDP and parametrizations put theirs into a module without a word.
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)  # type: ignore[arg-type]
        if self.bias is not None:
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._mark()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._mark()
        return self

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        self._mark()
        return super().named_modules(*args, **kwargs)

    def _mark(self) -> None:
        filters = [each for name, each in self._parameters.items() if name.startswith("weight")]
        if parametrize.is_parametrized(self, "weight"):
            filters += self.parametrizations.weight.parameters(recurse=False)  # type: ignore[union-attr]
        for parameter in filters:
            if parameter is not None:
                parameter.is_adder_filter = True  # type: ignore[attr-defined]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the filters by the name that they have in the AdderNet authors' checkpoints, `adder`, too."""
        if f"{prefix}adder" in state_dict and f"{prefix}weight" not in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}adder")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Adder2d(_AdderFilter, ConvNd):
    """Two-dimensional adder layer ("AdderNet", CVPR 2020, eq. 2): :class:`torch.nn.Conv2d`, with L1 distances.

    It takes the arguments of :class:`torch.nn.Conv2d` and can stand wherever one does. The output is never positive and
    has a large negative mean, so a BatchNorm has to follow for a network to train. `weight` starts from N(0, 1) as in
    the paper, `bias` from zero. State dicts may have the filters as `adder`, as the authors' do.

    In half precision the output is still float32, because half precision cannot hold its deviations from that mean. Use
    autocast, or for a network of half-precision parameters :class:`adderzoo.layers.BatchNorm2d` behind the layer, which
    returns to the network's type; torch.nn.BatchNorm2d refuses the mixture.

    Shape: (N, in_channels, H, W) to (N, out_channels, H', W'), of at least float32 (see
    :func:`adderzoo.ops.adder2d`); or without N.

    Args:
        in_channels: Channels of the input.
        out_channels: Number of filters.
        kernel_size: Of the filters, an integer or (height, width).
        stride: Of the patches, an integer or (height, width).
        padding: Zeros added on each side, an integer, (height, width), "valid" or "same".
        dilation: Distance between the taps of a filter, an integer or (height, width).
        groups: Number of groups of channels that do not see each other.
        bias: Whether to add a learned bias to the output.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: Of the parameters.
        dtype: Of the parameters.
        input_grad: Gradient with respect to the input: "hardtanh" (the paper's) or "sign".
        weight_grad: Gradient with respect to the filters: "full" (the paper's) or "sign".

    Raises:
        ValueError: if an argument is none of what it takes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_grad: str = "hardtanh",
        weight_grad: str = "full",
    ) -> None:
        _check_sizes(in_channels=in_channels, out_channels=out_channels)
        _check_choice("input_grad", input_grad, ("hardtanh", "sign"))
        _check_choice("weight_grad", weight_grad, ("full", "sign"))
        super().__init__(
            in_channels,
            out_channels,
            _pair("kernel_size", kernel_size),
            _pair("stride", stride),
            padding if isinstance(padding, str) else _pair("padding", padding, 0),
            _pair("dilation", dilation),
            False,
            (0, 0),
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self.input_grad = input_grad
        self.weight_grad = weight_grad
        self.sides = self._reversed_padding_repeated_twice
        left, right, top, bottom = self.sides
        # What the operator cannot pad, unequal sides ("same" with an even kernel) and other modes, is padded before it.
        self.pad_first = padding_mode != "zeros" or left != right or top != bottom
        self.operator_padding = (0, 0) if self.pad_first else (top, left)

    def forward(self, input: Tensor) -> Tensor:
        batch = self._pad(batched(input, self.in_channels))
        return unbatched(self._adder_forward(batch), input)

    def _pad(self, batch: Tensor) -> Tensor:
        if not self.pad_first:
            return batch
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(batch, self.sides, mode=mode)

    def _adder_forward(self, input: Tensor) -> Tensor:
        """The layer behind its padding."""
        output = torch.ops.adderzoo.adder2d(
            input,
            self.weight,
            self.stride,
            self.operator_padding,
            self.dilation,
            self.groups,
            self.input_grad,
            self.weight_grad,
        )
        bias = self.bias
        if bias is not None:
            output = output + bias[:, None, None]
        return output

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.input_grad != "hardtanh":
            text += f", input_grad={self.input_grad}"
        if self.weight_grad != "full":
            text += f", weight_grad={self.weight_grad}"
        return text


class AdderLinear(_AdderFilter):
    """Fully connected adder layer: :class:`torch.nn.Linear`, with L1 distances (eq. 2 with a filter of one pixel).

    Shape: (..., in_features) to (..., out_features), of at least float32.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Number of filters.
        bias: Whether to add a learned bias to the output.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: if `in_features` or `out_features` is less than 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_sizes(in_features=in_features, out_features=out_features)
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty((out_features, in_features), device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        output = torch.ops.adderzoo.adder2d(rows(input, self.in_features), self.weight[:, :, None, None])
        output = output.reshape(input.shape[:-1] + (self.out_features,))  # noqa: RUF005 - TorchScript
        bias = self.bias
        if bias is not None:
            output = output + bias
        return output

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _pair(name: str, value: int | tuple[int, int], least: int = 1) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not (
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and all(isinstance(each, int) and each >= least for each in pair)
    ):
        raise ValueError(f"{name} must be one or two integers of at least {least}, got {value!r}")
    return pair[0], pair[1]


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
