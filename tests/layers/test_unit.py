"""The layers of super-resolution networks, held to float64 by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adderzoo
from adderzoo.layers import Adder2d, BatchNorm2d, ConvUnit, PowerActivation

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 1e-4


def power(exponent: float, dtype: torch.dtype = torch.float64) -> PowerActivation:
    module = PowerActivation(dtype=dtype)
    nn.init.constant_(module.exponent, exponent)
    return module


def as_it_is(module: nn.Module) -> nn.Module:
    return module


WAYS = pytest.mark.parametrize(
    "way",
    [as_it_is, torch.jit.script, torch.fx.symbolic_trace, torch.compile],
    ids=["eager", "script", "fx", "compile"],
)


# ------------------------------------------------------------------------------------------------------------ power


@WAYS
@pytest.mark.parametrize("exponent", [0.5, 0.9, 1.0, 1.3, 2.0])
def test_power_is_the_function_of_the_paper(exponent: float, way: Callable[[nn.Module], nn.Module]) -> None:
    x = torch.tensor([-30.0, -2.0, -0.3, -EPS, 0.0, EPS, 0.1, 1.0, 7.5], dtype=torch.float64)
    torch.testing.assert_close(way(power(exponent))(x), x.sign() * x.abs() ** exponent, rtol=1e-14, atol=0)


def test_a_new_power_activation_is_the_identity_to_the_bit() -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1e-38, -1e-6, 1e30, torch.inf, -torch.inf])])
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(PowerActivation(dtype=dtype)(x.to(dtype)), x.to(dtype))


@pytest.mark.parametrize("exponent", [0.4, 1.0, 1.7])
def test_gradients_of_power_are_the_derivatives(exponent: float) -> None:
    module = power(exponent)
    x = torch.tensor([-2.0, -0.3, -1e-3, 1e-3, 0.7, 5.0], dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    magnitude = x.detach().abs()
    torch.testing.assert_close(x.grad, exponent * magnitude ** (exponent - 1), rtol=1e-12, atol=0)
    expected = (x.detach().sign() * magnitude**exponent * magnitude.log()).sum()
    torch.testing.assert_close(module.exponent.grad[0], expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(module, x.detach().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_zeros_as_a_relu_leaves_them_get_finite_gradients(exponent: float, dtype: torch.dtype) -> None:
    module = power(exponent, dtype)
    x = torch.tensor([0.0, -0.0, 1e-30, 2.0], dtype=dtype, requires_grad=True)
    y = module(x)
    assert torch.equal(y[:2], torch.zeros(2, dtype=dtype))
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert module.exponent.grad.isfinite().all()
    assert x.grad[0] <= EPS ** (exponent - 1) * 1.01


def test_power_goes_on_without_a_jump_where_it_becomes_a_line() -> None:
    module = power(0.6)
    x = torch.tensor([-EPS * 1.000001, -EPS, EPS * 0.999999, EPS * 0.5], dtype=torch.float64)
    line = x * EPS ** (0.6 - 1)
    torch.testing.assert_close(module(x), line, rtol=1e-5, atol=0)
    torch.testing.assert_close(module(x[2:]), line[2:], rtol=1e-14, atol=0)


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_eps_is_above_zero(eps: float) -> None:
    with pytest.raises(ValueError, match="eps must be above 0, got"):
        PowerActivation(eps=eps)


# ------------------------------------------------------------------------------------------------------------- unit


def lively(unit: ConvUnit) -> ConvUnit:
    """With BatchNorm statistics and parameters that are not trivial, in evaluation mode."""
    torch.manual_seed(0)
    for module in unit.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.running_mean, -60, -40)
            nn.init.uniform_(module.running_var, 10, 40)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
        if isinstance(module, PowerActivation):
            nn.init.constant_(module.exponent, 1.2)
    return unit.eval()


def by_hand(unit: ConvUnit, x: Tensor, relu: bool) -> Tensor:
    """Adder -> BatchNorm -> + input -> ReLU -> power, in float64."""
    x = x.double()
    n, c, h, w = x.shape
    patches = F.unfold(x, 3, padding=1)
    y = -(patches[:, None] - unit.conv.weight.double().flatten(1)[None, :, :, None]).abs().sum(2).view(n, -1, h, w)
    norm = unit.norm
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = norm.weight.double() / (var + norm.eps).sqrt()
    y = (y - mean[:, None, None]) * scale[:, None, None] + norm.bias.double()[:, None, None]
    if y.shape[1] == c:
        y = y + x
    if relu:
        y = y.clamp(min=0)
    return y.sign() * y.abs() ** float(unit.power.exponent.detach())


@WAYS
@pytest.mark.parametrize(("channels", "relu"), [((5, 5), True), ((5, 5), False), ((3, 5), True)], ids=str)
def test_unit_does_what_the_authors_say_in_their_order(
    channels: tuple[int, int], relu: bool, way: Callable[[nn.Module], nn.Module]
) -> None:
    unit = lively(ConvUnit(*channels, relu=relu))
    x = torch.randn(2, channels[0], 6, 7)
    before = x.clone()
    with torch.no_grad():
        y = way(unit)(x)
    torch.testing.assert_close(y.double(), by_hand(unit, x, relu), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)
    assert unit.self_shortcut == (channels[0] == channels[1])


def test_the_convolution_of_the_published_networks_is_the_same_unit_without_additions() -> None:
    unit = ConvUnit(4, 4, conv_layer="conv", norm=False, self_shortcut=False, power=False)
    x = torch.randn(2, 4, 6, 7)
    assert torch.equal(unit(x), F.relu(F.conv2d(x, unit.conv.weight, unit.conv.bias, padding=1)))
    assert sorted(unit.state_dict()) == ["conv.bias", "conv.weight"]


def test_an_adder_layer_without_batchnorm_has_a_bias() -> None:
    assert ConvUnit(4, 4, norm=False).conv.bias is not None
    assert ConvUnit(4, 4).conv.bias is None


def test_kernel_size_keeps_the_size_of_the_input() -> None:
    for kernel_size in (1, 3, 5):
        assert ConvUnit(2, 3, kernel_size)(torch.randn(2, 2, 5, 6)).shape == (2, 3, 5, 6)
    with pytest.raises(ValueError, match="kernel_size must be odd, to keep the size of the input, got 2"):
        ConvUnit(2, 3, 2)
    with pytest.raises(ValueError, match=r"conv_layer must be one of 'adder', 'conv', .*, got 'ternary'"):
        ConvUnit(2, 3, conv_layer="ternary")


def test_fuse_makes_one_operator_of_all_but_the_power() -> None:
    unit = lively(ConvUnit(5, 5))
    fused = adderzoo.fuse(unit)
    assert not any(isinstance(module, Adder2d | nn.BatchNorm2d | nn.ReLU) for module in fused.modules())
    x = torch.randn(2, 5, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), unit(x), rtol=1e-4, atol=1e-4)


def test_every_parameter_of_a_unit_gets_a_gradient_in_half_precision_too() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        unit = copy.deepcopy(lively(ConvUnit(5, 5))).to(dtype).train()
        x = torch.randn(2, 5, 6, 7, dtype=dtype, requires_grad=True)
        y = unit(x)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        for parameter in (x, *unit.parameters()):
            assert parameter.grad.isfinite().all()
            assert parameter.grad.count_nonzero() > 0
