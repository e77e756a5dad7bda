"""What the entry points of networks take, for type checkers, and timm's registry, which keeps their types."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import timm.models
import torch
from timm.models import PretrainedCfg
from torch import nn

EntryPoint = TypeVar("EntryPoint", bound=Callable[..., nn.Module])


class NetworkArguments(TypedDict, total=False):
    """Of every network: its own, and those of timm's `build_model_with_cfg`."""

    num_classes: int
    in_chans: int
    device: torch.device | str | None
    dtype: torch.dtype | None
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None
    pretrained_cfg_overlay: Mapping[str, Any] | None
    pretrained_strict: bool
    cache_dir: str | Path | None
    features_only: bool
    out_indices: int | Sequence[int]
    feature_cls: str
    output_fmt: str


class ClassifierArguments(NetworkArguments, total=False):
    """Of classifiers."""

    conv_layer: str
    global_pool: str
    drop_rate: float


class ResNetArguments(ClassifierArguments, total=False):
    """Of :class:`adderzoo.models.adder_resnet.ResNet`."""

    layers: tuple[int, ...]
    block: str
    widths: tuple[int, ...]
    small_images: bool
    head_bias: bool
    output_stride: int


class SuperResolutionArguments(NetworkArguments, total=False):
    """Of networks for super-resolution."""

    scale: int


class _WidthArguments(SuperResolutionArguments, total=False):
    conv_layer: str
    width: int
    norm: bool | None
    self_shortcut: bool | None
    power: bool | None


class EDSRArguments(_WidthArguments, total=False):
    """Of :class:`adderzoo.models.adder_edsr.EDSR`."""

    blocks: int
    res_scale: float | None


class VDSRArguments(_WidthArguments, total=False):
    """Of :class:`adderzoo.models.adder_vdsr_net.VDSR`."""

    depth: int


def register_model(entry_point: EntryPoint) -> EntryPoint:
    """timm's `register_model`, which tells type checkers nothing of what it returns."""
    timm.models.register_model(entry_point)
    return entry_point
