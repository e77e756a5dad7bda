"""Random patches of images, for the training of networks for super-resolution."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from .image_pairs import ImagePairs, as_float
from .settings import Loading

# What images may take in memory without being asked to.
_MEMORY_BYTES = 2**31

Pair = tuple[Tensor, Tensor]


class Patches(Dataset):
    """Patches of pairs of images, of random place, and turned and flipped at random.

    What an item is depends on seed, epoch and index alone, whichever process loads it.

    Args:
        pairs: Small images (3, h, w) and large ones (3, scale * h, scale * w), bytes.
        scale: Of the pairs.
        size: Side of a small patch; that of the large one is `scale` times as long.
        augment: Each of the eight flips and turns is as likely as another; else the image as it is.
        repeats: How many patches of each image there are.
        seed: Of everything random.

    Attributes:
        epoch: Decides the patches; :meth:`set_epoch` sets it.
    """

    def __init__(
        self,
        pairs: ImagePairs | list[Pair],
        scale: int,
        size: int,
        augment: bool = True,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        self.pairs = pairs
        self.scale, self.size = scale, size
        self.augment = augment
        self.repeats = repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pairs) * self.repeats

    def __getitem__(self, index: int) -> Pair:
        """A small patch (3, size, size) and a large one (3, scale * size, scale * size), bytes."""
        random = np.random.default_rng((self.seed, self.epoch, index))
        pair = self.pairs[index % len(self.pairs)]
        top, left = (int(random.integers(side - self.size + 1)) for side in pair[0].shape[1:])
        flip, turns = (int(random.integers(count)) for count in (2, 4)) if self.augment else (0, 0)
        patches = []
        for image, scale in zip(pair, (1, self.scale), strict=True):
            rows, columns = (slice(scale * start, scale * (start + self.size)) for start in (top, left))
            patch = image[:, rows, columns]
            patches.append(torch.rot90(patch.flip(2) if flip else patch, turns, (1, 2)))
        return patches[0], patches[1]


class PatchLoader:
    """Batches of patches, from 0 to 1, in another order each epoch; what makes no whole batch sits the epoch out.

    The processes of a group get patches of their own.

    Attributes:
        dataset: The patches.
    """

    def __init__(self, dataset: Patches, batch_size: int, workers: int, rank: int = 0, processes: int = 1) -> None:
        self.dataset = dataset
        self._sampler: DistributedSampler = DistributedSampler(
            dataset, processes, rank, seed=dataset.seed, drop_last=True
        )
        self._loader = DataLoader(
            dataset, batch_size, sampler=self._sampler, num_workers=workers, drop_last=True, collate_fn=_collate
        )

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._loader)


def _collate(pairs: list[Pair]) -> Pair:
    small, large = (as_float(torch.stack(patches)) for patches in zip(*pairs, strict=True))
    return small, large


def open_patch_loader(
    pairs: ImagePairs, size: int, loading: Loading, augment: bool = True, repeats: int = 1
) -> PatchLoader:
    """Shuffled batches of patches, on the CPU.

    Args:
        pairs: Images to cut patches out of.
        size: Side of a small patch in pixels.
        loading: Of the patches; all images are read once (`in_memory`) by default where they take at most 2 GiB, and
            then need no loading processes. Else each patch has its image read, and made smaller unless the small ones
            are given.
        augment: Turn and flip the patches.
        repeats: How many patches of each image an epoch has.

    Raises:
        ValueError: if an image cannot be read, or is smaller than a patch (it is named), or if an epoch has fewer
            patches than a batch needs.
    """
    batch_size, processes, in_memory = loading.batch_size, loading.processes, loading.in_memory
    patches = len(pairs) * repeats
    if patches < batch_size * processes:
        raise ValueError(
            f"batch-size must be at most {patches // processes}, the patches of an epoch ({len(pairs)} images, each "
            f"epoch-repeats {repeats} times{f', in {processes} processes' if processes > 1 else ''}), got {batch_size}"
        )
    sizes = [pairs.size(index) for index in range(len(pairs))]
    for index, sides in enumerate(sizes):
        if min(sides) < size * pairs.scale:
            raise ValueError(
                f"image {pairs.large[index]} must have at least img-size {size} times {pairs.scale} pixels a side, got "
                f"{sides[1]}x{sides[0]}"
            )
    if in_memory is None:
        in_memory = sum(3 * height * width for height, width in sizes) * (1 + 1 / pairs.scale**2) <= _MEMORY_BYTES
    source: Any = pairs
    workers = loading.workers
    if in_memory:
        # disable=None: a log file can do without it.
        progress = tqdm(range(len(pairs)), desc="reading images", unit="image", leave=False, disable=None)
        source, workers = [pairs[index] for index in progress], 0
    dataset = Patches(source, pairs.scale, size, augment, repeats, loading.seed)
    return PatchLoader(dataset, batch_size, workers, loading.rank, processes)
