"""EDSR as EDSR-PyTorch and BasicSR define it, written anew: their weights give their images here."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderzoo.checkpoints import convert, load, load_checkpoint
from adderzoo.models.adder_edsr import DIV2K_MEAN

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN = (0.41, 0.37, 0.29)  # of another data set


def convolution(state_dict: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = state_dict[f"{name}.weight"]
    return F.conv2d(x, weight, state_dict[f"{name}.bias"], padding=weight.shape[-1] // 2)


def random_convolutions(shapes: dict[str, tuple[int, int]], kernel: int = 3) -> dict[str, Tensor]:
    """By names: weight and bias, from channels to channels; biases as large as they are for numbers to 255."""
    found = {}
    for name, (inputs, outputs) in shapes.items():
        found[f"{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel) / (3 * inputs**0.5)
        found[f"{name}.bias"] = 20 * torch.randn(outputs)
    return found


def shuffle(x: Tensor, r: int) -> Tensor:
    """Pixel shuffle by its definition: channel c * r * r + i * r + j is pixel (i, j) of each r x r square."""
    n, c, h, w = x.shape
    y = torch.zeros(n, c // r**2, h * r, w * r, dtype=x.dtype)
    for i in range(r):
        for j in range(r):
            y[:, :, i::r, j::r] = x[:, i * r + j :: r * r]
    return y


def steps(scale: int) -> tuple[int, ...]:
    return (2, 2) if scale == 4 else (scale,)


class EDSRPyTorch:
    """The EDSR authors' PyTorch code: numbers to 255, and the mean taken off and added by convolutions of 1x1."""

    def __init__(self, blocks: int, width: int, scale: int, res_scale: float, top: float, mean: Any = MEAN) -> None:
        self.blocks, self.scale, self.res_scale, self.top = blocks, scale, res_scale, top
        shapes = {"head.0": (3, width), f"body.{blocks}": (width, width), "tail.1": (width, 3)}
        shapes |= {f"body.{i}.body.{k}": (width, width) for i in range(blocks) for k in (0, 2)}
        shapes |= {f"tail.0.{2 * i}": (width, width * step**2) for i, step in enumerate(steps(scale))}
        self.state_dict = random_convolutions(shapes)
        for name, sign in (("sub_mean", -1), ("add_mean", 1)):
            self.state_dict[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
            self.state_dict[f"{name}.bias"] = sign * top * torch.tensor(mean)

    def __call__(self, image: Tensor) -> Tensor:
        """Of an image in [0, 1]."""
        weights = {key: value.double() for key, value in self.state_dict.items()}
        x = convolution(weights, "head.0", convolution(weights, "sub_mean", image.double() * self.top))
        y = x
        for i in range(self.blocks):
            inner = convolution(weights, f"body.{i}.body.0", y).relu()
            y = y + self.res_scale * convolution(weights, f"body.{i}.body.2", inner)
        y = x + convolution(weights, f"body.{self.blocks}", y)
        for i, step in enumerate(steps(self.scale)):
            y = shuffle(convolution(weights, f"tail.0.{2 * i}", y), step)
        return convolution(weights, "add_mean", convolution(weights, "tail.1", y)) / self.top


class BasicSR:
    """BasicSR's: the mean is taken off an image in [0, 1], which is then multiplied by 255."""

    def __init__(self, blocks: int, width: int, scale: int, res_scale: float) -> None:
        self.blocks, self.scale, self.res_scale = blocks, scale, res_scale
        shapes = {"conv_first": (3, width), "conv_after_body": (width, width), "conv_last": (width, 3)}
        shapes |= {f"body.{i}.conv{k}": (width, width) for i in range(blocks) for k in (1, 2)}
        shapes |= {f"upsample.{2 * i}": (width, width * step**2) for i, step in enumerate(steps(scale))}
        self.state_dict = random_convolutions(shapes)

    def __call__(self, image: Tensor) -> Tensor:
        weights = {key: value.double() for key, value in self.state_dict.items()}
        mean = torch.tensor(DIV2K_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
        x = convolution(weights, "conv_first", (image.double() - mean) * 255.0)
        y = x
        for i in range(self.blocks):
            inner = convolution(weights, f"body.{i}.conv1", y).relu()
            y = y + self.res_scale * convolution(weights, f"body.{i}.conv2", inner)
        y = x + convolution(weights, "conv_after_body", y)
        for i, step in enumerate(steps(self.scale)):
            y = shuffle(convolution(weights, f"upsample.{2 * i}", y), step)
        return convolution(weights, "conv_last", y) / 255.0 + mean


def reference(kind: str, scale: int, res_scale: float = 1.0, top: float = 255.0) -> Any:
    torch.manual_seed(scale)
    return BasicSR(2, 8, scale, res_scale) if kind == "BasicSR" else EDSRPyTorch(2, 8, scale, res_scale, top)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("kind", "res_scale", "top"),
    [("EDSR-PyTorch", 1.0, 255.0), ("EDSR-PyTorch", 0.1, 255.0), ("EDSR-PyTorch", 1.0, 1.0), ("BasicSR", 0.1, 255.0)],
)
def test_their_weights_give_their_images(tmp_path: Path, kind: str, scale: int, res_scale: float, top: float) -> None:
    theirs = reference(kind, scale, res_scale, top)
    wrapped: Any = {"params": theirs.state_dict} if kind == "BasicSR" else theirs.state_dict
    torch.save(wrapped, tmp_path / "edsr.pt")
    name = f"cnn_edsr_baseline_x{scale}"
    arguments = {"blocks": 2, "width": 8, "res_scale": res_scale}
    ours = load(tmp_path / "edsr.pt", name, **arguments)
    image = torch.rand(1, 3, 9, 7)
    expected = theirs(image)
    assert expected.std() > 0.05
    torch.testing.assert_close(ours(image).double(), expected, rtol=1e-4, atol=1e-4)
    torch.save(theirs.state_dict, tmp_path / "bare.pt")  # timm looks into no "params"
    overlay = {"file": str(tmp_path / "bare.pt")}
    other = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    assert torch.equal(other(image), ours(image))


def test_the_names_of_the_whole_networks_are_theirs(tmp_path: Path) -> None:
    """`cnn_edsr_baseline_x2` is EDSR-baseline: 16 blocks of 64, whose last convolution is body.16."""
    theirs = EDSRPyTorch(16, 64, 2, 1.0, 255.0)
    assert "body.16.weight" in theirs.state_dict
    torch.save({"model": {f"module.{key}": value for key, value in theirs.state_dict.items()}}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "a.safetensors", "cnn_edsr_baseline_x2")
    model: Any = load(tmp_path / "a.safetensors", "cnn_edsr_baseline_x2")
    assert torch.equal(model.blocks[15].unit2.conv.weight, theirs.state_dict["body.15.body.2.weight"])
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(MEAN))


@pytest.mark.parametrize("kind", ["EDSR-PyTorch", "BasicSR"])
def test_adder_networks_take_no_weights_of_convolutions(tmp_path: Path, kind: str) -> None:
    torch.save(reference(kind, 2).state_dict, tmp_path / "edsr.pt")
    plain = {"norm": False, "power": False, "self_shortcut": False}
    model = timm.create_model("adder_edsr_baseline_x2", blocks=2, width=8, **plain)
    with pytest.raises(ValueError, match="of another network than adder_edsr_baseline_x2: "):
        load_checkpoint(model, tmp_path / "edsr.pt")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sub_mean.weight", torch.eye(3).view(3, 3, 1, 1) / 0.5, "sub_mean.weight must only shift by the mean"),
        ("add_mean.bias", torch.zeros(4), r"add_mean.bias must be the mean, got \(4,\)"),
        ("body.5.weight", torch.zeros(1), "1 unknown: body.5.weight"),
        ("tail.1.bias", torch.zeros(4), r"1 of another shape: conv2.bias \(4,\) for \(3,\)"),
        ("tail.1.bias", torch.full((3,), float("nan")), "1 with NaN or infinity: conv2.bias"),
    ],
)
def test_what_is_no_edsr_is_refused(tmp_path: Path, key: str, value: Tensor, message: str) -> None:
    torch.save(reference("EDSR-PyTorch", 2).state_dict | {key: value}, tmp_path / "edsr.pt")
    model: nn.Module = timm.create_model("cnn_edsr_baseline_x2", blocks=2, width=8)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, tmp_path / "edsr.pt")
