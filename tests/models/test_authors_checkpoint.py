"""The authors' own ResNet-20: the accuracy that they published with it, and their checkpoint format."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adderzoo import fuse, ops
from adderzoo.inference.quantization import calibrate, quantize
from adderzoo.layers import Adder2d
from adderzoo.layers.quantized import QuantizedAdder2d
from adderzoo.models._state_dict import own_names, to_original
from adderzoo.ops import reference
from adderzoo.ops.packing import unpack_byte_filters

pytestmark = pytest.mark.usefixtures("one_thread")

AUTHORS_FILE = "checkpoints/ResNet20-AdderNet.pth"


@pytest.fixture(scope="module")
def network(shared: Callable[[str], Path], device: torch.device) -> nn.Module:
    file = str(shared(AUTHORS_FILE))
    overlay = {"file": file}
    model = timm.create_model("adder_resnet20.huawei_cifar10", pretrained=True, pretrained_cfg_overlay=overlay)
    return model.to(device).eval()


def test_timm_loads_the_authors_file_by_its_path(network: nn.Module, shared: Callable[[str], Path]) -> None:
    model = timm.create_model("adder_resnet20", checkpoint_path=str(shared(AUTHORS_FILE)))
    expected = network.state_dict()
    for key, value in model.state_dict().items():
        assert value.equal(expected[key].cpu())


def read_images(network: nn.Module, strip: Path, device: torch.device) -> Tensor:
    """1,000 images, normalized as the network wants them."""
    pixels = np.asarray(Image.open(strip)).reshape(1000, 32, 32, 3)
    images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(network.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    return ((images - mean) / std).contiguous().to(device)


@pytest.fixture(scope="module")
def cifar10(network: nn.Module, shared: Callable[[str], Path], device: torch.device) -> tuple[Tensor, Tensor]:
    """The 1,000 test images and their classes."""
    images = read_images(network, shared("data/cifar10/test_00.png"), device)
    labels = torch.tensor(json.loads(shared("data/cifar10/labels.json").read_text())["test"])
    assert labels.shape == (1000,)
    return images, labels.to(device)


@pytest.fixture(scope="module")
def training_images(network: nn.Module, shared: Callable[[str], Path], device: torch.device) -> Tensor:
    return read_images(network, shared("data/cifar10/train_00.png"), device)[:200]


@torch.inference_mode()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(batch) for batch in images.split(100)])


@pytest.fixture(scope="module")
def compiled_logits(network: nn.Module, cifar10: tuple[Tensor, Tensor], device: torch.device) -> Tensor:
    """Of the compiled operator, for contiguous images."""
    if ops.backend(device.type) == "PyTorch reference":
        pytest.skip("the operator is not compiled here")
    return logits(network, cifar10[0])


def right(scores: Tensor, labels: Tensor) -> int:
    return int((scores.argmax(1) == labels).sum())


def test_normalization_is_the_authors(network: nn.Module) -> None:
    assert network.pretrained_cfg["mean"] == (0.4914, 0.4822, 0.4465)
    assert network.pretrained_cfg["std"] == (0.2023, 0.1994, 0.2010)


def test_compiled_operator_is_right_as_often_as_the_authors_code(
    compiled_logits: Tensor, cifar10: tuple[Tensor, Tensor], record_testsuite_property: Callable[[str, object], None]
) -> None:
    """On 916 of the 1,000 images; one more or less where a tie falls to float32's order of summation."""
    count = right(compiled_logits, cifar10[1])
    record_testsuite_property("right of 1,000", count)
    assert count in (915, 916, 917)


def test_channels_last_gives_the_same_logits(
    network: nn.Module, compiled_logits: Tensor, cifar10: tuple[Tensor, Tensor]
) -> None:
    images, labels = cifar10
    scores = logits(network, images.contiguous(memory_format=torch.channels_last))
    assert right(scores, labels) in (915, 916, 917)
    torch.testing.assert_close(scores, compiled_logits, rtol=1e-3, atol=1e-3)


def test_fused_network_is_right_as_often_and_in_half_precision_too(
    network: nn.Module, compiled_logits: Tensor, cifar10: tuple[Tensor, Tensor]
) -> None:
    images, labels = cifar10
    fused = fuse(network)
    scores = logits(fused, images)
    assert right(scores, labels) in (915, 916, 917)
    torch.testing.assert_close(scores, compiled_logits, rtol=5e-3, atol=5e-3)
    half = logits(fused.to(torch.bfloat16), images.to(torch.bfloat16))
    assert right(half, labels) >= 910


def test_bfloat16_autocast_keeps_the_accuracy(
    network: nn.Module, cifar10: tuple[Tensor, Tensor], device: torch.device
) -> None:
    """913 are right where adder outputs stay in float32, 544 where they are rounded to bfloat16 as well."""
    images, labels = cifar10
    seen: set[torch.dtype] = set()
    handles = [
        module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        for module in network.modules()
        if isinstance(module, Adder2d)
    ]
    with torch.autocast(device.type, torch.bfloat16):
        scores = logits(network, images)
        convolved = network.conv1(images[:1])
    for handle in handles:
        handle.remove()
    assert convolved.dtype == torch.bfloat16  # autocast was on
    assert seen == {torch.float32}
    assert right(scores, labels) >= 910


def test_bfloat16_network_keeps_the_accuracy(network: nn.Module, cifar10: tuple[Tensor, Tensor]) -> None:
    """Of 1,000 images 900 and more are right, where only the running statistics of BatchNorm stay in float32."""
    images, labels = cifar10
    scores = logits(copy.deepcopy(network).to(torch.bfloat16), images.to(torch.bfloat16))
    assert scores.dtype == torch.bfloat16
    assert right(scores, labels) >= 900


class InFloat(fx.Interpreter):
    """Runs an integer network on bytes that are numbers in float32, by the float operator."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer: Any = self.fetch_attr(target)
        if type(layer) is not QuantizedAdder2d:
            return super().call_module(target, args, kwargs)
        x, addend = (*args, None)[:2]
        assert layer.zero_point == 0  # behind a ReLU: padding is by zeros
        filters = unpack_byte_filters(layer.weight, len(layer.scale), x.shape[1]).float()
        y = -torch.ops.adderzoo.adder2d(x.float(), filters, layer.stride, layer.operator_padding)
        y = y * layer.scale[:, None, None] + layer.shift[:, None, None]
        y = y if addend is None else y + addend.float() * layer.addend_scale
        y = y.relu() if layer.relu else y
        if layer.out_zero_point is None:
            return y
        return (y.round() + layer.out_zero_point).clamp(0, layer.out_max)


@pytest.mark.parametrize(("bits", "least"), [(8, 914), (6, 906), (4, 895)])
def test_integer_network_is_right_nearly_as_often(
    network: nn.Module, cifar10: tuple[Tensor, Tensor], training_images: Tensor, bits: int, least: int
) -> None:
    """With ranges from 200 training images, and with the answers of a simulation in float."""
    images, labels = cifar10
    integer = quantize(calibrate(network, training_images.split(100), bits))
    scores = logits(integer, images)
    assert right(scores, labels) >= least
    with torch.inference_mode():
        simulated = torch.cat([InFloat(integer).run(batch) for batch in images.split(100)])
    assert (simulated.argmax(1) == scores.argmax(1)).sum() >= 998


def test_simulation_that_trains_answers_as_the_integer_network(
    network: nn.Module, cifar10: tuple[Tensor, Tensor], training_images: Tensor
) -> None:
    """On 99 of 100 images: BatchNorm is not folded there, and a byte that is rounded the other way changes others."""
    simulation = calibrate(network, training_images.split(100))
    images = cifar10[0][:400]
    same = logits(simulation, images).argmax(1) == logits(quantize(simulation), images).argmax(1)
    assert same.sum() >= 394


class PlainPyTorch(TorchDispatchMode):
    """Runs the reference in place of the compiled operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.adderzoo.adder2d.default:
            self.calls += 1
            return reference.adder2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def test_plain_pytorch_reference_is_right_as_often_and_gives_the_logits_of_the_compiled_operator(
    network: nn.Module, compiled_logits: Tensor, cifar10: tuple[Tensor, Tensor]
) -> None:
    with PlainPyTorch() as mode:
        scores = logits(network, cifar10[0])
    assert mode.calls == 20 * 10  # 18 layers of 3x3 and 2 shortcuts, in ten batches
    assert right(scores, cifar10[1]) in (915, 916, 917)
    torch.testing.assert_close(scores, compiled_logits, rtol=5e-3, atol=5e-3)  # either is off by up to 2e-3 of float64


def randomized(network: nn.Module) -> nn.Module:
    """With statistics and affine parameters of its own in every BatchNorm."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, -20)
            nn.init.uniform_(module.running_var, 5, 10)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network.eval()


def authors_key(key: str) -> str:
    """Of a parameter of ResNet-20 in the authors' file: all filters but those of the first and the last layer."""
    is_filter = key.startswith("layer") and (".conv" in key or ".downsample.0." in key)
    return "module." + (key.replace(".weight", ".adder") if is_filter else key)


def through_state_dict(network: nn.Module, tmp_path: Path) -> nn.Module:
    other = timm.create_model("adder_resnet20")
    other.load_state_dict(own_names(to_original(network.state_dict(), network), network))
    return other


def through_file(network: nn.Module, tmp_path: Path) -> nn.Module:
    path = tmp_path / "checkpoint.pth"
    torch.save(to_original(network.state_dict(), network), path)
    return timm.create_model("adder_resnet20", pretrained=True, pretrained_cfg_overlay={"file": str(path)})


@pytest.mark.parametrize("way", [through_state_dict, through_file])
def test_network_written_in_the_authors_format_loads_with_the_same_logits(
    way: Callable[[nn.Module, Path], nn.Module], tmp_path: Path
) -> None:
    network = randomized(timm.create_model("adder_resnet20"))
    written = to_original(network.state_dict(), network)
    assert set(written) == {authors_key(key) for key in network.state_dict()}
    assert sum(key.endswith(".adder") for key in written) == 20
    x = torch.randn(4, 3, 32, 32)
    other = way(network, tmp_path).eval()
    assert torch.equal(other(x), network(x))
    assert network(x).std() > 0.1


def test_every_key_of_the_authors_file_is_used_and_written_back_under_its_name(
    network: nn.Module, shared: Callable[[str], Path]
) -> None:
    theirs = torch.load(shared(AUTHORS_FILE), map_location="cpu", weights_only=True)
    mine = to_original(network.state_dict(), network)
    assert set(theirs) == {authors_key(key) for key in network.state_dict()}
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[key], mine[key].cpu()) for key in theirs)
