"""`adderzoo train` from weights that are trained already, with no options beside them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from commands import Done
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from trainings import metadata, rows, write_classes

import adderzoo as package
from adderzoo.models.adder_resnet import ResNet

Command = Callable[..., Done]


@pytest.fixture
def parity(digits: Path, tmp_path: Path) -> Path:
    """Even and odd digits, which adder_lenet5.digits has not seen: 100 images to learn from, 100 to validate with."""
    images = sorted((digits / "test").glob("*/*.png"), key=lambda path: path.name)[:200]
    for index, image in enumerate(images):
        parity = "odd" if int(image.parent.name) % 2 else "even"
        folder = tmp_path / "parity" / ("train" if index < 100 else "val") / parity
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
    return tmp_path / "parity"


def test_a_tag_and_a_folder_are_enough(adderzoo: Command, parity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parity.parent)
    done = adderzoo("train", parity, "-m", "adder_lenet5.digits")
    assert done.status == 0, done
    first = done.out.splitlines()[0]
    assert first.startswith("adder_lenet5.digits, fine-tuned from the published weights of adder_lenet5.digits, on ")
    assert first.endswith(": 30 epochs in batches of 32, momentum at a learning rate of 0.02, --hflip 0")
    (folder,) = (parity.parent / "output" / "train").iterdir()
    table = rows(folder)
    assert (len(table), float(table[0]["lr"])) == (30, pytest.approx(0.02))
    assert float(table[-1]["eval_top1"]) > 90  # a coin would have 50 with a standard error of 5
    assert metadata(folder / "best.safetensors")["trained_from"] == "adder_lenet5.digits"


def test_weights_are_those_of_the_tag_unless_others_are_asked_for(train: Command, parity: Path, tmp_path: Path) -> None:
    published = timm.create_model("adder_lenet5.digits", pretrained=True).state_dict()
    still = ("--epochs", 1, "--lr", 1e-30, "--weight-decay", 0, "--eta", 0, "--val-split", "")
    begun = {}
    lines = {
        "tag": ("-m", "adder_lenet5.digits"),
        "first": ("-m", "adder_lenet5", "--pretrained"),
        "random": ("-m", "adder_lenet5.digits", "--no-pretrained"),
        "plain": ("-m", "adder_lenet5"),
        "file": ("-m", "adder_lenet5", "--initial-checkpoint", tmp_path / "out" / "tag"),
    }
    for name, words in lines.items():
        done = train(parity, *words, *still, "--experiment", name)
        assert done.status == 0, done
        begun[name] = load_file(tmp_path / "out" / name / "last.safetensors")["conv2.weight"]
        assert ("random weights" in done.out.splitlines()[0]) == (name in ("random", "plain"))
    mnist = timm.create_model("adder_lenet5.mnist", pretrained=True).state_dict()
    assert torch.equal(begun["tag"], published["conv2.weight"])
    assert torch.equal(begun["file"], published["conv2.weight"])
    assert torch.equal(begun["first"], mnist["conv2.weight"])
    assert torch.equal(begun["random"], begun["plain"])
    assert not torch.equal(begun["random"], published["conv2.weight"])


@pytest.mark.parametrize("model", ["adder_lenet5.digits", "adder_lenet5"])
def test_three_images_are_enough_and_more_than_there_are_are_not_taken(
    train: Command, tmp_path: Path, model: str
) -> None:
    write_classes(tmp_path / "data", {"a": 2, "b": 1})
    done = train(tmp_path / "data", "-m", model, "--epochs", 2)
    assert done.status == 0, done
    assert "2 epochs in batches of 3," in done.out
    done = train(tmp_path / "data", "-m", model, "--batch-size", 4, "--experiment", "more")
    assert "batch-size must be at most 3, got 4" in done.error


def test_channels_mean_and_deviation_reach_network_loader_and_file(
    train: Command, adderzoo: Command, tmp_path: Path
) -> None:
    for name, shade in (("a", 102), ("b", 153)):  # 0.4 and 0.6
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (32, 32), (shade, shade, shade)).save(tmp_path / "data" / name / f"{index}.png")
    inputs: list[Tensor] = []
    handle = register_module_forward_pre_hook(
        lambda module, args: inputs.append(args[0]) if isinstance(module, ResNet) else None
    )
    still = ("--lr", 1e-30, "--weight-decay", 0, "--eta", 0, "--no-aug", "--epochs", 1)
    gray = ("--in-chans", 1, "--mean", 0.4, "--std", 0.2)
    done = train(tmp_path / "data", "-m", "adder_resnet20.cifar10", *gray, *still)
    assert done.status == 0, done
    assert {tuple(each.shape[1:]) for each in inputs} == {(1, 32, 32)}
    values = {round(value, 4) for value in inputs[-1].unique().tolist()}
    assert values == {0.0, 1.0}  # (0.4 - 0.4) / 0.2 and (0.6 - 0.4) / 0.2
    run = tmp_path / "out" / "run"
    published = timm.create_model("adder_resnet20.cifar10", pretrained=True).state_dict()["conv1.weight"]
    torch.testing.assert_close(load_file(run / "last.safetensors")["conv1.weight"], published.sum(1, keepdim=True))
    config = json.loads(metadata(run / "last.safetensors")["data_config"])
    assert (config["input_size"], config["mean"], config["std"]) == ([1, 32, 32], [0.4], [0.2])

    for network in (package.load(run), timm.create_model(f"local-dir:{run}", pretrained=True)):
        assert network.conv1.weight.shape[1] == 1
        assert [tuple(network.pretrained_cfg[key]) for key in ("mean", "std")] == [(0.4,), (0.2,)]
    for command in ("validate", "predict"):
        inputs.clear()
        done = adderzoo(
            command,
            *(("--data-dir",) if command == "validate" else ()),
            tmp_path / "data" / ("" if command == "validate" else "a"),
            "-m",
            run,
        )
        assert done.status == 0, done
        assert {round(value, 4) for value in inputs[-1].unique().tolist()} <= {0.0, 1.0}
    again = train(
        tmp_path / "data", "-m", "adder_resnet20", "--initial-checkpoint", run, *still, "--experiment", "again"
    )
    handle.remove()
    assert again.status == 0, again
    assert json.loads(metadata(tmp_path / "out" / "again" / "last.safetensors")["data_config"]) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mean", 0.1, 0.2), "mean must be of the 1 channels of input_size, got (0.1, 0.2)"),
        (("--std", 0), "std must be finite numbers above 0, got [0.0]"),
        (("--in-chans", 0), "in-chans must be at least 1, got 0"),
        (("--model-kwargs", "in_chans=3"), "model-kwargs must not have in_chans: there is --in-chans"),
        (("--opt", "momentm"), "opt must be one of timm's optimizers, got 'momentm', did you mean momentum"),
        (("--opt", "adamw", "--opt-kwargs", "epsilon=1"), "opt 'adamw' cannot be used: "),
        (("--aa", "rnd-m9"), "aa 'rnd-m9' cannot be used: "),
        (("--device", "coda"), "device 'coda' cannot be used, did you mean cuda?"),
        (("--torchcompile", "inducter"), "torchcompile cannot be used: "),
        (
            ("--kd", "logits", "--kd-model-name", "cnn_lenet6"),
            "kd-model-name must be a registered network, got 'cnn_lenet6', did you mean cnn_lenet5?",
        ),
        (("--kd", "logits", "--kd-checkpoint", "none"), "kd-checkpoint must be a file with weights, got none"),
        (("--initial-checkpoint", "none"), "initial-checkpoint must be a file with weights, got none"),
        (("-m", "adder_lenet5.digts"), "model adder_lenet5 has no tag 'digts', did you mean digits?"),
        (("--model-kwargs", "drop_rat=1"), "model-kwargs cannot be used: "),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_is_misspelled_is_refused_before_images_are_read(
    train: Command, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    done = train(tmp_path / "there is no such folder", *words)
    assert message in done.error
    assert not (tmp_path / "out").exists()
