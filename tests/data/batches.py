"""What a network is fed with, all at once."""

import torch
from pictures import CIFAR_MEAN, CIFAR_STD
from torch import Tensor

from adderzoo.data import Loading, open_loader

RESNET = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": CIFAR_MEAN,
    "std": CIFAR_STD,
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def read(
    dataset: object, config: dict = RESNET, batch_size: int = 4, workers: int = 0, in_memory: bool = False
) -> tuple[Tensor, list]:
    loading = Loading(batch_size=batch_size, workers=workers, in_memory=in_memory)
    return together(open_loader(dataset, config, loading))


def together(loader: object) -> tuple[Tensor, list[int]]:
    """The images and labels of all batches."""
    batches = list(loader)  # type: ignore[call-overload]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches]).tolist()
