"""Patches, against images whose pixels say where they are from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adderzoo.data import ImagePairs, Loading, open_patch_loader
from adderzoo.data.patches import PatchLoader

SCALE, SIDE = 2, 20

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pairs(tmp_path: Path) -> ImagePairs:
    """Three images whose small pixels have their row in red, their column in green and the image in blue."""
    for name in ("HR", "LR"):
        (tmp_path / name).mkdir()
    for index in range(3):
        rows, columns = np.mgrid[:SIDE, : SIDE + index]
        small = np.stack([rows, columns, np.full_like(rows, index)], -1).astype(np.uint8)
        Image.fromarray(small).save(tmp_path / "LR" / f"{index}.png")
        Image.fromarray(small.repeat(SCALE, 0).repeat(SCALE, 1)).save(tmp_path / "HR" / f"{index}.png")
    return ImagePairs(tmp_path, SCALE)


def batches(loader: PatchLoader) -> list[Tensor]:
    """Bytes of all small patches of an epoch, each held to its large one."""
    found = []
    for small, large in loader:
        assert small.dtype == large.dtype == torch.float32
        assert torch.equal(small.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3), large)
        found.append((small * 255).round().to(torch.uint8))
    return found


def place(patch: Tensor) -> tuple[int, int, int]:
    """Image, top and left of a patch, which must be a part of it, flipped or turned."""
    red, green, blue = patch.int()
    assert len(blue.unique()) == 1
    size = patch.shape[1]
    assert sorted(red.unique().tolist()) == list(range(int(red.min()), int(red.min()) + size))
    assert sorted(green.unique().tolist()) == list(range(int(green.min()), int(green.min()) + size))
    return int(blue[0, 0]), int(red.min()), int(green.min())


def orientation(patch: Tensor) -> tuple[bool, bool, bool]:
    """Whether rows are in the place of columns, and which of the two run backwards."""
    red, green = patch[0].int(), patch[1].int()
    turned = bool(red[0, 0] == red[-1, 0])
    down, right = (green, red) if turned else (red, green)
    return turned, bool(down[0, 0] > down[-1, 0]), bool(right[0, 0] > right[0, -1])


def test_patches_come_from_anywhere_in_every_orientation(pairs: ImagePairs) -> None:
    loader = open_patch_loader(pairs, 8, Loading(batch_size=10), repeats=300)
    assert len(loader) == 90
    patches = torch.cat(batches(loader))
    places = [place(patch) for patch in patches]
    assert np.bincount([image for image, _, _ in places]).tolist() == [300, 300, 300]
    assert {top for _, top, _ in places} == set(range(SIDE - 8 + 1))
    assert {left for image, _, left in places if image == 2} == set(range(SIDE + 2 - 8 + 1))
    counts = np.unique([orientation(patch) for patch in patches], axis=0, return_counts=True)[1]
    assert len(counts) == 8
    # Of 900 patches an eighth is 112.5, with a standard deviation of 9.9.
    assert np.abs(counts - 112.5).max() < 45


def test_without_augmentation_patches_stand_as_their_images(pairs: ImagePairs) -> None:
    for batch in batches(open_patch_loader(pairs, 8, Loading(batch_size=3), augment=False, repeats=20)):
        assert {orientation(patch) for patch in batch} == {(False, False, False)}


def test_a_patch_may_be_the_whole_image(pairs: ImagePairs) -> None:
    for batch in batches(open_patch_loader(pairs, SIDE, Loading(batch_size=2), repeats=4)):
        assert batch.shape == (2, 3, SIDE, SIDE)


def epoch(pairs: ImagePairs, number: int, workers: int = 0, **options: Any) -> list[Tensor]:
    loading = Loading(workers=workers, **{"batch_size": 4, **options})
    loader = open_patch_loader(pairs, 8, loading, repeats=10)
    loader.set_epoch(number)
    return batches(loader)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_an_epoch_depends_on_seed_and_number_alone(pairs: ImagePairs) -> None:
    expected = epoch(pairs, 3)
    torch.manual_seed(123)
    assert equal(epoch(pairs, 3), expected)
    assert equal(epoch(pairs, 3, workers=2, in_memory=False), expected)
    assert not equal(epoch(pairs, 4), expected)
    assert not equal(epoch(pairs, 3, seed=1), expected)


def test_processes_share_the_patches_of_an_epoch(pairs: ImagePairs) -> None:
    whole = torch.cat(epoch(pairs, 1, batch_size=30))
    parts = [torch.cat(epoch(pairs, 1, batch_size=5, rank=rank, processes=2)) for rank in range(2)]
    assert [len(part) for part in parts] == [15, 15]
    one, other = (sorted(patch.flatten().tolist() for patch in patches) for patches in (whole, torch.cat(parts)))
    assert one == other


def test_what_cannot_be_cut_is_named(pairs: ImagePairs, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"image .*0.png must have at least img-size 21 times 2 pixels a side, got 40x40"
    ):
        open_patch_loader(pairs, SIDE + 1, Loading(batch_size=2))
    expected = r"batch-size must be at most 3, the patches of an epoch \(3 images, each epoch-repeats 2 times, in 2"
    with pytest.raises(ValueError, match=expected):
        open_patch_loader(pairs, 8, Loading(batch_size=4, processes=2), repeats=2)
    (tmp_path / "HR" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image .*2.png cannot be read"):
        open_patch_loader(pairs, 8, Loading(batch_size=2))


def test_images_turned_by_exif_are_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    pairs = ImagePairs(tmp_path, 2)
    assert pairs.size(0) == pairs[0][1].shape[1:] == (40, 20)
