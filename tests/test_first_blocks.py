"""scripts/reproduce/first_blocks.py."""

import subprocess
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

import adderzoo as package
from adderzoo.checkpoints import load_checkpoint, read_origin

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "reproduce" / "first_blocks.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    environment = {"PYTHONPATH": str(Path(package.__file__).parent.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_shallower_network_has_the_first_blocks_and_says_whose(tmp_path: Path) -> None:
    """conv1, BatchNorm and classifier as they were, of each stage the first of three blocks."""
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
    assert origin["trained_from"].startswith("cnn_resnet20.cifar10, first blocks (SHA-256 ")


def test_a_deeper_network_is_refused(tmp_path: Path) -> None:
    done = run("cnn_resnet20.cifar10", "cnn_resnet32", tmp_path / "start.safetensors")
    assert done.stderr.strip().endswith(
        "first_blocks.py: error: cnn_resnet20.cifar10 must have the blocks of cnn_resnet32, it has no "
        "layer1.3.bn1.bias, layer1.3.bn1.num_batches_tracked, layer1.3.bn1.running_mean, layer1.3.bn1.running_var"
    )
    assert not any(tmp_path.iterdir())
