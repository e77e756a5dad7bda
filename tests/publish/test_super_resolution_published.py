"""Publishing of weights of networks for super-resolution, and of bicubic interpolation's figures."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from checkpoint_files import write_trained
from pictures import random_images
from registry import TOYS, add_toys
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import resolve_model_data_config

from adderzoo.catalogue import Accuracy, Quality, SetQuality, read_results
from adderzoo.cli import main
from adderzoo.models import _builder
from adderzoo.publish.card import model_card
from adderzoo.publish.weights import add_baseline, add_weights

pytestmark = pytest.mark.usefixtures("one_thread")

CHECKOUT = Path(__file__).resolve().parent.parent.parent
NAME, TWIN, VDSR, _ = TOYS
RESULTS = "results.json"
SET5, SET14 = SetQuality("Set5", 2, 5, 36.5, 0.9541), SetQuality("Set14", 2, 14, 32.25, 0.9034)
MEASURED = Quality((SET5, SET14), "bash it.sh", "Adam on some photographs.")
BICUBIC = Quality((replace(SET5, psnr=33.68, ssim=0.9304),), "adderzoo validate --model bicubic")


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, whose tag takes its weights from the folder that is published to."""
    add_toys(monkeypatch, tmp_path / "weights")
    monkeypatch.setattr(_builder, "WEIGHTS", tmp_path / "weights")  # checks the SHA-256 of what lies there


def write_checkpoint(path: Path, name: str = NAME, seed: int = 0, **said: Any) -> Path:
    arguments = json.loads(said.get("model_args") or "{}")
    return write_trained(path, name, seed, {"psnr": "31.25", "ssim": "0.9000"} | said, **arguments)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "best.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With weights of the network and of its twin."""
    for name in (NAME, TWIN):
        add_weights(name, write_checkpoint(tmp_path / "old.safetensors", name, 5), MEASURED, tmp_path / "weights")
    return tmp_path / "weights"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as weights:
        return weights.metadata()


# --------------------------------------------------------------------------------------------------- what is published


def test_weights_are_published_with_what_was_measured_on_every_set(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights"
    files = add_weights(NAME, checkpoint, MEASURED, out)
    assert sorted(files.values()) == sorted(out.iterdir())
    said = metadata(files["weights"])
    assert json.loads(said.pop("test_sets")) == [
        {"dataset": "Set5", "scale": 2, "images": 5, "psnr": 36.5, "ssim": 0.9541},
        {"dataset": "Set14", "scale": 2, "images": 14, "psnr": 32.25, "ssim": 0.9034},
    ]
    assert json.loads(said.pop("data_config"))["input_size"] == [3, 360, 640]
    assert said == {
        "format": "pt",
        "architecture": "adder_edsr_toy_x2",
        "tag": "toy",
        "num_classes": "0",
        "license": "Apache-2.0",
        "command": "bash it.sh",
        "recipe": "Adam on some photographs.",
    }
    assert read_results(out / "results.json") == {NAME: MEASURED}
    assert files["card"].read_text(encoding="utf-8") == model_card(NAME, out)
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert done.stdout == f"{NAME}.safetensors: OK\n"
    network = timm.create_model(NAME, pretrained=True)
    assert torch.equal(network.blocks[0].unit1.conv.weight, load_file(checkpoint)["blocks.0.unit1.conv.weight"])


def test_figures_are_rounded_as_they_are_shown(checkpoint: Path, tmp_path: Path) -> None:
    exact = replace(MEASURED, test_sets=(replace(SET5, psnr=36.49637, ssim=0.95405),))
    files = add_weights(NAME, checkpoint, exact, tmp_path / "weights")
    (row,) = json.loads(files["results"].read_text())[NAME]["test_sets"]
    assert (row["psnr"], row["ssim"]) == (36.5, 0.954)


def test_the_card_of_the_twin_shows_the_new_weights(folder: Path, checkpoint: Path) -> None:
    files = add_weights(NAME, checkpoint, replace(MEASURED, test_sets=(replace(SET5, psnr=37.25),)), folder)
    assert files["twin's card"] == folder / f"{TWIN}.md"
    assert "| 36.50 / 0.9541 | 37.25 / 0.9541 |" in files["twin's card"].read_text(encoding="utf-8")


def test_a_network_that_serves_several_scales_is_measured_at_any(tmp_path: Path) -> None:
    several = replace(MEASURED, test_sets=tuple(replace(SET5, scale=scale) for scale in (2, 3, 4)))
    checkpoint = write_checkpoint(tmp_path / "best.safetensors", VDSR, model_args='{"scale": 3}')
    files = add_weights(VDSR, checkpoint, several, tmp_path / "weights")
    assert read_results(files["results"]) == {VDSR: several}
    weights, published = load_file(checkpoint), load_file(files["weights"])
    own = timm.create_model("bicubic").bicubic.weight  # of scale 2, the network's own
    assert torch.equal(published.pop("bicubic.weight"), own)
    assert not torch.equal(weights.pop("bicubic.weight"), own)
    assert all(torch.equal(published[key], value) for key, value in weights.items())


def test_a_checkpoint_trained_on_patches_is_of_the_same_preprocessing(tmp_path: Path) -> None:
    config = resolve_model_data_config(timm.create_model(NAME)) | {"input_size": (3, 48, 48)}
    checkpoint = write_checkpoint(tmp_path / "best.safetensors", data_config=json.dumps(config))
    add_weights(NAME, checkpoint, MEASURED, tmp_path / "weights")


def test_bicubic_interpolation_joins_all_cards(folder: Path) -> None:
    weights = content(folder)[f"{NAME}.safetensors"]
    assert sorted(add_baseline(BICUBIC, folder)) == [folder / f"{NAME}.md", folder / f"{TWIN}.md", folder / RESULTS]
    assert read_results(folder / RESULTS) == {NAME: MEASURED, TWIN: MEASURED, "bicubic": BICUBIC}
    for name in (NAME, TWIN):
        assert "| 33.68 / 0.9304 |" in (folder / f"{name}.md").read_text(encoding="utf-8")
    assert content(folder)[f"{NAME}.safetensors"] == weights


# ----------------------------------------------------------------------------------------------------- what is refused


def assert_refused(message: str, name: str, checkpoint: Path, measured: Any, folder: Path) -> None:
    before = content(folder)
    with pytest.raises(ValueError, match=message):
        add_weights(name, checkpoint, measured, folder)
    assert content(folder) == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": 0}, "images of Set5 x2 must be at least 1, got 0"),
        ({"psnr": float("inf")}, "psnr of Set5 x2 must be finite, in decibels, got inf"),
        ({"psnr": float("nan")}, "psnr of Set5 x2 must be finite, in decibels, got nan"),
        ({"ssim": 95.4}, "ssim of Set5 x2 must be from -1 to 1, got 95.4"),  # percent
        ({"ssim": float("nan")}, "ssim of Set5 x2 must be from -1 to 1, got nan"),
        ({"scale": 3}, "scale must be 2 for adder_edsr_toy_x2, got 3"),
        ({"dataset": ""}, "dataset of the measurement must be a line of text, got ''"),
        ({"dataset": "Set14"}, "test_sets of the measurement must be different ones, got Set14 x2 2 times"),
    ],
)
def test_figures_that_cannot_be_are_refused(
    values: dict[str, Any], message: str, checkpoint: Path, folder: Path
) -> None:
    measured = replace(MEASURED, test_sets=(replace(SET5, **values), SET14))
    assert_refused(message, NAME, checkpoint, measured, folder)


def test_a_measurement_without_sets_or_words_is_refused(checkpoint: Path, folder: Path) -> None:
    assert_refused("at least one, got none", NAME, checkpoint, replace(MEASURED, test_sets=()), folder)
    assert_refused("recipe of the measurement must be a line", NAME, checkpoint, replace(MEASURED, recipe=""), folder)
    assert_refused("command of the measurement must be a line", NAME, checkpoint, replace(MEASURED, command=""), folder)


def test_a_measurement_of_the_other_kind_is_refused(checkpoint: Path, folder: Path) -> None:
    accuracy = Accuracy("some digits", 400, 80.0, 2.0, "bash it.sh", "SGD.")
    message = "of adder_edsr_toy_x2, a network for super-resolution, must be of type Quality, got Accuracy"
    assert_refused(message, NAME, checkpoint, accuracy, folder)
    message = "of adder_lenet5, a network for image-classification, must be of type Accuracy, got Quality"
    assert_refused(message, "adder_lenet5.digits", checkpoint, MEASURED, folder)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"name": TWIN}, "another network than adder_edsr_toy_x2: its metadata says cnn_edsr_toy_x2"),
        ({"num_classes": "10"}, f"must be of 0 classes as {NAME}, .* is of 10$"),
        ({"model_args": '{"width": 8}'}, "another network than adder_edsr_toy_x2: .* of another shape"),
        (
            {"model_args": '{"res_scale": 1.0}'},
            "without arguments, .* has model_args {'res_scale': 1.0}",
        ),  # same shapes
        ({"license": "BSD-3-Clause"}, "apache-2.0, .* is of BSD-3-Clause"),
        ({"data_config": '{"mean": [0.5, 0.5, 0.5]}'}, r"pretrained_cfg has mean \(0.0, 0.0, 0.0\), .* has \(0.5,"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    said: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    assert_refused(message, NAME, write_checkpoint(tmp_path / "best.safetensors", **said), MEASURED, folder)


def test_bicubic_interpolation_has_no_weights_to_publish(checkpoint: Path, folder: Path) -> None:
    assert_refused("weights from the file bicubic.untrained", "bicubic.untrained", checkpoint, BICUBIC, folder)


def test_a_baseline_that_cannot_be_written_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{TWIN}.md").unlink()
    (folder / f"{TWIN}.md").mkdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(IsADirectoryError):
        add_baseline(BICUBIC, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# ----------------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("publish", CHECKOUT / "scripts" / "reproduce" / "publish_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["publish_weights.py", *map(str, arguments)])
        module.main()

    return run


TEXTS = ("--command", "bash it.sh", "--recipe", "Adam on some photographs.")


def measure(folder: Path, model: str, *options: str) -> tuple[Path, dict[str, Any]]:
    """The file that `adderzoo validate` writes, and what is in it."""
    path = folder.parent / f"{model}_{folder.parts[-1]}_{len(options)}.json"
    arguments = ["--data-dir", str(folder), "--json", str(path), *options]
    assert main(["validate", "--model", model, *arguments]) == 0
    return path, json.loads(path.read_text())


def test_what_train_and_validate_write_is_published(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("data/train", 4), ("Small/x2/HR", 2), ("Other/x2/HR", 3)):
        (tmp_path / name).mkdir(parents=True)
        for index, image in enumerate(random_images(count, (40, 32), seed=count)):
            image.save(tmp_path / name / f"{index}.png")
    patches = ["--img-size", "8", "--batch-size", "4", "--epochs", "1", "--workers", "0", "--val-split", ""]
    output = ["--output", str(tmp_path), "--experiment", "run"]
    assert main(["train", str(tmp_path / "data"), "-m", NAME, "--no-pretrained", *patches, *output]) == 0
    checkpoint = tmp_path / "run" / "last.safetensors"
    weights = ("--checkpoint", str(checkpoint))
    one, small = measure(tmp_path / "Small", NAME, *weights)
    two, other = measure(tmp_path / "Other" / "x2", NAME, *weights)
    assert (small["dataset"], other["dataset"]) == ("Small", "Other")
    baseline, bicubic = measure(tmp_path / "Other" / "x2" / "HR", "bicubic")
    capsys.readouterr()

    out = tmp_path / "weights"
    script(NAME, checkpoint, "--result", one, two, *TEXTS, "--out", out)
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(map(str, out.iterdir()))
    assert read_results(out / RESULTS)[NAME] == Quality(
        (
            SetQuality("Small", 2, 2, round(small["psnr"], 2), round(small["ssim"], 4)),
            SetQuality("Other", 2, 3, round(other["psnr"], 2), round(other["ssim"], 4)),
        ),
        *TEXTS[1::2],
    )
    script("bicubic", "--result", baseline, "--command", "adderzoo validate --model bicubic", "--out", out)
    figures = f"{other['psnr']:.2f} / {other['ssim']:.4f} | - | {bicubic['psnr']:.2f} / {bicubic['ssim']:.4f}"
    assert f"| Other x2 | 3 | {figures} |" in (out / f"{NAME}.md").read_text(encoding="utf-8")
    _, again = measure(tmp_path / "Small", NAME, "--checkpoint", str(out / f"{NAME}.safetensors"), "--tile", "16")
    assert again["psnr"] == pytest.approx(small["psnr"], abs=1e-3)


RESULT = {
    "model": "adder_edsr_toy_x2", "dataset": "Set5", "self_ensemble": False, "psnr": 36.5, "ssim": 0.95, "scale": 2,
    "images": [{}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "cnn_edsr_toy_x2"}, f"the result of another network than {NAME}: cnn_edsr_toy_x2$"),
        ({"self_ensemble": True}, "not the result of the network alone: measure it without --self-ensemble$"),
        ({"psnr": None}, "no result of .*psnr is None"),  # of equal images
        ({"dataset": None}, "no result of .* for super-resolution$"),
        ({"images": 5}, "no result of .* for super-resolution$"),
    ],
)
def test_a_result_of_something_else_is_one_line(
    script: Callable[..., None], values: dict[str, Any], message: str, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT | values))
    before = content(folder)
    with pytest.raises(SystemExit, match=rf"^publish_weights\.py: error: .*result\.json is .*{message}"):
        script(NAME, checkpoint, "--result", tmp_path / "result.json", *TEXTS, "--out", folder)
    assert content(folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAME, "--result", "a.json", *TEXTS), f"checkpoint must be given for {NAME}"),
        ((NAME, "a", "--result", "a.json", *TEXTS, "--dataset", "b"), f"dataset must not be given for {NAME}"),
        ((NAME, "a", "--result", "a.json", *TEXTS[:2]), f"recipe must be given for {NAME}"),
        (("bicubic", "a", "--result", "a.json", *TEXTS[:2]), "checkpoint must not be given for bicubic"),
        (("adder_lenet5.digits", "a", "--result", "a.json", *TEXTS), "dataset must be given for adder_lenet5.digits"),
        (
            ("adder_lenet5.digits", "a", "--result", "a.json", "b.json", *TEXTS, "--dataset", "b"),
            "result must be one file for adder_lenet5.digits, a classifier, got 2",
        ),
        (("adder_edsr_toy_x2.other", "a", "--result", "a.json", *TEXTS), "name must have a tag of adder_edsr_toy_x2's"),
        (("no_such_net.toy", "a", "--result", "a.json", *TEXTS), "name must be that of a network of adderzoo"),
    ],
)
def test_arguments_are_those_of_the_task(
    script: Callable[..., None], arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=rf"^publish_weights\.py: error: {message}"):
        script(*arguments, "--out", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
