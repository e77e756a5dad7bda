"""Data sets and batches of them."""

from .datasets import (
    Images,
    check_classes,
    class_indices,
    find_images,
    open_dataset,
    open_training_data,
    spread,
    with_indices,
    write_digits,
    write_photos,
)
from .image_pairs import ImagePairs, as_float, as_integers, downscale, open_training_pairs
from .loaders import open_loader, open_training_loader
from .memory import MemoryLoader
from .patches import open_patch_loader
from .pixels import read_image

__all__ = [
    "ImagePairs",
    "Images",
    "MemoryLoader",
    "as_float",
    "as_integers",
    "check_classes",
    "class_indices",
    "downscale",
    "find_images",
    "open_dataset",
    "open_loader",
    "open_patch_loader",
    "open_training_data",
    "open_training_loader",
    "open_training_pairs",
    "read_image",
    "spread",
    "with_indices",
    "write_digits",
    "write_photos",
]
