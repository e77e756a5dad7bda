"""Pairs of a small image and the large one that it comes from, for super-resolution."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adderzoo.layers.image import cubic

from .folders import (
    VALIDATION_SPLITS,
    count,
    describe_left_out,
    find_images,
    is_split,
    some_of,
    split_folders,
    unusual_names,
)
from .pixels import read_image, read_size

# The largest value of a pixel.
WHITE = {torch.uint8: 255, torch.uint16: 65535}


def downscale(image: Tensor, scale: int) -> Tensor:
    """An image made smaller as MATLAB's `imresize(image, 1 / scale)` did when the field's test images were made.

    Bicubic with antialiasing: the kernel is stretched by `scale`. Rows are shrunk first, then columns, and each pass
    rounds to bytes; beyond the border the nearest pixel counts (later versions of MATLAB mirror the image there).

    Args:
        image: (C, H, W), bytes; H and W multiples of `scale`.
        scale: An integer from 2.

    Returns:
        (C, H / scale, W / scale), bytes.

    Raises:
        ValueError: if a side is no multiple of `scale`.
    """
    height, width = image.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"image must have sides that {scale} divides, got {width}x{height}")
    pixels = _round(_shrink(height, scale) @ image.to(torch.float64))
    return _round(pixels @ _shrink(width, scale).T).to(torch.uint8)


def _round(pixels: Tensor) -> Tensor:
    return (pixels + 0.5).floor().clamp(0, 255)  # halves up, as MATLAB's uint8() does


def _shrink(size: int, scale: int) -> Tensor:
    """(size / scale, size): a pixel of the result as a weighted sum of those of the image."""
    centers = (torch.arange(size // scale, dtype=torch.float64) + 0.5) * scale - 0.5
    taps = (centers - 2 * scale).floor()[:, None] + torch.arange(4 * scale + 2)
    weights = cubic((centers[:, None] - taps) / scale)
    weights /= weights.sum(1, keepdim=True)
    return torch.zeros(len(centers), size, dtype=torch.float64).scatter_add_(1, taps.long().clamp(0, size - 1), weights)


def as_integers(image: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    """An image from [0, 1] to uint8 or uint16, clipped and rounded, as it will be stored."""
    return (image.float().clamp(0, 1) * WHITE[dtype]).round().to(dtype)


def as_float(image: Tensor) -> Tensor:
    """The inverse: from uint8 or uint16 to [0, 1]; float stays as it is."""
    return image if image.is_floating_point() else image.float() / WHITE[image.dtype]


class ImagePairs(Dataset):
    """Images of a folder, with smaller ones that are given or made.

    The folder has `HR/` and `LR/` with images of the same names, as the field's test sets do; or `HR/` alone, or the
    images themselves, of which small ones are made (:func:`downscale`). If it has none of these, but a folder such as
    `x2` for the scale, that is meant. A folder such as `DIV2K_train_HR` has its small images beside it, in
    `DIV2K_train_LR_bicubic/X2`, named as `0001x2.png`. Gray images become RGB; transparent pixels, white. Which files
    are images, and which folders are read, is as for :func:`list_files`.

    An item is the small image (3, h, w) and the large one (3, scale * h, scale * w), bytes. What a large image has on
    its right and lower side beyond multiples of the scale is cut off, as the field does.

    Args:
        root: The folder.
        scale: How many times as large the large images are.

    Raises:
        ValueError: if there are no images, or not the same in `LR/`; if images and their small ones would count alike,
            or those of several splits or scales; as an item, if one cannot be read or has another size than it should
            have.
    """

    def __init__(self, root: Path | str, scale: int) -> None:
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"data-dir must be a folder, got {str(root)!r}")
        large, small = _folders(root, scale)
        self.scale = scale
        files = find_images([large])
        _check_kinds(large, files.images)
        self.folder, self.left_out = large, files.left_out
        self.large = [Path(path) for path in files.images]
        self.small: list[Path] | None = None
        if small.is_dir():
            given = _by_name(find_images([small]).images, small)
            found = [given.get(name) or given.get(f"{name}x{scale}") for name in _by_name(files.images, large)]
            missing = [path.name for path, other in zip(self.large, found, strict=True) if not other]
            if missing:
                raise ValueError(f"folder {small} has no image for {some_of(missing)} in {large.name}")
            self.small = [path for path in found if path]
            files.leave_out("without a large image", *sorted(map(str, {*given.values()} - {*self.small})))

    def describe(self) -> str:
        """What there is: how many images, where, what is left out and why."""
        small = f"small ones in {self.small[0].parent}" if self.small else "small ones are made"
        left_out = describe_left_out(self.left_out)
        return "; ".join(filter(None, [f"{count(len(self), 'image')} in {self.folder}", small, left_out]))

    def __len__(self) -> int:
        return len(self.large)

    def name(self, index: int) -> str:
        """The file name of an image."""
        return self.large[index].name

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a large image, from its file's header.

        Raises:
            ValueError: naming the image, if it cannot be read.
        """
        return read_size(self.large[index])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        large = _read(self.large[index])
        height, width = (side - side % self.scale for side in large.shape[1:])
        if min(height, width) == 0:
            raise ValueError(f"image {self.large[index]} must have at least {self.scale} pixels a side")
        if self.small is None:
            large = large[:, :height, :width]
            return downscale(large, self.scale), large
        small = _read(self.small[index])
        if tuple(small.shape[1:]) != (height // self.scale, width // self.scale):
            sizes = " and ".join(f"{image.shape[2]}x{image.shape[1]}" for image in (small, large))
            raise ValueError(
                f"image {self.small[index]} must be {self.scale} times smaller than {self.large[index]}, got {sizes}"
            )
        return small, large[:, :height, :width]


def _by_name(paths: list[str], root: Path) -> dict[str, Path]:
    """Images by their paths in a folder, without the extension.

    Raises:
        ValueError: if two have the same.
    """
    images: dict[str, Path] = {}
    for path in map(Path, paths):
        other = images.setdefault(str(path.relative_to(root).with_suffix("")), path)
        if other is not path:
            raise ValueError(f"folder {root} has two images of the same name, {other.name} and {path.name}")
    return images


def _folders(root: Path, scale: int) -> tuple[Path, Path]:
    """Where the large images are, and where the small ones are if there are any."""
    if not (root / "HR").is_dir() and (root / f"x{scale}").is_dir():
        root = root / f"x{scale}"
    if (root / "HR").is_dir():
        return root / "HR", root / "LR"
    return root, root.parent / f"{root.name.removesuffix('_HR')}_LR_bicubic" / f"X{scale}"


def _check_kinds(root: Path, images: list[str]) -> None:
    """Refuse images that would count alike, of several splits or scales, or large ones and small ones."""
    strange: dict[str, None] = {}
    for image in images:
        folders = Path(image).relative_to(root).parts[:-1]
        depth = next((depth for depth, name in enumerate(folders, 1) if is_split(name) or _PART.fullmatch(name)), None)
        if depth:
            strange[str(Path(*folders[:depth]))] = None
    if strange:
        raise ValueError(
            f"folder {root} has images of several kinds, in {some_of(sorted(strange), 8)}: name one of them, or put "
            f"large images into {root / 'HR'} and small ones, if there are any, into {root / 'LR'}"
        )


# What holds large images, small ones, or those of a scale.
_PART = re.compile(r"(.*[_-])?(hr|lr)([_-].*)?|x\d+", re.I)


def open_pairs(root: Path | str, scale: int, split: str | None = None) -> ImagePairs:
    """Images to evaluate a network for super-resolution on.

    Args:
        root: Folder for :class:`ImagePairs`, or with folders for splits.
        scale: Of the images.
        split: Such as "validation"; None for the first folder that is there of validation, val, valid, eval, evaluation
            and test, else, as for "", `root` itself.

    Raises:
        ValueError: as :class:`ImagePairs`, or if there is no folder for the split.
    """
    root = Path(root)
    return ImagePairs(_find_split(root, split) or root, scale)


def _find_split(root: Path, split: str | None) -> Path | None:
    if split:
        found = _split(root, split)
        if not found:
            raise ValueError(f"data-dir {str(root)!r} has no folder for the split {split!r}")
        return found
    names = VALIDATION_SPLITS if split is None and root.is_dir() else ()
    return next(filter(None, (_split(root, name) for name in names)), None)


def open_training_pairs(
    root: Path | str, scale: int, train_split: str = "train", val_split: str | None = None
) -> tuple[ImagePairs, ImagePairs | None]:
    """Training and validation images for super-resolution; None for validation images that are not there.

    Args:
        root: Folder with a folder for each split, `SPLIT` or as DIV2K names it, `DIV2K_SPLIT_HR`, for
            :class:`ImagePairs`; or such a folder itself, whose images train.
        scale: Of the images.
        train_split: Such as "train".
        val_split: Such as "validation"; "" for none. None is the first folder that is there of validation, val, valid,
            eval, evaluation and test, or none.

    Raises:
        ValueError: as :class:`ImagePairs`, or if there is no folder for a split.
    """
    root = Path(root)
    train = _split(root, train_split) if train_split else None
    found = _find_split(root, val_split) if train or val_split else None
    if not train and (found or train_split not in ("", "train")):
        raise ValueError(f"data-dir {str(root)!r} has no folder for the split {train_split!r}")
    others = [name for name in split_folders(root, classes=False) if train and name != train.name]
    if others and not found and val_split is None:
        raise unusual_names(root, others)
    return ImagePairs(train or root, scale), ImagePairs(found, scale) if found else None


def _split(root: Path, name: str) -> Path | None:
    return next((folder for folder in (root / name, root / f"DIV2K_{name}_HR") if folder.is_dir()), None)


def _read(path: Path) -> Tensor:
    # One background for both images of a pair.
    return torch.from_numpy(np.array(read_image(path, 3, background=255))).permute(2, 0, 1)
