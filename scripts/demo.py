"""Adder networks beside their CNN twins: accuracy and speed on scikit-learn's handwritten digits, and a photograph of
scikit-learn's made larger.

    python scripts/demo.py [--out DIR]

Writes DIR/digits (the images, one folder a class), DIR/demo.png, DIR/photos and DIR/super_resolution.png; DIR is `demo`
in the checkout.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
from example_data import write_digits, write_photos
from timm.data import resolve_model_data_config

import adderzoo.cli
from adderzoo.data import Loading, open_dataset, open_loader
from adderzoo.engine import Result, evaluate

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo")
    out = parser.parse_args().out
    digits = out / "digits"
    write_digits(digits)
    print(f"PyTorch {torch.__version__}, adder operator: {adderzoo.ops.backend()}")

    adder = timm.create_model("adder_lenet5.digits", pretrained=True)
    from_hub = torch.hub.load(str(ROOT), "adder_lenet5", source="local", pretrained=True, pretrained_cfg="digits")
    same = all(torch.equal(a, b) for a, b in zip(adder.parameters(), from_hub.parameters(), strict=True))
    print(f"timm.create_model and torch.hub.load give the same network: {'yes' if same else 'NO'}")
    cnn = timm.create_model("cnn_lenet5.digits", pretrained=True)

    print("Scikit-learn's handwritten digits, the half that no network was trained on:")
    results = {
        name: measure(model, name, digits / "test") for name, model in (("adder_lenet5", adder), ("cnn_lenet5", cnn))
    }
    print(f"{'':16}{'top-1 %':>16}{'images/s':>12}")
    for name, result in results.items():
        print(f"{name:16}{f'{result.top1:.2f} ± {result.top1_se:.2f}':>16}{result.images_per_second:12.0f}")
    draw(adder, results["adder_lenet5"], digits / "test", out / "demo.png")
    print(f"Picture: {out / 'demo.png'}")
    enlarge(out)


def measure(model: torch.nn.Module, name: str, folder: Path) -> Result:
    dataset = open_dataset("", str(folder), "test", channels=1)
    loader = open_loader(dataset, resolve_model_data_config(model), Loading(batch_size=128))
    return evaluate(model, loader, description=name)


def enlarge(out: Path) -> None:
    """A part of a photograph, made smaller, and larger again by each network."""
    photos, picture = out / "photos", out / "super_resolution.png"
    write_photos(photos)
    if adderzoo.cli.main(["upscale", str(photos / "flower.png"), "--scale", "2", "--compare", "-o", str(picture)]):
        raise SystemExit(1)
    print(f"Picture: {picture}")


@torch.inference_mode()
def draw(model: torch.nn.Module, result: Result, folder: Path, path: Path) -> None:
    """Held-out digits with the network's answers, mistakes among them, above the filters of its first layer."""
    dataset = open_dataset("", str(folder), "test", channels=1)
    loader = open_loader(dataset, resolve_model_data_config(model), Loading(batch_size=len(dataset)))
    images, labels = next(iter(loader))
    probabilities = model.eval()(images).softmax(1)
    confidence, answers = probabilities.max(1)
    right = answers == labels
    shown = (~right).nonzero().flatten()[:6]
    others = right.nonzero().flatten()  # in the order of their labels
    shown = torch.cat([shown, others[torch.linspace(0, len(others) - 1, 24 - len(shown)).long()]])

    figure = plt.figure(figsize=(12, 8.4), layout="constrained")
    figure.suptitle(
        f"adder_lenet5.digits: {result.top1:.1f} % of {result.images} held-out digits, every layer an L1 distance",
        fontsize=14,
    )
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 1.1])
    top.suptitle("What it says (a square: wrong, with the label)", fontsize=11)
    for axes, index in zip(top.subplots(3, 8).flat, shown.tolist(), strict=True):
        axes.imshow(images[index, 0], cmap="gray_r")
        answer, label = int(answers[index]), int(labels[index])
        text = f"{answer}   {100 * float(confidence[index]):.0f} %"
        axes.set_title(text if answer == label else f"{answer}, is {label}", fontsize=12)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(answer != label)
            spine.set_color("#d55e00")
            spine.set_linewidth(3)
    bottom.suptitle("The six filters of its first layer: templates, the output is the distance to them", fontsize=11)
    filters = model.conv1.weight[:, 0]
    limit = float(filters.abs().max())
    grid = bottom.subplots(1, len(filters))
    for axes, weight in zip(grid, filters, strict=True):
        picture = axes.imshow(weight, cmap="PuOr", vmin=-limit, vmax=limit)
        axes.set(xticks=[], yticks=[])
    bottom.colorbar(picture, ax=grid, shrink=0.8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
