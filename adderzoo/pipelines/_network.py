"""The network of a pipeline: whose weights it has, where it runs, and how."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adderzoo.checkpoints import Opened, open_network
from adderzoo.files.foreign import check_data_config
from adderzoo.inference.fusion import fuse_if_possible
from adderzoo.layers.modules import Network


def open_or_take(model: str | os.PathLike[str] | nn.Module, arguments: Mapping[str, Any]) -> Opened:
    """The network that a user names or has.

    Args:
        model: A name, a file or a folder, or a network.
        arguments: Others of :func:`adderzoo.checkpoints.open_network`.

    Raises:
        ValueError: as :func:`adderzoo.checkpoints.open_network`; or if there are arguments for a network that is made.
    """
    given = {key: value for key, value in arguments.items() if value is not None and value is not False}
    if isinstance(model, nn.Module):
        if given:
            raise ValueError(f"a network that is made already takes no {', no '.join(sorted(given))}")
        network: Any = model
        name = (getattr(network, "pretrained_cfg", None) or {}).get("architecture") or type(network).__name__
        return Opened(network, name, "its own weights", published=True)
    return open_network(model if isinstance(model, str) else Path(model), **given)


def check_preprocessing(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a user says of the preprocessing, under timm's names.

    Raises:
        ValueError: naming what is none of it.
    """
    config = dict(given or {})
    try:
        checked = check_data_config(config)
    except ValueError as error:
        raise ValueError(f"data_config cannot be used: {error}") from error
    if unknown := config.keys() - checked.keys():
        raise ValueError(
            "data_config must have input_size, interpolation, mean, std, crop_pct and crop_mode alone, got "
            f"{', '.join(sorted(map(str, unknown)))}"
        )
    return checked


def for_inference(model: Network, device: torch.device, fused: bool) -> nn.Module:
    """A copy of a network where it runs, fused if it can be: what cannot be traced, or has hooks, stays as it is."""
    network = fuse_if_possible(model) if fused else model
    if network is model:
        network = copy.deepcopy(model)
    return network.eval().to(device).to(memory_format=torch.channels_last)
