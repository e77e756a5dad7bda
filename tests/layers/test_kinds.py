"""The names of kinds of layers."""

import pytest
from torch import nn

from adderzoo.layers import Adder2d, BinaryConv2d, ShiftAdd2d, ShiftConv2d, get_conv_layer


def test_kinds_of_layers_are_named_and_others_refused() -> None:
    expected = {
        "adder": Adder2d,
        "conv": nn.Conv2d,
        "binary": BinaryConv2d,
        "shift": ShiftConv2d,
        "shiftadd": ShiftAdd2d,
    }
    assert {kind: type(get_conv_layer(kind)(4, 6, 3)) for kind in expected} == expected
    xnor = get_conv_layer("xnor")(4, 6, 3)
    assert isinstance(xnor, BinaryConv2d)
    assert xnor.scale_per_filter
    assert not get_conv_layer("binary")(4, 6, 3).scale_per_filter
    with pytest.raises(ValueError, match=r"^conv_layer must be one of 'adder', 'conv', 'binary', .*, got 'ternary'$"):
        get_conv_layer("ternary")
