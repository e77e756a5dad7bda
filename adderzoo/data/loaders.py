"""Batches of images: timm's loader, or for small images one that keeps them in memory."""

import math
from typing import Any

import torch
from timm.data import create_loader, create_transform
from timm.data.transforms import str_to_interp_mode
from torch.utils.data import DistributedSampler
from torchvision.transforms import Compose, PILToTensor, RandomCrop, Resize

from .memory import MemoryLoader, read_into_memory

# What a data set may take in memory without being asked to, and the largest image that counts as small.
_MEMORY_BYTES = 2**31
_SMALL = 64

# What cannot be done in memory, and the option that asks for it.
_OPTIONS = {"color_jitter": "color-jitter", "auto_augment": "aa", "re_prob": "reprob"}


def open_loader(
    dataset: Any,
    config: dict[str, Any],
    batch_size: int,
    workers: int,
    device: torch.device,
    rank: int = 0,
    processes: int = 1,
    in_memory: bool = False,
) -> Any:
    """Batches of `dataset`, preprocessed by a network's own configuration (`timm.data.resolve_model_data_config`).

    Of several processes, each gets its share: every `processes`-th image. timm's loader repeats images so that all get
    equally many; a :class:`MemoryLoader` (`in_memory`) does not.

    Raises:
        ValueError: naming the image, if one cannot be read into memory.
    """
    options = {key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")}
    if in_memory:
        content = read_into_memory(
            dataset, create_transform(**options, use_prefetcher=True), config["input_size"], workers
        )
        assert content is not None  # the transform ends in a crop to this size
        return MemoryLoader(*content, config, batch_size, device, rank=rank, processes=processes)
    return create_loader(
        dataset,
        **options,
        batch_size=batch_size,
        **_loading(workers, device, processes),
    )


def open_training_loader(
    dataset: Any,
    config: dict[str, Any],
    batch_size: int,
    workers: int,
    device: torch.device,
    crop: str | None = None,
    augment: bool = True,
    in_memory: bool | None = None,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
    **augmentation: Any,
) -> Any:
    """Shuffled batches of `dataset`, augmented and normalized; the images left over by whole batches sit an epoch out.

    Args:
        dataset: As :func:`open_dataset` gives it.
        config: The network's (`timm.data.resolve_model_data_config`).
        batch_size: Images a batch, of one process.
        workers: Loading processes.
        device: Where the batches go.
        crop: "pad", resized and shifted by up to an eighth (by 4 pixels at 32x32, as the paper does on CIFAR-10); or
            timm's "rrc" (random area and aspect, as on ImageNet), "rkrc", "rkrr". By default "pad" in memory and up to
            64x64 pixels.
        augment: Turn all of it off with False.
        in_memory: Use a :class:`MemoryLoader`, which only shifts and flips; None for where that is possible, the input
            has at most 64x64 pixels and all images at most 2 GiB.
        seed: Of the order of the images, in memory and in several processes; else it is PyTorch's global seed.
        rank: Of this process.
        processes: In the group.
        augmentation: Further arguments of timm's `create_loader`: `hflip`, `vflip`, `scale`, `ratio`, `color_jitter`,
            `auto_augment`, `re_prob`, `re_mode`, `re_count`; with its defaults, but for `color_jitter`, 0.

    Raises:
        ValueError: if there are fewer images than a batch needs, one cannot be read into memory, they cannot stay
            there but are asked to, timm does not know the augmentation, or `scale` and `ratio` are given for "pad".
    """
    if len(dataset) < batch_size * processes:
        of = f" in each of {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"there are {len(dataset)} training images, fewer than a batch{of}: batch-size must be at most "
            f"{len(dataset) // processes}, got {batch_size}"
        )
    crop = crop or ("pad" if in_memory or max(config["input_size"][1:]) <= _SMALL else "rrc")
    # timm's defaults, but for the colors.
    augmentation = {"hflip": 0.5, "vflip": 0.0} | augmentation
    augmentation["color_jitter"] = augmentation.get("color_jitter") or None
    if augment and crop == "pad" and (augmentation.get("scale") or augmentation.get("ratio")):
        raise ValueError("scale and ratio are for areas: train-crop-mode must be rrc, rkrc or rkrr, got pad")
    obstacle = _obstacle(crop, augmentation) if augment else None
    if in_memory and obstacle:
        raise ValueError(f"in-memory images are only shifted and flipped: {obstacle} needs files")
    if in_memory or (in_memory is None and not obstacle and _is_small(dataset, config)):
        content = read_into_memory(dataset, _before_crop(config, augment), config["input_size"], workers)
        if content:
            hflip, vflip = (augmentation[key] if augment else 0.0 for key in ("hflip", "vflip"))
            return MemoryLoader(
                *content, config, batch_size, device, True, augment, hflip, vflip, seed, rank, processes
            )
        if in_memory:
            raise ValueError("in-memory images must be square as the network's input, and some are not")
    try:
        loader = create_loader(
            dataset,
            input_size=config["input_size"],
            batch_size=batch_size,
            is_training=True,
            no_aug=not augment,
            train_crop_mode="rrc" if crop == "pad" else crop,
            **augmentation,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            **_loading(workers, device, processes),
        )
    except AssertionError as error:  # timm's, of a policy that it does not know
        raise ValueError(f"aa {augmentation.get('auto_augment')!r} cannot be used: {error}") from error
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.seed = seed
    if augment and crop == "pad":
        # timm does not know it: in the place of its crop, the first of the steps.
        dataset.transform.transforms[0] = _pad_and_crop(config["input_size"][1:], config["interpolation"])
    return loader


def _loading(workers: int, device: torch.device, processes: int) -> dict[str, Any]:
    """How timm's loader brings images to a device."""
    on_gpu = device.type == "cuda"
    return {
        "num_workers": workers,
        "distributed": processes > 1,
        "device": device,
        "pin_memory": on_gpu,
        "use_prefetcher": on_gpu,
        "persistent_workers": False,  # they would carry random state from one epoch to the next
    }


def _obstacle(crop: str, augmentation: dict[str, Any]) -> str | None:
    """The first option that asks for more than shifts and flips."""
    if crop != "pad":
        return "train-crop-mode"
    return next((option for key, option in _OPTIONS.items() if augmentation.get(key)), None)


def _is_small(dataset: Any, config: dict[str, Any]) -> bool:
    size = config["input_size"]
    return max(size[1:]) <= _SMALL and len(dataset) * math.prod(size) <= _MEMORY_BYTES


def _before_crop(config: dict[str, Any], augment: bool) -> Any:
    """What timm's and our own training transforms do to a PIL image ahead of random steps, as (C, H, W) bytes."""
    size, interpolation = config["input_size"][1:], config["interpolation"]
    if not augment:
        return create_transform(size, is_training=True, no_aug=True, interpolation=interpolation, use_prefetcher=True)
    return Compose([Resize(min(size), str_to_interp_mode(interpolation)), PILToTensor()])


def _pad_and_crop(size: tuple[int, int], interpolation: str) -> Compose:
    resize = Resize(min(size), str_to_interp_mode(interpolation))
    return Compose([resize, RandomCrop(size, padding=(size[1] // 8, size[0] // 8), pad_if_needed=True)])
