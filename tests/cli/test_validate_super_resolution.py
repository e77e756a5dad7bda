import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import Done
from pictures import random_images, write_folder

from adderzoo.checkpoints import save
from adderzoo.data import ImagePairs, as_integers
from adderzoo.engine import quality
from adderzoo.files.weights import save_weights
from adderzoo.inference import quantization

Command = Callable[..., Done]

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"blocks": 1, "width": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Large images alone."""
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(30, 41), (50, 32)]):
        random_images(1, size, seed=index)[0].save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a small network, which knows its arguments."""
    torch.manual_seed(0)
    network = timm.create_model("cnn_edsr_baseline_x2", **SMALL)
    about = {"architecture": "cnn_edsr_baseline_x2", "model_args": json.dumps(SMALL)}
    save_weights(network, tmp_path / "network.safetensors", about)
    return tmp_path / "network.safetensors"


def expected(model: Any, folder: Path) -> list[tuple[float, float]]:
    pairs = ImagePairs(folder, model.scale)
    with torch.no_grad():
        return [quality(as_integers(model(x[None].float() / 255)[0]), y, model.scale) for x, y in pairs]


def test_every_image_and_the_mean_are_shown_and_written(
    adderzoo: Command, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    command = ("validate", "--model", "cnn_edsr_baseline_x2", "--checkpoint", checkpoint, "--data-dir", folder)
    network = timm.create_model("cnn_edsr_baseline_x2", **SMALL)
    network.load_state_dict(torch.load(_as_pth(checkpoint, tmp_path), weights_only=True))
    rows = expected(network.eval(), folder)
    mean = np.mean(rows, 0)
    done = adderzoo(*command, "--json", tmp_path / "out" / "result.json")
    assert done.status == 0
    head, *lines, last = done.out.splitlines()
    assert head.split() == ["image", "PSNR", "SSIM"]
    assert [line.split() for line in lines] == [[f"{i}.png", f"{p:.2f}", f"{s:.4f}"] for i, (p, s) in enumerate(rows)]
    assert last.startswith(f"PSNR {mean[0]:.2f} dB, SSIM {mean[1]:.4f}, x2, 2 images, ")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["model"], result["scale"], result["self_ensemble"]) == ("cnn_edsr_baseline_x2", 2, False)
    assert result["dataset"] == "images"
    assert (result["psnr"], result["ssim"]) == pytest.approx(tuple(mean))
    np.testing.assert_allclose([(image["psnr"], image["ssim"]) for image in result["images"]], rows)
    assert adderzoo(*command, "--results-file", tmp_path / "result.csv").status == 0
    with (tmp_path / "result.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == ["0.png", "1.png", "mean"]
    assert [float(row["psnr"]) for row in table] == pytest.approx([row[0] for row in rows] + [mean[0]])


def _as_pth(checkpoint: Path, tmp_path: Path) -> Path:
    from safetensors.torch import load_file

    torch.save(load_file(checkpoint), tmp_path / "network.pth")
    return tmp_path / "network.pth"


@pytest.mark.parametrize("scale", [2, 3])
def test_bicubic_interpolation_is_measured_by_the_same_command(adderzoo: Command, folder: Path, scale: int) -> None:
    done = adderzoo("validate", "--model", "bicubic", "--model-kwargs", f"scale={scale}", "--data-dir", folder)
    mean = np.mean(expected(timm.create_model("bicubic", scale=scale), folder), 0)
    assert done.out.splitlines()[-1].startswith(f"PSNR {mean[0]:.2f} dB, SSIM {mean[1]:.4f}, x{scale}, 2 images, ")
    assert done.err.startswith("adderzoo validate: bicubic, no weights, on ")


def test_self_ensemble_tiles_and_formats_are_options(adderzoo: Command, folder: Path, checkpoint: Path) -> None:
    command = ("validate", "--model", "cnn_edsr_baseline_x2", "--checkpoint", checkpoint, "--data-dir", folder)
    plain = adderzoo(*command).out.splitlines()[-1].split(", x2")[0]
    for options in (("--tile", 7), ("--channels-last",)):
        assert adderzoo(*command, *options).out.splitlines()[-1].split(", x2")[0] == plain
    done = adderzoo(*command, "--self-ensemble")
    assert done.status == 0
    assert done.out.splitlines()[-1].split(", x2")[0] != plain


def test_a_quantized_network_is_measured_from_its_file(adderzoo: Command, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("adder_edsr_baseline_x2", **SMALL)
    network.train()(torch.rand(2, 3, 16, 16))
    integer = quantization.quantize(quantization.calibrate(network, [torch.rand(2, 3, 16, 16)]))
    save(integer, tmp_path / "u8.safetensors", **SMALL)
    done = adderzoo(
        *("validate", "--model", "adder_edsr_baseline_x2", "--checkpoint", tmp_path / "u8.safetensors"),
        *("--data-dir", folder),
    )
    mean = np.mean(expected(integer, folder), 0)
    assert done.out.splitlines()[-1].startswith(f"PSNR {mean[0]:.2f} dB, SSIM {mean[1]:.4f}, x2, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data-dir", "nothing"), "data-dir must be a folder, got 'nothing'"),
        ((), "data-dir must be a folder, got None"),
        (("--data-dir", "images", "--dataset", "torch/cifar10"), "dataset is for classifiers, but bicubic is for"),
        (("--data-dir", "images", "--class-map", "map"), "class-map is for classifiers, but bicubic is for"),
        (("--data-dir", "images", "--tile", "0"), "tile must be at least 1, got 0"),
        (("--data-dir", "images", "--num-classes", "3"), "num_classes must be 0, since the network classifies nothing"),
        (("--data-dir", "images", "--model-kwargs", "depth=3"), "cannot be created with the arguments {'depth': 3}: "),
        (("--data-dir", "images", "--model-kwargs", "scale=40"), "must have at least 40 pixels a side"),
        (("--data-dir", "images", "--model-kwargs", "num_classes=0"), "model-kwargs must not have num_classes: there"),
        (("--data-dir", "images", "--results-file", "result.txt"), "results-file must end in .csv"),
        (("--data-dir", "images", "--mean", "0.5"), "mean is for classifiers, but bicubic is for super-resolution"),
    ],
)
def test_bad_input_is_one_line(
    adderzoo: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder.parent)
    done = adderzoo("validate", "--model", "bicubic", *arguments)
    *progress, error = done.rest
    assert (done.status, done.out) == (1, "")
    assert error.startswith("adderzoo validate: error: ")
    assert message in error
    found = "adderzoo validate: 2 images in "  # of what is refused when an image is read
    assert all("image/s" in line or not line or line.startswith(found) for line in progress)


def test_options_of_super_resolution_are_refused_for_a_classifier(adderzoo: Command, tmp_path: Path) -> None:
    write_folder(tmp_path / "digits", random_images(2, mode="L"), [0, 1])
    for option in (("--self-ensemble",), ("--tile", 8)):
        done = adderzoo("validate", "--model", "cnn_lenet5.digits", "--data-dir", tmp_path, *option)
        name = option[0].removeprefix("--")
        assert f"{name} is for super-resolution, but cnn_lenet5.digits is a classifier" in done.error


def test_predict_refuses_by_name(adderzoo: Command, folder: Path) -> None:
    done = adderzoo("predict", folder, "--model", "cnn_edsr_baseline_x2", "--random-weights")
    expected = "model must be a classifier, got 'cnn_edsr_baseline_x2', which is a network for super-resolution"
    assert done.status == 1
    assert done.err.splitlines()[-1] == f"adderzoo predict: error: {expected}"
