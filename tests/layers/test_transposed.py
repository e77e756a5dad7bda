"""The transposed adder layer, against its definition in float64 and against torch.nn.ConvTranspose2d."""

import inspect
import math
from typing import Any

import pytest
import torch
from copies import ways
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import adderzoo
from adderzoo.inference.quantization import calibrate, quantize
from adderzoo.layers import Adder2d, AdderTranspose2d, BatchNorm2d
from adderzoo.optim import adaptive_lr

pytestmark = pytest.mark.usefixtures("one_thread")


def seen_by(tap: int, outputs: int, inputs: int, stride: int, padding: int, dilation: int) -> list[int | None]:
    """Along one side, for each output, the number of the input that lies under a tap; None for a zero.

    From how a transposed convolution scatters: input h meets output h * stride - padding + tap * dilation.
    """
    seen: list[int | None] = [None] * outputs
    for h in range(inputs):
        output = h * stride - padding + tap * dilation
        if 0 <= output < outputs:
            seen[output] = h
    return seen


def transposed64(layer: AdderTranspose2d, input: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input and that of the weight, output by output: the paper's, eq. 2 and 4 to 7."""
    x, w, g = input.detach().double(), layer.weight.detach().double(), grad.double()
    y, dx, dw = torch.zeros_like(g), torch.zeros_like(x), torch.zeros_like(w)
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for i in range(w.shape[2]):
        rows = seen_by(i, g.shape[2], x.shape[2], layer.stride[0], layer.padding[0], layer.dilation[0])
        for j in range(w.shape[3]):
            columns = seen_by(j, g.shape[3], x.shape[3], layer.stride[1], layer.padding[1], layer.dilation[1])
            for row, h in enumerate(rows):
                for column, v in enumerate(columns):
                    for group in range(layer.groups):
                        ins = slice(group * inputs, (group + 1) * inputs)
                        outs = slice(group * outputs, (group + 1) * outputs)
                        zero = h is None or v is None
                        pixel = torch.zeros_like(x[:, ins, 0, 0]) if zero else x[:, ins, h, v]  # (N, C)
                        difference = pixel[:, :, None] - w[None, ins, :, i, j]  # (N, C, O)
                        there = g[:, None, outs, row, column]  # (N, 1, O)
                        y[:, outs, row, column] -= difference.abs().sum(1)
                        dw[ins, :, i, j] += (there * difference).sum(0)
                        if not zero:
                            dx[:, ins, h, v] += (there * (-difference).clamp(-1, 1)).sum(2)
    return y, dx, dw


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "doubled": {"kernel_size": 4, "stride": 2, "padding": 1},
    "output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "everything": {
        "kernel_size": (3, 2),
        "stride": (2, 3),
        "padding": (1, 2),
        "output_padding": (1, 2),
        "groups": 2,
        "dilation": (2, 1),
    },
    "cut": {"kernel_size": (1, 2), "stride": (1, 3), "padding": (1, 2)},
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_values_and_gradients_are_those_of_the_definition(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    layer = AdderTranspose2d(4, 6, bias=False, **GEOMETRIES[name]).to(device)
    x = (2 * torch.randn(2, 4, 5, 4)).to(device).requires_grad_()
    output = layer(x)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected = transposed64(layer.cpu(), x.cpu(), grad.cpu())
    for got, wanted in zip((output, x.grad, layer.weight.grad), expected, strict=True):
        torch.testing.assert_close(got.detach().double().cpu(), wanted, rtol=1e-5, atol=1e-4)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
def test_shapes_and_refusals_are_those_of_conv_transpose2d(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    more: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    bias: bool,
) -> None:
    arguments = (4, 8, kernel, stride, padding, more, groups, bias, dilation)
    conv, x = nn.ConvTranspose2d(*arguments), torch.randn(2, 4, 8, 9)
    if any(more[d] >= max(stride[d], dilation[d]) for d in (0, 1)):
        with pytest.raises(RuntimeError, match="output padding must be smaller than either stride or dilation"):
            conv(x)
        with pytest.raises(ValueError, match="output_padding must be smaller than stride or dilation"):
            AdderTranspose2d(*arguments)
        return
    layer = AdderTranspose2d(*arguments)
    assert layer(x).shape == conv(x).shape
    assert {key: value.shape for key, value in layer.state_dict().items()} == {
        key: value.shape for key, value in conv.state_dict().items()
    }
    assert repr(layer) == repr(conv).replace("Conv", "Adder")


def test_output_size_chooses_the_output_padding_of_a_call() -> None:
    torch.manual_seed(0)
    layer, conv = (kind(2, 3, 3, stride=3) for kind in (AdderTranspose2d, nn.ConvTranspose2d))
    x = torch.randn(1, 2, 4, 5)
    for size in ([12, 17], [14, 15], [1, 3, 13, 16]):
        output = layer(x, output_size=size)
        assert output.shape == conv(x, output_size=size).shape
        torch.testing.assert_close(output[:, :, :12, :15], layer(x))
    more = AdderTranspose2d(2, 3, 3, stride=3, output_padding=(2, 0))
    more.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x, output_size=[14, 15]), more(x))
    with pytest.raises(ValueError, match="requested an output size of"):
        layer(x, output_size=[15, 15])


def test_of_stride_one_it_is_the_adder_layer_of_the_filters_turned_around() -> None:
    torch.manual_seed(0)
    layer, adder = AdderTranspose2d(2, 3, 3, padding=1), Adder2d(2, 3, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(adder.weight.flip(2, 3).transpose(0, 1))
        nn.init.normal_(layer.bias)
        adder.bias.copy_(layer.bias)
    x = torch.randn(2, 2, 6, 5)
    torch.testing.assert_close(layer(x), adder(x))


def test_constructor_is_that_of_conv_transpose2d() -> None:
    mine, theirs = (inspect.signature(kind).parameters.values() for kind in (AdderTranspose2d, nn.ConvTranspose2d))
    assert [(p.name, p.default, p.kind) for p in mine] == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.parametrize("again", [False, True], ids=["new", "reset"])
def test_filters_start_from_a_standard_normal_and_biases_from_zero(again: bool) -> None:
    torch.manual_seed(0)
    layer = AdderTranspose2d(64, 64, 5)
    if again:
        nn.init.constant_(layer.weight, 3.0)
        nn.init.constant_(layer.bias, 3.0)
        layer.reset_parameters()
    w = layer.weight.detach().double()
    assert abs(w.mean()) < 0.015
    for sigmas in (0.5, 1, 2, 3):
        assert abs((w.abs() < sigmas).double().mean() - math.erf(sigmas / math.sqrt(2))) < 0.01
    assert torch.equal(layer.bias, torch.zeros(64))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"output_padding": 2, "stride": 2}, "output_padding must be .*, got 2 with stride 2 and dilation 1"),
        ({"output_padding": (0, -1)}, r"output_padding must be .* at least 0, got \(0, -1\)"),
        ({"stride": 0}, "stride must be one or two integers of at least 1, got 0"),
        ({"padding": -1}, "padding must be one or two integers of at least 0, got -1"),
        ({"padding_mode": "reflect"}, "padding mode"),
        ({"groups": 2}, "groups"),
    ],
    ids=str,
)
def test_bad_geometry_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AdderTranspose2d(3, 4, 3, **arguments)


def test_output_size_of_a_single_image_is_that_of_a_batch_of_one() -> None:
    layer, x = AdderTranspose2d(3, 4, 3, stride=2), torch.randn(3, 5, 5)
    expected = layer(x[None], [12, 11])[0]
    for size in ([12, 11], [4, 12, 11]):
        assert layer(x, size).equal(expected)


def test_input_that_padding_cuts_off_is_refused() -> None:
    with pytest.raises(
        ValueError, match="input must be larger than what padding cuts off the output, got 4 x 7 pixels"
    ):
        AdderTranspose2d(3, 4, 1, padding=(2, 0))(torch.randn(1, 3, 4, 7))


def test_filters_have_the_adaptive_learning_rate() -> None:
    layer = AdderTranspose2d(4, 6, 3, stride=2, bias=False)
    optimizer = adaptive_lr(torch.optim.SGD(layer.parameters(), lr=1.0), eta=0.2)
    before = layer.weight.detach().clone()
    layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
    optimizer.step()
    assert (layer.weight - before).square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-3)


def network() -> nn.Sequential:
    """From 4x4 to 9x9 and back to a convolution."""
    torch.manual_seed(0)
    layers = AdderTranspose2d(3, 4, 3, stride=2), BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    model = nn.Sequential(*layers)
    model[1].momentum = 1.0
    with torch.no_grad():
        model(torch.randn(16, 3, 4, 4))
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", [*ways(images), "fuse"])
def test_other_forms_of_a_network_give_its_output(way: str) -> None:
    """`fuse` leaves the layer as it is."""
    model = network()
    other = {**ways(images), "fuse": adderzoo.fuse}[way](model)
    torch.testing.assert_close(other(images()), model(images()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_quantization_of_a_network_leaves_the_layer_in_float() -> None:
    torch.manual_seed(0)
    adder = nn.Sequential(Adder2d(2, 4, 3, padding=1), BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(network(), *adder)
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.momentum = 1.0
    x = torch.randn(16, 3, 4, 4)
    expected = model.train()(x)
    result = quantize(calibrate(model.eval(), [x]))
    assert any(isinstance(module, AdderTranspose2d) for module in result.modules())
    assert (result(x) - model(x)).square().mean().sqrt() < 0.05 * expected.std()


@pytest.mark.parametrize("way", [torch.jit.script, torch.fx.symbolic_trace, lambda model: model])
def test_other_forms_train_alike(way: Any) -> None:
    model = network().train()
    other = way(network().train())
    for each in (model, other):
        each(images()).square().sum().backward()
    torch.testing.assert_close([p.grad for p in other.parameters()], [p.grad for p in model.parameters()])


def test_channels_last_half_precision_and_autocast() -> None:
    layer = AdderTranspose2d(3, 4, 3, stride=2)
    x = images()
    expected = layer(x)
    last = layer(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=0.1)
    rounded = layer.to(torch.bfloat16)
    assert rounded.weight.is_adder_filter
    torch.testing.assert_close(rounded(x.bfloat16()), expected, rtol=1e-2, atol=0.1)
