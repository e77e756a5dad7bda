"""How images are loaded, and how they are augmented."""

from dataclasses import dataclass, field
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How batches of images are made.

    Attributes:
        batch_size: Images a batch, of one process.
        workers: Loading processes; 0 to load in this one.
        device: Where the batches go; a name, such as "cuda", becomes one.
        in_memory: Keep all images in memory; None for where that is possible and they are few and small enough.
        seed: Of the order of the images in training, and of the place of patches.
        rank: Of this process in its group.
        processes: In the group.
    """

    batch_size: int
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    in_memory: bool | None = None
    seed: int = 0
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", torch.device(self.device))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What changes images at random in training. Where nothing is said, it is as in timm's `create_loader`.

    Attributes:
        crop: "pad", resized and shifted by up to an eighth (by 4 pixels at 32x32, as the paper does on CIFAR-10), with
            black behind it; or timm's "rrc" (random area and aspect, as on ImageNet), "rkrc", "rkrr". None for "pad" in
            memory and up to 64x64 pixels, else "rrc".
        scale: Smallest and largest area of "rrc", as shares of the image's.
        ratio: Smallest and largest aspect ratio of "rrc".
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength; 0 for none, in difference from timm.
        auto_augment: timm's policy, such as "rand-m9-mstd0.5".
        re_prob: Probability of random erasing.
        re_mode: What an erased area becomes: black, one random color, or a random one a pixel.
        re_count: Areas erased.
    """

    crop: Literal["pad", "rrc", "rkrc", "rkrr"] | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    auto_augment: str | None = None
    re_prob: float = 0.0
    re_mode: Literal["const", "rand", "pixel"] = "const"
    re_count: int = 1
