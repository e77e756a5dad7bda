"""Integer networks against integers by hand, and against the float networks they come from."""

import copy
import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from copies import ways
from fused_networks import CHANNELS, NotTraced, adder, calls, kinds, settle
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.nn.utils import prune

import adderzoo
from adderzoo import load, save
from adderzoo.files.weights import read_metadata
from adderzoo.inference.quantization import calibrate, quantize, ranges, simulate
from adderzoo.layers import Adder2d, AdderLinear, replace_conv
from adderzoo.layers.quantized import (
    Quantize,
    QuantizedAdder2d,
    QuantizedAdder2dSame,
    QuantizedAdderLinear,
    QuantizedConv2d,
)
from adderzoo.layers.replace import Adder2dSame
from adderzoo.ops.packing import unpack_byte_filters

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _the_same_networks_in_every_run() -> None:
    torch.manual_seed(0)


def settled(network: nn.Module, *shape: int) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics that fit, and without dropout."""
    for dropout in network.modules():
        if isinstance(dropout, nn.Dropout):
            dropout.p = 0.0
    return settle(network, images(16, *shape))


def images(batch: int = 2, *shape: int) -> Tensor:
    return torch.randn(batch, *(shape or (CHANNELS, 9, 9)), generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """Two layers and a shortcut: that of ResNets."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layer1 = Adder2d(channels, out_channels, 3, stride, 1, bias=False)
        self.layer2 = Adder2d(out_channels, out_channels, 3, padding=1, bias=True)
        self.norm1, self.norm2, self.relu = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels), nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                Adder2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.layer2(self.relu(self.norm1(self.layer1(x)))))
        return self.relu(y + self.shortcut(x))


class Residual(nn.Module):
    """A network with all that matters, whose first adder layers see negative values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(CHANNELS, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block1, self.block2 = Block(8, 8, 1), Block(8, 16, 2)
        self.layer, self.norm2, self.drop = Adder2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Dropout()
        self.fc, self.norm3 = nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5)
        self.num_classes = 5

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.norm(self.conv(x))))
        x = self.norm2(F.max_pool2d(self.layer(x), 2)).relu()
        return self.norm3(self.fc(self.drop(x.mean((2, 3), keepdim=True)))).flatten(1)


@pytest.fixture
def network() -> nn.Module:
    return settled(Residual())


def quantized(network: nn.Module, bits: int = 8, *shape: int, **kwargs: Any) -> fx.GraphModule:
    return quantize(calibrate(network, [images(16, *shape)], bits, **kwargs))


# ----------------------------------------------------------------------------------------------- in integers, by hand


def distance(x: Tensor, filters: Tensor, layer: QuantizedAdder2d, padding: list[int]) -> Tensor:
    """Sums of |x - w| in int64; `padding` is what is left to do of it."""
    x = F.pad(x.long(), (padding[1], padding[1], padding[0], padding[0]), value=layer.zero_point)
    groups, (taps_h, taps_w) = layer.groups, filters.shape[2:]
    height = (x.shape[2] - layer.dilation[0] * (taps_h - 1) - 1) // layer.stride[0] + 1
    width = (x.shape[3] - layer.dilation[1] * (taps_w - 1) - 1) // layer.stride[1] + 1
    parts = []
    for part, w in zip(x.chunk(groups, 1), filters.long().chunk(groups), strict=True):
        total = torch.zeros(len(x), len(w), height, width, dtype=torch.long)
        for i in range(taps_h):
            for j in range(taps_w):
                rows = slice(i * layer.dilation[0], None, layer.stride[0])
                columns = slice(j * layer.dilation[1], None, layer.stride[1])
                view = part[:, :, rows, columns][:, None, :, :height, :width]
                total += (view - w[None, :, :, i, j, None, None]).abs().sum(2)
        parts.append(total)
    return torch.cat(parts, 1)


def by_hand(layer: QuantizedAdder2d, x: Tensor, addend: Tensor | None) -> Tensor:
    if layer.pad_first:
        mode = layer.padding_mode
        value = {"value": float(layer.zero_point)} if mode == "constant" else {}
        x = F.pad(x.double(), layer.sides, mode=mode, **value).to(torch.uint8)
    filters = unpack_byte_filters(layer.weight, len(layer.scale), x.shape[1] // layer.groups)
    z = distance(x, filters, layer, layer.operator_padding).float() * layer.scale[:, None, None]
    z = z + layer.shift[:, None, None]
    if addend is not None:
        z = z + addend.float() * layer.addend_scale
    if layer.relu:
        z = z.clamp(min=0)
    if layer.out_zero_point is None:
        return z
    return (z.round() + layer.out_zero_point).clamp(0, layer.out_max).to(torch.uint8)


@torch.no_grad()
def assert_integers(network: nn.Module, x: Tensor, top: int) -> int:
    """Every adder layer gives what integers give, and sees bytes up to `top`; returns how many there were."""
    checked = 0

    def check(layer: QuantizedAdder2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal checked
        x, addend = (*inputs, None)[:2]
        assert x.dtype == torch.uint8
        assert x.max() <= top
        assert unpack_byte_filters(layer.weight, len(layer.scale), x.shape[1] // layer.groups).max() <= top
        assert output.equal(by_hand(layer, x, addend))
        checked += 1

    layers = [module for module in network.modules() if type(module) is QuantizedAdder2d]
    handles = [layer.register_forward_hook(check) for layer in layers]
    network(x)
    for handle in handles:
        handle.remove()
    return checked


@pytest.mark.parametrize("bits", [8, 7, 4])
def test_every_layer_computes_in_integers(network: nn.Module, bits: int) -> None:
    assert assert_integers(quantized(network, bits), images(), 2**bits - 1) == 6


GEOMETRIES: dict[str, Callable[[], Adder2d]] = {
    "bias": lambda: adder(bias=True),
    "unequal sides": lambda: Adder2d(CHANNELS, 5, (4, 3), padding="same"),
    "circular": lambda: Adder2d(CHANNELS, 5, 3, padding=2, padding_mode="circular"),
    "reflect": lambda: Adder2d(CHANNELS, 5, 3, padding=2, padding_mode="reflect"),
    "strided": lambda: Adder2d(CHANNELS, 5, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "grouped": lambda: Adder2d(CHANNELS, 6, 3, groups=2),
    "depthwise": lambda: Adder2d(CHANNELS, 8, 3, groups=CHANNELS),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_layer_of_every_geometry_computes_in_integers_what_it_computes_in_float(name: str) -> None:
    """Filters of +-3 and input from -2 to 4 or so: clipping and the zero point matter."""
    layer = GEOMETRIES[name]()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    network = settled(nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()))
    integer = quantized(network)
    assert calls(integer) == ["Quantize", "QuantizedAdder2d"]
    assert assert_integers(integer, images(), 255) == 1
    expected = network(images())
    assert (integer(images()) - expected).square().mean().sqrt() < 0.03 * expected.std()


def test_same_padding_of_timm_is_by_the_zero_point() -> None:
    layer = Adder2dSame(CHANNELS, 5, 3, stride=2)
    network = settled(nn.Sequential(layer, nn.BatchNorm2d(5)))
    integer = quantized(network)
    assert type(integer.get_submodule("0")) is QuantizedAdder2dSame
    expected = network(images())
    assert (integer(images()) - expected).square().mean().sqrt() < 0.03 * expected.std()


def test_linear_layers_work_on_bytes() -> None:
    network = nn.Sequential(AdderLinear(9, 6), nn.ReLU(), AdderLinear(6, 5))
    nn.init.normal_(network[0].bias, 9.0)
    network.eval()
    integer = quantized(network, 8, CHANNELS, 9)
    assert calls(integer) == ["Quantize", "QuantizedAdderLinear", "QuantizedAdderLinear"]
    assert isinstance(integer.get_submodule("0"), QuantizedAdderLinear)
    expected = network(images(2, CHANNELS, 9))
    assert expected.shape == (2, CHANNELS, 5)
    assert (integer(images(2, CHANNELS, 9)) - expected).square().mean().sqrt() < 0.03 * expected.std()


@torch.no_grad()
def test_constants_are_those_of_the_layer_its_filters_and_batch_norm() -> None:
    """Against float64, from filters that are rounded and clipped here: each byte is the nearest or next to a tie."""
    network = settled(nn.Sequential(adder(bias=True), nn.BatchNorm2d(CHANNELS), nn.ReLU(), adder()))
    nn.init.normal_(network[0].bias)
    with torch.no_grad():
        network[0].weight[:, :2] *= 3  # some beyond the range of the input
    integer = quantized(network)
    (in_scale, in_zero), (out_scale, out_zero) = (
        integer.quantization["quantizers"][name] for name in ("0_input", "3_input")
    )
    assert 0 < in_zero < 255
    assert out_zero == 0
    x = integer.get_submodule("0_input")(images())
    low, high = -in_zero * in_scale, (255 - in_zero) * in_scale
    w = network[0].weight.double()
    assert ((w < low) | (w > high)).any()
    rounded = (w / in_scale).round().clamp(-in_zero, 255 - in_zero) * in_scale
    values = F.pad((x.double() - in_zero) * in_scale, (1, 1, 1, 1))
    patches = F.unfold(values, 3)[:, None]
    y = -(patches - rounded.flatten(1)[None, :, :, None]).abs().sum(2).unflatten(2, (9, 9))
    y = y - (w - w.clamp(low, high)).abs().flatten(1).sum(1)[:, None, None] + network[0].bias.double()[:, None, None]
    y = copy.deepcopy(network[1]).double()(y).relu() / out_scale
    output = integer.get_submodule("0")(x)
    inside = y < 255
    assert inside.double().mean() > 0.9
    assert (output[inside] - y[inside]).abs().max() < 0.51
    assert (output[~inside] == 255).all()


# ---------------------------------------------------------------------------------------------------------- structure


def test_residual_network_stays_in_bytes_from_its_first_adder_layer_to_its_last(network: nn.Module) -> None:
    integer = quantized(network)
    assert [call for call in calls(integer) if call[0].isupper()] == [
        *("Conv2d", "Quantize", *["QuantizedAdder2d"] * 6, "BatchNorm2d", "QuantizedConv2d")
    ]
    outputs: dict[str, torch.dtype] = {}
    for name, module in integer.named_modules():
        if isinstance(module, QuantizedAdder2d):
            module.register_forward_hook(lambda module, i, output, name=name: outputs.update({name: output.dtype}))
    integer(images())
    assert {name for name, dtype in outputs.items() if dtype == torch.float32} == {"layer"}
    assert not {"add", "BatchNorm1d"} & set(calls(integer))


def test_filters_are_there_once_as_bytes(network: nn.Module) -> None:
    state = quantized(network).state_dict()
    packed = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, Adder2d)}
    assert len(packed) == 6
    assert {key for key, value in state.items() if value.dtype == torch.uint8} == packed
    assert {key for key, value in state.items() if value.dtype == torch.int8} == {"fc.weight"}
    floats = {key for key, value in state.items() if value.is_floating_point() and value.dim() > 1}
    assert floats == {"conv.weight"}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "behind",
    [
        lambda: [nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)],
        lambda: [nn.MaxPool2d(2), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)],
        lambda: [nn.MaxPool2d(2), nn.BatchNorm2d(CHANNELS)],
        lambda: [nn.MaxPool2d(3, 1, 1), nn.ReLU(inplace=True)],
        lambda: [nn.BatchNorm2d(CHANNELS), nn.MaxPool2d(3, 2, 1, dilation=2), nn.ReLU(inplace=True)],
        lambda: [nn.MaxPool2d(2)],
    ],
)
def test_max_pooling_behind_an_adder_layer_is_of_bytes(behind: Callable[[], list[nn.Module]], bits: int) -> None:
    network = settled(nn.Sequential(adder(), *behind(), adder(), nn.BatchNorm2d(CHANNELS)), CHANNELS, 24, 24)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight[::2].neg_()  # behind which the greatest number is the least
    simulation = calibrate(network, [images(16, CHANNELS, 24, 24)], bits)
    integer = quantize(simulation)
    assert calls(integer) == ["Quantize", "QuantizedAdder2d", "QuantizedMaxPool2d", "QuantizedAdder2d"]
    assert assert_integers(integer, images(2, CHANNELS, 24, 24), 2**bits - 1) == 2
    expected = simulation(images(2, CHANNELS, 24, 24))
    difference = integer(images(2, CHANNELS, 24, 24)) - expected
    assert (difference.abs() > 1e-3 * expected.std()).float().mean() < 0.05  # next to a tie


class SeenPool(nn.Module):
    """An adder layer and a pooling that more than the next adder layer sees."""

    def __init__(self, see: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.pool, self.next, self.see = adder(), nn.MaxPool2d(2), adder(), see

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        z = self.pool(y)
        return self.next(z), self.see(y, z)


@torch.no_grad()
@pytest.mark.parametrize("see", [lambda y, z: y.mean(), lambda y, z: z.mean()], ids=["its input", "its output"])
def test_max_pooling_that_others_see_too_stays_in_float(see: Callable[..., Tensor]) -> None:
    network = settled(SeenPool(see))
    simulation = calibrate(network, [images(16)])
    integer = quantize(simulation)
    assert calls(integer) == ["Quantize", "QuantizedAdder2d", "MaxPool2d", "Quantize", "QuantizedAdder2d", "mean"]
    torch.testing.assert_close(integer(images()), simulation(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "behind",
    [[nn.AvgPool2d(2)], [nn.MaxPool2d(2, ceil_mode=True)], [nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.BatchNorm2d(4)]],
)
@torch.no_grad()
def test_other_pooling_is_in_float(behind: list[nn.Module]) -> None:
    network = nn.Sequential(adder(), *behind, adder(), nn.BatchNorm2d(CHANNELS))
    network = settled(network, CHANNELS, 23, 23)
    simulation = calibrate(network, [images(16, CHANNELS, 23, 23)])
    integer = quantize(simulation)
    others = [type(module).__name__ for module in behind if module is not behind[0] or len(behind) == 1]
    assert calls(integer) == ["Quantize", "QuantizedAdder2d", *others, "Quantize", "QuantizedAdder2d"]
    expected = simulation(images(2, CHANNELS, 23, 23))
    difference = integer(images(2, CHANNELS, 23, 23)) - expected
    assert (difference.abs() > 1e-3 * expected.std()).float().mean() < 0.05


def pooled() -> nn.Sequential:
    layers = [adder(), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(CHANNELS), nn.ReLU(), adder(), nn.BatchNorm2d(CHANNELS)]
    return nn.Sequential(*layers)


@torch.no_grad()
def test_pooling_of_bytes_is_part_of_the_file(tmp_path: Path) -> None:
    """In which channels the least is taken, too, which a network with other weights does not know."""

    network = settled(pooled())
    network[2].weight[1:3].neg_()
    integer = quantized(network)
    save(integer, tmp_path / "network.safetensors")
    assert load(tmp_path / "network.safetensors", settled(pooled()))(images()).equal(integer(images()))


class Stem(nn.Module):
    """A convolution, a ReLU and a pooling in front of an adder layer, of which something else may see one."""

    def __init__(self, seen: str) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(CHANNELS, CHANNELS, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer, self.seen = adder(), seen

    def forward(self, x: Tensor) -> Tensor:
        convolved = self.conv(x)
        pooled = self.pool(self.relu(convolved))
        y = self.layer(pooled)
        if self.seen == "convolved":
            y = y + convolved.mean()
        return y + pooled.mean() if self.seen == "pooled" else y


@torch.no_grad()
@pytest.mark.parametrize("seen", ["", "convolved", "pooled"])
def test_relu_is_part_of_making_bytes_where_nothing_else_sees_what_it_changes(seen: str) -> None:
    network = settled(Stem(seen))
    network.conv.bias.sub_(1)  # some pooled numbers are below 0 without it
    simulation = calibrate(network, [images(16)])
    integer = quantize(simulation)
    assert ("ReLU" in kinds(integer)) == bool(seen)
    torch.testing.assert_close(integer(images()), simulation(images()), rtol=1e-5, atol=1e-4)


def test_relu_stays_in_front_of_bytes_that_stand_for_less_than_0() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.conv = adder(), nn.Conv2d(CHANNELS, CHANNELS, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.conv(x).relu()) + self.layer(self.conv(x))

    simulation = calibrate(settled(Both()), [images(16)])
    zero_points = [zero for _, zero in ranges(simulation)["quantizers"].values()]
    integer = quantize(simulation)
    assert sorted(zero > 0 for zero in zero_points) == [False, True]
    torch.testing.assert_close(integer(images()), simulation(images()), rtol=1e-5, atol=1e-4)


class SeenByOthers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.norm1, self.layer2, self.norm2 = adder(), nn.BatchNorm2d(4), adder(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm1(self.layer1(x))
        return self.norm2(self.layer2(y)), y.mean()


def test_tensor_that_others_see_too_stays_float_for_them() -> None:
    network = settled(SeenByOthers())
    integer = quantized(network)
    assert calls(integer) == ["Quantize", "QuantizedAdder2d", "Quantize", "QuantizedAdder2d", "mean"]
    for result, expected in zip(integer(images()), network(images()), strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=0.05, atol=0.3)


class Twice(nn.Module):
    def __init__(self, broadcast: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.broadcast = adder(), nn.BatchNorm2d(CHANNELS), broadcast

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x)) + (x.mean((2, 3), keepdim=True) if self.broadcast else 1.5 * x)
        return self.norm(self.layer(y)) - x


@pytest.mark.parametrize("broadcast", [False, True])
def test_layer_that_is_called_twice_has_the_scale_of_each_input_and_float_addends_are_added(broadcast: bool) -> None:
    network = settled(Twice(broadcast))
    integer = quantized(network)
    assert kinds(integer)["QuantizedAdder2d"] == 2
    expected = network(images())
    assert (integer(images()) - expected).square().mean().sqrt() < 0.05 * expected.std()


class Wider(nn.Module):
    """What is added is larger than the layer's output."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.next, self.relu = adder(), nn.BatchNorm2d(CHANNELS), adder(), relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x.mean((2, 3), keepdim=True))) + x
        return self.next(y.relu() if self.relu else y)


@pytest.mark.parametrize("relu", [False, True])
def test_addend_larger_than_the_output_is_added_as_pytorch_adds_it(relu: bool) -> None:
    network = settled(Wider(relu))
    integer, expected = quantized(network), network(images())
    assert integer(images()).shape == expected.shape
    assert (integer(images()) - expected).square().mean().sqrt() < 0.05 * expected.std()
    torch.testing.assert_close(torch.jit.script(integer)(images()), integer(images()))


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.fc = adder(), nn.BatchNorm2d(CHANNELS), nn.Linear(CHANNELS * 9 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x)).relu()
        return self.fc(y.view(y.size(0), -1))


def test_view_of_an_adder_layer_is_that_of_the_float_network() -> None:
    """Bytes lie in channels_last, of which PyTorch makes no such view."""
    network = settled(Flattened())
    integer, expected = quantized(network), network(images())
    assert (integer(images()) - expected).square().mean().sqrt() < 0.05 * expected.std()


@pytest.mark.parametrize("place", ["classifier", "adder", "norm"])
def test_weight_that_is_not_finite_is_refused(network: nn.Module, place: str) -> None:
    simulation = calibrate(network, [images()])
    name, tensor = {
        "classifier": lambda: list(simulation.named_parameters())[-1],
        "adder": lambda: next((n, m.weight) for n, m in simulation.named_modules() if isinstance(m, Adder2d)),
        "norm": lambda: next(
            (n, m.running_var) for n, m in simulation.named_modules() if isinstance(m, nn.BatchNorm2d)
        ),
    }[place]()
    with torch.no_grad():
        tensor.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"^{re.escape(name)}.* must be finite to be quantized"):
        quantize(simulation)


class WrittenInPlace(nn.Module):
    """The input of the layer changes behind it, before it is added."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.relu = adder(), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.norm(self.layer(x))
        self.relu(x)
        return y + x


def test_tensor_that_changes_in_place_is_read_as_it_was() -> None:
    network = settled(WrittenInPlace())
    expected = network(images())
    result = quantized(network)(images())
    assert (result - expected).square().mean().sqrt() < 0.05 * expected.std()


# --------------------------------------------------------------------------------------------------- whole networks


def registered() -> list[str]:
    modules = sorted(str(module) for module in timm.list_modules() if str(module).startswith("adder_"))
    kinds = ["adder_*", "shiftadd_*"]
    names = sorted(name for module in modules for name in timm.list_models(kinds, module=module))
    return [name for name in names if timm.get_pretrained_cfg(name).num_classes]  # the classifiers


def registered_network(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """As small as it comes, with the arguments that make it so."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {}
    if timm.get_pretrained_cfg(name).input_size[1] == 224:
        arguments = {"widths": (4, 6, 8, 10), "num_classes": 10}
        arguments |= {"layers": (1, 2, 3, 2)} if name.endswith("101") else {}
    network: Any = timm.create_model(name, **arguments)
    return settled(network, *input_shape(network)), arguments


def input_shape(network: Any) -> tuple[int, int, int]:
    channels, size, _ = network.pretrained_cfg["input_size"]
    if "resnet" in network.pretrained_cfg["architecture"]:
        size = 64 if size == 224 else 16
    return channels, size, size


@torch.no_grad()
@pytest.mark.parametrize("name", registered())
def test_registered_network(name: str, tmp_path: Path) -> None:
    network, arguments = registered_network(name)
    shape = input_shape(network)
    simulation = calibrate(network, images(16, *shape).split(8), 8)
    assert simulation.state_dict().keys() == network.state_dict().keys()
    integer = quantize(simulation)
    adders = sum(isinstance(module, Adder2d) for module in network.modules())
    assert assert_integers(integer, images(1, *shape), 255) == adders
    assert not {"Adder2d", "FakeQuantizedAdder2d", "FakeQuantize"} & kinds(integer).keys()
    expected, result = simulation(images(4, *shape)), integer(images(4, *shape))
    assert (result - expected).square().mean().sqrt() < 0.2 * expected.std()

    arguments.pop("num_classes", None)
    save(integer, tmp_path / "network.safetensors", **arguments)
    loaded = load(tmp_path / "network.safetensors")
    assert loaded(images(2, *shape)).equal(integer(images(2, *shape)))
    assert loaded.num_classes == network.num_classes
    assert loaded.quantization["bits"] == 8


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "tf_mobilenetv3_small_minimal_100"])
def test_networks_of_replace_conv(name: str, tmp_path: Path) -> None:
    shape = (3, 32, 32)
    network = settled(replace_conv(timm.create_model(name, num_classes=10)), *shape)
    adders = sum(isinstance(module, Adder2d) for module in network.modules())
    integer = quantized(network, 8, *shape)
    layers = [module for module in integer.modules() if isinstance(module, QuantizedAdder2d)]
    assert len(layers) == adders
    plain = sum(type(layer) is QuantizedAdder2d for layer in layers)
    assert assert_integers(integer, images(1, *shape), 255) == plain
    save(integer, tmp_path / "network.safetensors")
    with pytest.raises(ValueError, match="pass one like it as `model`"):
        load(tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors", replace_conv(timm.create_model(name, num_classes=10)))
    assert loaded(images(1, *shape)).equal(integer(images(1, *shape)))


def test_network_in_float64_becomes_one_of_float32(network: nn.Module) -> None:
    expected = quantized(network)(images())
    assert quantized(network.double())(images()).equal(expected)


# ------------------------------------------------------------------------------------------------------- calibration


@torch.no_grad()
def test_ranges_are_of_all_images_and_hold_zero(network: nn.Module) -> None:
    seen: list[Tensor] = []
    batches = images(12).split(5)
    simulation = calibrate(network, batches, 8)
    network.block1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    for batch in batches:
        network(batch)
    scale, zero_point = quantize(simulation).quantization["quantizers"]["block1.layer1_input"]
    low, high = (float(torch.cat(seen).aminmax()[index]) for index in (0, 1))
    assert low < 0 < high
    assert scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert zero_point == round(-low / scale)


def test_input_that_is_never_negative_has_zero_point_0_and_one_that_never_changes_works() -> None:
    network = settled(nn.Sequential(nn.ReLU(), adder(), nn.BatchNorm2d(CHANNELS)))
    for x in (images(8), images(8) + 9, torch.zeros(2, CHANNELS, 9, 9)):
        integer = quantize(calibrate(network, [x], 8))
        ((scale, zero_point),) = integer.quantization["quantizers"].values()
        assert zero_point == 0
        expected = network(x)
        assert (integer(x) - expected).abs().max() < 9 * CHANNELS * scale
    assert quantize(calibrate(network, [-images(8).abs() - 1])).quantization["quantizers"]["1_input"][1] == 0


def test_range_below_zero_has_its_zero_at_the_top() -> None:
    network = settled(nn.Sequential(adder(), nn.BatchNorm2d(CHANNELS)))
    ((scale, zero_point),) = (
        quantize(calibrate(network, [-images(8).abs() - 1], 5, quantile=1)).quantization["quantizers"].values()
    )
    assert zero_point == 31
    assert scale == pytest.approx(float(images(8).abs().max() + 1) / 31)


@pytest.mark.parametrize("quantile", [0.999, 0.9, 0.6])
@torch.no_grad()
def test_quantiles_are_those_of_all_values(quantile: float) -> None:
    network = settled(nn.Sequential(adder(), nn.BatchNorm2d(CHANNELS)))
    batches = [images(4) * size + 3 * size for size in (1e-3, 0.3, 1, 50)]  # the range grows
    batches = [batch - 40 for batch in batches]
    simulation = calibrate(network, batches, 8, quantile=quantile)
    ((scale, zero_point),) = quantize(simulation).quantization["quantizers"].values()
    values = torch.cat(batches).flatten().double()
    low, high = (float(values.quantile(q, interpolation="lower")) for q in (1 - quantile, quantile))
    low, high = min(low, 0), max(high, 0)
    error = float(values.max() - values.min()) / 1000
    assert -zero_point * scale == pytest.approx(low, abs=error + scale)
    assert (255 - zero_point) * scale == pytest.approx(high, abs=error + scale)


def test_few_bits_take_quantiles_by_default(network: nn.Module) -> None:
    def scales(bits: int, quantile: float | None) -> list[float]:
        ranges = quantized(network, bits, quantile=quantile).quantization["quantizers"].values()
        return [scale for scale, _ in ranges]

    for bits, quantile in ((8, 1.0), (7, 1.0), (6, 0.999), (4, 0.999)):
        assert scales(bits, None) == scales(bits, quantile)
    assert scales(6, 1.0) != scales(6, 0.999)


def test_calibration_uses_as_many_batches_as_it_is_told(network: nn.Module) -> None:
    drawn = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal drawn
        while True:
            drawn += 1
            yield images(2), torch.zeros(2)

    calibrate(network, batches(), batches=3)
    assert drawn == 3


def test_simulation_is_the_network_but_for_rounding_and_the_network_is_left_as_it_was(network: nn.Module) -> None:
    before, printed = copy.deepcopy(network.state_dict()), repr(network.train())
    simulation = calibrate(network, [images(16)], 8)
    assert repr(network) == printed
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    state = simulation.state_dict()
    assert state.keys() == before.keys()
    assert all(value.equal(state[key]) for key, value in before.items())
    with torch.no_grad():
        expected, result = network.eval()(images()), simulation(images())
        assert 0 < (result - expected).square().mean().sqrt() < 0.1 * expected.std()
        torch.testing.assert_close(quantize(simulation)(images()), result, rtol=0.01, atol=0.01)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("bits", [3, 9, 0, -8, 8.5])
def test_bits_are_4_to_8(network: nn.Module, bits: Any) -> None:
    with pytest.raises(ValueError, match=f"^bits must be from 4 to 8, got {bits}"):
        calibrate(network, [images()], bits)


@pytest.mark.parametrize("quantile", [0.5, 1.1, 0.0, -1.0, math.nan])
def test_quantile_is_above_a_half(network: nn.Module, quantile: float) -> None:
    with pytest.raises(ValueError, match=f"^quantile must be above 0.5 and at most 1, got {quantile}"):
        calibrate(network, [images()], quantile=quantile)


def test_network_without_adder_layers_is_refused(network: nn.Module) -> None:
    for other in (timm.create_model("cnn_lenet5"), adderzoo.fuse(network), quantized(network)):
        with pytest.raises(ValueError, match=r"^model must have adder layers \(Adder2d, AdderLinear\), got"):
            calibrate(other, [images()])
    for name, layer in (("bnn_resnet20", "BinaryConv2d"), ("shift_resnet20", "ShiftConv2d")):
        with pytest.raises(ValueError, match=f"^model must have adder layers .*, got ResNet with .*{layer}"):
            calibrate(timm.create_model(name), [images()])


def test_network_that_was_never_calibrated_is_refused(network: nn.Module) -> None:
    for other in (network, adderzoo.fuse(network)):
        with pytest.raises(ValueError, match=r"calibrate has made, got \w+, which was never calibrated"):
            quantize(other)


def test_batch_norm_in_training_mode_is_refused_by_name(network: nn.Module) -> None:
    simulation = calibrate(network, [images()])
    simulation.get_submodule("block2.norm1").train()
    with pytest.raises(ValueError, match=r"^block2.norm1 is in training mode: call eval\(\) before quantize\(\)"):
        quantize(simulation)


def test_batch_norm_without_statistics_stays_in_float() -> None:
    network = nn.Sequential(adder(), nn.BatchNorm2d(CHANNELS, track_running_stats=False), nn.ReLU(), adder()).eval()
    integer = quantized(network)
    assert calls(integer) == ["Quantize", "QuantizedAdder2d", "BatchNorm2d", "Quantize", "QuantizedAdder2d"]
    expected = network(images())
    assert (integer(images()) - expected).square().mean().sqrt() < 0.05 * expected.std()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("quantile", [1.0, 0.99])
def test_values_that_are_not_finite_are_refused_by_the_layers_name(
    network: nn.Module, value: float, quantile: float
) -> None:
    with torch.no_grad():
        network.block2.norm1.bias[3] = value
    with pytest.raises(ValueError, match=r"^block2.layer2_input: values must be finite, got some from"):
        calibrate(network, [images()], quantile=quantile)


def test_calibration_without_images_is_refused(network: nn.Module) -> None:
    for batches in ([], [images(0)]):
        with pytest.raises(ValueError, match=r"^block1.layer1_input: there were no values"):
            calibrate(network, batches)


def test_adder_layer_that_cannot_be_seen_is_refused_by_name() -> None:
    network = settled(nn.Sequential(NotTraced(), adder(), nn.BatchNorm2d(CHANNELS)))
    with pytest.raises(ValueError, match=r"^model has the adder layer 0.layer where torch.fx does not look"):
        calibrate(network, [images()])


def halved(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 0.5 + 0.25


@pytest.mark.parametrize(
    "place", ["conv", "norm", "block1.norm1", "block1.norm2", "block1.relu", "drop", "fc", "norm3"]
)
@torch.no_grad()
def test_module_with_a_hook_stays_in_float_as_it_is(network: nn.Module, place: str) -> None:
    plain = network(images())
    network.get_submodule(place).register_forward_hook(halved)
    expected = network(images())
    simulation = calibrate(network, [images(16)])
    integer = quantize(simulation)
    assert kinds(integer)["QuantizedAdder2d"] == 6
    torch.testing.assert_close(integer(images()), simulation(images()), rtol=1e-4, atol=1e-4)
    errors = [(result - expected).square().mean().sqrt() for result in (integer(images()), plain)]
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("place", ["block1.layer2", "block1", "block2.shortcut"])
@pytest.mark.parametrize(
    "register",
    [nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook, nn.Module.register_full_backward_hook],
)
def test_adder_layer_with_a_hook_is_refused_by_name(
    network: nn.Module, place: str, register: Callable[..., Any]
) -> None:
    register(network.get_submodule(place), lambda *arguments: None)
    with pytest.raises(
        ValueError, match=rf"^model has the adder layer {place}.* in a module with hooks.*: {place} has a"
    ):
        calibrate(network, [images()])


def test_pruned_layer_is_refused_until_pruning_is_removed(network: nn.Module) -> None:
    prune.l1_unstructured(network.layer, "weight", 0.5)
    with pytest.raises(ValueError, match=r"^model has the adder layer layer in .*\(torch.nn.utils.prune.remove"):
        calibrate(network, [images()])
    prune.remove(network.layer, "weight")
    assert kinds(quantized(network))["QuantizedAdder2d"] == 6


def test_network_with_hooks_of_its_own_is_refused(network: nn.Module) -> None:
    simulation = calibrate(network, [images(16)])
    for model in (network, network.layer):
        model.register_forward_hook(halved)
        with pytest.raises(ValueError, match=r"^model must have no hooks of its own"):
            calibrate(model, [images(2)])
    simulation.register_forward_hook(halved)
    with pytest.raises(ValueError, match=r"^model must have no hooks of its own"):
        quantize(simulation)


@pytest.mark.parametrize("place", ["block1.layer1", "block1.layer1_input", "fc"])
def test_hook_that_a_simulation_has_got_is_refused_by_name(network: nn.Module, place: str) -> None:
    simulation = calibrate(network, [images(16)])
    simulation.get_submodule(place).register_forward_hook(halved)
    with pytest.raises(ValueError, match=f"^{place} has a hook .*: remove it before quantize"):
        quantize(simulation)


def test_hook_that_parts_an_adder_layer_from_an_addition_of_bytes_is_refused(network: nn.Module) -> None:
    simulation = calibrate(network, [images(16)])
    simulation.get_submodule("block1.norm2").register_forward_hook(halved)
    with pytest.raises(ValueError, match=r"^the bytes of .* go into add behind block1.norm2.* calibrate\(\)"):
        quantize(simulation)


@pytest.mark.parametrize("place", ["block1.norm1", "block1.relu", "block2.norm2", "norm2"])
@torch.no_grad()
def test_hook_that_a_simulation_has_got_acts_on_bytes_too(network: nn.Module, place: str) -> None:
    simulation = calibrate(network, [images(16)])
    plain = simulation(images())
    simulation.get_submodule(place).register_forward_hook(halved)
    expected = simulation(images())
    assert not torch.allclose(expected, plain, rtol=0.01)
    torch.testing.assert_close(quantize(simulation)(images()), expected, rtol=1e-4, atol=1e-4)


def test_backward_hook_acts_in_the_simulation(network: nn.Module) -> None:
    network.norm2.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 0,))
    simulation = calibrate(network, [images(16)])
    simulation(images()).sum().backward()
    assert not simulation.layer.weight.grad.any()
    assert simulation.norm2.weight.grad.any()


@torch.no_grad()
def test_vmap_of_an_integer_network_is_a_loop(network: nn.Module) -> None:
    integer = quantized(network)
    batches = torch.stack([images(2), images(2) + 1, -images(2)])
    expected = torch.stack([integer(batch) for batch in batches])
    for result in (torch.vmap(integer)(batches), torch.vmap(integer, in_dims=2)(batches.movedim(0, 2))):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)  # PyTorch's classifier rounds otherwise


# ---------------------------------------------------------------------------------------- quantization-aware training


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_the_papers_of_the_filters_themselves(bits: int) -> None:
    """dY/dF = X - F with the layer's rounded input and its filters as they are; dY/dX = hardtanh(F - X)."""
    network = nn.Sequential(adder(bias=True)).eval()
    nn.init.normal_(network[0].weight, std=3.0)
    simulation = calibrate(network, [images(4)], bits)
    integer = quantize(simulation)
    ((scale, zero_point),) = integer.quantization["quantizers"].values()
    x = images(3).mul(1.5).requires_grad_()  # some beyond the range
    g = torch.randn(3, CHANNELS, 9, 9)
    simulation(x).backward(g)

    top = 2**bits - 1
    steps = (x.detach().double() / scale).round() + zero_point
    inside = (steps >= 0) & (steps <= top)
    assert 0.5 < inside.double().mean() < 1
    rounded = (steps.clamp(0, top) - zero_point) * scale
    w = network[0].weight.detach().double()
    patches = F.unfold(F.pad(rounded, (1, 1, 1, 1)), 3)  # (N, K, P)
    grads = g.double().flatten(2)  # (N, O, P)
    expected = torch.einsum("nop,nkp->ok", grads, patches) - w.flatten(1) * grads.sum((0, 2))[:, None]
    layer = simulation.get_submodule("0")
    torch.testing.assert_close(layer.weight.grad.double().flatten(1), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.bias.grad, g.sum((0, 2, 3)))

    slopes = (w.flatten(1)[None, :, :, None] - patches[:, None]).clamp(-1, 1)  # (N, O, K, P)
    columns = torch.einsum("nop,nokp->nkp", grads, slopes)
    expected = F.fold(columns, (11, 11), 3)[:, :, 1:-1, 1:-1] * inside
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-4, atol=1e-3)


def test_simulation_trains_as_an_adder_network_and_what_it_learns_is_quantized(network: nn.Module) -> None:
    simulation = calibrate(network, [images(16)], 4)
    filters = [p for p in simulation.parameters() if getattr(p, "is_adder_filter", False)]
    assert len(filters) == 6
    optimizer = adderzoo.optim.adaptive_lr(torch.optim.SGD(simulation.parameters(), lr=0.05, momentum=0.9))
    labels = torch.arange(16) % 5
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(simulation.train()(images(16)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        for _ in range(40):  # until the running statistics are those of the last filters
            simulation(images(16))
        expected = simulation.eval()(images(16))
        result = quantize(simulation)(images(16))
    assert (result.argmax(1) == labels).sum() >= 14
    assert (result - expected).square().mean().sqrt() < 0.1 * expected.std()
    other = Residual()
    other.load_state_dict(simulation.state_dict())
    again = quantize(simulate(other.eval(), ranges(simulation)))
    assert again(images(16)).equal(result)


# ------------------------------------------------------------------------------------------------------------- files


def test_lenet_is_a_file_of_a_third_or_less_and_comes_back_through_timm(tmp_path: Path) -> None:
    network: Any = timm.create_model("adder_lenet5.digits", pretrained=True)
    integer = quantized(network, 8, 1, 32, 32)
    path = tmp_path / "lenet.safetensors"
    save(integer, path, {"classes": json.dumps(list("0123456789"))})
    floats = sum(value.nbytes for value in network.state_dict().values())
    assert path.stat().st_size < floats / 3
    expected = integer(images(2, 1, 32, 32))
    for loaded in (
        adderzoo.load(path),
        timm.create_model("adder_lenet5", pretrained=True, pretrained_cfg_overlay={"file": str(path)}),
        timm.create_model("adder_lenet5", True, num_classes=10, pretrained_cfg_overlay={"file": str(path)}),
    ):
        assert loaded(images(2, 1, 32, 32)).equal(expected)
        assert loaded.pretrained_cfg["mean"] == network.pretrained_cfg["mean"]
        for key in ("tag", "label_names"):
            assert loaded.pretrained_cfg[key] == network.pretrained_cfg[key]
        assert not loaded.training
    for arguments, message in (
        (
            {"num_classes": 7},
            "num_classes must be that of the network in .*, 10, which cannot be changed any more, got 7",
        ),
        ({"features_only": True}, "is a quantized network, which gives no features"),
    ):
        with pytest.raises(ValueError, match=message):
            timm.create_model("adder_lenet5", True, pretrained_cfg_overlay={"file": str(path)}, **arguments)
    with pytest.raises(ValueError, match="of another network than adder_resnet20: its metadata says adder_lenet5"):
        timm.create_model("adder_resnet20", True, pretrained_cfg_overlay={"file": str(path)})


def test_large_network_is_a_quarter_of_its_size(tmp_path: Path) -> None:
    network = timm.create_model("adder_resnet50")
    simulation = calibrate(network.eval(), [images(1, 3, 32, 32)])
    save(quantize(simulation), tmp_path / "network.safetensors")
    floats = sum(value.nbytes for value in network.state_dict().values())
    assert (tmp_path / "network.safetensors").stat().st_size < 0.2525 * floats


def test_network_of_ones_own_comes_back_into_a_model_like_it(network: nn.Module, tmp_path: Path) -> None:
    integer = quantized(network)
    path = tmp_path / "network.safetensors"
    save(integer, path)
    assert load(path, Residual())(images()).equal(integer(images()))
    with pytest.raises(
        ValueError, match=r"it names no network that timm.create_model makes: pass one like it as `model`"
    ):
        load(path)
    with pytest.raises(
        ValueError,
        match=r"cannot be loaded: the ranges are of another network than LeNet5: there is none of conv1_input",
    ):
        load(path, timm.create_model("adder_lenet5"))
    wider = Residual()
    wider.fc, wider.norm3 = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
    with pytest.raises(ValueError, match="of another shape: fc"):
        load(path, wider)


def test_what_is_neither_a_float_nor_a_quantized_network_is_not_saved(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    for other in (calibrate(network, [images()]), adderzoo.fuse(network)):
        with pytest.raises(ValueError, match=r"must be a float one or one that quantize\(\) has made, got \w+Residual"):
            save(other, path)
    with pytest.raises(ValueError, match=r"^path must end in .safetensors, got"):
        save(quantized(network), tmp_path / "network.pth")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its metadata model_args is wrong: Expecting property"),
        ("3", "its metadata model_args is wrong: it must be an object, got 3"),
        ('{"checkpoint_path": "weights.pth"}', "it would read other files: checkpoint_path"),
        ('{"pretrained": true}', "it would read other files: pretrained"),
    ],
)
def test_arguments_that_are_none_or_read_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    integer = quantized(timm.create_model("adder_lenet5.digits", pretrained=True), 8, 1, 32, 32)
    path = tmp_path / "network.safetensors"
    save(integer, path, {"model_args": text})
    with pytest.raises(ValueError, match=message):
        load(path)


@torch.no_grad()
def test_network_made_with_other_arguments_is_not_loaded_as_another(tmp_path: Path) -> None:
    network = settled(timm.create_model("adder_lenet5", num_classes=7, global_pool="max"), 1, 32, 32)
    integer, path = quantized(network, 8, 1, 32, 32), tmp_path / "network.safetensors"
    save(integer, path)
    with pytest.raises(ValueError, match="pass one like it as `model`"):
        load(path)
    save(integer, path, global_pool="max")
    x = images(4, 1, 32, 32)
    assert load(path)(x).equal(integer(x))


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update(weight=tensors["weight"].float()),
        lambda tensors: tensors["scale"].fill_(torch.nan),
    ],
    ids=["float bytes", "NaN"],
)
def test_damaged_tensors_are_refused(network: nn.Module, tmp_path: Path, change: Callable[[dict], object]) -> None:
    path = tmp_path / "network.safetensors"
    save(quantized(network), path)
    tensors, metadata = load_file(path), read_metadata(path)
    name = next(key for key, value in tensors.items() if value.dtype == torch.uint8).removesuffix("weight")
    layer = {key: tensors[name + key] for key in ("weight", "scale")}
    change(layer)
    save_file(tensors | {name + key: value for key, value in layer.items()}, path, metadata)
    with pytest.raises(
        ValueError, match=rf"network.safetensors (is damaged|has no).*: {re.escape(name)}(weight|scale)"
    ):
        load(path, Residual())


@pytest.mark.parametrize("bits", [3, 9, -1, 8.5, math.inf, "8"])
def test_ranges_of_other_bits_are_refused(network: nn.Module, bits: object) -> None:
    known = ranges(calibrate(network, [images()]))
    with pytest.raises(ValueError, match=r"^ranges must be those of a simulation"):
        simulate(network, known | {"bits": bits})


@pytest.mark.parametrize("pair", [(0.0, 0), (math.nan, 0), (-1.0, 0), (1e300, 0), (0.1, 256), (0.1, -1), (0.1, 0.5)])
def test_ranges_that_bytes_cannot_have_are_refused(network: nn.Module, pair: tuple[float, float]) -> None:
    known = ranges(calibrate(network, [images()]))
    first = next(iter(known["quantizers"]))
    with pytest.raises(ValueError, match=r"^ranges must be those of a simulation"):
        simulate(network, known | {"quantizers": known["quantizers"] | {first: pair}})


@pytest.mark.parametrize("text", ["{", "{}", '{"bits": 8, "quantizers": {"block1.layer1_input": 3}}', "[]"])
def test_damaged_metadata_is_refused(network: nn.Module, tmp_path: Path, text: str) -> None:
    path = tmp_path / "network.safetensors"
    save(quantized(network), path, {"quantization": text})
    with pytest.raises(ValueError, match=r"network.safetensors cannot be loaded: "):
        load(path, Residual())


@pytest.mark.parametrize("version", [{}, {"version": 1}, {"version": "2"}], ids=str)
def test_files_of_other_versions_are_refused(network: nn.Module, tmp_path: Path, version: dict[str, object]) -> None:
    """Those whose pooling was in float have other scales in the same layers."""
    integer, path = quantized(network), tmp_path / "network.safetensors"
    said = {key: value for key, value in integer.quantization.items() if key != "version"} | version
    save(integer, path, {"quantization": json.dumps(said)})
    with pytest.raises(ValueError, match=r"cannot be loaded: it was quantized by another version of adderzoo \("):
        load(path, Residual())


# ------------------------------------------------------------------------------------------------------------ copies


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = ways(images) | {
    "channels_last": lambda network: network.to(memory_format=torch.channels_last)
}


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_every_copy_gives_the_same_output(network: nn.Module, way: str) -> None:
    torch.compiler.reset()
    integer = quantized(network)
    expected = [integer(images(batch)) for batch in (2, 3)]
    other = WAYS[way](integer)
    for batch, result in zip((2, 3), expected, strict=True):
        torch.testing.assert_close(other(images(batch)), result, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_every_copy_pools_the_same_bytes(way: str) -> None:
    torch.compiler.reset()
    integer = quantized(settled(pooled()))
    assert kinds(integer)["QuantizedMaxPool2d"] == 1
    expected = [integer(images(batch)) for batch in (2, 3)]
    other = WAYS[way](integer)
    for batch, result in zip((2, 3), expected, strict=True):
        torch.testing.assert_close(other(images(batch)), result, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_trace_takes_images_of_other_sizes() -> None:
    integer, larger = quantized(settled(pooled())), images(2, CHANNELS, 13, 10)
    assert torch.jit.trace(integer, images())(larger).equal(integer(larger))


@torch.no_grad()
def test_vmap_pools_the_same_bytes() -> None:
    integer, batches = quantized(settled(pooled())), images(6).unflatten(0, (3, 2))
    assert torch.vmap(integer)(batches).equal(torch.stack([integer(batch) for batch in batches]))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_can_be_saved_and_simulations_copied(network: nn.Module, way: str, tmp_path: Path) -> None:
    simulation = WAYS[way](calibrate(network, [images(16)]))
    integer = WAYS[way](quantize(simulation))
    save(integer, tmp_path / "network.safetensors")
    assert load(tmp_path / "network.safetensors", Residual())(images()).equal(quantized(network)(images()))
    assert integer.num_classes == 5


def test_it_has_no_gradients(network: nn.Module) -> None:
    integer = quantized(network)
    assert not any(parameter.requires_grad for parameter in integer.parameters())
    assert not integer(images()).requires_grad


def test_file_says_how_numbers_are_written(network: nn.Module, tmp_path: Path) -> None:
    """The scales in the metadata are those of the network, to the last bit."""
    integer = quantized(network)
    save(integer, tmp_path / "network.safetensors")
    header = (tmp_path / "network.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", header[:8])
    metadata = json.loads(header[8 : 8 + length])["__metadata__"]
    ranges = json.loads(metadata["quantization"])["quantizers"]
    assert {name: tuple(values) for name, values in ranges.items()} == integer.quantization["quantizers"]
    assert load_file(tmp_path / "network.safetensors").keys() == integer.state_dict().keys()
    quantizer = integer.get_submodule("block1.layer1_input")
    assert isinstance(quantizer, Quantize)
    scale = torch.tensor(ranges["block1.layer1_input"][0])
    assert float(1 / scale) == quantizer.inverse
    assert isinstance(integer.get_submodule("fc"), QuantizedConv2d)
