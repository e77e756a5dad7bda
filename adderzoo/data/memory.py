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
        batch_size: int,
        device: torch.device | str = "cpu",
        training: bool = False,
        crop: bool = False,
        hflip: float = 0.0,
        vflip: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Take images to a device.

        Args:
            images: (N, C, H, W) uint8.
            labels: (N,) class indices.
            config: `mean` and `std` of each channel, in units of full brightness.
            batch_size: Images a batch, of one process.
            device: Where the batches are.
            training: Shuffle and augment.
            crop: Shift images by up to an eighth of their size, with black behind them.
            hflip: Probability of a horizontal flip.
            vflip: Probability of a vertical flip.
            seed: Of the order.
            rank: Of this process.
            processes: In the group.
        """
        self.images, self.labels = images.to(device), labels.to(device)
        self.mean, self.std = (torch.tensor(config[key], device=device).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.batch_size = batch_size
        self.training = training
        self.shift = (images.shape[2] // 8, images.shape[3] // 8) if crop else (0, 0)
        self.flip = (vflip, hflip)
        self.seed, self.rank, self.processes = seed, rank, processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.training:
            return len(self.images) // (self.batch_size * self.processes)
        return -(-len(range(self.rank, len(self.images), self.processes)) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self._order().to(self.images.device)
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            images = self.images[indices]
            if self.training:
                images = self._augment(images)
            # The operations of torchvision's ToTensor and Normalize, for the same numbers to the last bit.
            yield images.float().div_(255).sub_(self.mean).div_(self.std), self.labels[indices]

    def _order(self) -> Tensor:
        if not self.training:
            return torch.arange(len(self.images))[self.rank :: self.processes]
        seed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1).item()
        generator = torch.Generator().manual_seed(seed)
        whole = self.batch_size * self.processes
        order = torch.randperm(len(self.images), generator=generator)[: len(self) * whole]
        return order.view(len(self), self.processes, self.batch_size)[:, self.rank].flatten()

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
