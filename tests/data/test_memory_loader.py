from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as TF
from batches import together
from pictures import random_images, write_folder
from scipy.stats import chisquare
from torch import Tensor
from torchvision.transforms import Compose, PILToTensor, Resize

from adderzoo.data import Augmentation, Loading, MemoryLoader, open_dataset
from adderzoo.data.memory import read_into_memory

PLAIN = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # bytes as they are


def noise(count: int, height: int = 8, width: int = 8) -> Tensor:
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def loader(count: int, batch_size: int, *, height: int = 8, width: int = 8, **options: Any) -> MemoryLoader:
    """Images of noise; each has its number for a label."""
    images = noise(count, height, width)
    training, crop = options.pop("training", False), options.pop("crop", False)
    flips = {key: options.pop(key, 0.0) for key in ("hflip", "vflip")}
    augmentation = Augmentation(crop="pad" if crop else None, **flips)
    loading = Loading(batch_size=batch_size, **options)
    return MemoryLoader(images, torch.arange(count), PLAIN, loading, training, augmentation)


def as_bytes(x: Tensor) -> Tensor:
    assert (x - x.round()).abs().max() < 1e-3
    return x.round().byte()


def labels(loader: MemoryLoader, epoch: int = 0) -> list[int]:
    loader.set_epoch(epoch)
    return together(loader)[1]


# --------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize(("hflip", "vflip"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (0.25, 1.0)])
@pytest.mark.parametrize("crop", [False, True])
def test_every_shift_is_as_likely_as_any_other_and_flips_as_their_probability(
    crop: bool, hflip: float, vflip: float
) -> None:
    count, height, width = 16, 8, 16
    top, left = (1, 2) if crop else (0, 0)
    ways = list(product(range(2 * top + 1), range(2 * left + 1), (0, 1), (0, 1)))
    made: dict[bytes, tuple[int, tuple[int, ...]]] = {}
    for label, image in enumerate(noise(count, height, width)):
        padded = TF.pad(image, [left, top, left, top])
        for way in ways:
            y, x, across, down = way
            pixels = TF.crop(padded, y, x, height, width)
            pixels = TF.hflip(pixels) if across else pixels
            pixels = TF.vflip(pixels) if down else pixels
            made[pixels.numpy().tobytes()] = label, way

    torch.manual_seed(0)
    augmented = loader(
        count, count, height=height, width=width, training=True, crop=crop, hflip=hflip, vflip=vflip, seed=1
    )
    times: Counter[tuple[int, ...]] = Counter()
    for epoch in range(150):
        augmented.set_epoch(epoch)
        for x, numbers in augmented:
            for pixels, number in zip(as_bytes(x), numbers.tolist(), strict=True):
                label, way = made[pixels.numpy().tobytes()]
                assert label == number
                times[way] += 1

    shifts = (2 * top + 1) * (2 * left + 1)
    expected = {
        way: 150 * count / shifts * (hflip if way[2] else 1 - hflip) * (vflip if way[3] else 1 - vflip) for way in ways
    }
    possible = [way for way in ways if expected[way]]
    assert times.keys() == set(possible)
    if len(possible) > 1:
        assert chisquare([times[way] for way in possible], [expected[way] for way in possible]).pvalue > 1e-3


def test_images_for_evaluation_are_left_as_they_are() -> None:
    x, numbers = together(loader(10, 4, crop=True, hflip=1.0, vflip=1.0))
    assert torch.equal(as_bytes(x), noise(10))
    assert numbers == list(range(10))


def test_images_keep_their_bytes_from_epoch_to_epoch() -> None:
    augmented = loader(8, 4, training=True, crop=True, hflip=0.5, vflip=0.5)
    for x, _ in augmented:
        x.zero_()  # as mixup does, in place
    assert torch.equal(augmented.images, noise(8))


# ---------------------------------------------------------------------------------------------------------------- order


def test_every_epoch_is_another_permutation_without_what_fills_no_batch() -> None:
    epochs = [labels(loader(23, 4, training=True), epoch) for epoch in range(40)]
    assert {len(epoch) for epoch in epochs} == {20}
    assert {len(set(epoch)) for epoch in epochs} == {20}
    assert len({tuple(epoch) for epoch in epochs}) == 40
    assert set().union(*epochs) == set(range(23))  # none sits out all of them
    assert len(loader(23, 4, training=True)) == 5


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(10 * seed + epoch)
        return labels(loader(23, 4, training=True, crop=True, hflip=0.5, seed=seed), epoch)

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len({tuple(numbers) for numbers in orders.values()}) == 6
    used = loader(23, 4, training=True, seed=1)
    for epoch in (2, 0, 1, 1, 2):
        assert labels(used, epoch) == orders[1, epoch]


def test_labels_stay_with_their_images() -> None:
    for x, numbers in loader(23, 4, training=True):
        assert torch.equal(as_bytes(x), noise(23)[numbers])


@pytest.mark.parametrize("count", [24, 29])
def test_processes_share_the_batches_of_a_single_one(count: int) -> None:
    alone = list(loader(count, 6, training=True, seed=5))
    ranks = [list(loader(count, 2, training=True, seed=5, rank=rank, processes=3)) for rank in range(3)]
    assert len(alone) == count // 6
    for (x, numbers), *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(x, torch.cat([images for images, _ in parts]))
        assert torch.equal(numbers, torch.cat([own for _, own in parts]))


@pytest.mark.parametrize(("count", "processes"), [(10, 1), (10, 3), (11, 4), (2, 3), (2, 5)])
def test_in_evaluation_processes_see_every_image_once(count: int, processes: int) -> None:
    seen = []
    for rank in range(processes):
        share = loader(count, 2, rank=rank, processes=processes)
        batches = list(share)
        assert len(share) == len(batches)
        for x, numbers in batches:
            assert torch.equal(as_bytes(x), noise(count)[numbers])
            seen += numbers.tolist()
    assert sorted(seen) == list(range(count))


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_read_in_their_order_with_their_labels(tmp_path: Path, workers: int) -> None:
    images = random_images(300, (8, 8))  # more than one of the batches that they are read in
    root = write_folder(tmp_path, images, [index // 30 for index in range(300)])
    dataset = open_dataset("", str(root), "train", 3)
    content = read_into_memory(dataset, PILToTensor(), (3, 8, 8), workers)
    assert content is not None
    assert content[0].dtype == torch.uint8
    assert torch.equal(content[0], torch.stack([TF.pil_to_tensor(image) for image in images]))
    assert content[1].tolist() == [index // 30 for index in range(300)]


def test_images_of_several_shapes_are_not_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path, [*random_images(2, (8, 8)), *random_images(1, (8, 9))], [0, 1, 2])
    dataset = open_dataset("", str(root), "train", 3)
    transform = Compose([Resize(8), PILToTensor()])
    assert read_into_memory(dataset, transform, (3, 8, 8), 0) is None
