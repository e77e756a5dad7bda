"""Data sets, opened through timm, and one small real data set that needs no download."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torchvision.transforms import Compose

_MODES = {1: "L", 3: "RGB"}


class Convert:
    """Image transform: to the mode that a network's input channels need (torchvision's data sets come in their own)."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert(self.mode)


def open_dataset(
    name: str,
    root: str | None,
    split: str,
    channels: int,
    class_map: str = "",
    download: bool = False,
    **keys: str,
) -> Any:
    """A data set for evaluation, through timm's `create_dataset`.

    An image that cannot be read is an error (timm would count the next one in its place).

    Args:
        name: "" for a folder of one folder a class; "torch/cifar10", "hfds/NAME", "wds/NAME" ... as timm takes them.
        root: Folder of the data.
        split: Such as "validation" or "test".
        channels: Of the network's input, 1 or 3.
        class_map: File that maps class names to indices.
        download: Let torchvision download what is missing.
        keys: `input_key` and `target_key`, the columns of a Hugging Face or webdataset data set.

    Raises:
        ValueError: if the folder or its images are missing, or `channels` is neither 1 nor 3.
    """
    if channels not in _MODES:
        raise ValueError(f"the network's input must have 1 or 3 channels to be fed with images, got {channels}")
    if "/" not in name and (root is None or not Path(root).is_dir()):
        raise ValueError(f"data-dir must be a folder, got {root!r}")
    try:
        dataset = create_dataset(
            name,
            root=root,
            split=split,
            class_map=class_map or None,
            download=download,
            input_img_mode=_MODES[channels],
            **keys,
        )
    except RuntimeError as error:
        raise ValueError(f"data-dir {root!r} holds no data set that can be read: {error}") from error
    dataset._max_retries = 1
    return dataset


def open_loader(
    dataset: Any, config: dict[str, Any], batch_size: int, workers: int, device: torch.device, distributed: bool = False
) -> Any:
    """Batches of `dataset`, preprocessed by a network's own configuration (`timm.data.resolve_model_data_config`)."""
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=batch_size,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=workers,
        distributed=distributed,
        device=device,
        pin_memory=device.type == "cuda",
        use_prefetcher=device.type == "cuda",
        persistent_workers=False,
    )
    dataset.transform = Compose([Convert(_MODES[config["input_size"][0]]), dataset.transform])
    return loader


def check_classes(dataset: Any, model: Any) -> None:
    """Refuse a data set with more classes than the network tells apart.

    Raises:
        ValueError: naming both numbers.
    """
    classes = getattr(dataset, "classes", None) or getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if classes and len(classes) > model.num_classes:
        raise ValueError(f"the data set has {len(classes)} classes, the network {model.num_classes}")


def write_digits(root: Path) -> None:
    """Write scikit-learn's 1,797 handwritten digits (8x8, grey) as ROOT/{train,test}/CLASS/INDEX.png.

    The first half trains, the second, from other writers, is held out, as in scikit-learn's own example.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    half = len(digits.images) // 2
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = root / ("train" if index < half else "test") / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(path)
