import contextlib
import itertools
import re
from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from reference64 import Geometry, adder2d64_with_gradients, magnitude
from samples import CASES, DTYPES, FORMATS, GEOMETRIES, WIDTHS, geometries, has_format_like, in_format, sample
from torch import Tensor
from torch._subclasses import FakeTensorMode

from adderzoo.ops import adder2d, reference

INPUT_GRADS, WEIGHT_GRADS = ("hardtanh", "sign"), ("full", "sign")
EPSILON = {torch.float32: 1e-6, torch.float64: 1e-14}  # of the magnitudes that reference64.Magnitude defines


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    """|actual - expected| <= bound everywhere."""
    assert actual.shape == expected.shape
    excess = (actual.double() - expected).abs() - bound
    assert excess.numel() == 0 or excess.max() <= 0, f"{(excess > 0).sum()} values are off, by up to {excess.max()}"


def gradients(input: Tensor, weight: Tensor, grad: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the gradient of the input and that of the weight."""
    x, w = input.detach().requires_grad_(), weight.detach().requires_grad_()
    y = adder2d(x, w, *arguments)
    return y.detach(), *torch.autograd.grad(y, (x, w), grad)


# ---------------------------------------------------------------------------------------------------------- the values


def test_worked_example(device: torch.device) -> None:
    """By hand: filters (1, 2) and (0, -3) over the pixels (5, 0.5), (5.5, 2)."""
    x = torch.tensor([[5.0, 5.5], [0.5, 2.0]], device=device).reshape(1, 2, 1, 2).requires_grad_()
    w = torch.tensor([[1.0, 2.0], [0.0, -3.0]], device=device).reshape(2, 2, 1, 1).requires_grad_()
    y = adder2d(x, w)
    assert y.flatten().tolist() == [-5.5, -4.5, -8.5, -10.5]
    y.backward(torch.tensor([[1.0, 10.0], [100.0, 1000.0]], device=device).reshape(1, 2, 1, 2))
    # hardtanh(F - X): for filter 0 (-1, -1), (1, 0); for filter 1 (-1, -1), (-1, -1)
    assert x.grad.flatten().tolist() == [-101.0, -1010.0, -99.0, -1000.0]
    # X - F: for filter 0 (4, 4.5), (-1.5, 0); for filter 1 (5, 5.5), (3.5, 5)
    assert w.grad.flatten().tolist() == [49.0, -1.5, 6000.0, 5350.0]


def test_padding_is_a_zero_that_counts(device: torch.device) -> None:
    x = torch.full((1, 1, 1, 1), 2.0, device=device)
    w = torch.full((1, 1, 3, 3), 5.0, device=device)
    assert adder2d(x, w, padding=1).item() == -(3 + 8 * 5)


@settings(deadline=None, max_examples=CASES)
@given(
    problem=geometries(),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["normal", "ties", "opposed"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    memory_format=st.sampled_from(FORMATS),
    weight_format=st.sampled_from(FORMATS),
    grad_format=st.sampled_from(FORMATS),
    input_grad=st.sampled_from(INPUT_GRADS),
    weight_grad=st.sampled_from(WEIGHT_GRADS),
)
def test_forward_and_gradients_match_the_definition(
    device: torch.device,
    problem: tuple[tuple, tuple[int, ...], tuple[int, ...]],
    seed: int,
    kind: str,
    dtype: torch.dtype,
    memory_format: str,
    weight_format: str,
    grad_format: str,
    input_grad: str,
    weight_grad: str,
) -> None:
    geometry, input_shape, weight_shape = Geometry(*problem[0]), *problem[1:]
    generator = torch.Generator().manual_seed(seed)

    def values(shape: tuple[int, ...], memory_format: str) -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        if kind != "normal":  # pixels that equal their filter: a slope of exactly 0
            tensor = tensor.mul(2).round()
        if kind == "opposed":  # large numbers, whose sums are not
            tensor[:, 1::3], tensor[:, 2::3] = tensor[:, 1::3] + 1000, tensor[:, 2::3] - 1000
        return in_format(tensor.to(device, dtype), memory_format)

    x, w = values(input_shape, memory_format), values(weight_shape, weight_format)
    g = values(adder2d(x, w, *geometry).shape, grad_format)
    results = gradients(x, w, g, *geometry, input_grad, weight_grad)
    expected = adder2d64_with_gradients(x, w, g, geometry, input_grad, weight_grad)
    for actual, wanted, scale in zip(results, expected, magnitude(x, w, g, geometry), strict=True):
        assert_within(actual, wanted, EPSILON[dtype] * scale)
        assert actual.dtype == dtype
    assert has_format_like(results[0], x)
    assert has_format_like(results[1], x)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel"),
    [(300, 130, (1, 1)), (129, 65, (3, 3)), (64, 257, (1, 2)), (1, 512, (5, 5))],
)
def test_wide_layers_match_the_definition(
    device: torch.device, in_channels: int, out_channels: int, kernel: tuple[int, int]
) -> None:
    """Channels that fill vectors, tiles and blocks of sums, and overhang them."""
    geometry = Geometry(stride=(1, 2), padding=(1, 1))
    x = torch.randn(2, in_channels, 6, 7, device=device)
    w = torch.randn(out_channels, in_channels, *kernel, device=device)
    g = torch.randn_like(adder2d(x, w, *geometry))
    for input_grad, weight_grad in zip(INPUT_GRADS, WEIGHT_GRADS, strict=True):
        results = gradients(x, w, g, *geometry, input_grad, weight_grad)
        expected = adder2d64_with_gradients(x, w, g, geometry, input_grad, weight_grad)
        for actual, wanted, scale in zip(results, expected, magnitude(x, w, g, geometry), strict=True):
            assert_within(actual, wanted, 1e-6 * scale)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("in_channels", "out_channels"), WIDTHS)
def test_layers_of_every_width_type_and_format_match_the_definition(
    device: torch.device, in_channels: int, out_channels: int, dtype: torch.dtype, memory_format: str
) -> None:
    geometry = Geometry(stride=(2, 1), padding=(1, 1), groups=2)
    x = in_format(torch.randn(3, 2 * in_channels, 8, 8, device=device).to(dtype), memory_format)
    w = torch.randn(2 * out_channels, in_channels, 3, 2, device=device).to(dtype)
    g = torch.randn_like(adder2d(x, w, *geometry))
    for input_grad, weight_grad in zip(INPUT_GRADS, WEIGHT_GRADS, strict=True):
        results = gradients(x, w, g, *geometry, input_grad, weight_grad)
        expected = adder2d64_with_gradients(x, w, g, geometry, input_grad, weight_grad)
        for actual, wanted, scale in zip(results, expected, magnitude(x, w, g, geometry), strict=True):
            rounding = torch.finfo(dtype).eps if actual.dtype == dtype and dtype.itemsize == 2 else 0.0
            assert_within(actual, wanted, 1e-6 * scale + rounding * wanted.abs())


# --------------------------------------------------------------------------------------------------- types and formats


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_is_at_least_float32_and_gradients_have_the_types_of_their_tensors(
    device: torch.device, dtype: torch.dtype, memory_format: str
) -> None:
    x, w, geometry = sample("strided", dtype, device, memory_format)
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = adder2d(x, w, *geometry)
    y.sum().backward()
    assert y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (x.grad.dtype, w.grad.dtype) == (dtype, dtype)
    assert (x.grad.shape, w.grad.shape) == (x.shape, w.shape)
    assert has_format_like(y, x)
    assert has_format_like(x.grad, x)
    assert w.grad.is_contiguous()


@pytest.mark.parametrize("weight_grad", WEIGHT_GRADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_nothing_but_the_gradients(
    device: torch.device, dtype: torch.dtype, weight_grad: str
) -> None:
    x, w, geometry = sample("grouped", dtype, device)
    g = torch.randn_like(adder2d(x, w, *geometry))
    half = gradients(x, w, g, *geometry, "hardtanh", weight_grad)
    single = gradients(x.float(), w.float(), g, *geometry, "hardtanh", weight_grad)
    assert half[0].equal(single[0])
    assert half[1].equal(single[1].to(dtype))
    assert half[2].equal(single[2].to(dtype))


def test_integers_and_pairs_mean_the_same(device: torch.device) -> None:
    x, w = torch.randn(2, 4, 9, 9, device=device), torch.randn(6, 2, 3, 3, device=device)
    pairs = adder2d(x, w, (2, 2), (1, 1), (2, 2), 2)
    assert adder2d(x, w, stride=2, padding=1, dilation=2, groups=2).equal(pairs)


def test_one_gradient_alone_equals_that_of_both(device: torch.device) -> None:
    x, w, geometry = sample("depthwise", device=device)
    g = torch.randn_like(adder2d(x, w, *geometry))
    _, grad_input, grad_weight = gradients(x, w, g, *geometry)
    x.requires_grad_()
    assert torch.autograd.grad(adder2d(x, w, *geometry), x, g)[0].equal(grad_input)
    w.requires_grad_()
    x = x.detach()
    assert torch.autograd.grad(adder2d(x, w, *geometry), w, g)[0].equal(grad_weight)
    assert not adder2d(x, w.detach(), *geometry).requires_grad


# --------------------------------------------------------------------------------------------------------- precision


OFFSETS = [(0.0, 0.0), (1000.0, 1000.0), (1000.0, -1000.0)]


def distances64(rows: Tensor, filters: Tensor) -> Tensor:
    """L1 distances in float64, some rows at a time."""
    pieces = [torch.cdist(piece.double(), filters.double(), p=1.0) for piece in rows.split(256)]
    return torch.cat(pieces)


def test_sums_that_hide_their_terms_cost_no_precision(device: torch.device) -> None:
    """The distance from sums of maxima is one of large numbers, though their signs cancel."""
    for large in (1e6, 3e38):
        x = torch.tensor([large, 0.3, -large], device=device).view(1, 3, 1, 1)
        w = torch.tensor([large, 0.0, -large], device=device).view(1, 3, 1, 1).repeat(20, 1, 1, 1)
        assert_within(adder2d(x, w), torch.full((1, 20, 1, 1), -0.3, dtype=torch.float64, device=device), 1e-7)


@pytest.mark.parametrize("filters", [1, 16, 64])
def test_no_output_is_infinite_whose_exact_value_is_not(device: torch.device, filters: int) -> None:
    x, w = torch.full((1, 1, 1, 1), 3e38, device=device), torch.zeros(filters, 1, 1, 1, device=device)
    assert (adder2d(x, w) == -x).all()
    assert (adder2d(w[:1], x.repeat(filters, 1, 1, 1)) == -x).all()
    x = torch.full((1, 40, 2, 2), 3e38, device=device)
    assert not adder2d(x, x[:, :, :1, :1].repeat(filters, 1, 1, 1)).any()


@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_forward_error_over_a_million_sums_of_4608_terms(device: torch.device, offsets: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 512, 34, 34, generator=generator) + offsets[0]).to(device)
    w = (torch.randn(1024, 512, 3, 3, generator=generator) + offsets[1]).to(device)
    y = adder2d(x, w)
    assert y.numel() >= 10**6
    rows = torch.nn.functional.unfold(x, 3)[0].T  # (1024, 4608)
    y64 = -distances64(rows, w.flatten(1)).T.reshape(y.shape)
    scale = rows.double().abs().sum(1).reshape(1, 1, 32, 32) + w.double().abs().sum((1, 2, 3)).reshape(1, -1, 1, 1)
    assert_within(y, y64, 1e-6 * scale)
    assert_within(y, y64, 1e-6 * y64.abs())


@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_input_gradient_error_over_a_million_sums_of_4608_terms(
    device: torch.device, offsets: tuple[float, float]
) -> None:
    """The float64 kernel is compared with the definition on some channels, the float32 kernel with it on all."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 512, 32, 32, generator=generator) + offsets[0]).to(device)
    w = (torch.randn(512, 512, 3, 3, generator=generator) + offsets[1]).to(device)
    g = torch.randn(2, 512, 32, 32, generator=generator).to(device)
    geometry = Geometry(padding=(1, 1))

    def input_gradient(x: Tensor, w: Tensor, g: Tensor) -> Tensor:
        return torch.ops.adderzoo._adder2d_backward_input(g, x, w, *geometry, "hardtanh")

    grad64 = input_gradient(x.double(), w.double(), g.double())
    few = slice(200, 203)
    _, expected, _ = adder2d64_with_gradients(x[:, few], w[:, few], g, geometry, "hardtanh", "full")
    scale = magnitude(x[:, few], w[:, few], g, geometry).input_grad
    assert_within(grad64[:, few], expected, 1e-14 * scale)

    grad = input_gradient(x, w, g)
    assert grad.numel() >= 10**6
    sum_of_g = scale[:, :1] / (1 + x[:, 200:201].double().abs())
    assert_within(grad, grad64, 1e-6 * sum_of_g * (1 + x.double().abs()))


# ---------------------------------------------------------------------------------------------- empty, NaN, infinite


@pytest.mark.parametrize("modes", list(itertools.product(INPUT_GRADS, WEIGHT_GRADS)), ids=str)
def test_empty_batch_has_an_empty_output_and_a_weight_gradient_of_zeros(
    device: torch.device, modes: tuple[str, str]
) -> None:
    x, w, geometry = sample("strided", device=device, batch=0)
    y, grad_input, grad_weight = gradients(x, w, torch.empty(0, 2, 5, 11, device=device), *geometry, *modes)
    assert y.shape == (0, 2, 5, 11)
    assert grad_input.shape == x.shape
    assert grad_weight.shape == w.shape
    assert not grad_weight.any()


@pytest.fixture(params=["kernel", "reference"])
def operators(request: pytest.FixtureRequest) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Forward and input gradient, of the compiled library and in plain PyTorch."""
    if request.param == "kernel":
        return adder2d, torch.ops.adderzoo._adder2d_backward_input
    return reference.adder2d, reference.backward_input


def test_nan_reaches_the_outputs_that_see_it_and_no_other(device: torch.device, operators: tuple) -> None:
    forward, _ = operators
    x, w = torch.randn(2, 3, 6, 6, device=device), torch.randn(20, 3, 3, 3, device=device)
    x[1, 2, 0, 5] = torch.nan
    expected = torch.zeros(2, 20, 4, 4, dtype=torch.bool, device=device)
    expected[1, :, 0, 3] = True
    assert forward(x, w).isnan().equal(expected)
    w[7, 0, 1, 1] = torch.nan
    expected[:, 7] = True
    assert forward(x, w).isnan().equal(expected)


@pytest.mark.parametrize("input_grad", INPUT_GRADS)
def test_nan_reaches_the_input_gradient(device: torch.device, operators: tuple, input_grad: str) -> None:
    _, backward_input = operators
    x, w = torch.randn(2, 3, 6, 6, device=device), torch.randn(20, 3, 3, 3, device=device)
    g = torch.randn(2, 20, 4, 4, device=device)
    arguments = [[1, 1], [0, 0], [1, 1], 1, input_grad]
    expected = torch.zeros_like(x, dtype=torch.bool)
    x[1, 2, 0, 5] = torch.nan
    expected[1, 2, 0, 5] = True
    assert backward_input(g, x, w, *arguments).isnan().equal(expected)
    w[7, 0, 0, 0] = torch.nan  # the tap under which the last two rows and columns never lie
    expected[:, 0, :4, :4] = True
    assert backward_input(g, x, w, *arguments).isnan().equal(expected)
    g[0, 0, 3, 3] = torch.nan
    expected[0, :, 3:, 3:] = True
    assert backward_input(g, x, w, *arguments).isnan().equal(expected)


def test_nan_reaches_the_sign_gradient_of_the_weight(device: torch.device) -> None:
    x, w = torch.randn(2, 3, 6, 6, device=device), torch.randn(4, 3, 3, 3, device=device)
    g = torch.randn(2, 4, 4, 4, device=device)
    x[1, 2, 0, 5] = torch.nan  # a corner, seen by one tap alone
    expected = torch.zeros_like(w, dtype=torch.bool)
    expected[:, 2, 0, 2] = True
    for kernel in (torch.ops.adderzoo._adder2d_backward_weight, reference.backward_weight):
        assert kernel(g, x, w, [1, 1], [0, 0], [1, 1], 1).isnan().equal(expected)


@pytest.mark.parametrize(
    "geometry", [Geometry(), Geometry((2, 3), (2, 1), (1, 2)), Geometry((1, 1), (1, 1), (1, 1), 3)]
)
@pytest.mark.parametrize("input_grad", INPUT_GRADS)
def test_a_gradient_of_zero_times_nan_is_nan_and_no_gradient_is_nothing(
    device: torch.device, operators: tuple, input_grad: str, geometry: Geometry
) -> None:
    """Zero of either sign. Pixels that no output sees, and the taps that hang over the gradient's edge, are nothing."""
    _, backward_input = operators
    generator = torch.Generator().manual_seed(0)
    for filters in (6, 54):  # of all groups
        for odd_filter in (False, True):
            x = torch.randn(2, 3 * geometry.groups, 7, 8, generator=generator).to(device)
            w = torch.randn(filters, 3, 2, 3, generator=generator).to(device)
            g = torch.randn(adder2d(x, w, *geometry).shape, generator=generator).to(device)
            g[torch.rand(g.shape, generator=generator).to(device) < 0.7] = 0.0
            g[torch.rand(g.shape, generator=generator).to(device) < 0.3] = -0.0
            g[0] = 0.0
            for place in ((0, 0, 0, 0), (0, 1, 3, 4), (1, 2, 6, 7), (1, 0, 2, 2)):
                x[place] = torch.nan
            if odd_filter:
                w[4, 1, 0, 2] = torch.nan
            _, expected, _ = adder2d64_with_gradients(x, w, g, geometry, input_grad, "full")
            assert 0 < expected.isnan().sum() < expected.numel()
            for memory_format in ("contiguous", "channels_last"):
                grads = (in_format(tensor, memory_format) for tensor in (g, x))
                result = backward_input(*grads, w, *geometry, input_grad)
                torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("input_grad", INPUT_GRADS)
def test_infinities_do_what_they_do_in_the_definition(device: torch.device, operators: tuple, input_grad: str) -> None:
    forward, backward_input = operators
    x, w = torch.randn(2, 3, 6, 6, device=device), torch.randn(20, 3, 3, 3, device=device)
    g = torch.randn(2, 20, 4, 4, device=device)
    x[0, 0, 2, 2], x[0, 1, 5, 5], x[1, 1, 0, 0] = torch.inf, -torch.inf, torch.inf
    w[3, 0, 1, 1], w[4, 1, 0, 0], w[19, 2, 2, 2] = torch.inf, -torch.inf, -torch.inf  # some meet: inf - inf
    geometry = Geometry()
    y64, grad_input64, _ = adder2d64_with_gradients(x, w, g, geometry, input_grad, "full")
    y = forward(x, w)
    assert y.isnan().any()
    assert y.isinf().any()
    torch.testing.assert_close(y.double(), y64, rtol=1e-5, atol=1e-5, equal_nan=True)
    grad_input = backward_input(g, x, w, *geometry, input_grad)
    assert grad_input.isnan().any()
    torch.testing.assert_close(grad_input.double(), grad_input64, rtol=1e-5, atol=1e-4, equal_nan=True)


# -------------------------------------------------------------------------------------------------------- bad input

MUST_BE_DTYPE = "adder2d: input must be float32, float64, bfloat16 or float16, got "
MUST_FIT = "adder2d: the dilated kernel must fit into the padded input, got input "
WORDS_OF_GROUPS = "adder2d: groups must divide the channels of input and the filters, got groups "
LARGEST = 2**31 - 1
# name: (shape of input, shape of weight, dtype of input, dtype of weight, arguments, words)
SHAPES = ((2, 4, 5, 5), (6, 4, 3, 3))
SINGLE = (torch.float32, torch.float32)
BAD_INPUT: dict[str, tuple] = {
    "input of 3 dimensions": (
        ((4, 5, 5), (6, 4, 3, 3)),
        SINGLE,
        {},
        "adder2d: input must have 4 dimensions (N, C, H, W), got shape (4, 5, 5)",
    ),
    "input of 1 dimension": (
        ((4,), (6, 4, 3, 3)),
        SINGLE,
        {},
        "adder2d: input must have 4 dimensions (N, C, H, W), got shape (4,)",
    ),
    "weight of 2 dimensions": (
        ((2, 4, 5, 5), (6, 4)),
        SINGLE,
        {},
        "adder2d: weight must have 4 dimensions (O, C / groups, kH, kW), got shape (6, 4)",
    ),
    "integers": (SHAPES, (torch.int64, torch.int64), {}, MUST_BE_DTYPE + "int64"),
    "complex numbers": (SHAPES, (torch.complex64, torch.complex64), {}, MUST_BE_DTYPE + "complex64"),
    "bytes": (SHAPES, (torch.uint8, torch.float32), {}, MUST_BE_DTYPE + "uint8"),
    "two dtypes": (
        SHAPES,
        (torch.bfloat16, torch.float32),
        {},
        "adder2d: weight must have the dtype of input, bfloat16, got float32",
    ),
    "stride 0": (
        SHAPES,
        SINGLE,
        {"stride": (1, 0)},
        "adder2d: stride must be two integers from 1 to 2147483647, got (1, 0)",
    ),
    "stride of 3": (
        SHAPES,
        SINGLE,
        {"stride": (1, 1, 1)},
        "adder2d: stride must be two integers from 1 to 2147483647, got (1, 1, 1)",
    ),
    "negative padding": (
        SHAPES,
        SINGLE,
        {"padding": -1},
        "adder2d: padding must be two integers from 0 to 2147483647, got (-1, -1)",
    ),
    "dilation 0": (
        SHAPES,
        SINGLE,
        {"dilation": (0, 1)},
        "adder2d: dilation must be two integers from 1 to 2147483647, got (0, 1)",
    ),
    "groups 0": (
        SHAPES,
        SINGLE,
        {"groups": 0},
        WORDS_OF_GROUPS + "0, input (2, 4, 5, 5) and 6 filters",
    ),
    "groups that do not divide the filters": (
        ((2, 8, 5, 5), (6, 2, 3, 3)),
        SINGLE,
        {"groups": 4},
        WORDS_OF_GROUPS + "4, input (2, 8, 5, 5) and 6 filters",
    ),
    "channels that do not fit": (
        ((2, 4, 5, 5), (6, 3, 3, 3)),
        SINGLE,
        {},
        "adder2d: input must have groups times the channels of weight, 3, got 4: groups 1, input (2, 4, 5, 5) and "
        "weight (6, 3, 3, 3)",
    ),
    "empty weight": (
        ((2, 4, 5, 5), (6, 4, 0, 3)),
        SINGLE,
        {},
        "adder2d: weight must not be empty, got shape (6, 4, 0, 3)",
    ),
    "kernel wider than the input": (
        ((2, 4, 5, 2), (6, 4, 3, 3)),
        SINGLE,
        {},
        MUST_FIT + "(2, 4, 5, 2), weight (6, 4, 3, 3), padding (0, 0) and dilation (1, 1)",
    ),
    "dilated kernel higher than the padded input": (
        SHAPES,
        SINGLE,
        {"dilation": (4, 1), "padding": 1},
        MUST_FIT + "(2, 4, 5, 5), weight (6, 4, 3, 3), padding (1, 1) and dilation (4, 1)",
    ),
    "dilation whose span overflows": (
        ((1, 4, 7, 7), (6, 4, 17, 1)),
        SINGLE,
        {"dilation": (2**60, 1)},
        "adder2d: dilation must be two integers from 1 to 2147483647, got (1152921504606846976, 1)",
    ),
    "padding whose double overflows": (
        SHAPES,
        SINGLE,
        {"padding": 2**63 - 1},
        "adder2d: padding must be two integers from 0 to 2147483647, got (9223372036854775807, 9223372036854775807)",
    ),
    "stride beyond 32 bits": (
        SHAPES,
        SINGLE,
        {"stride": (1, 2**31)},
        "adder2d: stride must be two integers from 1 to 2147483647, got (1, 2147483648)",
    ),
    "groups whose product with the channels overflows": (
        ((2, 0, 5, 5), (6, 4, 3, 3)),
        SINGLE,
        {"groups": 2**62},
        WORDS_OF_GROUPS + f"{2**62}, input (2, 0, 5, 5) and 6 filters",
    ),
    "padded rows beyond 32 bits": (
        SHAPES,
        SINGLE,
        {"padding": (LARGEST, 0)},
        f"adder2d: padding must leave an input of at most {LARGEST} rows and columns and {2**48} elements, got input "
        f"(2, 4, 5, 5) and padding ({LARGEST}, 0)",
    ),
    "padded input of too many elements": (
        SHAPES,
        SINGLE,
        {"padding": 2**24},
        f"adder2d: padding must leave an input of at most {LARGEST} rows and columns and {2**48} elements, got input "
        f"(2, 4, 5, 5) and padding ({2**24}, {2**24})",
    ),
    "output of too many elements": (
        ((2, 4, 5, 5), (600, 4, 3, 3)),
        SINGLE,
        {"padding": 2**20},
        f"adder2d: the output must have at most {2**48} elements, got input (2, 4, 5, 5), weight (600, 4, 3, 3), "
        f"stride (1, 1) and padding ({2**20}, {2**20})",
    ),
    "unknown input_grad": (
        SHAPES,
        SINGLE,
        {"input_grad": "tanh"},
        "adder2d: input_grad must be 'hardtanh' or 'sign', got 'tanh'",
    ),
    "unknown weight_grad": (
        SHAPES,
        SINGLE,
        {"weight_grad": "half"},
        "adder2d: weight_grad must be 'full' or 'sign', got 'half'",
    ),
}


@pytest.mark.parametrize("where", ["device", "meta", "fake", "reference"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_in_the_same_words_everywhere(device: torch.device, case: str, where: str) -> None:
    (input_shape, weight_shape), (input_dtype, weight_dtype), arguments, words = BAD_INPUT[case]

    def call(device: torch.device | str) -> None:
        input = torch.zeros(input_shape, dtype=input_dtype, device=device)
        weight = torch.zeros(weight_shape, dtype=weight_dtype, device=device)
        if where == "reference":
            pairs = {name: [n, n] if name != "groups" and isinstance(n, int) else n for name, n in arguments.items()}
            reference.adder2d(input, weight, **pairs)
        else:
            adder2d(input, weight, **arguments)

    fake = FakeTensorMode() if where == "fake" else contextlib.nullcontext()
    with fake, pytest.raises(RuntimeError, match="^" + re.escape(words) + "$"):
        call("meta" if where == "meta" else device)


def test_tensors_on_two_devices_are_refused(device: torch.device) -> None:
    x, w = torch.randn(1, 2, 4, 4, device=device), torch.randn(1, 2, 3, 3, device="meta")
    words = "^adder2d: weight must be on the device of input, {}, got {}$"
    with pytest.raises(RuntimeError, match=words.format(x.device, "meta")):
        adder2d(x, w)
    with pytest.raises(RuntimeError, match=words.format("meta", x.device)):
        adder2d(x.to("meta"), w.new_empty(w.shape, device=device))
    if device.type != "cpu":  # whose kernels are called for either
        w = w.new_empty(w.shape, device="cpu")
        with pytest.raises(RuntimeError, match=words.format(x.device, "cpu")):
            adder2d(x, w)
        with pytest.raises(RuntimeError, match=words.format("cpu", x.device)):
            adder2d(x.cpu(), w.to(device))


@pytest.mark.parametrize("where", ["device", "meta", "reference"])
def test_backward_operators_refuse_what_does_not_fit(device: torch.device, where: str) -> None:
    operators = torch.ops.adderzoo
    backward_input, backward_weight = operators._adder2d_backward_input, operators._adder2d_backward_weight
    if where == "reference":
        backward_input, backward_weight = reference.backward_input, reference.backward_weight
    there = "meta" if where == "meta" else device
    x, w, g = (torch.randn(shape, device=there) for shape in ((2, 3, 5, 5), (4, 3, 3, 3), (2, 4, 3, 3)))
    geometry = [[1, 1], [0, 0], [1, 1], 1]
    for grad, input, words in (
        (g.new_zeros(2, 4, 5, 5), x, "grad must have the shape of the output, (2, 4, 3, 3), got (2, 4, 5, 5)"),
        (g[0], x, "grad must have the shape of the output, (2, 4, 3, 3), got (4, 3, 3)"),
        (g, x.long(), "input must be float32, float64, bfloat16 or float16, got int64"),
    ):
        pattern = f"^adder2d: {re.escape(words)}$"
        with pytest.raises(RuntimeError, match=pattern):
            backward_input(grad, input, w, *geometry, "sign")
        with pytest.raises(RuntimeError, match=pattern):
            backward_weight(grad, input, w, *geometry)
    with pytest.raises(RuntimeError, match=r"^adder2d: input_grad must be 'hardtanh' or 'sign', got 'tanh'$"):
        backward_input(g, x, w, *geometry, "tanh")
    with pytest.raises(RuntimeError, match=r"^adder2d: weight_grad must be 'full' or 'sign', got 'half'$"):
        backward_weight(g, x, w, *geometry, "half")
    for which, name in enumerate(("stride", "padding", "dilation")):
        for number in (2**31, 2**60, 2**62, 2**63 - 1):
            pairs: list = [[1, 1], [0, 0], [1, 1]]
            pairs[which] = [1, number]
            pattern = (
                f"^adder2d: {name} must be two integers from {int(name != 'padding')} to 2147483647, got .*{number}"
            )
            with pytest.raises(RuntimeError, match=pattern):
                backward_input(g, x, w, *pairs, 1, "sign")
            with pytest.raises(RuntimeError, match=pattern):
                backward_weight(g, x, w, *pairs, 1)


# ------------------------------------------------------------------------------------- what the gradients are not for


@pytest.mark.parametrize("wanted", [0, 1], ids=["input", "weight"])
@pytest.mark.parametrize("weight_grad", WEIGHT_GRADS)
def test_double_backward_is_refused(device: torch.device, weight_grad: str, wanted: int) -> None:
    """Of a loss that is linear in the output, too, and where one tensor alone has a gradient."""
    x, w, geometry = sample("strided", device=device)
    for both in (True, False):
        tensors = [t.clone().requires_grad_(both or index == wanted) for index, t in enumerate((x, w))]
        y = adder2d(*tensors, *geometry, "hardtanh", weight_grad)
        for loss in (y.sum(), y.square().sum()):
            (first,) = torch.autograd.grad(loss, tensors[wanted], create_graph=True)
            assert first.equal(torch.autograd.grad(loss, tensors[wanted], retain_graph=True)[0])
            with pytest.raises(RuntimeError, match=r"^adder2d: double backward is not defined"):
                (first.square().sum() + tensors[wanted].sum()).backward()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_differentiation_is_refused(device: torch.device, requires_grad: bool) -> None:
    x, w, geometry = sample("strided", device=device)
    with torch.autograd.forward_ad.dual_level():
        dual_x, dual_w = (torch.autograd.forward_ad.make_dual(t, torch.ones_like(t)) for t in (x, w))
        for tensors in ((dual_x, w.requires_grad_(requires_grad)), (x.requires_grad_(requires_grad), dual_w)):
            with pytest.raises(RuntimeError, match=r"^adder2d: forward-mode differentiation is not defined"):
                adder2d(*tensors, *geometry)


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.jacrev, torch.func.grad, torch.func.hessian])
def test_differentiation_by_functional_transforms_is_refused(device: torch.device, transform: Callable) -> None:
    x, w, geometry = sample("strided", device=device)
    with pytest.raises(RuntimeError, match=r"^adder2d: torch.func's differentiation .* is not defined"):
        transform(lambda x: adder2d(x, w, *geometry).sum())(x)


# ------------------------------------------------------------------------------------------------------------- memory


def test_inputs_that_are_copied_on_write_are_not_written(device: torch.device) -> None:
    x, w, geometry = sample("grouped", device=device)
    g = torch.randn_like(adder2d(x, w, *geometry))
    x, w, g = (torch._lazy_clone(tensor) for tensor in (x, w, g))
    adder2d(x, w, *geometry)
    torch.ops.adderzoo._adder2d_backward_input(g, x, w, *geometry, "hardtanh")
    torch.ops.adderzoo._adder2d_backward_weight(g, x, w, *geometry)
    half = [torch._lazy_clone(tensor.bfloat16()) for tensor in (x, w)]
    adder2d(*half, *geometry)
    for tensor in (x, w, g, *half):
        assert torch._C._is_cow_tensor(tensor)


def test_taps_in_the_padding_take_no_memory(device: torch.device) -> None:
    """By hand: of 17 taps, 2^26 rows apart, the ninth sees the first row."""
    x = torch.tensor([5.0, 7.0, 9.0], device=device).view(1, 1, 3, 1)
    w = torch.arange(17.0, device=device).view(1, 1, 17, 1)
    y = adder2d(x, w, stride=(3, 1), padding=(2**29, 0), dilation=(2**26, 1))
    assert y.tolist() == [[[[-(sum(range(17)) - 8 + 3)]]]]
    grad_input = torch.ops.adderzoo._adder2d_backward_input(
        torch.ones_like(y), x, w, [3, 1], [2**29, 0], [2**26, 1], 1, "sign"
    )
    assert grad_input.flatten().tolist() == [1.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------------------------ threads


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_results_do_not_depend_on_the_number_of_threads(
    device: torch.device, set_threads: Callable[[int], None], name: str
) -> None:
    """Of tensors large enough for three threads: some 10^5 steps of the kernels at the least."""
    x, w, geometry = sample(name, device=device, batch=8, size=(83, 75))
    g = torch.randn_like(adder2d(x, w, *geometry))
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(
            (
                adder2d(x, w, *geometry),
                torch.ops.adderzoo._adder2d_backward_input(g, x, w, *geometry, "hardtanh"),
                torch.ops.adderzoo._adder2d_backward_weight(g, x, w, *geometry),
            )
        )
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            assert one.equal(another)


@pytest.mark.parametrize("change", [Tensor.to_sparse, Tensor.to_mkldnn])
def test_tensor_that_is_not_dense_is_refused_by_its_layout(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"^adder2d: tensors must be dense, got one with the layout torch\._?\w+"):
        adder2d(change(torch.randn(1, 3, 8, 8)), torch.randn(4, 3, 3, 3))
