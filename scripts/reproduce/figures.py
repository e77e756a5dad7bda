"""Figures 1 to 4 of the AdderNet paper (CVPR 2020), from networks trained on MNIST.

    python scripts/reproduce/figures.py MNIST [OUT] [--epochs N]

MNIST: folder as for `scripts/reproduce/mnist.sh`. OUT: folder of the trainings (output/mnist), those of mnist.sh and
mnist_ablation.sh among them if they have run. What is missing is trained first: for Figure 1 LeNet++, adder network and
CNN, N epochs each (10; an epoch of both takes some 20 minutes on one core of 2024), for Figure 3 four LeNet-5-BN (five
minutes each). What was interrupted goes on when the command is given again.

Writes OUT/figures/: features.png (Figure 1: the two-dimensional features of the test images), first_layer.png (2),
learning_curves.png (3) and filters.png (4). Figures 2 and 4 are of the published weights, `mnist`.
"""

import argparse
import csv
import shlex
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from timm.data import resolve_model_data_config

from adderzoo.analysis.plots import draw_filters, draw_first_layer
from adderzoo.checkpoints import load
from adderzoo.cli import main as adderzoo
from adderzoo.data import Loading, open_dataset, open_loader
from adderzoo.files.output import write_atomically

RECIPE = "--val-split test --no-aug --opt sgd --lr 0.1 --weight-decay 5e-4 --seed 0 --resume"

# As mnist.sh and mnist_ablation.sh name and train them: title, further options, color, line.
ABLATION = {
    "adder_lenet5_0": ("full-precision gradient, adaptive rate", "--eta 0.1", "#0072b2", "-"),
    "full_x100": ("full-precision gradient, rate x 100", "--filter-lr-scale 100", "#d55e00", "--"),
    "sign_adaptive": ("sign gradient, adaptive rate", "--filter-grad sign --eta 0.1", "#009e73", "-."),
    "sign_x100": ("sign gradient, rate x 100", "--filter-grad sign --filter-lr-scale 100", "#8c8c8c", ":"),
}

# Ten colors for the ten digits (P. Tol, "Color Schemes", muted), which are written on them too.
DIGITS = ["#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#777777"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="MNIST")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, default=Path("output/mnist"))
    parser.add_argument("--epochs", metavar="N", type=int, default=10, help="of LeNet++ (%(default)s)")
    args = parser.parse_args()
    pictures = args.out / "figures"

    features = {}
    for name in ("adder_lenet_plus_plus", "cnn_lenet_plus_plus"):
        train(args, name, name, args.epochs, "--batch-size 64 --sched-on-updates --eta 0.1")
        features[name] = features_of(name, args.out / name / "last.safetensors", args.data)
    write_atomically(pictures / "features.png", lambda path: draw_features(features).savefig(path, dpi=200))

    lenets = {name: timm.create_model(f"{name}.mnist", pretrained=True) for name in ("adder_lenet5", "cnn_lenet5")}
    draw_first_layer(lenets, pictures / "first_layer.png")
    draw_filters(lenets, ["conv3"], pictures / "filters.png")

    for name, (_, options, _, _) in ABLATION.items():
        train(args, name, "adder_lenet5.mnist", 50, f"--batch-size 256 {options}")
    write_atomically(pictures / "learning_curves.png", lambda path: draw_curves(args.out).savefig(path, dpi=200))
    print(f"Pictures: {pictures}")


def train(args: argparse.Namespace, name: str, model: str, epochs: int, options: str) -> None:
    """Train a network into OUT/name, or what is left of it."""
    summary = args.out / name / "summary.csv"
    if summary.is_file() and len(summary.read_text().splitlines()) == 1 + epochs:
        return
    where = ["--dataset", "torch/mnist", "--data-dir", args.data, "--output", str(args.out), "--experiment", name]
    recipe = shlex.split(f"{RECIPE} --epochs {epochs} {options}")
    if adderzoo(["train", "--model", model, "--no-pretrained", *where, *recipe]):
        sys.exit(1)


def features_of(name: str, checkpoint: Path, data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the test images, (N, 2), and their labels, (N)."""
    model: Any = load(checkpoint, name).eval()
    images = open_dataset("torch/mnist", data, "test", channels=1)
    found = []
    with torch.inference_mode():
        for batch, labels in open_loader(images, resolve_model_data_config(model), Loading(batch_size=256, workers=2)):
            found.append((model.forward_features(batch).flatten(1), labels))
    points, labels = zip(*found, strict=True)
    return torch.cat(points), torch.cat(labels)


def draw_features(features: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Figure:
    """Figure 1: a dot an image, and each class's digit at the median of its dots."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    for axes, (name, (points, labels)) in zip(figure.subplots(1, len(features)), features.items(), strict=True):
        for digit, color in enumerate(DIGITS):
            own = points[labels == digit]
            axes.scatter(*own.T.numpy(), s=1, color=color, alpha=0.5, linewidths=0)
        for digit, color in enumerate(DIGITS):
            place = points[labels == digit].median(0).values.tolist()
            halo = [withStroke(linewidth=2.5, foreground="white")]
            axes.annotate(
                str(digit), place, color=color, fontsize=12, weight="bold", ha="center", va="center", path_effects=halo
            )
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_curves(out: Path) -> Figure:
    """Figure 3: accuracy on the test images, and training loss."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for name, (title, _, color, line) in ABLATION.items():
        with (out / name / "summary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) for row in rows]
        accuracy.plot(epochs, [float(row["eval_top1"]) for row in rows], line, color=color, label=title)
        loss.plot(epochs, [float(row["train_loss"]) for row in rows], line, color=color)
    accuracy.set_ylabel("top-1 accuracy on test images (%)", fontsize=8)
    loss.set_ylabel("training loss", fontsize=8)
    loss.set_yscale("log")
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
