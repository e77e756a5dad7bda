"""Batches of images: timm's loader, or for small images one that keeps them in memory."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from timm.data import create_loader, create_transform
from timm.data.transforms import str_to_interp_mode
from torch.utils.data import DistributedSampler
from torchvision.transforms import Compose, PILToTensor, RandomCrop, Resize

from adderzoo.files.foreign import shown

from .memory import MemoryLoader, read_into_memory
from .settings import Augmentation, Loading

# What a data set may take in memory without being asked to, and the largest image that counts as small.
_MEMORY_BYTES = 2**31
_SMALL = 64

# What cannot be done in memory, and the option that asks for it.
_OPTIONS = {"color_jitter": "color-jitter", "auto_augment": "aa", "re_prob": "reprob"}

_DEFAULT = Augmentation()


def check_channels(config: Mapping[str, Any], name: str, model_kwargs: Mapping[str, Any] | None = None) -> None:
    """Refuse a network whose images have other channels than those of its data configuration, which prepares them.

    Args:
        config: As timm's `resolve_model_data_config` gives it.
        name: Of the network.
        model_kwargs: Arguments that it was made with.

    Raises:
        ValueError: naming the argument.
    """
    channels = config["input_size"][0]
    given = (model_kwargs or {}).get("in_chans", channels)
    if given != channels:
        raise ValueError(
            f"model-kwargs in_chans must be {channels}, the channels of the network's data configuration, got {given}"
        )
    for key in ("mean", "std"):  # metadata may have them without an input_size to fit to
        if len(config[key]) not in (1, channels):
            raise ValueError(f"{name} takes images of {channels} channels, but its {key} is {shown(config[key])}")


def open_loader(dataset: Any, config: dict[str, Any], loading: Loading) -> Any:
    """Batches of `dataset`, preprocessed by a network's own configuration (`timm.data.resolve_model_data_config`).

    Of several processes, each gets its share: every `processes`-th image. timm's loader repeats images so that all get
    equally many; a :class:`MemoryLoader` (`loading.in_memory`) does not.

    Raises:
        ValueError: naming the image, if one cannot be read into memory.
    """
    options = {key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")}
    if loading.in_memory:
        content = read_into_memory(
            dataset, create_transform(**options, use_prefetcher=True), config["input_size"], loading.workers
        )
        assert content is not None  # the transform ends in a crop to this size
        return MemoryLoader(*content, config, loading)
    return create_loader(dataset, **options, **_arguments(loading))


def open_training_loader(
    dataset: Any, config: dict[str, Any], loading: Loading, augmentation: Augmentation | None = _DEFAULT
) -> Any:
    """Shuffled batches of `dataset`, augmented and normalized; the images left over by whole batches sit an epoch out.

    In memory (:class:`MemoryLoader`) images are only shifted and flipped: by default they are there where that is all
    that is asked for, the input has at most 64x64 pixels and all images at most 2 GiB. Their order has the seed of
    `loading` there and in several processes, else PyTorch's global one.

    Args:
        dataset: As :func:`open_dataset` gives it.
        config: The network's (`timm.data.resolve_model_data_config`).
        loading: Batches, where from and where to.
        augmentation: By default shifts or areas, and flips; None for none.

    Raises:
        ValueError: if there are fewer images than a batch needs, one cannot be read into memory, they cannot stay
            there but are asked to, timm does not know the augmentation, or `scale` and `ratio` are given for "pad".
    """
    size, count, in_memory = config["input_size"], len(dataset), loading.in_memory
    if count < loading.batch_size * loading.processes:
        of = f" in each of {loading.processes} processes" if loading.processes > 1 else ""
        raise ValueError(
            f"there are {count} training images, fewer than a batch{of}: batch-size must be at most "
            f"{count // loading.processes}, got {loading.batch_size}"
        )
    if augmentation:
        crop: Any = augmentation.crop or ("pad" if in_memory or max(size[1:]) <= _SMALL else "rrc")
        augmentation = replace(augmentation, crop=crop)
        if crop == "pad" and (augmentation.scale or augmentation.ratio):
            raise ValueError("scale and ratio are for areas: train-crop-mode must be rrc, rkrc or rkrr, got pad")
    obstacle = _obstacle(augmentation) if augmentation else None
    if in_memory and obstacle:
        raise ValueError(f"in-memory images are only shifted and flipped: {obstacle} needs files")
    if in_memory or (in_memory is None and not obstacle and _is_small(count, size)):
        content = read_into_memory(dataset, _before_crop(config, bool(augmentation)), size, loading.workers)
        if content:
            return MemoryLoader(*content, config, loading, True, augmentation)
        if in_memory:
            raise ValueError("in-memory images must be square as the network's input, and some are not")
    return _open_timms(dataset, config, loading, augmentation)


def _open_timms(dataset: Any, config: dict[str, Any], loading: Loading, augmentation: Augmentation | None) -> Any:
    """timm's loader for training."""
    options = asdict(augmentation or Augmentation())
    crop = options.pop("crop")
    options["color_jitter"] = options["color_jitter"] or None
    try:
        loader = create_loader(
            dataset,
            input_size=config["input_size"],
            is_training=True,
            no_aug=not augmentation,
            train_crop_mode="rrc" if crop == "pad" else crop,
            **options,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            **_arguments(loading),
        )
    except AssertionError as error:  # timm's, of a policy that it does not know
        raise ValueError(f"aa {options['auto_augment']!r} cannot be used: {error}") from error
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.seed = loading.seed
    if crop == "pad":
        # timm does not know it: in the place of its crop, the first of the steps.
        dataset.transform.transforms[0] = _pad_and_crop(config["input_size"][1:], config["interpolation"])
    return loader


def check_policy(aa: str | None) -> None:
    """Refuse an augmentation policy that timm does not know, before there are images.

    Raises:
        ValueError: naming it.
    """
    try:
        create_transform((1, 32, 32), is_training=True, auto_augment=aa)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"aa {aa!r} cannot be used: {error}") from error


def _arguments(loading: Loading) -> dict[str, Any]:
    """Those of timm's `create_loader`."""
    on_gpu = loading.device.type == "cuda"
    return {
        "batch_size": loading.batch_size,
        "num_workers": loading.workers,
        "distributed": loading.processes > 1,
        "device": loading.device,
        "pin_memory": on_gpu,
        "use_prefetcher": on_gpu,
        "persistent_workers": False,  # they would carry random state from one epoch to the next
    }


def _obstacle(augmentation: Augmentation) -> str | None:
    """The first option that asks for more than shifts and flips."""
    if augmentation.crop != "pad":
        return "train-crop-mode"
    return next((option for key, option in _OPTIONS.items() if getattr(augmentation, key)), None)


def _is_small(count: int, size: tuple[int, int, int]) -> bool:
    return max(size[1:]) <= _SMALL and count * math.prod(size) <= _MEMORY_BYTES


def _before_crop(config: dict[str, Any], augment: bool) -> Any:
    """What timm's and our own training transforms do to a PIL image ahead of random steps, as (C, H, W) bytes."""
    size, interpolation = config["input_size"][1:], config["interpolation"]
    if not augment:
        return create_transform(size, is_training=True, no_aug=True, interpolation=interpolation, use_prefetcher=True)
    return Compose([Resize(min(size), str_to_interp_mode(interpolation)), PILToTensor()])


def _pad_and_crop(size: tuple[int, int], interpolation: str) -> Compose:
    resize = Resize(min(size), str_to_interp_mode(interpolation))
    return Compose([resize, RandomCrop(size, padding=(size[1] // 8, size[0] // 8), pad_if_needed=True)])
