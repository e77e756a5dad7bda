"""Compare networks on the same images: top-1 accuracy, and by how much each is better than the first.

    python scripts/reproduce/compare.py FOLDER CHECKPOINT CHECKPOINT ...

FOLDER has one folder of images a class, CHECKPOINT is what `adderzoo train` writes. Printed is a Markdown table. The
95 % interval of a difference is that of paired observations: 1.96 standard errors of the mean, over the images, of
(right by this network) - (right by the first). It says what other images would change, not what another seed would.
"""

import argparse
import math
from pathlib import Path

import torch
from timm.data import resolve_model_data_config

from adderzoo.checkpoints import load
from adderzoo.data import Loading, open_dataset, open_loader


def right(checkpoint: Path, folder: Path) -> torch.Tensor:
    """Which images of a folder (in the order of their names) a network is right on, as float64 0 and 1."""
    model = load(checkpoint).eval()
    config = resolve_model_data_config(model)
    dataset = open_dataset("", str(folder), "", config["input_size"][0])
    loader = open_loader(dataset, config, Loading(batch_size=250))
    with torch.inference_mode():
        return torch.cat([model(images).argmax(1) == labels for images, labels in loader]).double()


def interval(first: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """The mean of other - first, and 1.96 of its standard errors."""
    difference = other - first
    return difference.mean().item(), 1.96 * difference.std(correction=0).item() / math.sqrt(len(difference))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("checkpoints", metavar="CHECKPOINT", type=Path, nargs="+")
    args = parser.parse_args()
    found = [right(checkpoint, args.folder) for checkpoint in args.checkpoints]
    print(f"| training | top-1 % ({len(found[0])} images) | more than the first |\n| --- | --- | --- |")
    for checkpoint, other in zip(args.checkpoints, found, strict=True):
        mean = other.mean().item()
        error = math.sqrt(mean * (1 - mean) / len(other))
        gain = "" if other is found[0] else "{:+.2f} ± {:.2f}".format(*(100 * x for x in interval(found[0], other)))
        print(f"| {checkpoint.parent.name} | {100 * mean:.2f} ± {100 * error:.2f} | {gain} |")
