"""Shift layers, held to DeepShift-PS written out in float64, and the pair of shift and adder layer of ShiftAddNet."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from copies import ways
from torch import Tensor, nn

from adderzoo.layers import Adder2d, ShiftAdd2d, ShiftConv2d
from adderzoo.optim import adaptive_lr

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_weights_are_the_signed_powers_of_two_that_shift_and_sign_say() -> None:
    shift = [-14.0, -3.4, -3.6, -0.6, 0.0, -20.0, 5.0, -2.0, -2.0, -2.0, -2.0]
    sign = [1.0, 0.6, -0.6, -9.0, 1.0, 1.0, -1.0, 0.4, -0.4, 0.0, 1.4]
    expected = [2.0**-14, 2.0**-3, -(2.0**-4), -0.5, 1.0, 2.0**-14, -1.0, 0.0, 0.0, 0.0, 0.25]
    for dtype in DTYPES:
        layer = ShiftConv2d(11, 1, 1, bias=False, dtype=dtype)
        with torch.no_grad():
            layer.shift.copy_(torch.tensor(shift).view_as(layer.shift))
            layer.sign.copy_(torch.tensor(sign).view_as(layer.sign))
        assert layer.weight.dtype == dtype
        assert layer.weight.flatten().tolist() == expected
        pixels = torch.eye(11, dtype=dtype)[:, :, None, None]
        assert layer(pixels).flatten().tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_are_exact_in_long_rows_too(dtype: torch.dtype) -> None:
    """A processor computes many at once by other means than one."""
    layer = ShiftConv2d(150, 10, 3, dtype=dtype)
    mantissas, exponents = torch.frexp(layer.weight[layer.weight != 0].double())
    assert len(mantissas) > 5000
    assert set(mantissas.tolist()) == {0.5, -0.5}
    assert set((exponents - 1).tolist()) == set(range(-14, 1))


def test_gradients_are_those_of_deepshift_ps() -> None:
    """That of the weight for the sign, and times weight * ln 2 for the shift."""
    torch.manual_seed(0)
    layer = ShiftConv2d(3, 4, (3, 2), bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.shift[0] = 3.0  # held at 0, where the gradient passes too
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)

    power, sign = 2.0 ** layer.shift.detach().round().clamp(-14, 0), layer.sign.detach().round().sign()
    weight = power * sign
    assert 0.3 < (weight == 0).double().mean() < 0.7
    patches = F.unfold(x.detach(), (3, 2))
    torch.testing.assert_close(y.detach().flatten(2), torch.einsum("ok,nkl->nol", weight.flatten(1), patches))
    of_weight = torch.einsum("nol,nkl->ok", grad.flatten(2), patches).view_as(weight)
    torch.testing.assert_close(layer.sign.grad, of_weight)
    torch.testing.assert_close(layer.shift.grad, of_weight * weight * math.log(2))
    torch.testing.assert_close(x.grad, F.conv_transpose2d(grad, weight))


@pytest.mark.parametrize("again", [False, True], ids=["new", "reset"])
def test_shifts_and_signs_start_uniform_in_their_ranges_and_the_bias_as_conv2ds(again: bool) -> None:
    torch.manual_seed(0)
    layer = ShiftConv2d(64, 64, 5)
    if again:
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 3.0)
        layer.reset_parameters()
    for parameter, low, high in ((layer.shift, -14, 0), (layer.sign, -1, 1)):
        ranks = (parameter.detach().double().flatten().sort().values - low) / (high - low)
        steps = torch.arange(len(ranks)) / len(ranks)
        assert (ranks - steps).abs().max() < 2 / len(ranks) ** 0.5  # Kolmogorov's distance of a uniform sample
    bound = (64 * 25) ** -0.5
    assert 0.9 * bound < layer.bias.abs().max() <= bound


def test_parameters_are_shift_and_sign_and_no_weight() -> None:
    layer = ShiftConv2d(4, 6, 3, groups=2)
    assert {key: value.shape for key, value in layer.state_dict().items()} == {
        "shift": (6, 2, 3, 3), "sign": (6, 2, 3, 3), "bias": (6,)
    }  # fmt: skip
    before = layer.weight
    with pytest.raises(AttributeError, match="weight is what shift and sign make"):
        layer.weight = nn.Parameter(torch.zeros(6, 2, 3, 3))
    assert torch.equal(layer.weight, before)


GEOMETRIES: dict[str, dict[str, Any]] = {
    "strided": {"stride": 2, "padding": 1},
    "everything": {"padding": "same", "dilation": (1, 2), "groups": 2, "padding_mode": "reflect", "bias": False},
    "uneven": {"kernel_size": (4, 1), "stride": (1, 2), "padding": (2, 0)},
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry_and_padding_are_those_of_conv2d(name: str) -> None:
    torch.manual_seed(0)
    arguments = {"kernel_size": 3, **GEOMETRIES[name]}
    layer, conv = ShiftConv2d(4, 6, **arguments), nn.Conv2d(4, 6, **arguments)
    bias = {} if layer.bias is None else {"bias": layer.bias}
    conv.load_state_dict({"weight": layer.weight, **bias})
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(x), conv(x))
    assert repr(layer) == repr(conv).replace("Conv2d", "ShiftConv2d")


@pytest.mark.parametrize("kind", [ShiftConv2d, ShiftAdd2d])
def test_constructors_are_that_of_conv2d(kind: type[nn.Module]) -> None:
    mine, theirs = (inspect.signature(each).parameters.values() for each in (kind, nn.Conv2d))
    assert [(p.name, p.default, p.kind) for p in mine] == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_shift_add_is_a_shift_layer_and_an_adder_layer_of_the_same_kernel(name: str) -> None:
    torch.manual_seed(0)
    arguments = {"kernel_size": 3, **GEOMETRIES[name]}
    layer, conv = ShiftAdd2d(4, 6, **arguments), nn.Conv2d(4, 6, **arguments)
    x = torch.randn(2, 4, 9, 8)
    output = layer(x)
    assert output.shape == conv(x).shape
    assert layer.adder.kernel_size == layer.shift.kernel_size == conv.kernel_size
    assert layer.shift.stride == conv.stride
    assert (layer.shift.groups, layer.shift.dilation) == (layer.adder.groups, layer.adder.dilation)
    assert layer.shift.bias is None
    assert (layer.adder.bias is None) == (conv.bias is None)

    # The adder layer by its definition, on what a plain convolution of these weights gives.
    conv.load_state_dict(conv.state_dict() | {"weight": layer.shift.weight})
    y = conv(x) if conv.bias is None else conv(x) - conv.bias[:, None, None]
    (kh, kw), (dh, dw) = layer.adder.kernel_size, layer.adder.dilation
    height, width = dh * (kh - 1), dw * (kw - 1)
    mode = "reflect" if conv.padding_mode == "reflect" else "constant"
    y = F.pad(y.double(), (width // 2, width - width // 2, height // 2, height - height // 2), mode=mode)
    groups = conv.groups
    patches = F.unfold(y, (kh, kw), (dh, dw)).unflatten(1, (groups, 1, -1))
    filters = layer.adder.weight.double().flatten(1).unflatten(0, (groups, -1)).unsqueeze(-1)
    expected = -(patches - filters).abs().sum(3).flatten(1, 2).unflatten(-1, output.shape[2:])
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-4)


def test_filters_of_the_pair_are_adder_filters_to_the_optimizer() -> None:
    layer = ShiftAdd2d(4, 6, 3)
    optimizer = adaptive_lr(torch.optim.SGD(layer.parameters(), lr=1.0), eta=0.2)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    layer(torch.randn(2, 4, 9, 8)).square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    optimizer.step()
    for name, parameter in layer.named_parameters():
        step = before[name] - parameter.detach()
        if name == "adder.weight":
            assert step.square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-3)
        else:
            torch.testing.assert_close(step, gradients[name])


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", ways(images))
@pytest.mark.parametrize("kind", [ShiftConv2d, ShiftAdd2d])
def test_other_forms_of_the_layers_give_their_output(kind: Callable[..., nn.Module], way: str) -> None:
    layer = kind(3, 4, 3, padding=1).eval()
    torch.testing.assert_close(ways(images)[way](layer)(images()), layer(images()))


def test_channels_last_and_autocast() -> None:
    layer = ShiftAdd2d(3, 4, 3)
    expected = layer(images())
    last = layer(images().contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(images())
    assert half.dtype == torch.float32  # an adder layer's output, which bfloat16 would not hold
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=0.1)


def test_copies_keep_the_adder_filters_and_the_kinds() -> None:
    layer = ShiftAdd2d(3, 4, 3).to(torch.bfloat16)
    assert isinstance(layer.adder, Adder2d)
    assert layer.adder.weight.is_adder_filter
    assert not hasattr(layer.shift.shift, "is_adder_filter")
    assert layer(images().bfloat16()).dtype == torch.float32
