"""Files of quantized networks, which are more than weights: their layers come from the architecture and the ranges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import fx, nn

from adderzoo.files.foreign import shown, why
from adderzoo.files.weights import read_metadata, read_model_args, read_num_classes, read_ranges
from adderzoo.inference.quantization import VERSION, quantize, simulate

from ._state_dict import ARGUMENT_ERRORS, check_fits, check_input, take_description


def load_quantized(path: Path, model: nn.Module | None = None) -> fx.GraphModule:
    """The integer network of a file, which gives the same bits.

    Args:
        path: A file that is a quantized network's.
        model: A float network of the same architecture, with any weights, if it is none that `timm.create_model` makes.

    Raises:
        ValueError: if the file is damaged, of another version of this package, whose numbers would answer otherwise
            here, or of another network than `model`.
    """
    said = read_metadata(path)
    try:
        if model is None:
            if "architecture" not in said:
                raise ValueError("it names no network that timm.create_model makes: pass one like it as `model`")
            arguments = {"num_classes": read_num_classes(path), **read_model_args(path)}
            model = float_network(with_tag(said["architecture"], said.get("tag")), arguments)
            check_input(path, model)
        quantization = read_ranges(path, "quantization")
        assert quantization is not None
        if (version := quantization.get("version")) != VERSION:
            raise ValueError(
                f"it was quantized by another version of adderzoo (its format is {shown(version)}, not {VERSION}): "
                "quantize the network again"
            )
        network = quantize(simulate(model, quantization))
        take_description(network, path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    state_dict = load_file(path)
    check_fits(state_dict, network, path)
    for key, value in network.state_dict().items():
        if state_dict[key].dtype != value.dtype or not state_dict[key].isfinite().all():
            raise ValueError(f"{path} is damaged: {key} must be finite and {value.dtype}, got {state_dict[key].dtype}")
    network.load_state_dict(state_dict, assign=True)
    return network


def load_quantized_as(path: Path, architecture: str, num_classes: int | None = None) -> fx.GraphModule:
    """The same of a file that has to be of a registered network.

    Args:
        path: A file that is a quantized network's.
        architecture: The network's name.
        num_classes: What it has to have, if that matters.

    Raises:
        ValueError: as :func:`load_quantized`, or if it is another network.
    """
    network: Any = load_quantized(path)
    said = network.pretrained_cfg["architecture"]
    if said != architecture:
        raise ValueError(f"{path} is a checkpoint of another network than {architecture}: its metadata says {said}")
    if num_classes not in (None, network.num_classes):
        raise ValueError(
            f"num_classes must be that of the network in {path}, {network.num_classes}, which cannot be changed any "
            f"more, got {num_classes}"
        )
    return network


def with_tag(architecture: str, tag: str | None) -> str:
    """The network's name with this tag, which has its class names, if the registry knows it; else without."""
    name = f"{architecture}.{tag}"
    return name if name in timm.list_models(architecture, include_tags=True) else architecture


def float_network(architecture: str, arguments: Mapping[str, Any]) -> Any:
    """An architecture on the meta device: without weights.

    Raises:
        ValueError: if it is none of the registry, or not with these arguments.
    """
    if not timm.is_model(architecture):
        raise ValueError(f"there is no registered network {shown(architecture)}: pass one like it as `model`")
    try:
        with torch.device("meta"):
            return timm.create_model(architecture, **arguments)
    except (AssertionError, RuntimeError, *ARGUMENT_ERRORS) as error:
        raise ValueError(
            f"{architecture} cannot be made with the arguments {shown(dict(arguments))}: {why(error)}"
        ) from error
