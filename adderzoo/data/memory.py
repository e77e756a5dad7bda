"""Small images that stay in memory, cropped and flipped a batch at a time: a CPU decodes PNG files more slowly than a
small network trains on them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from .settings import Augmentation, Loading

Batch = tuple[Tensor, Tensor]


class MemoryLoader:
    """Batches of images that are kept as bytes on a device.

    In training they come in another order each epoch, augmented, and images that make no whole batch sit the epoch
    out. The order depends on seed and epoch alone, and the processes of a group get consecutive parts of each common
    batch: together they see what one process with the whole batch would. Shifts and flips are PyTorch's global random
    numbers. For evaluation, the images come as they are, every process having its share.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        epoch: Decides the order; :meth:`set_epoch` sets it.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        config: dict[str, Any],
        loading: Loading,
        training: bool = False,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Take images to a device.

        Args:
            images: (N, C, H, W) uint8.
            labels: (N,) class indices.
            config: `mean` and `std` of each channel, in units of full brightness.
            loading: Batches, device, seed and processes.
            training: Shuffle, augment, and leave out what fills no batch.
            augmentation: Flips, and where it has a crop, shifts by up to an eighth; nothing else of it. None for none.
        """
        device = loading.device
        self.images, self.labels = images.to(device), labels.to(device)
        self.mean, self.std = (torch.tensor(config[key], device=device).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.loading = loading
        self.training = training
        shifted = augmentation is not None and augmentation.crop is not None
        self.shift = (images.shape[2] // 8, images.shape[3] // 8) if shifted else (0, 0)
        self.flip = (augmentation.vflip, augmentation.hflip) if augmentation else (0.0, 0.0)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        loading = self.loading
        if self.training:
            return len(self.images) // (loading.batch_size * loading.processes)
        return -(-len(range(loading.rank, len(self.images), loading.processes)) // loading.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order, size = self._order().to(self.images.device), self.loading.batch_size
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            images = self.images[indices]
            if self.training:
                images = self._augment(images)
            # The operations of torchvision's ToTensor and Normalize, for the same numbers to the last bit.
            yield images.float().div_(255).sub_(self.mean).div_(self.std), self.labels[indices]

    def _order(self) -> Tensor:
        loading = self.loading
        if not self.training:
            return torch.arange(len(self.images))[loading.rank :: loading.processes]
        seed = np.random.SeedSequence((loading.seed, self.epoch)).generate_state(1).item()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.images), generator=generator)
        order = order[: len(self) * loading.processes * loading.batch_size]
        return order.view(len(self), loading.processes, loading.batch_size)[:, loading.rank].flatten()

    def _augment(self, images: Tensor) -> Tensor:
        """Shift and flip every image by itself, in one gathering copy."""
        if not any(self.shift) and not any(self.flip):
            return images
        count, channels, *size = images.shape
        device = images.device
        rows, columns = (
            self._positions(count, length, shift, flip, device)
            for length, shift, flip in zip(size, self.shift, self.flip, strict=True)
        )
        (top, left), each = self.shift, torch.arange(count, device=device).view(-1, 1, 1, 1)
        padded = F.pad(images, (left, left, top, top))
        return padded[
            each, torch.arange(channels, device=device).view(-1, 1, 1), rows[:, None, :, None], columns[:, None, None]
        ]

    @staticmethod
    def _positions(count: int, length: int, shift: int, flip: float, device: torch.device) -> Tensor:
        """Where on the padded axis each pixel of each image comes from: (count, length)."""
        positions = torch.randint(2 * shift + 1, (count, 1), device=device) + torch.arange(length, device=device)
        return torch.where(torch.rand(count, 1, device=device) < flip, positions.flip(1), positions)


def read_into_memory(
    dataset: Any, transform: Callable[[Any], Any], size: tuple[int, int, int], workers: int
) -> Batch | None:
    """All images of a data set as bytes, and their labels; None if they do not all get the same size.

    Args:
        dataset: As :func:`adderzoo.data.open_dataset` gives it, but no stream.
        transform: Makes a uint8 tensor (C, H, W) of a PIL image.
        size: (C, H, W).
        workers: Loading processes.

    Raises:
        ValueError: naming the image, if one cannot be read.
    """
    images = torch.empty(len(dataset), *size, dtype=torch.uint8)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    dataset.transform = transform
    loader = DataLoader(dataset, 256, num_workers=workers, collate_fn=_Collate(size))
    done = 0
    # disable=None: a log file can do without it.
    with tqdm(desc="reading images", total=len(dataset), unit="image", leave=False, disable=None) as progress:
        for batch in loader:
            if batch is None:
                return None
            count = len(batch[1])
            images[done : done + count], labels[done : done + count] = batch
            done += count
            progress.update(count)
    return images, labels


class _Collate:
    """A batch of images of one size; None if one of them has another."""

    def __init__(self, size: tuple[int, int, int]) -> None:
        self.size = size

    def __call__(self, samples: list[tuple[Tensor, int]]) -> Batch | None:
        images, labels = zip(*samples, strict=True)
        if any(image.shape != self.size for image in images):
            return None
        return torch.stack(images), torch.tensor(labels)
