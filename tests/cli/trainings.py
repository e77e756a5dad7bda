"""Images to train on, and what a training leaves."""

import csv
from pathlib import Path

from pictures import random_images
from safetensors import safe_open

QUICK = ("--epochs", 1, "--batch-size", 4)


def write_classes(root: Path, counts: dict[str, int], size: tuple[int, int] = (32, 32), mode: str = "L") -> Path:
    for seed, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index, image in enumerate(random_images(count, size, mode=mode, seed=seed)):
            image.save(root / name / f"{index}.png")
    return root


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))
