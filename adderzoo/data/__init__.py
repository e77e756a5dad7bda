"""Images of a user and of data sets, one reader of folders, one decoder of pixels, and batches of them."""

from .datasets import (
    Images,
    check_classes,
    class_indices,
    class_names,
    describe_dataset,
    describe_order,
    describe_origin,
    is_folder,
    match_classes,
    match_names,
    open_dataset,
    open_training_data,
    spread,
)
from .folders import ClassFolder, check_file, find_images
from .image_pairs import ImagePairs, as_float, as_integers, downscale, open_pairs, open_training_pairs
from .loaders import check_channels, check_policy, open_loader, open_training_loader
from .memory import MemoryLoader
from .patches import open_patch_loader
from .pixels import read_image
from .settings import Augmentation, Loading

__all__ = [
    "Augmentation",
    "ClassFolder",
    "ImagePairs",
    "Images",
    "Loading",
    "MemoryLoader",
    "as_float",
    "as_integers",
    "check_channels",
    "check_classes",
    "check_file",
    "check_policy",
    "class_indices",
    "class_names",
    "describe_dataset",
    "describe_order",
    "describe_origin",
    "downscale",
    "find_images",
    "is_folder",
    "match_classes",
    "match_names",
    "open_dataset",
    "open_loader",
    "open_pairs",
    "open_patch_loader",
    "open_training_data",
    "open_training_loader",
    "open_training_pairs",
    "read_image",
    "spread",
]
