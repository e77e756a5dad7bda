import re
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.functional as TF
from batches import RESNET, read, together
from pictures import CIFAR_MEAN, CIFAR_STD, as_input, random_images, write_folder
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform, resolve_model_data_config
from torch import Tensor

from adderzoo.data import Augmentation, Loading, MemoryLoader, open_dataset, open_loader, open_training_loader

CPU = torch.device("cpu")
IN_MEMORY = pytest.mark.parametrize("in_memory", [False, True], ids=["files", "memory"])
GRAY = {"mean": (0.1307,), "std": (0.3081,)}


# ----------------------------------------------------------------------------------------------------------- evaluation


@IN_MEMORY
def test_images_of_the_networks_size_are_only_scaled_and_normalized(tmp_path: Path, in_memory: bool) -> None:
    images, labels = random_images(6), [0, 0, 3, 3, 7, 9]
    root = write_folder(tmp_path, images, labels)
    x, read_labels = read(open_dataset("", str(root), "validation", 3), in_memory=in_memory)
    torch.testing.assert_close(x, as_input(images, CIFAR_MEAN, CIFAR_STD), rtol=0, atol=1e-6)
    assert read_labels == labels


@IN_MEMORY
def test_larger_images_are_resized_and_cropped_in_the_middle(tmp_path: Path, in_memory: bool) -> None:
    images = random_images(3, (64, 40))
    root = write_folder(tmp_path, images, [0, 1, 2])
    x, _ = read(open_dataset("", str(root), "validation", 3), in_memory=in_memory)
    cropped = [image.resize((51, 32), Image.Resampling.BICUBIC).crop((10, 0, 42, 32)) for image in images]
    torch.testing.assert_close(x, as_input(cropped, CIFAR_MEAN, CIFAR_STD), rtol=0, atol=1e-6)


@IN_MEMORY
def test_gray_images_fill_three_channels(tmp_path: Path, in_memory: bool) -> None:
    images = random_images(3, mode="L")
    root = write_folder(tmp_path, images, [0, 1, 2])
    x, _ = read(open_dataset("", str(root), "validation", 3), in_memory=in_memory)
    threefold = as_input(images, [0.0], [1.0]).expand(-1, 3, -1, -1)
    expected = (threefold - torch.tensor(CIFAR_MEAN).view(3, 1, 1)) / torch.tensor(CIFAR_STD).view(3, 1, 1)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


@IN_MEMORY
@pytest.mark.parametrize("name", ["", "torch/image_folder"])
def test_color_images_become_luminance_for_one_channel(tmp_path: Path, name: str, in_memory: bool) -> None:
    images = random_images(3)
    root = write_folder(tmp_path, images, [0, 1, 2], classes=3)
    config = resolve_model_data_config(timm.create_model("adder_lenet5"))
    x, _ = read(open_dataset(name, str(root), "validation", 1), config, in_memory=in_memory)
    # ITU-R 601-2, which PIL rounds to whole numbers
    gray = [np.rint(np.asarray(image, dtype=float) @ [0.299, 0.587, 0.114]) for image in images]
    expected = (np.stack(gray)[:, None] / 255 - config["mean"][0]) / config["std"][0]
    assert x.shape == (3, 1, 32, 32)
    torch.testing.assert_close(x, torch.from_numpy(expected).float(), rtol=0, atol=1.01 / 255 / config["std"][0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("crop", "size", "workers"),
    [
        ({"crop_pct": 0.875}, (40, 60), 0),
        ({"crop_pct": 0.875, "crop_mode": "squash"}, (60, 40), 2),
        ({"crop_pct": 0.9, "crop_mode": "border", "interpolation": "bilinear"}, (20, 50), 0),
        ({"crop_pct": 0.8, "input_size": (24, 32)}, (50, 45), 2),
    ],
)
def test_batches_from_memory_are_timms_to_the_last_bit(
    tmp_path: Path, mode: str, crop: dict[str, object], size: tuple[int, int], workers: int
) -> None:
    root = write_folder(tmp_path, random_images(10, size, mode), range(10))
    config = RESNET | (GRAY if mode == "L" else {}) | crop
    config["input_size"] = (len(mode), *config["input_size"][-2:])
    theirs = create_loader(
        create_dataset("", root=str(root), input_img_mode=mode),
        **config,
        batch_size=4,
        num_workers=workers,
        device=CPU,
        use_prefetcher=False,
        persistent_workers=False,
    )
    dataset = open_dataset("", str(root), "validation", len(mode))
    ours = open_loader(dataset, config, Loading(batch_size=4, workers=workers, in_memory=True))
    assert len(ours) == len(theirs) == 3
    for (x, labels), (expected, expected_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(x, expected)
        assert torch.equal(labels, expected_labels)


# ------------------------------------------------------------------------------------------------------------- training


def numbered(root: Path, count: int = 12, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> list[Image.Image]:
    """Images of noise on disk, each of a class of its own: its label says which it is."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *size[::-1], 3), dtype=np.uint8)
    images = [Image.fromarray(image).convert(mode) for image in pixels]
    write_folder(root, images, range(count), classes=count)
    return images


def training_loader(root: Path, config: dict = RESNET, batch_size: int = 4, **options: Any) -> object:
    dataset = open_dataset("", str(root), "train", config["input_size"][0])
    known = {field.name for field in fields(Loading)}
    loading = Loading(batch_size=batch_size, **{key: value for key, value in options.items() if key in known})
    augment = options.pop("augment", True)
    augmentation = Augmentation(**{key: value for key, value in options.items() if key not in known})
    return open_training_loader(dataset, config, loading, augmentation if augment else None)


@IN_MEMORY
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(32, 32), (50, 40)])
def test_unaugmented_images_are_timms_to_the_last_bit(
    tmp_path: Path, size: tuple[int, int], mode: str, in_memory: bool
) -> None:
    images = numbered(tmp_path, size=size, mode=mode)
    config = RESNET | {"input_size": (len(mode), 32, 32)} | (GRAY if mode == "L" else {})
    options = {key: config[key] for key in ("input_size", "interpolation", "mean", "std")}
    transform = create_transform(**options, is_training=True, no_aug=True)
    loader = training_loader(tmp_path, config, augment=False, in_memory=in_memory, hflip=1.0, vflip=1.0, seed=3)
    assert isinstance(loader, MemoryLoader) == in_memory
    x, labels = together(loader)
    assert sorted(labels) == list(range(12))
    assert labels != sorted(labels)
    assert torch.equal(x, torch.stack([transform(images[label]) for label in labels]))


@IN_MEMORY
@pytest.mark.parametrize(("size", "mode"), [((16, 16), "RGB"), ((24, 24), "L")])
def test_augmented_images_are_shifted_by_up_to_an_eighth_and_flipped(
    tmp_path: Path, in_memory: bool, size: tuple[int, int], mode: str
) -> None:
    images = numbered(tmp_path, 8, size, mode)
    config = RESNET | {"input_size": (len(mode), 16, 16), "mean": (0.0,) * len(mode), "std": (1.0,) * len(mode)}
    found: dict[bytes, tuple[int, ...]] = {}
    for label, image in enumerate(images):
        padded = TF.pad(TF.resize(image, 16, TF.InterpolationMode.BICUBIC), 2)
        for top in range(5):
            for left in range(5):
                shifted = TF.crop(padded, top, left, 16, 16)
                for flip, made in enumerate((shifted, TF.hflip(shifted))):
                    found[TF.pil_to_tensor(made).numpy().tobytes()] = (label, top, left, flip)
    assert len(found) == 8 * 50

    torch.manual_seed(0)
    loader = training_loader(tmp_path, config, batch_size=8, in_memory=in_memory, hflip=0.5)
    seen = set()
    for _ in range(60):
        for x, labels in loader:  # type: ignore[attr-defined]
            for pixels, label in zip((x * 255).round().byte(), labels.tolist(), strict=True):
                source, *how = found[pixels.numpy().tobytes()]
                assert source == label
                seen.add(tuple(how))
    assert len(seen) == 50


@IN_MEMORY
def test_by_default_half_of_the_images_are_flipped(tmp_path: Path, in_memory: bool) -> None:
    image = Image.fromarray(np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 32, 0))  # brighter to the right
    write_folder(tmp_path, [image] * 64, [index % 2 for index in range(64)])
    torch.manual_seed(0)
    x, _ = together(training_loader(tmp_path, batch_size=64, in_memory=in_memory))
    middle = x[:, 0, 16]
    assert 16 < (middle[:, 20] < middle[:, 12]).sum() < 48


@IN_MEMORY
def test_whole_images_come_upside_down(tmp_path: Path, in_memory: bool) -> None:
    images = numbered(tmp_path, size=(4, 4))  # no shift: an eighth of 4 pixels is none
    config = RESNET | {"input_size": (3, 4, 4), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    x, labels = together(training_loader(tmp_path, config, in_memory=in_memory, hflip=0.0, vflip=1.0))
    expected = [TF.to_tensor(TF.vflip(images[label])) for label in labels]
    assert torch.equal(x, torch.stack(expected))


def test_random_areas_are_of_the_scale_and_ratio_asked_for(tmp_path: Path) -> None:
    images = numbered(tmp_path, size=(48, 48))
    whole: dict[str, object] = {"crop": "rrc", "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0}
    x, labels = together(training_loader(tmp_path, **whole))
    assert torch.equal(x, together(_ordered(tmp_path, labels))[0])
    # A thirty-sixth of the image's area, of 8x8 pixels.
    config = RESNET | {"input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    part = whole | {"scale": (1 / 36, 1 / 36)}
    for pixels, label in zip(*together(training_loader(tmp_path, config, **part)), strict=True):
        windows = TF.to_tensor(images[label]).unfold(1, 8, 1).unfold(2, 8, 1)
        assert (windows == pixels[:, None, None]).all(dim=(0, 3, 4)).sum() == 1


def _ordered(root: Path, labels: list[int]) -> list[tuple[Tensor, Tensor]]:
    x, known = read(open_dataset("", str(root), "validation", 3))
    assert known == sorted(known)
    return [(x[labels], torch.tensor(labels))]


def test_erased_areas_are_black_where_they_are_constant(tmp_path: Path) -> None:
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    write_folder(tmp_path, [white] * 8, [0, 1] * 4)
    config = RESNET | {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    options: dict[str, object] = {"crop": "rrc", "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "re_mode": "const"}
    for prob, erased in ((0.0, 0), (1.0, 8)):
        x, _ = together(training_loader(tmp_path, config, re_prob=prob, **options))
        black = (x == 0).all(1)
        assert black.any((1, 2)).sum() == erased
        assert torch.equal((x == 1).all(1), ~black)
        for mask in black[black.any((1, 2))]:
            rows, columns = mask.any(1), mask.any(0)
            assert torch.equal(mask, rows[:, None] & columns)  # a rectangle
            assert 0.01 < mask.float().mean() < 0.4  # timm's: from 0.02 to 1/3, but for rounding


def test_color_jitter_changes_brightness_up_to_its_strength(tmp_path: Path) -> None:
    gray = Image.new("RGB", (32, 32), (100, 100, 100))
    write_folder(tmp_path, [gray] * 32, [0, 1] * 16)
    config = RESNET | {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    torch.manual_seed(0)
    x, _ = together(training_loader(tmp_path, config, crop="rrc", color_jitter=0.4))
    level = x.amax((1, 2, 3)) * 255
    assert torch.equal(x.amin((1, 2, 3)) * 255, level)  # contrast and saturation do nothing to a single gray
    assert 60 <= level.min() < 75
    assert 125 < level.max() <= 140


# --------------------------------------------------------------------------------------------------- memory or files


def resized(size: int) -> dict[str, object]:
    return RESNET | {"input_size": (3, size, size)}


@pytest.mark.parametrize(
    ("config", "options", "chosen"),
    [
        (RESNET, {}, True),
        (RESNET, {"hflip": 0.5, "vflip": 0.5, "color_jitter": 0.0, "auto_augment": None, "re_prob": 0.0}, True),
        (resized(64), {}, True),
        (resized(65), {}, False),
        (resized(65), {"crop": "pad"}, False),
        (resized(65), {"crop": "pad", "in_memory": True}, True),
        (RESNET, {"in_memory": False}, False),
        (RESNET, {"crop": "rrc"}, False),
        (RESNET, {"crop": "rkrc"}, False),
        (RESNET, {"color_jitter": 0.1}, False),
        (RESNET, {"auto_augment": "rand-m9"}, False),
        (RESNET, {"re_prob": 0.1}, False),
        (RESNET, {"crop": "rrc", "color_jitter": 0.1, "augment": False}, True),
    ],
)
def test_images_stay_in_memory_where_small_ones_are_only_shifted_and_flipped(
    tmp_path: Path, config: dict[str, object], options: dict[str, object], chosen: bool
) -> None:
    numbered(tmp_path, 4)
    loader = training_loader(tmp_path, config, **options)
    assert isinstance(loader, MemoryLoader) == chosen
    assert sorted(together(loader)[1]) == [0, 1, 2, 3]


@pytest.mark.parametrize("room", [0, -1])
def test_images_stay_in_memory_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    numbered(tmp_path, 4)
    monkeypatch.setattr("adderzoo.data.loaders._MEMORY_BYTES", 4 * 3 * 32 * 32 + room)
    assert isinstance(training_loader(tmp_path), MemoryLoader) == (room == 0)
    assert isinstance(training_loader(tmp_path, in_memory=True), MemoryLoader)


def test_images_of_several_shapes_are_taken_from_files(tmp_path: Path) -> None:
    images = [*random_images(3), *random_images(5, (50, 32))]
    write_folder(tmp_path, images, range(8))
    loader = training_loader(tmp_path)
    assert not isinstance(loader, MemoryLoader)
    x, labels = together(loader)
    assert x.shape == (8, 3, 32, 32)
    assert sorted(labels) == list(range(8))
    with pytest.raises(ValueError, match="in-memory images must be square as the network's input, and some are not"):
        training_loader(tmp_path, in_memory=True)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"crop": "rrc"}, "train-crop-mode"),
        ({"color_jitter": 0.4}, "color-jitter"),
        ({"auto_augment": "rand-m9"}, "aa"),
        ({"re_prob": 0.2}, "reprob"),
    ],
)
def test_what_cannot_be_done_in_memory_is_refused_where_it_is_asked_for(
    tmp_path: Path, options: dict[str, object], what: str
) -> None:
    numbered(tmp_path, 4)
    with pytest.raises(ValueError, match=f"in-memory images are only shifted and flipped: {what} needs files"):
        training_loader(tmp_path, in_memory=True, **options)


@pytest.mark.parametrize("processes", [1, 2])
def test_fewer_images_than_a_batch_are_refused(tmp_path: Path, processes: int) -> None:
    numbered(tmp_path, 7)
    message = f"batch-size must be at most {7 // processes}, got 8"
    with pytest.raises(ValueError, match=f"there are 7 training images, fewer than a batch.*: {message}"):
        training_loader(tmp_path, batch_size=8, processes=processes)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_when_it_is_read_into_memory(tmp_path: Path, workers: int, training: bool) -> None:
    numbered(tmp_path)
    path = tmp_path / "class_05" / "00005.png"
    path.write_bytes(path.read_bytes()[:200])
    dataset = open_dataset("", str(tmp_path), "train", 3)
    opening = open_training_loader if training else open_loader
    with pytest.raises(ValueError, match=re.escape(f"image {path} cannot be read: ")) as info:
        opening(dataset, RESNET, Loading(batch_size=4, workers=workers, in_memory=True))
    traceback.clear_frames(info.tb)  # else the loading processes end with the garbage, and 5 s later
