import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from commands import Done, run_group
from pictures import random_images
from PIL import Image
from safetensors.torch import load_file
from trainings import QUICK, metadata, rows, write_classes

from adderzoo.checkpoints import load_checkpoint
from adderzoo.files.weights import save_weights
from adderzoo.inference.quantization import calibrate, ranges
from adderzoo.models import WEIGHTS

Command = Callable[..., Done]


# ------------------------------------------------------------------------------------------------------------ it learns


def test_a_network_learns_digits_and_its_files_say_so(train: Command, adderzoo: Command, digits: Path) -> None:
    done = train("--data-dir", digits, "--epochs", 8, "--batch-size", 64, "--hflip", 0)
    assert done.status == 0, done
    folder = Path(re.findall(r"; to (.*)", done.out)[0])
    assert {path.name for path in folder.iterdir()} == {
        "args.yaml",
        "best.safetensors",
        "config.json",
        "curves.png",
        "last.safetensors",
        "model.safetensors",
        "state.pt",
        "summary.csv",
    }
    table = rows(folder)
    assert len(table) == 8
    accuracies = [float(row["eval_top1"]) for row in table]
    assert max(accuracies) > 80  # chance is 10
    assert len(re.findall(r"^epoch \d+: loss .*, validation top-1 [\d.]+ ± [\d.]+ %", done.out, re.MULTILINE)) == 8

    arguments = yaml.safe_load((folder / "args.yaml").read_text())
    assert (arguments["model"], arguments["batch_size"], arguments["eta"]) == ("adder_lenet5", 64, 0.2)

    for name, accuracy in (("best", max(accuracies)), ("last", accuracies[-1])):
        path = folder / f"{name}.safetensors"
        about = metadata(path)
        assert about["architecture"] == "adder_lenet5"
        assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]
        assert about["num_classes"] == "10"
        assert json.loads(about["data_config"])["input_size"] == [1, 32, 32]
        assert about["command"].startswith("adderzoo train --model adder_lenet5 ")
        assert float(about["top1"]) == pytest.approx(accuracy, abs=0.005)
        result = folder / f"{name}.json"
        done = adderzoo(
            *("validate", "--model", "adder_lenet5", "--checkpoint", path, "--data-dir", digits, "--split", "test"),
            *("-j", 0, "--json", result),
        )
        assert done.status == 0, done
        assert json.loads(result.read_text())["top1"] == accuracy


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    train: Command, digits: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = ("--data-dir", digits, "--val-split", "", "--epochs", 1, "--workers", 1)
        assert train(*arguments, "--seed", seed, "--experiment", name).status == 0
    a, b, c = (load_file(tmp_path / "out" / name / "last.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])


def test_eta_reaches_the_optimizer(train: Command, tmp_path: Path) -> None:
    """Filters go further with a larger eta, and a CNN does not care."""
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    for model, changes in (("adder_lenet5", True), ("cnn_lenet5", False)):
        for eta in (0, 0.2):
            done = train("--model", model, "--data-dir", folder, *QUICK, "--eta", eta, "--experiment", f"{model}{eta}")
            assert done.status == 0, done
        weights = [load_file(tmp_path / "out" / f"{model}{eta}" / "last.safetensors") for eta in (0, 0.2)]
        assert torch.equal(weights[0]["conv2.weight"], weights[1]["conv2.weight"]) != changes


# ------------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("name", ["validation", "val", "test"])
def test_the_validation_folder_is_found_under_its_usual_names(train: Command, tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "data" / "train", {"cat": 4, "dog": 4})
    write_classes(tmp_path / "data" / name, {"cat": 1, "dog": 2})
    done = train("--data-dir", tmp_path / "data", *QUICK)
    assert done.status == 0, done
    assert "8 training images, 3 validation images, 2 classes" in done.out
    assert json.loads(metadata(tmp_path / "out" / "run" / "best.safetensors")["classes"]) == ["cat", "dog"]


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_folder_without_validation_images_is_trained_on_alone(train: Command, tmp_path: Path, inside: str) -> None:
    write_classes(tmp_path / "data" / inside, {"cat": 4, "dog": 4})
    done = train("--data-dir", tmp_path / "data", *QUICK)
    assert done.status == 0, done
    assert "8 training images, no validation images, 2 classes" in done.out
    assert {path.name for path in (tmp_path / "out" / "run").iterdir()} == {
        "args.yaml",
        "config.json",
        "curves.png",
        "last.safetensors",
        "model.safetensors",
        "state.pt",
        "summary.csv",
    }
    network = timm.create_model(f"local-dir:{tmp_path / 'out' / 'run'}", pretrained=True)
    weights = load_file(tmp_path / "out" / "run" / "last.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert network.pretrained_cfg["label_names"] == ["cat", "dog"]
    assert "eval_top1" not in rows(tmp_path / "out" / "run")[0]


def test_validation_images_of_some_classes_keep_their_indices(
    train: Command, adderzoo: Command, tmp_path: Path
) -> None:
    # Images are their class's shade, so that a network learns them; there are none of the first class to validate.
    shades = {"a": 20, "b": 120, "c": 240}
    for split, count in (("train", 16), ("val", 4)):
        for name, shade in shades.items():
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                noise = random_images(1, mode="L", seed=index)[0].point(lambda value, shade=shade: shade + value // 20)
                noise.save(tmp_path / "data" / split / name / f"{index}.png")
    shutil.rmtree(tmp_path / "data" / "val" / "a")
    options = ("--epochs", 30, "--batch-size", 16, "--lr", 0.02, "--no-aug")
    done = train("--model", "cnn_lenet5", "--data-dir", tmp_path / "data", *options)
    assert done.status == 0, done
    best = max(float(row["eval_top1"]) for row in rows(tmp_path / "out" / "run"))
    assert best == 100
    done = adderzoo(
        *("validate", "--model", "cnn_lenet5", "--checkpoint", tmp_path / "out" / "run" / "best.safetensors"),
        *("--data-dir", tmp_path / "data", "--workers", 0),
    )
    assert done.out.startswith("top-1 100.00 ")


def write_mnist(root: Path, labels: Sequence[int]) -> Path:
    """As torchvision keeps MNIST: magic number, sizes, bytes."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = b"".join(image.tobytes() for image in random_images(len(labels), (28, 28), mode="L"))
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, len(labels), 28, 28) + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + bytes(labels))
    return root


def test_torchvisions_data_sets_are_trained_on(train: Command, tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "mnist", [0, 1, 2, 9, 1, 1, 0, 3])
    done = train("--dataset", "torch/mnist", "--data-dir", root, *QUICK)
    assert done.status == 0, done
    assert "8 training images, 8 validation images, 10 classes" in done.out
    assert json.loads(metadata(tmp_path / "out" / "run" / "last.safetensors")["classes"])[3] == "3 - three"


def test_color_images_of_any_size_train_a_gray_network_and_the_other_way_round(train: Command, tmp_path: Path) -> None:
    write_classes(tmp_path / "color", {"a": 4, "b": 4}, (50, 40), "RGB")
    write_classes(tmp_path / "gray", {"a": 4, "b": 4}, (20, 70), "L")
    for model, data in (("adder_lenet5", "color"), ("adder_resnet20", "gray")):
        done = train("--model", model, "--data-dir", tmp_path / data, *QUICK, "--experiment", model)
        assert done.status == 0, done
        weights = load_file(tmp_path / "out" / model / "last.safetensors")
        assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("options", [("--train-crop-mode", "rrc"), ("--train-crop-mode", "rkrr"), ("--no-aug",)])
def test_augmentation_changes_what_is_learned(train: Command, tmp_path: Path, options: tuple[str, ...]) -> None:
    """From files both times, where the order of the images does not depend on it."""
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    for name, arguments in (("default", ("--train-crop-mode", "pad")), ("other", options)):
        done = train("--data-dir", folder, *QUICK, "--no-in-memory", *arguments, "--experiment", name)
        assert done.status == 0, done
    default, other = (load_file(tmp_path / "out" / name / "last.safetensors") for name in ("default", "other"))
    assert not torch.equal(default["conv1.weight"], other["conv1.weight"])


def test_another_image_size_is_remembered_for_validation(train: Command, adderzoo: Command, tmp_path: Path) -> None:
    write_classes(tmp_path / "data" / "train", {"a": 4, "b": 4}, (48, 48))
    write_classes(tmp_path / "data" / "val", {"a": 8, "b": 8}, (48, 48))
    done = train("--data-dir", tmp_path / "data", *QUICK, "--img-size", 40)
    assert done.status == 0, done
    path, result = tmp_path / "out" / "run" / "last.safetensors", tmp_path / "result.json"
    assert json.loads(metadata(path)["data_config"])["input_size"] == [1, 40, 40]
    arguments = ("--data-dir", tmp_path / "data", "--workers", 0, "--json", result)
    assert adderzoo("validate", "--model", "adder_lenet5", "--checkpoint", path, *arguments).status == 0
    assert json.loads(result.read_text())["loss"] == pytest.approx(
        float(rows(tmp_path / "out" / "run")[0]["eval_loss"]), rel=1e-6
    )


# ---------------------------------------------------------------------------------------------------------- fine-tuning


def test_published_weights_are_fine_tuned_to_other_classes(train: Command, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4, "c": 4})
    arguments = ("--model", "adder_lenet5.digits", "--pretrained", "--data-dir", folder, *QUICK, "--lr", 1e-12)
    assert train(*arguments).status == 0
    path = tmp_path / "out" / "run" / "last.safetensors"
    published = timm.create_model("adder_lenet5.digits", pretrained=True)
    content = load_file(path)
    torch.testing.assert_close(content["conv2.weight"], published.state_dict()["conv2.weight"])
    assert metadata(path)["num_classes"] == "3"
    model = timm.create_model("adder_lenet5", num_classes=3)
    load_checkpoint(model, path)
    assert metadata(path)["architecture"] == "adder_lenet5"


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("name", ["adder_lenet5", "adder_resnet20"])
def test_training_starts_from_a_checkpoint_of_the_users(
    train: Command, tmp_path: Path, classes: int, name: str
) -> None:
    torch.manual_seed(5)
    start = timm.create_model(name, num_classes=classes)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter += torch.randn_like(parameter)
    save_weights(start, tmp_path / "start.safetensors", {})
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    checkpoint = ("--initial-checkpoint", tmp_path / "start.safetensors")
    done = train("--model", name, *checkpoint, "--data-dir", folder, *QUICK, "--lr", 1e-12, "--weight-decay", 0)
    assert done.status == 0, done
    content, expected = load_file(tmp_path / "out" / "run" / "last.safetensors"), start.state_dict()
    learned = dict(timm.create_model(name, num_classes=2).named_parameters())
    kept = (
        {key for key in learned if torch.allclose(content[key], expected[key], atol=1e-6)}
        if classes == 2
        else {
            key
            for key in learned
            if content[key].shape == expected[key].shape and torch.allclose(content[key], expected[key], atol=1e-6)
        }
    )
    # Of another number of classes, all but the classifier and the BatchNorm on the logits: weight, and weight and bias.
    assert len(learned) - len(kept) == (0 if classes == 2 else 3)


def test_the_files_say_what_a_training_started_from(train: Command, tmp_path: Path) -> None:
    folder, start = write_classes(tmp_path / "data", {"a": 4, "b": 4}), tmp_path / "theirs.safetensors"
    save_weights(timm.create_model("adder_lenet5"), start, {"license": "BSD-3-Clause"})
    digest = hashlib.sha256(start.read_bytes()).hexdigest()

    def trained(name: str, *options: object) -> dict[str, str]:
        assert train("--data-dir", folder, *QUICK, *options, "--experiment", name).status == 0
        return metadata(tmp_path / "out" / name / "last.safetensors")

    first = trained("first", "--initial-checkpoint", start)
    assert first["license"] == "BSD-3-Clause"
    assert first["trained_from"] == f"theirs.safetensors (SHA-256 {digest})"
    second = trained("second", "--initial-checkpoint", tmp_path / "out" / "first" / "last.safetensors")
    assert second["license"] == "BSD-3-Clause"
    assert second["trained_from"].endswith(f", which was trained from {first['trained_from']}")

    converted = {"source": "theirs.pth", "source_sha256": "ab12", "license": "MIT"}
    save_weights(timm.create_model("adder_lenet5"), start, converted)
    third = trained("third", "--initial-checkpoint", start)
    assert (third["license"], third["trained_from"]) == ("MIT", "theirs.pth (SHA-256 ab12)")

    published = trained("published", "--model", "adder_lenet5.digits", "--pretrained")
    assert (published["license"], published["trained_from"]) == ("apache-2.0", "adder_lenet5.digits")
    assert not {"license", "trained_from"} & trained("new").keys()


@pytest.mark.parametrize("where", ["--in-memory", "--no-in-memory"])
def test_ranges_of_bytes_come_from_images_as_they_are_validated(train: Command, tmp_path: Path, where: str) -> None:
    """From all of a small data set, each but once, whatever the augmentation."""
    name = "adder_lenet5.digits"
    folder = write_classes(tmp_path / "data", {"a": 5, "b": 6})
    model = timm.create_model(name, pretrained=True, num_classes=2)
    config = timm.data.resolve_model_data_config(model)
    mean, std = config["mean"][0], config["std"][0]
    pixels = [torch.from_numpy(np.array(Image.open(path))) for path in sorted(folder.rglob("*.png"))]
    images = (torch.stack(pixels)[:, None].float() / 255 - mean) / std
    augmentation = ("--color-jitter", 0.9, "--reprob", 1) if where == "--no-in-memory" else ("--vflip", 1)
    options = ("--model", name, "--pretrained", "--quantize-bits", 8, where, *augmentation)
    assert train("--data-dir", folder, *QUICK, *options).status == 0
    got = json.loads(metadata(tmp_path / "out" / "run" / "last.safetensors")["ranges"])
    torch.manual_seed(0)  # of the classifier, which is in float
    expected = ranges(calibrate(model, [images]))
    assert got["quantizers"].keys() == expected["quantizers"].keys()
    for key, (scale, zero_point) in expected["quantizers"].items():
        assert got["quantizers"][key] == [pytest.approx(scale, rel=1e-5), zero_point], key


def test_images_are_what_the_checkpoint_was_trained_on(train: Command, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    assert train("--model", "adder_lenet5.digits", "--data-dir", folder, *QUICK, "--experiment", "first").status == 0
    first = tmp_path / "out" / "first" / "last.safetensors"
    assert train("--initial-checkpoint", first, "--data-dir", folder, *QUICK).status == 0
    second = tmp_path / "out" / "run" / "last.safetensors"
    assert json.loads(metadata(first)["data_config"])["mean"] == list(
        timm.get_pretrained_cfg("adder_lenet5.digits").mean
    )
    assert metadata(second)["data_config"] == metadata(first)["data_config"]


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data" / "train", {"a": 4, "b": 4})
    write_classes(tmp_path / "data" / "val", {"a": 1, "b": 1})
    write_classes(tmp_path / "other" / "train", {"a": 4, "b": 4})
    write_classes(tmp_path / "other" / "val", {"b": 1, "z": 1})
    write_classes(tmp_path / "one", {"a": 4})
    write_classes(tmp_path / "untrained" / "val", {"a": 4, "b": 4})
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    random_images(1)[0].save(tmp_path / "flat" / "0.png")
    write_mnist(tmp_path / "mnist", [0, 1, 2, 3])
    save_weights(timm.create_model("adder_resnet20"), tmp_path / "resnet.safetensors", {})
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "config.json").write_text('{"architecture": "adder_lenet5", "pretrained_cfg": {}}')
    shutil.copyfile(WEIGHTS / "adder_lenet5.mnist_u8.safetensors", tmp_path / "bytes" / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "data-dir must be a folder, got None"),
        (("--data-dir", "nowhere"), "data-dir must be a folder, got 'nowhere'"),
        (("--data-dir", "empty"), "folder empty has no class folders"),
        (("--data-dir", "flat"), "folder flat has 1 image of no class: move them into folders of their classes"),
        (("--data-dir", "one"), "training needs at least two classes, data-dir 'one' has images of one: 'a'"),
        (("--data-dir", "untrained"), "'untrained' has no folder for the split 'train', but has: val"),
        (("--data-dir", "other"), "the validation images have classes that the training images do not have: 'z'"),
        (("--data-dir", "data", "--val-split", "test"), "has no folder for the split 'test', but has: train, val"),
        (("--data-dir", "data", "--num-classes", "1"), "the data set has 2 classes, the network 1"),
        (("--data-dir", "data", "--num-classes", "0"), "num-classes must be at least 1, got 0"),
        (("--data-dir", "data", "--batch-size", "9"), "there are 8 training images, fewer than a batch: batch-size"),
        (("--data-dir", "data", "--batch-size", "1"), "batch-size must be at least 2, got 1"),
        (("--data-dir", "data", "--epochs", "0"), "epochs must be at least 1, got 0"),
        (("--data-dir", "data", "--warmup-epochs", "1"), "warmup-epochs must be fewer than the 1 epochs, got 1"),
        (("--data-dir", "data", "--model", "lenet"), "model must be a registered network, got 'lenet'"),
        (
            ("--data-dir", "data", "--model", "adder_lenet5.mnist_u8"),
            "model adder_lenet5.mnist_u8 is a quantized network, which cannot be trained: adder_lenet5.mnist is",
        ),
        (("--data-dir", "sharp", "--model", "bicubic"), "model bicubic has nothing to train, as quantized networks"),
        (
            ("--data-dir", "mnist", "--dataset", "torch/mnist", "--model", "local-dir:bytes"),
            "model local-dir:bytes has nothing to train, as quantized networks: train those in float",
        ),
        (("--data-dir", "data", "--opt", "magic"), "opt 'magic' cannot be used"),
        (("--data-dir", "data", "--lr", "-1"), "opt 'momentum' cannot be used: Invalid learning rate"),
        (("--data-dir", "data", "--eta", "nan"), "eta must be a finite number from 0, got nan"),
        (("--data-dir", "data", "--hflip", "2"), "hflip must be from 0 to 1, got 2.0"),
        (("--data-dir", "data", "--device", "abacus"), "device 'abacus' cannot be used"),
        (("--data-dir", "data", "--device", "meta"), "device 'meta' cannot be used"),
        (("--data-dir", "data", "--initial-checkpoint", "no.pth"), "no.pth is not a file"),
        (("--data-dir", "data", "--initial-checkpoint", "resnet.safetensors"), "is a checkpoint of another network"),
        (("--data-dir", "mnist", "--dataset", "torch/abc"), "'torch/abc' in data-dir 'mnist' cannot be read"),
        (("--data-dir", "mnist", "--dataset", "torch/mnist", "--num-classes", "9"), "has 10 classes, the network 9"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    train: Command, scene: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = train("--epochs", 1, "--batch-size", 4, *arguments)
    assert done.error.startswith("adderzoo train: error: ")
    assert message in done.error
    assert not (scene / "out").exists()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="is about a device that is not there")
def test_of_what_pytorch_says_of_a_missing_device_the_first_sentence_is_shown(train: Command, scene: Path) -> None:
    error = train("--data-dir", "data", "--device", "mps").error
    assert re.fullmatch(r"adderzoo train: error: device 'mps' cannot be used: [^.].{10,150}", error)


@pytest.mark.parametrize(
    ("options", "written"), [(("--in-memory",), set()), (("--no-in-memory",), {"args.yaml"})], ids=["memory", "files"]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_an_error_that_names_the_file(
    tmp_path: Path, workers: int, options: tuple[str, ...], written: set[str]
) -> None:
    # In a process of its own: PyTorch takes seconds to end loading processes after an error.
    folder = write_classes(tmp_path / "data", {"a": 8, "b": 8})
    path = folder / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    arguments = ("train", "--model", "adder_lenet5", "--data-dir", folder, *QUICK, "-j", workers, *options)
    (done,) = run_group([(*arguments, "--output", tmp_path / "out", "--experiment", "run")], tmp_path)
    assert done.status == 1
    line = done.err.splitlines()[-1]
    assert re.fullmatch(rf"adderzoo train: error: image {re.escape(str(path))} cannot be read: [^\n]+", line)
    assert "Traceback" not in done.err
    assert {path.name for path in (tmp_path / "out").rglob("*.*")} == written


def test_a_loss_that_is_not_finite_keeps_the_files_of_the_epoch_before(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    arguments = ("--data-dir", folder, "--batch-size", 4, "--sched", "none")
    assert train(*arguments, "--epochs", 2, "--experiment", "two").status == 0
    forward, calls = torch.nn.CrossEntropyLoss.forward, []

    def diverge(self: torch.nn.CrossEntropyLoss, *inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(self, *inputs) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", diverge)
    done = train(*arguments, "--epochs", 4)
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith(
        "adderzoo train: error: the loss is nan at batch 2 of epoch 3: a lower learning rate may help"
    )
    a, b = (load_file(tmp_path / "out" / name / "last.safetensors") for name in ("run", "two"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(rows(tmp_path / "out" / "run")) == 2


def test_weights_that_die_in_the_last_step_of_an_epoch_are_not_written(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    step, calls = torch.optim.SGD.step, []

    def diverge(self: torch.optim.SGD, *inputs: object) -> None:
        step(self, *inputs)
        calls.append(1)
        if len(calls) == 4:
            self.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.SGD, "step", diverge)
    done = train("--data-dir", folder, "--batch-size", 4, "--epochs", 3)
    assert done.status == 1
    line = done.err.splitlines()[-1]
    assert re.fullmatch(r"adderzoo train: error: \S+ is not finite at the end of epoch 2: a lower learning .*", line)
    made = tmp_path / "out" / "run"
    assert all(value.isfinite().all() for value in load_file(made / "last.safetensors").values())
    assert len(torch.load(made / "state.pt", weights_only=True)["history"]) == len(rows(made)) == 1


def test_a_training_is_never_overwritten_by_another(train: Command, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    assert train("--data-dir", folder, *QUICK).status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "run").iterdir()}
    done = train("--data-dir", folder, *QUICK, "--seed", 7)
    assert "has a training already: choose another --experiment" in done.error
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "run").iterdir()} == before


def test_an_output_folder_that_cannot_be_made_is_one_line(train: Command, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    (tmp_path / "file").write_text("")
    assert "file" in train("--data-dir", folder, *QUICK, "--output", tmp_path / "file").error


def test_an_interrupted_training_says_where_its_weights_are(
    adderzoo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    forward, calls = torch.nn.CrossEntropyLoss.forward, []

    def interrupt(self: torch.nn.CrossEntropyLoss, *inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, *inputs)

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", interrupt)
    done = adderzoo(
        *("train", "--model", "adder_lenet5", "--data-dir", folder, "-j", 0, "--epochs", 3, "--batch-size", 4),
        *("--output", tmp_path / "out", "--experiment", "run"),
    )
    assert done.status == 130
    assert f"train: stopped after 1 of 3 epochs; their weights are in {tmp_path / 'out' / 'run'}, and" in done.err
    assert metadata(tmp_path / "out" / "run" / "last.safetensors")["epoch"] == "1"


def test_the_folder_is_named_after_time_and_network(adderzoo: Command, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    done = adderzoo(
        *("train", "--model", "adder_lenet5", "--data-dir", folder, "-j", 0, *QUICK, "--output", tmp_path / "out")
    )
    assert done.status == 0, done
    (made,) = (tmp_path / "out").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-adder_lenet5", made.name)
