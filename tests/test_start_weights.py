"""scripts/reproduce/start_weights.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import adderzoo as package
from adderzoo.checkpoints import load_checkpoint, read_origin
from adderzoo.files.weights import save_weights

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "reproduce" / "start_weights.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    environment = {"PYTHONPATH": str(Path(package.__file__).parent.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_shallower_network_has_the_first_blocks_and_says_whose(tmp_path: Path) -> None:
    """First layer, classifier and BatchNorm as they were, of each stage the first of three blocks."""
    out = tmp_path / "start.safetensors"
    done = run("cnn_resnet20.cifar10", "cnn_resnet8", out)
    assert done.returncode == 0, done.stderr
    load_checkpoint(timm.create_model("cnn_resnet8"), out)
    deeper = timm.create_model("cnn_resnet20.cifar10", pretrained=True).state_dict()
    weights = load_file(out)
    assert deeper.keys() - weights.keys() == {key for key in deeper if key.split(".")[1] in ("1", "2")}
    assert all(torch.equal(deeper[key], value) for key, value in weights.items())
    origin = read_origin(out)
    assert origin["license"] == "apache-2.0"
    assert origin["trained_from"].startswith("cnn_resnet20.cifar10, in another depth or scale (SHA-256 ")


def test_a_deeper_network_computes_what_the_source_does_and_can_learn(tmp_path: Path) -> None:
    out = tmp_path / "start.safetensors"
    file = Path(package.__file__).parent / "weights" / "adder_resnet20.cifar10.safetensors"
    done = run("adder_resnet20", "adder_resnet32", out, "--checkpoint", file)
    assert done.returncode == 0, done.stderr
    model: Any = timm.create_model("adder_resnet32").eval()
    load_checkpoint(model, out)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = timm.create_model("adder_resnet20.cifar10", pretrained=True).eval()(x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)
    model.train()(x).square().sum().backward()
    assert model.layer2[4].bn2.weight.grad.abs().max() > 0
    assert read_origin(out)["license"] == "Apache-2.0"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_another_scale_repeats_the_finer_pixels(tmp_path: Path, scale: int) -> None:
    """With an upsampler whose pixels are all alike, features for any scale are those of 2, repeated."""
    source: Any = timm.create_model("adder_edsr_small_x2").eval()
    with torch.no_grad():
        for value in source.upsample.parameters():
            value.copy_(value.unflatten(0, (-1, 4))[:, :1].expand(-1, 4, *value.shape[1:]).flatten(0, 1))
            if value.dim() == 4:  # and a second step does not smooth what the first has repeated
                value[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    save_weights(source, tmp_path / "source.safetensors", {"architecture": "adder_edsr_small_x2", "num_classes": "0"})
    out = tmp_path / "start.safetensors"
    name = f"adder_edsr_small_x{scale}"
    done = run("adder_edsr_small_x2", name, out, "--checkpoint", tmp_path / "source.safetensors")
    assert done.returncode == 0, done.stderr
    model: Any = timm.create_model(name).eval()
    load_checkpoint(model, out)
    x = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        coarse = source.upsample[0](source.forward_features(x))[:, ::4]
        if scale == 4:  # the step is there twice
            coarse = source.upsample[0](coarse)[:, ::4]
        expected = coarse.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        torch.testing.assert_close(model.upsample(model.forward_features(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "error"),
    [
        ("adder_resnet32", "NETWORK must be of the kind of cnn_resnet20.cifar10, got adder_resnet32"),
        ("cnn_lenet5", "only depth or scale may differ, the source has no "),
    ],
)
def test_another_network_is_refused(tmp_path: Path, network: str, error: str) -> None:
    done = run("cnn_resnet20.cifar10", network, tmp_path / "start.safetensors")
    assert done.returncode == 2
    assert f"start_weights.py: error: {error}" in done.stderr
    assert not any(tmp_path.iterdir())
