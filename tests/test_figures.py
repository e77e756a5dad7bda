"""Pictures of trainings on MNIST, without the trainings."""

import argparse
import csv
import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
from PIL import Image

from adderzoo.files.weights import save_weights

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "reproduce" / "figures.py"


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_mnist(folder: Path, count: int = 40) -> None:
    """Random images in the files of MNIST, as many of each digit."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        head = struct.pack(">4i", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(index % 10 for index in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels)


def test_four_figures_of_six_trainings(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings: dict[str, argparse.Namespace] = {}

    def train(args: argparse.Namespace) -> None:
        trainings[args.experiment] = args
        folder = Path(args.output) / args.experiment
        save_weights(timm.create_model(args.model), folder / "last.safetensors", {})
        with (folder / "summary.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "train_loss", "eval_top1"])
            writer.writerows([epoch + 1, 0.5**epoch, 10 * epoch] for epoch in range(args.epochs))

    write_mnist(tmp_path)
    out = tmp_path / "out"
    monkeypatch.setattr("adderzoo.cli.train.run", train)
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path), str(out), "--epochs", "3"])
    figures.main()
    assert capsys.readouterr().out == f"Pictures: {out / 'figures'}\n"

    seen = trainings.copy()
    trainings.clear()
    figures.main()  # again: everything is there
    assert not trainings
    (out / "full_x100" / "summary.csv").write_text("epoch,train_loss,eval_top1\n1,1.0,50.0\n")  # interrupted
    figures.main()
    assert list(trainings) == ["full_x100"]

    models = {name: (args.model, args.epochs) for name, args in seen.items()}
    assert models == {
        "adder_lenet_plus_plus": ("adder_lenet_plus_plus", 3),
        "cnn_lenet_plus_plus": ("cnn_lenet_plus_plus", 3),
        "adder_lenet5_0": ("adder_lenet5.mnist", 50),
        "full_x100": ("adder_lenet5.mnist", 50),
        "sign_adaptive": ("adder_lenet5.mnist", 50),
        "sign_x100": ("adder_lenet5.mnist", 50),
    }
    assert all(args.resume and args.dataset == "torch/mnist" for args in seen.values())
    pictures = {path.name: np.asarray(Image.open(path).convert("RGB")) for path in (out / "figures").iterdir()}
    assert sorted(pictures) == ["features.png", "filters.png", "first_layer.png", "learning_curves.png"]

    def has(name: str, color: str) -> bool:
        return bool((pictures[name] == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(2).any())

    assert all(has("features.png", color) for color in figures.DIGITS)
    assert all(has("learning_curves.png", color) for _, _, color, _ in figures.ABLATION.values())


def test_the_ablation_is_that_of_the_shell_scripts(figures: ModuleType) -> None:
    """Which train what this shows, and need not be run again then."""
    text = "".join((SCRIPT.parent / name).read_text() for name in ("mnist.sh", "mnist_ablation.sh"))
    for name, (_, options, _, _) in figures.ABLATION.items():
        if name != "adder_lenet5_0":
            assert f"\ntrain {name} {options}\n" in text
    for option in ("--lr 0.1", "--weight-decay 5e-4", "--opt sgd", "--no-aug", "--val-split test"):
        assert option in figures.RECIPE
        assert text.count(option) == 2


def test_a_training_that_fails_is_the_end(figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path / "absent"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        figures.main()
    assert end.value.code == 1
    assert not (tmp_path / "out" / "figures").exists()
