"""Binary layers, held to the equations of DoReFa-Net and XNOR-Net, written out in float64."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from copies import ways
from torch import Tensor, nn

from adderzoo.layers import BinaryConv2d

pytestmark = pytest.mark.usefixtures("one_thread")


class DoReFaConv64(torch.autograd.Function):
    """A pixel, a tap and a filter at a time: forward and backward as the papers give them, by hand."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, per_filter: bool) -> Tensor:
        bits = (input > 0.5).double()
        signs = 2 * (weight >= 0).double() - 1
        means = weight.abs().flatten(1).mean(1)[:, None] if per_filter else weight.abs().mean()
        binary = (signs.flatten(1) * means).view_as(weight)
        ctx.save_for_backward(input, bits, binary)
        return F.conv2d(bits, binary)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        input, bits, binary = ctx.saved_tensors
        of_bits = F.conv_transpose2d(grad, binary)  # the adjoint of a convolution of stride 1 without padding
        patches = F.unfold(bits, binary.shape[2:])
        of_binary = torch.einsum("nol,nkl->ok", grad.flatten(2), patches).view_as(binary)
        bounded = ((input > 0) & (input < 1)).double()  # the derivative of clip(x, 0, 1)
        return of_bits * bounded, of_binary, None  # sign and E|w| are passed straight through


def sample(per_filter: bool = False) -> tuple[BinaryConv2d, Tensor]:
    """A layer in float64 and an input inside and outside of [0, 1], with filters of different size."""
    torch.manual_seed(0)
    layer = BinaryConv2d(3, 4, (3, 2), bias=False, dtype=torch.float64, scale_per_filter=per_filter)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([1.0, 3.0, 0.1, 7.0], dtype=torch.float64)[:, None, None, None])
    return layer, torch.randn(2, 3, 6, 5, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("per_filter", [False, True])
def test_values_and_gradients_are_the_papers(per_filter: bool) -> None:
    layer, x = sample(per_filter)
    assert ((x < 0) | (x > 1)).any()
    assert ((x > 0) & (x < 1)).any()
    results = []
    for forward in (layer, lambda x: DoReFaConv64.apply(x, layer.weight, per_filter)):
        x, layer.weight.grad = x.detach().requires_grad_(), None
        y = forward(x)
        y.backward(torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        results.append((y.detach(), x.grad, layer.weight.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_have_two_values_and_activations_are_zero_and_one_to_the_bit(dtype: torch.dtype) -> None:
    """Seen through a 1x1 layer: one pixel of 1 shows a weight, a weight of 1 shows an activation."""
    layer = BinaryConv2d(8, 5, 1, bias=False, dtype=dtype)
    columns = layer(torch.eye(8, dtype=dtype)[:, :, None, None])[:, :, 0, 0].T  # (O, C)
    assert torch.equal(columns.abs(), layer.weight.abs().mean().expand(5, 8))
    assert torch.equal(columns > 0, layer.weight[:, :, 0, 0] > 0)

    layer = BinaryConv2d(1, 1, 1, bias=False, dtype=dtype)
    nn.init.ones_(layer.weight)
    x = torch.tensor([-torch.inf, -3, -0.1, 0, 0.25, 0.4, 0.6, 0.75, 1, 1.4, 9, torch.inf], dtype=dtype)
    assert layer(x.view(1, 1, 1, -1)).flatten().tolist() == [0.0] * 6 + [1.0] * 6


def test_scaling_factors_are_of_the_layer_or_of_each_filter() -> None:
    x = torch.ones(1, 2, 1, 1)
    weight = torch.tensor([[1.0, 3.0], [-2.0, 0.0]])[:, :, None, None]
    for per_filter, expected in ((False, [3.0, 0.0]), (True, [4.0, 0.0])):  # the sign of zero is 1
        layer = BinaryConv2d(2, 2, 1, bias=False, scale_per_filter=per_filter)
        layer.load_state_dict({"weight": weight})
        assert layer(x).flatten().tolist() == expected


def test_a_weight_that_crosses_zero_changes_its_sign() -> None:
    """A step of gradient descent on the weight itself, however far its binary value is."""
    layer = BinaryConv2d(1, 1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.25)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(torch.ones(1, 1, 1, 1)).sum().backward()
    optimizer.step()
    assert layer.weight.item() == -0.25
    assert layer(torch.ones(1, 1, 1, 1)).item() == -0.25


@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": 2, "padding": 1, "bias": True},
        {"padding": "same", "dilation": (1, 2), "groups": 2, "padding_mode": "reflect"},
    ],
    ids=["strided", "everything"],
)
def test_geometry_bias_and_padding_are_those_of_conv2d(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, conv = BinaryConv2d(4, 6, 3, **arguments), nn.Conv2d(4, 6, 3, **arguments)
    state = layer.state_dict()
    scale = state["weight"].abs().mean()
    conv.load_state_dict(state | {"weight": torch.where(state["weight"] >= 0, scale, -scale)})
    x = torch.rand(2, 4, 9, 8)
    torch.testing.assert_close(layer(x), conv((x > 0.5).float()))
    assert repr(layer) == "Binary" + repr(conv)


def test_constructor_is_that_of_conv2d_and_one_option_by_name_only() -> None:
    mine = list(inspect.signature(BinaryConv2d).parameters.values())
    theirs = list(inspect.signature(nn.Conv2d).parameters.values())
    assert [(p.name, p.default, p.kind) for p in mine[:-1]] == [(p.name, p.default, p.kind) for p in theirs]
    assert (mine[-1].name, mine[-1].kind) == ("scale_per_filter", inspect.Parameter.KEYWORD_ONLY)
    assert repr(BinaryConv2d(2, 3, 1, scale_per_filter=True)).endswith(", scale_per_filter=True)")


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", ways(images))
def test_other_forms_of_the_layer_give_its_output(way: str) -> None:
    layer = BinaryConv2d(3, 4, 3, padding=1, scale_per_filter=True).eval()
    torch.testing.assert_close(ways(images)[way](layer)(images()), layer(images()))


def test_channels_last_and_autocast_are_those_of_convolutions() -> None:
    layer = BinaryConv2d(3, 4, 3)
    expected = layer(images())
    last = layer(images().contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(images())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=2e-2, atol=2e-2)  # bits stay bits, E|w| is rounded
