"""Layers on bytes, and those of their simulation, each by itself."""

import pytest
import torch
from torch import Tensor, nn

from adderzoo.layers import Adder2d, AdderLinear
from adderzoo.layers.fake_quantized import FakeQuantize, FakeQuantizedAdder2d, Observer, fake_quantized
from adderzoo.layers.quantized import (
    Quantize,
    QuantizedAdder2d,
    QuantizedAdderLinear,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedMaxPool2d,
    Quantizer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

UNIT = Quantizer(1.0, 0, 255)  # bytes stand for themselves


def integers(*shape: int, top: int = 255) -> Tensor:
    return torch.randint(0, top + 1, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def layer_of_bytes(output: Quantizer | None = None, **kwargs: object) -> tuple[QuantizedAdder2d, Adder2d]:
    """With filters that bytes hold exactly, so that the float layer gives the same distances."""
    layer = Adder2d(5, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(integers(3, 5, 3, 3))
    ones, zeros = torch.ones(3), torch.zeros(3)
    return QuantizedAdder2d(layer, ones, zeros, False, UNIT, output, **kwargs), layer  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- poolings

POOLS = {
    "2x2": nn.MaxPool2d(2),
    "3x3, stride 2": nn.MaxPool2d(3, 2, 1),
    "overlapping": nn.MaxPool2d((3, 2), 1),
    "dilated": nn.MaxPool2d((2, 3), (3, 2), (1, 0), (2, 3)),
    "rows": nn.MaxPool2d((1, 4), (1, 3), (0, 2)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("shape", [(2, 5, 11, 13), (1, 3, 18, 17), (5, 11, 12)])
def test_max_pooling_of_bytes_is_that_of_their_numbers(name: str, shape: tuple[int, ...]) -> None:
    pool, x = POOLS[name], integers(*shape)
    scale = torch.tensor([1.0, -0.5, 0.0, 2.0, -3.0])[: shape[-3]]
    signs = torch.where(scale < 0, -1, 1)[:, None, None]
    for y in (x, x.contiguous(memory_format=torch.channels_last)) if x.dim() == 4 else (x,):
        result = QuantizedMaxPool2d(pool)(y)
        assert result.dtype == torch.uint8
        assert result.equal(pool(x.float()).byte())
        assert QuantizedMaxPool2d(pool, scale)(y).equal((pool(x.float() * signs) * signs).byte())


def test_images_that_are_smaller_than_the_window_are_refused() -> None:
    for pool, shape in ((nn.MaxPool2d(3, 2), (1, 4, 2, 5)), (nn.MaxPool2d(2, 1, 0, 3), (4, 8, 3))):
        with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
            pool(torch.zeros(shape))
        with pytest.raises(RuntimeError, match=rf"^the dilated kernel must fit into .*, got input \[{shape[0]}, "):
            QuantizedMaxPool2d(pool)(integers(*shape))


# --------------------------------------------------------------------------------------------------------- quantizers


@pytest.mark.parametrize("bits", [8, 5, 4])
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.1), (-3.0, 5.0), (-2.5, -1.0), (1.0, 2.0), (0.0, 0.0), (0.0, 1e-40)])
def test_quantizer_of_a_range_holds_its_ends_and_zero_exactly(low: float, high: float, bits: int) -> None:
    quantizer = Quantizer.of_range(low, high, bits)
    assert quantizer.top == 2**bits - 1
    assert 0 <= quantizer.zero_point <= quantizer.top
    assert torch.tensor(quantizer.scale).item() == quantizer.scale
    assert quantizer.low <= min(low, 0) + 0.51 * quantizer.scale
    assert quantizer.high >= max(high, 0) - 0.51 * quantizer.scale
    assert quantizer.bytes_of(torch.zeros(1)).item() == quantizer.zero_point
    if high - low > 1e-30:
        assert quantizer.scale == pytest.approx((max(high, 0) - min(low, 0)) / quantizer.top, rel=1e-6)


def test_bytes_are_the_nearest_and_clipped() -> None:
    quantizer = Quantizer(0.5, 3, 15)
    x = torch.tensor([-9.0, -1.5, -1.3, -0.1, 0.0, 0.2, 0.3, 0.75, 0.25, 5.9, 6.0, 99.0, float("inf"), -float("inf")])
    expected = [0, 0, 0, 3, 3, 3, 4, 5, 3, 15, 15, 15, 15, 0]  # 0.75 and 0.25 are halves, of 1.5 and 0.5 steps
    assert quantizer.bytes_of(x).tolist() == expected
    assert Quantize(quantizer)(x).tolist() == expected


@pytest.mark.parametrize("bits", [8, 4])
def test_simulation_holds_exactly_what_bytes_stand_for(bits: int) -> None:
    quantize = FakeQuantize("x", bits)
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert quantize(x) is x
    quantize.fix()
    y = 1.2 * x
    quantizer = quantize.quantizer
    assert quantizer is not None
    steps = Quantize(quantizer)(y).float() - quantizer.zero_point
    assert steps.unique().numel() > 0.9 * quantizer.top
    assert quantize(y).equal(steps * quantizer.scale)


def test_gradient_passes_straight_through_within_the_range_alone() -> None:
    quantize = FakeQuantize("x", 8)
    quantize(torch.tensor([-1.0, 2.0]))
    quantize.fix()
    x = torch.tensor([-1.5, -0.5, 0.0, 0.3, 1.9, 2.5], requires_grad=True)
    g = torch.arange(1.0, 7.0)
    quantize(x).backward(g)
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]


def test_images_become_channels_last_and_other_shapes_stay() -> None:
    quantize = Quantize(Quantizer(0.1, 100, 255))
    assert quantize(torch.randn(2, 3, 4, 5)).is_contiguous(memory_format=torch.channels_last)
    assert quantize(torch.randn(2, 3, 4)).is_contiguous()
    assert quantize(torch.randn(2, 3, 4, 5).bfloat16()).dtype == torch.uint8


@pytest.mark.parametrize("quantile", [1.0, 0.99])
def test_observer_does_not_depend_on_how_values_are_batched(quantile: float) -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * torch.linspace(1e-6, 30, 3000)
    whole, parts = Observer(quantile), Observer(quantile)
    whole.update(x)
    for part in x.split(70):
        parts.update(part)
    assert parts.range == pytest.approx(whole.range, rel=2e-3)
    assert len(parts.counts) <= 8192
    assert int(parts.counts.sum()) == (0 if quantile == 1 else 3000)


@pytest.mark.parametrize("values", [[0.0], [5.0], [-3.0, -3.0], [1e-30, 2e-30], [2.0**99, -(2.0**99)]])
def test_observer_of_unusual_values(values: list[float]) -> None:
    observer = Observer(0.9)
    observer.update(torch.tensor(values))
    low, high = observer.range
    assert min(values) <= low <= high <= max(values) + 1e-12


# -------------------------------------------------------------------------------------------------------- byte layers


def test_layer_of_bytes_gives_distances() -> None:
    quantized, layer = layer_of_bytes()
    x = integers(2, 5, 7, 7)
    assert quantized(x).equal(-layer(x.float()))


def test_layer_with_addend_of_every_kind() -> None:
    quantized, layer = layer_of_bytes(addend_scale=0.5)
    x = integers(2, 5, 7, 7)
    expected = -layer(x.float()).detach()
    for addend in (integers(2, 3, 7, 7), torch.randn(2, 3, 7, 7), torch.randn(3, 1, 1), torch.randn(2, 3, 7, 7).half()):
        torch.testing.assert_close(quantized(x, addend), expected + addend.float() * 0.5)


def test_byte_output_is_clipped_to_its_bits() -> None:
    quantized, layer = layer_of_bytes(Quantizer(1.0, 5, 15))
    with torch.no_grad():
        quantized.scale.fill_(0.01)
        quantized.shift.fill_(-38.0)
    x = integers(2, 5, 7, 7)
    exact = (-layer(x.float()) * 0.01 - 38 + 5).detach()
    output = quantized(x)
    assert output.dtype == torch.uint8
    assert {int(output.min()), int(output.max())} == {0, 15}
    assert (output - exact.clamp(0, 15)).abs().max() < 0.5001


@pytest.mark.parametrize("shape", [(9,), (2, 9), (2, 3, 4, 9)])
def test_linear_layer_of_bytes(shape: tuple[int, ...]) -> None:
    layer = AdderLinear(9, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(integers(4, 9))
    quantized = QuantizedAdderLinear(layer, torch.ones(4), torch.zeros(4), False, UNIT, None)
    x = integers(*shape)
    assert quantized(x).equal(-layer(x.float()))


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.half(),
        lambda module: module.double(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to(memory_format=torch.channels_last),
        lambda module: module.type(torch.float32),
        lambda module: module.to("cpu", torch.float64),
    ],
)
def test_nothing_changes_the_type_of_filters_and_constants(change: object) -> None:
    quantized, _ = layer_of_bytes()
    x = integers(2, 5, 7, 7)
    expected, state = quantized(x), {key: value.clone() for key, value in quantized.state_dict().items()}
    changed = change(quantized)  # type: ignore[operator]
    assert changed is quantized
    for key, value in quantized.state_dict().items():
        assert value.dtype == state[key].dtype
        assert value.stride() == state[key].stride()
        assert value.equal(state[key])
    assert quantized(x).equal(expected)


@pytest.mark.parametrize("bias", [False, True])
def test_weights_in_int8_are_the_nearest_of_every_channel(bias: bool) -> None:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=bias), nn.Linear(6, 8, bias=bias)
    for layer in (conv, linear):
        with torch.no_grad():
            layer.weight *= torch.logspace(-3, 3, 8).view(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight[5] = 0
    for layer, quantized, x in (
        (conv, QuantizedConv2d(conv), torch.randn(2, 6, 9, 9)),
        (linear, QuantizedLinear(linear), torch.randn(2, 3, 6)),
    ):
        assert quantized.weight.dtype == torch.int8
        scale = quantized.scale.view(-1, *[1] * (layer.weight.dim() - 1))
        assert ((quantized.weight * scale - layer.weight).abs() <= 0.5001 * scale).all()
        assert quantized.weight.flatten(1).abs().amax(1).tolist() == [127, 127, 127, 127, 127, 0, 127, 127]
        same = fake_quantized(layer)
        torch.testing.assert_close(quantized(x), same(x), rtol=1e-4, atol=1e-4)
        same(x).sum().backward()
        straight = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
        torch.testing.assert_close(layer.weight.grad, straight)


# -------------------------------------------------------------------------------------------------------- simulation


def test_layer_of_the_simulation_shares_the_parameters_and_is_the_layer_while_ranges_are_observed() -> None:
    layer = Adder2d(4, 6, 3)
    quantize = FakeQuantize("x", 8)
    fake = fake_quantized(layer, quantize)
    assert type(fake) is FakeQuantizedAdder2d
    assert type(layer) is Adder2d
    assert fake.weight is layer.weight
    assert fake.weight.is_adder_filter
    assert list(fake.state_dict()) == ["weight", "bias"]
    x = torch.randn(2, 4, 6, 6)
    assert fake(quantize(x)).equal(layer(x))
    quantize.fix()
    with torch.no_grad():
        exact = fake(quantize(x))
    assert not exact.equal(layer(x))
    torch.testing.assert_close(fake(quantize(x)), exact)


def test_filters_beyond_the_range_cost_nothing() -> None:
    """|x - w| = |x - clip(w)| + |w - clip(w)|, in the simulation too."""
    layer = Adder2d(4, 6, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-60, 60, layer.weight.shape))
    quantize = FakeQuantize("x", 4)
    x = integers(2, 4, 6, 6, top=15).float()
    x[0, 0, 0, :2] = torch.tensor([0.0, 15.0])
    fake = fake_quantized(layer, quantize)
    quantize(x)
    quantize.fix()
    with torch.no_grad():
        torch.testing.assert_close(fake(quantize(x)), layer(x), rtol=0, atol=1e-3)
