"""Small data sets on disk, and networks whose answers on them are worth comparing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def random_images(count: int, size: tuple[int, int] = (32, 32), mode: str = "RGB", seed: int = 0) -> list[Image.Image]:
    """Images of `size` (width, height); coarse patterns, so that resizing does not make them all gray."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).convert(mode) for pixels in coarse]


def write_folder(root: Path, images: Sequence[Image.Image], labels: Sequence[int], classes: int = 10) -> Path:
    """ROOT/class_0/00000.png ... with a folder for every class; class_00 ... for more than ten."""
    folders = [root / f"class_{label:0{len(str(classes - 1))}}" for label in range(classes)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        image.save(folders[label] / f"{index:05d}.png", compress_level=1)
    return root


def as_input(images: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(N, C, H, W), scaled to [0, 1] and normalized."""
    pixels = np.stack([np.asarray(image, dtype=np.float64).reshape(*image.size[::-1], -1) for image in images]) / 255
    return torch.from_numpy(((pixels - mean) / std).transpose(0, 3, 1, 2)).float()


def lively_network(name: str, x: torch.Tensor) -> nn.Module:
    """A random network, whose BatchNorm statistics are those of `x`: its answers depend on the image."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@torch.inference_mode()
def labels_ranked(model: nn.Module, x: torch.Tensor, ranks: Sequence[int]) -> list[int]:
    """A label for each image, to which the network gives this rank: 0 is its answer, 9 what it finds least likely."""
    order = model(x).argsort(dim=1, descending=True)
    return [int(order[index, rank]) for index, rank in enumerate(ranks)]


def measure(model: nn.Module, x: torch.Tensor, labels: Sequence[int]) -> dict[str, float]:
    """What an evaluation has to find, image by image in plain Python and float64."""
    with torch.inference_mode():
        logits = model(x).double().numpy()
    count, first, fifth, loss = len(labels), 0, 0, 0.0
    for row, label in zip(logits, labels, strict=True):
        better = int((row > row[label]).sum())
        first += better < 1
        fifth += better < 5
        loss += float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[label])
    shares = {"top1": first / count, "top5": fifth / count}
    errors = {f"{name}_se": 100 * (share * (1 - share) / count) ** 0.5 for name, share in shares.items()}
    return {name: 100 * share for name, share in shares.items()} | errors | {"loss": loss / count, "images": count}
