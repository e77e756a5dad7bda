"""Counts of operations, against definitions, the papers' figures and those that others publish."""

import copy
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import adderzoo
from adderzoo.analysis.costs import Layer, Operations, Profile, profile
from adderzoo.catalogue import network_names
from adderzoo.layers import (
    Adder2d,
    AdderLinear,
    AdderTranspose2d,
    BatchNorm2d,
    BinaryConv2d,
    ShiftAdd2d,
    ShiftConv2d,
    replace_conv,
)


def on_meta(name: str, **arguments: object) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def of(name: str) -> Profile:
    model = on_meta(name)
    return profile(model, model.pretrained_cfg["input_size"])


def layer_of(module: nn.Module, *size: int) -> Layer:
    (layer,) = profile(nn.Sequential(module), size).layers
    assert (layer.name, layer.type) == ("0", type(module).__name__)
    return layer


# -------------------------------------------------------------------------------------------------------------- layers


# (layer, input, operations by hand, parameters, those of filters)
LAYERS = {
    # 6 x 4 x 4 outputs of 3 / 1 * 9 products
    "convolution": (nn.Conv2d(3, 6, 3, 2, 1), (3, 8, 8), Operations(mul=2592, add=2592), 168, 162),
    "groups": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 5, 6), Operations(mul=864, add=864), 72, 72),
    "transposed": (nn.ConvTranspose2d(2, 3, 2, 2, bias=False), (2, 4, 4), Operations(mul=384, add=384), 24, 24),
    "linear": (nn.Linear(10, 4), (3, 10), Operations(mul=120, add=120), 44, 40),
    "adder": (Adder2d(3, 6, 3, 2, 1), (3, 8, 8), Operations(add=5184), 168, 162),
    "adder, groups": (Adder2d(4, 8, 3, groups=4, bias=False), (4, 5, 6), Operations(add=1728), 72, 72),
    "adder, dilated": (Adder2d(1, 2, 3, dilation=2, bias=False), (1, 6, 6), Operations(add=144), 18, 18),
    "adder, padding": (Adder2d(1, 1, 2, padding="same", bias=False), (1, 4, 4), Operations(add=128), 4, 4),
    "adder, transposed": (AdderTranspose2d(2, 3, 2, 2, bias=False), (2, 4, 4), Operations(add=3072), 24, 24),
    "adder, linear": (AdderLinear(10, 4), (3, 10), Operations(add=240), 44, 40),
    "BatchNorm": (nn.BatchNorm2d(3), (3, 4, 5), Operations(mul=60, add=60), 6, 0),
    "BatchNorm of batches": (
        nn.BatchNorm2d(3, track_running_stats=False),
        (3, 4, 5),
        Operations(mul=60, add=60),
        6,
        0,
    ),
    "own BatchNorm": (BatchNorm2d(3, dtype=torch.bfloat16), (3, 4, 5), Operations(mul=60, add=60), 6, 0),
    "LayerNorm": (nn.LayerNorm(5), (3, 5), Operations(mul=15, add=15), 10, 0),
    "GroupNorm": (nn.GroupNorm(2, 4), (4, 3, 3), Operations(mul=36, add=36), 8, 0),
    "binary": (BinaryConv2d(3, 6, 3, 2, 1), (3, 8, 8), Operations(xnor=2592, add=2592), 168, 162),
    "shift": (ShiftConv2d(3, 6, 3, 2, 1), (3, 8, 8), Operations(shift=2592, add=2592), 6 + 2 * 162, 2 * 162),
    "activation": (nn.PReLU(), (3, 4, 4), Operations(), 1, 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_do_what_their_definition_says(name: str) -> None:
    module, size, operations, parameters, weights = LAYERS[name]
    layer = layer_of(module, *size)
    assert layer.operations == operations
    assert (layer.parameters, layer.weights) == (parameters, weights)
    assert layer.size() == 4 * parameters
    bits = {"binary": 162, "shift": 5 * 162}.get(name, 8 * weights)
    assert layer.size("int8") == math.ceil(bits / 8) + 4 * (parameters - weights)
    kind = name.partition(",")[0]
    assert layer.kind == (kind if kind in ("adder", "binary", "shift") else "conv" if weights else "")


def test_shift_and_add_are_two_layers() -> None:
    found = profile(ShiftAdd2d(3, 6, 3, 2, 1, bias=False), (3, 8, 8))
    assert [(layer.name, layer.operations) for layer in found.layers] == [
        ("shift", Operations(shift=2592, add=2592)),
        ("adder", Operations(add=2 * 6 * 16 * 54)),
    ]


class _Everything(nn.Module):
    """A function that multiplies, a layer that runs twice under two names, one that never runs, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2, 1, 1))
        self.first = nn.Sequential(Adder2d(2, 2, 1, bias=False))
        self.second = self.first
        self.unused = nn.Linear(7, 7)
        self.tied = nn.Conv2d(2, 2, 1, bias=False)
        self.tied.weight = self.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(F.conv2d(x, self.weight)))
        return torch.matmul(self.tied(x), x)  # 2 of (3, 3) by (3, 3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_runs_in_a_module_is_its_own_and_parameters_are_counted_once(device: str) -> None:
    with torch.device(device):
        found = profile(_Everything(), (2, 3, 3))
    assert [(layer.name, layer.operations, layer.parameters) for layer in found.layers] == [
        ("", Operations(mul=36 + 54, add=36 + 54), 4),
        ("first.0", Operations(add=2 * 72), 4),
        ("unused", Operations(), 56),
        ("tied", Operations(mul=36, add=36), 0),
    ]
    assert found.operations == Operations(mul=126, add=126 + 144)
    assert (found.products("conv"), found.products("adder")) == (126, 72)
    assert (found.parameters, found.input_size) == (64, (2, 3, 3))
    assert (found.size(), found.size("int8")) == (4 * 64, 4 + 4 + 49 + 4 * 7)


def test_the_network_stays_as_it_is() -> None:
    model = timm.create_model("adder_lenet5").train()
    model.bn2.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    tensors = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
    profile(model, (1, 32, 32))
    with pytest.raises(ValueError, match="model must take one image of 3x32x32 on the meta device: "):
        profile(model, (3, 32, 32))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == tensors
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("size", [(), (1, 0, 32)])
def test_an_image_has_pixels(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="input_size must be of sizes of at least 1, got "):
        profile(nn.ReLU(), size)


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "convnext_tiny", "vit_b_16"])
def test_networks_of_torchvision(name: str) -> None:
    """Which says itself how many multiply-accumulates (in 1e9) and parameters they have."""
    said = torchvision.models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        found = profile(torchvision.models.get_model(name), (3, 224, 224))
    assert found.products("conv") / 1e9 == pytest.approx(said["_ops"], abs=0.00051)
    assert found.parameters == said["num_params"]


def test_an_adder_network_of_ones_own_does_the_same_with_additions() -> None:
    cnn, adder = on_meta("resnet18"), replace_conv(on_meta("resnet18"))
    before, after = profile(cnn, (3, 64, 64)), profile(adder, (3, 64, 64))
    moved = after.products("adder")
    assert moved > 0.9 * before.products("conv")
    assert after.products("conv") + moved == before.products("conv")
    assert after.operations == before.operations + Operations(mul=-moved, add=moved)
    assert [layer.kind for layer in after.layers if layer.products][:2] == ["conv", "adder"]
    assert after.parameters == before.parameters == sum(each.numel() for each in cnn.parameters())


@pytest.mark.parametrize("name", network_names())
def test_every_network_has_all_parameters_in_its_layers(name: str) -> None:
    model = on_meta(name)
    found = profile(model, model.pretrained_cfg["input_size"])
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.size() == sum(parameter.nbytes for parameter in model.parameters())
    assert all(model.get_submodule(layer.name) is not None for layer in found.layers)


def test_fused_networks_have_the_same_products_and_batchnorm_inside() -> None:
    model = timm.create_model("adder_resnet20.cifar10", pretrained=True).eval()
    before, after = profile(model, (3, 32, 32)), profile(adderzoo.fuse(model), (3, 32, 32))
    assert {layer.type for layer in after.layers} == {"Conv2d", "AdderAffine2d"}
    for kind in ("conv", "adder"):
        assert after.products(kind) == before.products(kind)
    norms = {layer.name: layer.scaled for layer in before.layers if layer.scaled}
    folded = norms["bn1"] + norms["bn2"]  # into the convolutions at both ends
    assert after.operations == before.operations + Operations(mul=-folded, add=-folded)
    filters = sum(layer.weights for layer in before.layers)
    assert sum(layer.weights for layer in after.layers) == filters
    # Scale and shift, and BatchNorm's number for number; a folded one leaves a bias.
    assert after.parameters == before.parameters - 16 - 10


def test_quantized_networks_have_the_same_products(tmp_path: Path) -> None:
    from adderzoo.inference.quantization import calibrate, quantize

    model = timm.create_model("adder_lenet5.digits", pretrained=True).eval()
    small = quantize(calibrate(model, [torch.randn(2, 1, 32, 32)]))
    before, after = profile(model, (1, 32, 32)), profile(small, (1, 32, 32))
    assert after.products("adder") == before.products("adder") == 416_520
    assert after.parameters == before.parameters
    assert after.size("int8") == before.size("int8") == 61_470 + 4 * 2 * (6 + 16 + 120 + 84 + 10)


# --------------------------------------------------------------------------------------------------- energy and latency


def test_energy_is_that_of_the_papers() -> None:
    # ShiftAddNet (NeurIPS 2020), Table 1: picojoules of an operation in 45 nm.
    assert Operations(mul=1).energy() == pytest.approx(3.7e-9)
    assert Operations(add=1).energy() == pytest.approx(0.9e-9)
    assert Operations(shift=1).energy() == pytest.approx(0.13e-9)
    assert Operations(mul=1).energy("int8") == pytest.approx(0.2e-9)
    assert Operations(add=1).energy("int8") == pytest.approx(0.03e-9)
    assert Operations(shift=1).energy("int8") == pytest.approx(0.024e-9)
    for type in ("float32", "int8"):
        assert Operations(xnor=5, add=5).energy(type) == pytest.approx(5 * 0.03e-9)
    with pytest.raises(ValueError, match="type must be one of float32, int8, got 'int4'"):
        Operations().energy("int4")
    with pytest.raises(ValueError, match="type must be one of float32, int8, got 'int4'"):
        of("adder_lenet5").size("int4")


def test_latency_of_lenet_is_that_of_the_paper() -> None:
    """Section 4.1: ~435 K multiplications and additions, ~870 K additions; 2.6 M and 1.7 M cycles."""
    assert Operations(mul=435_000, add=435_000).latency() == 2_610_000
    assert Operations(add=870_000).latency() == 1_740_000
    # Its 435 K are the products, a bias for each output, and two operations of the BatchNorm behind convolutions.
    outputs = {"conv1": 6 * 28 * 28, "conv2": 16 * 10 * 10, "conv3": 120, "conv4": 84, "fc": 10}
    norms = sum(outputs[name] for name in ("conv1", "conv2", "conv3"))
    products = of("cnn_lenet5").products("conv")
    assert products + sum(outputs.values()) + 2 * norms == 435_886
    # Ours has no biases and counts both operations once.
    assert f"{(of('adder_lenet5').operations.latency() or 0) / 1e6:.1f}" == "1.7"
    assert of("cnn_lenet5").operations == Operations(mul=products, add=products) + Operations(1, 1) * (norms + 84 + 10)
    assert Operations(xnor=1, add=1).latency() is None
    assert Operations(shift=1, add=1).latency() is None
