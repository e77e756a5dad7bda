"""`adderzoo quantize`, and what the other commands do with its files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from commands import Done
from example_data import write_digits
from pictures import random_images, write_folder
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import adderzoo as package
from adderzoo.checkpoints import load
from adderzoo.data import ImagePairs, Loading, as_float, open_dataset, open_loader
from adderzoo.files.weights import save_weights

Command = Callable[..., Done]
LENET = ("--model", "adder_lenet5.digits", "--workers", 0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.fixture
def quantized(adderzoo: Command, digits: Path, tmp_path: Path) -> Path:
    """The packaged LeNet-5, in 8 bits."""
    path = tmp_path / "quantized.safetensors"
    done = adderzoo("quantize", *LENET, "--data-dir", digits, "--images", 100, path)
    assert done.status == 0, done
    return path


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def validated(adderzoo: Command, digits: Path, folder: Path, *arguments: object) -> float:
    result = folder / "result.json"
    data = ("--data-dir", digits, "--split", "test", "-j", 0, "--json", result)
    done = adderzoo("validate", "--model", "adder_lenet5", *arguments, *data)
    assert done.status == 0, done
    return json.loads(result.read_text())["top1"]


def test_quantized_network_is_as_good_and_a_third_of_the_size(adderzoo: Command, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "quantized.safetensors"
    done = adderzoo("quantize", *LENET, "--data-dir", digits, path)
    assert done.status == 0, done
    number = r"([\d,]+) bytes"
    found = re.fullmatch(
        rf"{path}: 8 bits, ranges from 200 images, {number}; in float {number}, ([\d.]+) .*\n", done.out
    )
    assert found, done.out
    after, before = (int(text.replace(",", "")) for text in found.groups()[:2])
    assert after == path.stat().st_size
    network = timm.create_model("adder_lenet5.digits", pretrained=True)
    assert before == sum(value.nbytes for value in network.state_dict().values())
    assert float(found[3]) == pytest.approx(before / after, abs=0.05)
    assert after < before / 3
    accuracy = validated(adderzoo, digits, tmp_path, "--checkpoint", path)
    reference = timm.create_model("adder_lenet5.digits").pretrained_cfg
    assert json.loads(metadata(path)["data_config"])["mean"] == list(reference["mean"])
    original = tmp_path / "float.safetensors"
    save_weights(network, original, {"data_config": metadata(path)["data_config"]})
    assert accuracy >= validated(adderzoo, digits, tmp_path, "--checkpoint", original) - 0.5


def test_ranges_come_from_images_of_all_classes_preprocessed_as_for_evaluation(digits: Path, quantized: Path) -> None:
    """By hand: every ninth image of the folder, as `validate` would see it."""
    network: Any = timm.create_model("adder_lenet5.digits", pretrained=True)
    config = timm.data.resolve_model_data_config(network)
    dataset = open_dataset("", str(digits), "train", 1)
    count = len(dataset)
    chosen = [index * count // 100 for index in range(100)]
    assert len({dataset[index][1] for index in chosen}) == 10
    everything = torch.cat([x for x, _ in open_loader(dataset, config, Loading(batch_size=128))])
    low, high = (float(value) for value in torch.aminmax(everything[chosen]))
    (scale, zero_point) = json.loads(metadata(quantized)["quantization"])["quantizers"]["conv1_input"]
    assert scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert zero_point == round(-low / scale)


@pytest.mark.parametrize("origin", ["published", "checkpoint"])
def test_a_tag_that_is_named_gives_a_quantized_network_its_class_names(
    adderzoo: Command, digits: Path, tmp_path: Path, origin: str
) -> None:
    """Whatever tag is the default one, and preprocessing stays that of the file."""
    path, image = tmp_path / "quantized.safetensors", digits / "test" / "3" / "0908.png"
    for tag in ("digits", "mnist"):
        name = f"adder_lenet5.{tag}"
        if origin == "published":
            source: tuple[object, ...] = ("--model", name)
        else:  # without names of its own
            torch.save(timm.create_model(name, pretrained=True).state_dict(), tmp_path / "a.pth")
            source = ("--model", "adder_lenet5", "--checkpoint", tmp_path / "a.pth")
        done = adderzoo("quantize", *source, "--workers", 0, "--data-dir", digits, "--images", 20, path)
        assert done.status == 0, done
        opened: Any = load(path, name)
        names = list(timm.get_pretrained_cfg(name).label_names)
        assert list(opened.pretrained_cfg["label_names"]) == names
        assert list(opened.pretrained_cfg["mean"]) == json.loads(metadata(path)["data_config"])["mean"]
        (row,) = json.loads(adderzoo("predict", image, "--model", name, "--checkpoint", path, "--json", "-").out)
        assert [entry["name"] for entry in row["classes"]] == [names[entry["index"]] for entry in row["classes"]]
    done = adderzoo("predict", image, "--model", "adder_lenet5.letters", "--checkpoint", path)
    assert "model adder_lenet5 has no tag 'letters'" in done.error


def test_bits_and_quantile_are_taken(adderzoo: Command, digits: Path, tmp_path: Path) -> None:
    scales = {}
    for name, arguments in {
        "5": ("--bits", 5),
        "5 quantile": ("--bits", 5, "--quantile", 0.9),
    }.items():
        path = tmp_path / f"{name}.safetensors"
        done = adderzoo("quantize", *LENET, "--data-dir", digits, "--images", 20, *arguments, path)
        assert done.status == 0, done
        assert f"{path}: 5 bits, ranges from 20 images" in done.out
        described = json.loads(metadata(path)["quantization"])
        assert described["bits"] == 5
        scales[name] = described["quantizers"]["conv2_input"][0]
    assert scales["5 quantile"] < scales["5"]


def test_checkpoint_with_classes_of_its_own_keeps_them(adderzoo: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("adder_lenet5", num_classes=3)
    x = torch.randn(16, 1, 32, 32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(x)
    checkpoint, path = tmp_path / "float.safetensors", tmp_path / "quantized.safetensors"
    classes = ["ant", "bee", "cat"]
    config = {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.25]}
    said = {"num_classes": "3", "classes": json.dumps(classes), "data_config": json.dumps(config)}
    save_weights(network, checkpoint, said)
    folder = write_folder(tmp_path / "images", random_images(6, mode="L"), [0, 1, 2, 0, 1, 2], classes=3)
    done = adderzoo(
        *("quantize", "--model", "adder_lenet5", "--checkpoint", checkpoint, "--data-dir", folder, "-j", 0, path)
    )
    assert done.status == 0, done
    assert "ranges from 6 images" in done.out
    about = metadata(path)
    assert json.loads(about["classes"]) == classes
    assert (about["architecture"], about.get("tag")) == ("adder_lenet5", None)
    assert about["num_classes"] == "3"
    assert json.loads(about["data_config"])["mean"] == [0.5]
    image = next(folder.rglob("*.png"))
    done = adderzoo("predict", image, "--model", "adder_lenet5", "--checkpoint", path, "--json", "-")
    assert done.status == 0, done
    (row,) = json.loads(done.out)
    assert {entry["name"] for entry in row["classes"]} == set(classes)
    loaded = package.load(path)
    assert loaded.pretrained_cfg["std"] == (0.25,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", 3), "bits must be from 4 to 8, got 3"),
        (("--bits", 0), "bits must be from 4 to 8, got 0"),
        (("--quantile", 0.2), "quantile must be above 0.5 and at most 1, got 0.2"),
        (("--images", 0), "images must be at least 1, got 0"),
        (("--batch-size", 0), "batch-size must be at least 1, got 0"),
        (("--split", "validation"), "has no folder for the split 'validation'"),
        (("--data-dir", "missing"), "data-dir must be a folder, got 'missing'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    adderzoo: Command, digits: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    done = adderzoo("quantize", *LENET, "--data-dir", digits, *arguments, tmp_path / "out.safetensors")
    assert message in done.error
    assert list(tmp_path.iterdir()) == []


def test_network_without_adder_layers_and_other_file_names_are_refused(
    adderzoo: Command, digits: Path, tmp_path: Path
) -> None:
    twin = ("--model", "cnn_lenet5.digits", "--workers", 0)
    done = adderzoo("quantize", *twin, "--data-dir", digits, tmp_path / "out.safetensors")
    assert "model must have adder layers" in done.error
    done = adderzoo("quantize", *LENET, "--data-dir", digits, tmp_path / "out.pth")
    assert "OUT must end in .safetensors" in done.error
    assert list(tmp_path.iterdir()) == []


def test_other_commands_refuse_a_quantized_network_or_another_name_for_it(
    adderzoo: Command, digits: Path, quantized: Path, tmp_path: Path
) -> None:
    refused = f"{quantized} is a quantized network, not the weights of a float one: adderzoo.load opens it"
    done = adderzoo("convert", quantized, tmp_path / "other.safetensors", "--model", "adder_lenet5")
    assert refused in done.error
    run = ("--output", tmp_path, "--experiment", "run", "--workers", 0)
    done = adderzoo(
        *("train", "--model", "adder_lenet5", "--initial-checkpoint", quantized, "--data-dir", digits, *run)
    )
    assert refused in done.error
    assert not (tmp_path / "other.safetensors").exists()
    for name, message in (
        ("adder_resnet20", "of another network than adder_resnet20: its metadata says adder_lenet5"),
        ("cnn_lenet5", "of another network than cnn_lenet5: its metadata says adder_lenet5"),
    ):
        done = adderzoo("validate", "--model", name, "--checkpoint", quantized, "--data-dir", digits)
        assert message in done.error
    done = adderzoo("quantize", "--model", "adder_lenet5", "--checkpoint", quantized, "--data-dir", digits, quantized)
    assert "model must have adder layers" in done.error
    done = adderzoo(
        *("validate", "--model", "adder_lenet5", "--checkpoint", quantized, "--num-classes", 7, "--data-dir", digits)
    )
    assert "num_classes must be that of the network in" in done.error


def test_training_with_few_bits_writes_float_weights_with_their_ranges(
    adderzoo: Command, digits: Path, tmp_path: Path
) -> None:
    common = ("--data-dir", digits, "--workers", 0)
    train = ("train", "--model", "adder_lenet5.digits", *common, "--output", tmp_path, "--experiment", "run")
    done = adderzoo(*train, "--no-pretrained", "--quantize-bits", 4)
    assert "quantize-bits is for trained weights: give --pretrained or --initial-checkpoint" in done.error
    done = adderzoo(*train, "--pretrained", "--quantize-bits", 2)
    assert "bits must be from 4 to 8, got 2" in done.error
    recipe = ("--pretrained", "--epochs", 2, "--lr", 0.01, "--batch-size", 64, "--hflip", 0)
    done = adderzoo(*train, *recipe, "--quantize-bits", 4)
    assert done.status == 0, done
    checkpoint = tmp_path / "run" / "best.safetensors"
    timm.create_model("adder_lenet5").load_state_dict(load_file(checkpoint))
    path = tmp_path / "quantized.safetensors"
    quantize = ("quantize", "--model", "adder_lenet5", "--checkpoint", checkpoint)
    done = adderzoo(*quantize, path)
    assert done.status == 0, done
    assert f"{path}: 4 bits, ranges from its training, " in done.out
    ranges = json.loads(metadata(checkpoint)["ranges"])
    assert json.loads(metadata(path)["quantization"]).items() > ranges.items()  # and the version of the layers
    accuracy = validated(adderzoo, digits, tmp_path, "--checkpoint", path)
    assert accuracy > 95
    assert accuracy == pytest.approx(float(metadata(checkpoint)["top1"]), abs=0.5)
    done = adderzoo(*quantize, "--bits", 5, path)
    assert f"bits must be those that {checkpoint} was trained with, 4, got 5" in done.error
    done = adderzoo(*quantize, "--bits", 5, *common, path)
    assert f"{path}: 5 bits, ranges from 200 images" in done.out
    done = adderzoo(*quantize, *common, path)
    assert f"{path}: 4 bits, ranges from 200 images" in done.out
    done = adderzoo(*quantize, "--quantile", 0.9, path)
    assert f"quantile is for ranges from data-dir, but {checkpoint} has those of its training" in done.error


def test_a_network_for_super_resolution_gets_its_ranges_from_whole_images(adderzoo: Command, tmp_path: Path) -> None:
    """As the Python functions quantize it with the small images, and `validate` opens the file."""
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(40, 36), (44, 48), (38, 60)]):
        random_images(1, size, seed=index)[0].save(tmp_path / "images" / f"{index}.png")
    torch.manual_seed(0)
    kwargs = {"blocks": 1, "width": 4}
    network = timm.create_model("adder_edsr_baseline_x2", **kwargs).train()
    network(torch.rand(4, 3, 16, 16))
    checkpoint, quantized = tmp_path / "float.safetensors", tmp_path / "u8.safetensors"
    said = {"architecture": "adder_edsr_baseline_x2", "num_classes": "0", "model_args": json.dumps(kwargs)}
    save_weights(network.eval(), checkpoint, said)
    command = ("--model", "adder_edsr_baseline_x2", "--checkpoint")
    done = adderzoo("quantize", *command, checkpoint, "--data-dir", tmp_path / "images", "--images", 2, quantized)
    assert done.status == 0, done
    assert "8 bits, ranges from 2 images" in done.out

    pairs = ImagePairs(tmp_path / "images", 2)
    some = [as_float(pairs[index][0])[None] for index in (0, 1)]
    expected = package.quantize(package.calibrate(network, some))
    with torch.no_grad():
        assert torch.equal(package.load(quantized)(some[1]), expected(some[1]))
    result = tmp_path / "result.json"
    done = adderzoo("validate", *command, quantized, "--data-dir", tmp_path / "images", "--json", result)
    assert done.status == 0, done
    assert len(json.loads(result.read_text())["images"]) == 3

    for wrong in ((), ("--dataset", "torch/cifar10")):
        done = adderzoo("quantize", *command, checkpoint, *wrong, tmp_path / "other.safetensors")
        assert done.error.endswith("since adder_edsr_baseline_x2 classifies none")


def test_arguments_that_the_file_could_not_have_are_refused_before_images_are_read(
    adderzoo: Command, tmp_path: Path
) -> None:
    """They do not make the network of somebody's folder, which has arguments of its own."""
    (tmp_path / "images").mkdir()
    random_images(1, (40, 36))[0].save(tmp_path / "images" / "0.png")
    folder, kwargs = tmp_path / "edsr", {"blocks": 1, "width": 4}
    folder.mkdir()
    save_weights(timm.create_model("adder_edsr_baseline_x2", **kwargs), folder / "model.safetensors", {})
    config = {"architecture": "adder_edsr_baseline_x2", "num_classes": 0, "model_args": kwargs, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(config))
    command = ("quantize", tmp_path / "images", tmp_path / "out.safetensors", "-m", f"local-dir:{folder}")
    done = adderzoo(*command, "--model-kwargs", "width=4")
    assert "model_args {'width': 4} make another adder_edsr_baseline_x2 than this" in done.error
    assert "images" not in done.err.partition("error:")[0].replace(str(tmp_path), "")
    assert not (tmp_path / "out.safetensors").exists()
    assert adderzoo(*command, "--model-kwargs", "width=4", "blocks=1").status == 0
