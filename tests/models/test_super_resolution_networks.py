"""The networks for super-resolution."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import SUPER_RESOLUTION, twin
from torch import Tensor, nn

import adderzoo
from adderzoo.checkpoints import load
from adderzoo.files.weights import save_weights
from adderzoo.inference import quantization
from adderzoo.layers import Adder2d, BatchNorm2d, PowerActivation
from adderzoo.layers.image import BicubicUpsample
from adderzoo.models import SuperResolutionNet

pytestmark = pytest.mark.usefixtures("one_thread")

ADDERS = [name for name in SUPER_RESOLUTION if name.startswith("adder_")]
EDSRS = [name for name in SUPER_RESOLUTION if "edsr" in name]
# One of each family, kind and scale; the others differ in their sizes alone.
SOME = ["adder_edsr_baseline_x2", "cnn_edsr_x3", "adder_edsr_x4", "adder_vdsr", "cnn_vdsr", "bicubic"]


def small(name: str) -> dict[str, Any]:
    if name == "bicubic":
        return {}
    return {"blocks": 2, "width": 8} if "edsr" in name else {"depth": 5, "width": 8}


def build(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **small(name) | kwargs)


def make(name: str, **kwargs: Any) -> Any:
    """In evaluation mode, with parameters and BatchNorm statistics that are not trivial."""
    network = build(name, **kwargs).train()
    if "vdsr" in name:
        nn.init.normal_(network.conv2.weight, std=0.05)
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, PowerActivation):
            nn.init.uniform_(module.exponent, 0.8, 1.2)
    with torch.no_grad():
        network(images())
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.momentum = 0.1
    return network.eval()


def images(size: tuple[int, int] = (9, 10), batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def test_networks_are_created_by_name() -> None:
    for name in SUPER_RESOLUTION:
        assert isinstance(adderzoo.create_model(name, device="meta"), SuperResolutionNet)
    with pytest.raises(ValueError, match="must be a registered network, got 'adder_edsr_x5'"):
        adderzoo.create_model("adder_edsr_x5")


# ------------------------------------------------------------------------------------------------------- definition


def test_the_networks_of_the_paper_are_there() -> None:
    sizes = {f"edsr{size}_x{scale}" for size in ("", "_baseline", "_small") for scale in (2, 3, 4)} | {"vdsr"}
    assert {name.partition("_")[2] for name in ADDERS} == sizes
    assert {twin(name) for name in ADDERS} == set(SUPER_RESOLUTION) - set(ADDERS)


# Blocks of two layers, and channels.
SIZES = {"small": (8, 32), "baseline": (16, 64), "vdsr": (9, 64), "": (32, 256)}


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_sizes_are_those_of_the_papers(name: str) -> None:
    network = timm.create_model(name, device="meta")
    assert network.scale == (int(name[-1]) if "edsr" in name else 2)
    layers = [module for module in network.modules() if isinstance(module, Adder2d | nn.Conv2d)]
    adders = [module for module in layers if isinstance(module, Adder2d)]
    kept = {2: 3, 3: 3, 4: 4}[network.scale] if "edsr" in name else 2  # first, upsampler, last
    blocks, width = next(size for kind, size in SIZES.items() if kind in name)
    depth = 2 * blocks + (2 if "vdsr" in name else kept + 1)
    assert len(layers) == depth
    assert len(adders) == (depth - kept if name in ADDERS else 0)
    assert {(layer.in_channels, layer.out_channels) for layer in adders} <= {(width, width)}
    assert layers[0].out_channels == width


def test_published_networks_have_neither_batchnorm_nor_power() -> None:
    for name in ("cnn_edsr_baseline_x2", "cnn_vdsr"):
        network = build(name)
        assert not any(isinstance(module, BatchNorm2d | PowerActivation) for module in network.modules())
        assert all(module.bias is not None for module in network.modules() if isinstance(module, nn.Conv2d))


def test_the_published_edsr_is_its_definition() -> None:
    """Of Lim et al.: shift by the mean, blocks with residual scaling, a skip around all of them, pixel shuffle."""
    network = build("cnn_edsr_x4", res_scale=0.3).eval()
    mean = torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None]

    def conv(layer: nn.Module, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=1)

    head = conv(network.conv1, images() - mean)
    x = head
    for block in network.blocks:
        x = x + 0.3 * conv(block.unit2.conv, F.relu(conv(block.unit1.conv, x)))
    x = head + conv(network.unit.conv, x)
    for layer in (network.upsample[0], network.upsample[2]):
        x = F.pixel_shuffle(conv(layer, x), 2)
    torch.testing.assert_close(network(images()), conv(network.conv2, x) + mean)


def test_the_published_vdsr_is_its_definition() -> None:
    """Y of the interpolated image gets the output of the layers; Cb and Cr stay; back to RGB by BT.601's inverse."""
    network = make("cnn_vdsr").double()
    x = images().double()
    to_ycbcr = torch.tensor(
        [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=torch.float64
    )
    offset = torch.tensor([16.0, 128.0, 128.0], dtype=torch.float64)[:, None, None]
    large = BicubicUpsample(2, dtype=torch.float64)(x)
    ycbcr = (torch.einsum("ij,njhw->nihw", to_ycbcr, large) + offset) / 255
    features = ycbcr[:, :1]
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for index, layer in enumerate(layers):
        features = F.conv2d(features, layer.weight, layer.bias, padding=1)
        features = features if index == len(layers) - 1 else features.relu()
    ycbcr[:, :1] += features
    expected = torch.einsum("ij,njhw->nihw", to_ycbcr.inverse(), ycbcr * 255 - offset)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["adder_vdsr", "cnn_vdsr"])
def test_vdsr_begins_as_bicubic_interpolation(name: str) -> None:
    assert torch.equal(build(name)(images()), timm.create_model("bicubic")(images()))


@pytest.mark.parametrize("name", ["adder_edsr_baseline_x2", "adder_vdsr"])
@pytest.mark.parametrize("part", ["norm", "self_shortcut", "power"])
def test_each_addition_can_be_left_out_and_put_into_the_cnn(name: str, part: str) -> None:
    x = images()
    assert not torch.equal(make(name, **{part: False})(x), make(name)(x))
    assert not torch.equal(make(twin(name), **{part: True})(x), make(twin(name))(x))


def test_adder_blocks_that_add_their_input_do_not_explode() -> None:
    """Without residual scaling each of 16 blocks would double the features."""
    torch.manual_seed(0)
    network = timm.create_model("adder_edsr_baseline_x2", width=16).train()
    with torch.no_grad():
        features = network.forward_features(images((16, 16)))
    assert features.std() < 10
    assert network.blocks[0].res_scale == 0.1
    assert build("cnn_edsr_baseline_x2").blocks[0].res_scale == 1.0
    assert timm.create_model("cnn_edsr_x2", device="meta").blocks[0].res_scale == 0.1


# -------------------------------------------------------------------------------------------------------- interface


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_images_of_any_size_become_larger(name: str) -> None:
    network = make(name)
    for height, width in ((1, 1), (2, 7), (9, 10)):
        y = network(images((height, width)))
        assert y.shape == (2, 3, network.scale * height, network.scale * width)
    assert torch.equal(network(images()[:1]), network(images())[:1]) or torch.allclose(
        network(images()[:1]), network(images())[:1], atol=1e-5
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["adder_vdsr", "cnn_vdsr", "bicubic"])
def test_scale_is_an_argument_where_the_name_has_none(name: str, scale: int) -> None:
    network = make(name, scale=scale)
    assert network.scale == scale
    assert network(images((4, 5))).shape == (2, 3, 4 * scale, 5 * scale)


@pytest.mark.parametrize("name", ["cnn_edsr_baseline_x2", "adder_edsr_x3", "cnn_edsr_x4", "adder_vdsr", "bicubic"])
def test_no_pixel_depends_on_one_beyond_the_radius(name: str) -> None:
    network = make(name).double()
    radius, scale = network.radius, network.scale
    side = 2 * radius + 5
    x = images((side, side), 1).double().requires_grad_()
    middle = side // 2
    window = slice(middle * scale, (middle + 1) * scale)
    network(x)[:, :, window, window].sum().backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    reach = max(int((indices - middle).abs().max()) for indices in (rows, columns))
    assert radius - 2 <= reach <= radius


@pytest.mark.parametrize("name", SOME)
def test_device_and_dtype_are_those_of_every_tensor(name: str) -> None:
    network = build(name, device="meta", dtype=torch.float64)
    tensors = network.state_dict().values()
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    assert floats == {torch.float64}


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_a_network_without_memory_is_filled_from_a_state_dict_and_by_init_weights(name: str) -> None:
    network, x = make(name), images()
    other = build(name, device="meta").eval()
    other.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(other(x), network(x))
    if name != "bicubic":
        fresh = build(name, device="meta").to_empty(device="cpu")
        for tensor in fresh.state_dict().values():
            tensor.fill_(77)
        fresh.init_weights()
        assert fresh(x).isfinite().all()
        assert all(tensor.abs().max() < 77 for tensor in fresh.state_dict().values())


@pytest.mark.parametrize("name", [name for name in SOME if name != "bicubic"])
def test_every_parameter_gets_a_gradient_with_checkpointing_too(name: str) -> None:
    network = make(name).train()
    other = copy.deepcopy(network)
    other.set_grad_checkpointing()
    for module in (network, other):
        module(images()).abs().mean().backward()
    for (key, parameter), same in zip(network.named_parameters(), other.parameters(), strict=True):
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.count_nonzero() > 0, key
        torch.testing.assert_close(same.grad, parameter.grad)
    assert all(("exponent" in key) == (key in network.no_weight_decay()) for key, _ in network.named_parameters())


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_bfloat16_network_is_near(name: str) -> None:
    network = make(name)
    half = copy.deepcopy(network).to(torch.bfloat16)(images().bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - network(images())).abs().mean() < 0.1 * network(images()).std()


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_channels_last_gives_the_same_images(name: str) -> None:
    network, x = make(name), images()
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x.contiguous(memory_format=torch.channels_last)), network(x), rtol=1e-3, atol=1e-3)


# ----------------------------------------------------------------------------------------------------- other forms


def exported(network: nn.Module) -> nn.Module:
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    return torch.export.export(network, (images(),), dynamic_shapes=(sizes,)).module()


@pytest.mark.parametrize(
    "way",
    [torch.jit.script, torch.fx.symbolic_trace, exported, lambda network: torch.compile(network, dynamic=True)],
    ids=["script", "fx", "export", "compile"],
)
@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_other_forms_give_the_same_images_of_any_size(name: str, way: Callable[[nn.Module], nn.Module]) -> None:
    network = make(name)
    other = way(network)
    for x in (images(), images((12, 7), 3)):
        torch.testing.assert_close(other(x), network(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_fused_networks_give_the_same_images(name: str) -> None:
    network = make(name).double()
    fused = adderzoo.fuse(network)
    x = images((7, 6)).double()
    torch.testing.assert_close(fused(x), network(x), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, Adder2d | BatchNorm2d) for module in fused.modules())
    assert (fused.scale, fused.radius, fused.num_classes) == (network.scale, network.radius, 0)


@pytest.mark.parametrize("name", ["adder_edsr_baseline_x2", "adder_vdsr"])
@torch.no_grad()
def test_quantized_networks_are_near_and_come_back_from_their_file(name: str, tmp_path: Path) -> None:
    network, x = make(name), images((16, 16))
    integer = quantization.quantize(quantization.calibrate(network, [x]))
    y = integer(x)
    assert (y - network(x)).abs().mean() < 0.1 * (network(x) - F.interpolate(x, scale_factor=2)).abs().mean()
    adderzoo.save(integer, tmp_path / "network.safetensors", **small(name))
    again = adderzoo.load(tmp_path / "network.safetensors")
    assert torch.equal(again(x), y)
    assert again.scale == 2


@torch.no_grad()
def test_weights_of_vdsr_serve_every_scale(tmp_path: Path) -> None:
    network, file = make("adder_vdsr", scale=2), tmp_path / "network.safetensors"
    about = {"architecture": "adder_vdsr", "model_args": json.dumps({**small("adder_vdsr"), "scale": 2})}
    save_weights(network, file, about)
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    for other in (load(file, "adder_vdsr", scale=3), build("adder_vdsr", scale=3, **overlay)):
        other.eval()
        large = other.bicubic(images())
        expected = large + network.gain * network.conv2(network.forward_features(large))
        torch.testing.assert_close(other(images()), expected)
    assert load(file, "adder_vdsr").scale == 2


# ---------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adder_edsr_x2", {"num_classes": 10}, "num_classes must be 0, since the network classifies nothing, got 10"),
        ("adder_vdsr", {"in_chans": 1}, "in_chans must be 3, for RGB, got 1"),
        ("cnn_edsr_x2", {"scale": 3}, "scale must be 2 for cnn_edsr_x2, got 3"),
        ("adder_vdsr", {"scale": 5}, "scale must be one of 2, 3, 4, got 5"),
        ("adder_edsr_x2", {"blocks": 0}, "blocks must be at least 1, got 0"),
        ("adder_vdsr", {"depth": 1}, "depth must be at least 2, got 1"),
        ("adder_vdsr", {"conv_layer": "shift"}, "conv_layer must be one of 'adder', 'conv', got 'shift'"),
        ("bicubic", {"scale": 1}, "scale must be an integer from 2, got 1"),
        ("adder_edsr_x2", {"features_only": True}, "features_only must be False for adder_edsr_x2"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, device="meta", **arguments)
