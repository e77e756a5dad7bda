"""What all layers take and refuse: batches, single images, channels, and nothing at all."""

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adderzoo.layers import (
    Adder2d,
    AdderAffine2d,
    AdderAffineLinear,
    AdderLinear,
    AdderTranspose2d,
    BinaryConv2d,
    QuantizedAdder2d,
    QuantizedAdderLinear,
    ShiftAdd2d,
    ShiftConv2d,
)
from adderzoo.layers.affine import AdderAffine2dSame
from adderzoo.layers.fake_quantized import FakeQuantize, fake_quantized
from adderzoo.layers.quantized import QuantizedAdder2dSame, QuantizedConv2d, Quantizer
from adderzoo.layers.replace import Adder2dSame

pytestmark = pytest.mark.usefixtures("one_thread")

BYTES = Quantizer(1.0, 3, 255)


def quantized(kind: type[nn.Module], layer: nn.Module) -> nn.Module:
    return kind(layer, -torch.ones(len(layer.weight)), torch.zeros(len(layer.weight)), False, BYTES, None)


def fake(layer: nn.Module) -> nn.Module:
    quantize = FakeQuantize("input", 8)
    quantize.quantizer = BYTES
    return fake_quantized(layer, quantize)


# Of 3 channels or features each.
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "adder": lambda: Adder2d(3, 4, 3, padding=1),
    "adder, grouped and reflected": lambda: Adder2d(3, 6, 3, padding=1, groups=3, padding_mode="reflect"),
    "adder, same": lambda: Adder2dSame(3, 4, 3, stride=2),
    "transposed": lambda: AdderTranspose2d(3, 4, 3, stride=2),
    "binary": lambda: BinaryConv2d(3, 4, 3),
    "shift": lambda: ShiftConv2d(3, 4, 3),
    "shift and add": lambda: ShiftAdd2d(3, 4, 3),
    "affine": lambda: AdderAffine2d(Adder2d(3, 4, 3), relu=True),
    "affine, same": lambda: AdderAffine2dSame(Adder2dSame(3, 4, 3, stride=2)),
    "bytes": lambda: quantized(QuantizedAdder2d, Adder2d(3, 4, 3, padding=1)),
    "bytes, reflected": lambda: quantized(QuantizedAdder2d, Adder2d(3, 4, 3, padding=1, padding_mode="reflect")),
    "bytes, same": lambda: quantized(QuantizedAdder2dSame, Adder2dSame(3, 4, 3, stride=2)),
    "int8 convolution": lambda: QuantizedConv2d(nn.Conv2d(3, 4, 3)),
    "simulation": lambda: fake(Adder2d(3, 4, 3)),
}
FEATURES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: AdderLinear(3, 4),
    "affine": lambda: AdderAffineLinear(AdderLinear(3, 4)),
    "bytes": lambda: quantized(QuantizedAdderLinear, AdderLinear(3, 4)),
    "simulation": lambda: fake(AdderLinear(3, 4)),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval().requires_grad_(False)


def values(name: str, *shape: int) -> Tensor:
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))
    return x.to(torch.uint8) if name.startswith("bytes") else x / 8


def defaults(layer: nn.Module) -> dict[str, None]:
    parameters = inspect.signature(layer.forward).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is None}


def scripted(layer: nn.Module, x: Tensor) -> nn.Module:
    return torch.jit.script(copy.deepcopy(layer))


WAYS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "itself": lambda layer, x: layer,
    "script": scripted,
    "trace": torch.jit.trace,
    "fx": lambda layer, x: torch.fx.symbolic_trace(layer, defaults(layer)),
    "compile": lambda layer, x: torch.compile(layer, backend="aot_eager", fullgraph=True),
    "export": lambda layer, x: torch.export.export(layer, (x,)).module(),
}
SCRIPTS = ("script", "trace")  # which a simulation is not made for
REFUSED = (RuntimeError, torch.jit.Error)


@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name in IMAGES for way in WAYS if name != "simulation" or way not in SCRIPTS]
)
def test_single_image_is_a_batch_of_one(name: str, way: str) -> None:
    torch.compiler.reset()
    layer, x = made(IMAGES[name]), values(name, 3, 9, 8)
    expected = layer(x.unsqueeze(0))
    assert expected.shape[0] == 1
    result = WAYS[way](layer, x)(x)
    assert result.shape == expected.shape[1:]
    torch.testing.assert_close(result, expected[0])


def test_single_image_trains_as_a_batch_of_one() -> None:
    gradients = []
    for unsqueezed in (False, True):
        layer, x = Adder2d(3, 4, 3), values("adder", 3, 9, 8).requires_grad_()
        nn.init.constant_(layer.weight, 0.3)
        layer(x.unsqueeze(0) if unsqueezed else x).square().sum().backward()
        gradients.append((x.grad, layer.weight.grad))
    torch.testing.assert_close(*gradients)


def test_single_image_passes_a_scripted_network_of_convolutions_and_adder_layers() -> None:
    """TorchScript takes a convolution's output for one of 4 dimensions."""
    network = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Adder2d(4, 4, 3), nn.ReLU(), AdderTranspose2d(4, 2, 3)))
    x = values("adder", 3, 9, 8)
    torch.testing.assert_close(scripted(network, x)(x), network(x[None])[0])


@pytest.mark.parametrize("kind", [AdderAffine2d, QuantizedAdder2d])
@pytest.mark.parametrize("shape", [(4, 7, 6), (4, 1, 1), (1, 4, 7, 6), (2, 4, 7, 6), (6,)], ids=str)
def test_addend_of_a_single_image_is_added_as_pytorch_adds_it(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    name = "affine" if kind is AdderAffine2d else "bytes"
    layer = Adder2d(3, 4, 3, bias=False)
    module = kind(layer) if kind is AdderAffine2d else quantized(kind, layer)
    x, addend = values(name, 3, 9, 8), torch.randn(shape)
    expected = module(x) + addend
    result = module(x, addend)
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "itself") for name in IMAGES), ("adder", "script"), ("affine", "fx")]
)
def test_other_channels_and_dimensions_are_refused_by_number(name: str, way: str) -> None:
    layer = WAYS[way](made(IMAGES[name]), values(name, 2, 3, 9, 8))
    for channels, shape in ((4, (2, 4, 9, 8)), (2, (2, 2, 9, 8)), (6, (6, 9, 8)), (0, (2, 0, 9, 8))):
        with pytest.raises(REFUSED, match=rf"3 channels.* got {channels} "):
            layer(values(name, *shape))
    for shape in ((9, 8), (1, 2, 3, 9, 8)):
        with pytest.raises(REFUSED, match=r"\(C, H, W\), got shape|Expected 3D \(unbatched\) or 4D"):
            layer(values(name, *shape))


@pytest.mark.parametrize("name", FEATURES)
def test_other_features_are_refused_by_number(name: str) -> None:
    layer = made(FEATURES[name])
    for shape in ((4,), (2, 4), (3, 2), (0, 6), (3, 0)):  # 2 x 6 numbers could pass for 4 rows of 3
        with pytest.raises(RuntimeError, match=f"input must have 3 features, got {shape[-1]} in shape"):
            layer(values(name, *shape))
    with pytest.raises(RuntimeError, match="got a tensor of no dimensions"):
        layer(values(name))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Adder2d(0, 3, 3), "in_channels"),
        (lambda: Adder2d(3, 0, 3), "out_channels"),
        (lambda: AdderTranspose2d(0, 3, 3), "in_channels"),
        (lambda: AdderTranspose2d(3, 0, 3), "out_channels"),
        (lambda: ShiftAdd2d(0, 3, 3), "in_channels"),
        (lambda: ShiftAdd2d(3, 0, 3), "out_channels"),
        (lambda: AdderLinear(0, 3), "in_features"),
        (lambda: AdderLinear(3, 0), "out_features"),
        (lambda: AdderLinear(-1, 3), "in_features"),
    ],
)
def test_layers_of_nothing_are_refused(make: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named} must be at least 1, got (0|-1)$"):
        make()


@pytest.mark.parametrize("name", IMAGES)
def test_no_images_give_no_outputs(name: str) -> None:
    layer = made(IMAGES[name])
    assert layer(values(name, 0, 3, 9, 8)).shape == (0, *layer(values(name, 2, 3, 9, 8)).shape[1:])


@pytest.mark.parametrize("size", [(0, 8), (9, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("name", [name for name in IMAGES if name not in ("binary", "shift", "int8 convolution")])
def test_images_of_no_pixels_are_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"must fit|must have pixels|non-zero dimensions|actual input"):
        made(IMAGES[name])(values(name, 2, 3, *size))


# PyTorch's convolution and padding give none of no examples another shape.
PYTORCHS = ("binary", "shift", "shift and add", "int8 convolution", "adder, grouped and reflected", "bytes, reflected")


@pytest.mark.parametrize(
    ("name", "examples"), [*((name, 3) for name in IMAGES), *((name, 0) for name in IMAGES if name not in PYTORCHS)]
)
def test_vmap_is_a_loop_over_single_images(name: str, examples: int) -> None:
    layer, x = made(IMAGES[name]), values(name, 3, 3, 9, 8)
    expected = torch.stack([layer(each) for each in x])[:examples]
    for result in (torch.vmap(layer)(x[:examples]), torch.vmap(layer, in_dims=3)(x[:examples].movedim(0, 3))):
        assert result.shape == expected.shape
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("examples", [0, 3])
@pytest.mark.parametrize("shape", [(), (2,), (2, 5), (0,)], ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_vmap_is_a_loop_over_features(name: str, shape: tuple[int, ...], examples: int) -> None:
    layer, x = made(FEATURES[name]), values(name, 3, *shape, 3)
    expected = torch.stack([layer(each) for each in x])[:examples]
    assert expected.shape == (examples, *shape, 4)
    result = torch.vmap(layer)(x[:examples])
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected)
