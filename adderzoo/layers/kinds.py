"""The kinds of layers that a network's argument `conv_layer` names."""

from collections.abc import Callable
from functools import partial

from torch import nn

from .adder import Adder2d
from .binary import BinaryConv2d
from .shift import ShiftAdd2d, ShiftConv2d

_CONV_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "adder": Adder2d,
    "conv": nn.Conv2d,
    "binary": BinaryConv2d,
    "xnor": partial(BinaryConv2d, scale_per_filter=True),
    "shift": ShiftConv2d,
    "shiftadd": ShiftAdd2d,
}


def get_conv_layer(kind: str) -> Callable[..., nn.Module]:
    """The layer that a network's argument `conv_layer` names; it is called with the arguments of `torch.nn.Conv2d`.

    "adder" is :class:`Adder2d`, "conv" :class:`torch.nn.Conv2d`, "binary" :class:`BinaryConv2d` and "xnor" the same
    with a scaling factor for each filter, "shift" :class:`ShiftConv2d`, "shiftadd" :class:`ShiftAdd2d`.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in _CONV_LAYERS:
        raise ValueError(f"conv_layer must be one of {', '.join(map(repr, _CONV_LAYERS))}, got {kind!r}")
    return _CONV_LAYERS[kind]
