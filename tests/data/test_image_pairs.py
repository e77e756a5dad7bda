"""Pairs of images, and the smaller ones that are made, held to those that the field evaluates on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import random_images
from PIL import Image

from adderzoo.data import ImagePairs, as_float, as_integers, downscale, open_training_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder: Path, sizes: dict[str, tuple[int, int]], mode: str = "RGB") -> Path:
    folder.mkdir(parents=True)
    for name, size in sizes.items():
        random_images(1, size, mode, seed=len(name))[0].save(folder / name)
    return folder


@pytest.mark.parametrize(("name", "scale"), [("Set5", 2), ("Set5", 3), ("Set5", 4), ("Set14", 3), ("B100", 4)])
def test_downscaling_makes_the_published_images_to_the_byte(
    name: str, scale: int, shared: Callable[[str], Path]
) -> None:
    pairs = ImagePairs(shared(f"data/sr/{name}/x{scale}"), scale)
    for index in range(min(len(pairs), 20)):
        small, large = pairs[index]
        assert torch.equal(downscale(large, scale), small), pairs.name(index)


def test_downscaling_is_pils_but_for_the_border_and_rounding() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((12, 8), Image.Resampling.BICUBIC), dtype=int)
    got = downscale(torch.from_numpy(pixels).permute(2, 0, 1), 3).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - expected)[2:-2, 2:-2].max() <= 1


def test_an_image_of_one_color_stays_so_to_the_border() -> None:
    for color in (0, 1, 128, 255):
        image = torch.full((3, 8, 12), color, dtype=torch.uint8)
        assert torch.equal(downscale(image, 4), image[:, :2, :3])
    with pytest.raises(ValueError, match="image must have sides that 3 divides, got 12x8"):
        downscale(torch.zeros(3, 8, 12, dtype=torch.uint8), 3)


def test_bytes_are_rounded_and_clipped() -> None:
    image = torch.tensor([-0.3, 0.0, 0.499 / 255, 0.501 / 255, 254.6 / 255, 1.0, 1.7])
    assert as_integers(image).tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert as_integers(image, torch.uint16).tolist() == [0, 0, 128, 129, 65432, 65535, 65535]
    for dtype, values in ((torch.uint8, range(256)), (torch.uint16, range(0, 65536, 7))):
        integers = torch.tensor(list(values), dtype=torch.int64).to(dtype)
        assert torch.equal(as_integers(as_float(integers), dtype), integers)


def test_given_small_images_are_taken_by_their_names(tmp_path: Path) -> None:
    large = write(tmp_path / "HR", {"b.png": (9, 7), "a10.png": (6, 6), "a9.png": (4, 4)})
    small = write(tmp_path / "LR", {"b.png": (4, 3), "a9.bmp": (2, 2), "a10.png": (3, 3), "other.png": (3, 3)})
    pairs = ImagePairs(tmp_path, 2)
    assert [pairs.name(index) for index in range(len(pairs))] == ["a9.png", "a10.png", "b.png"]
    low, high = pairs[2]
    assert np.array_equal(low.permute(1, 2, 0), np.asarray(Image.open(small / "b.png")))
    assert np.array_equal(high.permute(1, 2, 0), np.asarray(Image.open(large / "b.png"))[:6, :8])
    assert low.dtype == high.dtype == torch.uint8


@pytest.mark.parametrize("layout", ["HR", "."])
def test_small_images_are_made_where_none_are_given(layout: str, tmp_path: Path) -> None:
    write(tmp_path / "data" / layout, {"gray.png": (13, 10)}, "L")
    small, large = ImagePairs(tmp_path / "data", 3)[0]
    assert (small.shape, large.shape) == ((3, 3, 4), (3, 9, 12))
    assert torch.equal(small, downscale(large, 3))
    assert torch.equal(large[0], large[2])


def test_the_folder_of_the_scale_is_found(tmp_path: Path) -> None:
    write(tmp_path / "x2" / "HR", {"a.png": (4, 4)})
    assert len(ImagePairs(tmp_path, 2)) == 1


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data-dir must be a folder, got '.*nothing'"):
        ImagePairs(tmp_path / "nothing", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folder .*empty has no images"):
        ImagePairs(tmp_path / "empty", 2)
    write(tmp_path / "one" / "HR", {"a.png": (8, 8), "b.png": (8, 8)})
    write(tmp_path / "one" / "LR", {"a.png": (4, 3)})
    with pytest.raises(ValueError, match=r"LR has no image for b.png in HR"):
        ImagePairs(tmp_path / "one", 2)
    (tmp_path / "one" / "LR" / "b.png").write_bytes(b"no image")
    pairs = ImagePairs(tmp_path / "one", 2)
    with pytest.raises(ValueError, match=r"LR.a.png must be 2 times smaller than .*HR.a.png, got 4x3 and 8x8"):
        pairs[0]
    with pytest.raises(ValueError, match=r"image .*LR.b.png cannot be read"):
        pairs[1]
    write(tmp_path / "tiny", {"a.png": (1, 5)})
    with pytest.raises(ValueError, match="must have at least 2 pixels a side"):
        ImagePairs(tmp_path / "tiny", 2)[0]


def test_div2ks_own_layout_is_known(tmp_path: Path) -> None:
    write(tmp_path / "DIV2K_train_HR", {"0001.png": (8, 6)})
    small = write(tmp_path / "DIV2K_train_LR_bicubic" / "X2", {"0001x2.png": (4, 3)})
    write(tmp_path / "DIV2K_valid_HR", {"0801.png": (12, 6)})
    train, val = open_training_pairs(tmp_path, 2)
    assert np.array_equal(train[0][0].permute(1, 2, 0), np.asarray(Image.open(small / "0001x2.png")))
    assert val is not None
    assert torch.equal(val[0][0], downscale(val[0][1], 2))  # none are given for it
    assert torch.equal(
        open_training_pairs(tmp_path, 3)[0][0][0], downscale(ImagePairs(tmp_path / "DIV2K_train_HR", 3)[0][1], 3)
    )


def test_splits_are_found_by_their_names(tmp_path: Path) -> None:
    write(tmp_path / "plain", {"a.png": (8, 8)})
    train, val = open_training_pairs(tmp_path / "plain", 2)
    assert (len(train), val) == (1, None)
    write(tmp_path / "data" / "train", {"a.png": (8, 8), "b.png": (8, 8)})
    assert open_training_pairs(tmp_path / "data", 2)[1] is None
    write(tmp_path / "data" / "val", {"c.png": (8, 8)})
    write(tmp_path / "data" / "Set5" / "x2" / "HR", {"d.png": (8, 8)})
    for split, expected in ((None, "c.png"), ("val", "c.png"), ("Set5", "d.png")):
        train, val = open_training_pairs(tmp_path / "data", 2, val_split=split)
        assert len(train) == 2
        assert val is not None
        assert val.name(0) == expected
    assert open_training_pairs(tmp_path / "data", 2, val_split="")[1] is None
    for splits in ({"val_split": "other"}, {"train_split": "other"}, {"train_split": "other", "val_split": "val"}):
        with pytest.raises(ValueError, match=r"data-dir .*data' has no folder for the split 'other'"):
            open_training_pairs(tmp_path / "data", 2, **splits)
