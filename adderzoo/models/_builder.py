"""What the families share: building through timm, with checked weights, and the authors' checkpoint format."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from timm.models._hub import download_cached_file
from torch import Tensor, nn

from adderzoo.layers import Adder2d

Network = TypeVar("Network", bound=nn.Module)

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

# SHA-256 of the weights that others publish, by file name.
FOREIGN_SHA256 = {"ResNet20-AdderNet.pth": "fe3ad7c15573d34cddd9b3ec2eed12d9c2c818e59cd7d0797a954d6f76ea375b"}

# What reads files that are more than weights: of such a file the network, of any other None. Rooms above this one add
# to it, since imports run downwards.
READERS: list[Callable[[Path], nn.Module | None]] = []


def read_network(path: Path, architecture: str, num_classes: int | None = None) -> nn.Module | None:
    """The network of a file that is more than weights, such as a quantised one; None for any other file.

    Args:
        path: The file.
        architecture: What the network has to be, by its registered name.
        num_classes: What it has to have, if that matters.

    Raises:
        ValueError: if it is another network, or the file is damaged.
    """
    network: Any = None
    for read in READERS:
        network = network or read(path)
    if network is None:
        return None
    said = network.pretrained_cfg["architecture"]
    if said != architecture:
        raise ValueError(f"{path} is a checkpoint of another network than {architecture}: its metadata says {said}")
    if num_classes not in (None, network.num_classes):
        raise ValueError(
            f"num_classes must be that of the network in {path}, {network.num_classes}, which cannot be changed any "
            f"more, got {num_classes}"
        )
    return network


def weights_file(tag: str) -> str:
    """Path of the weights of a tag that lie inside the package."""
    return str(WEIGHTS / f"{tag}.safetensors")


def build_model(network: type[Network], variant: str, pretrained: bool, **kwargs: Any) -> Network:
    """timm's `build_model_with_cfg`, which checks no file, behind the SHA-256 of a tag's weights.

    A file or URL that the user names himself (`pretrained_cfg_overlay={"file": ...}`) is his own business; that of a
    quantised network gives this network.

    Raises:
        RuntimeError: if the file in the package, or what was downloaded, is not what was published.
    """
    if pretrained:
        cfg = resolve_pretrained_cfg(
            variant,
            pretrained_cfg=kwargs.get("pretrained_cfg"),
            pretrained_cfg_overlay=kwargs.get("pretrained_cfg_overlay"),
        )
        if cfg.file and Path(cfg.file).parent == WEIGHTS:
            _check_sha256(Path(cfg.file), _packaged_sha256().get(Path(cfg.file).name), "install adderzoo again")
        elif cfg.file and (other := read_network(Path(cfg.file), variant, kwargs.get("num_classes"))) is not None:
            if kwargs.get("features_only"):
                raise ValueError(f"{cfg.file} is a quantised network, which gives no features")
            channels: Any = getattr(other, "in_chans", None)
            if kwargs.get("in_chans") not in (None, channels):
                raise ValueError(f"in_chans must be that of {cfg.file}, {channels}, got {kwargs['in_chans']}")
            return cast(Network, other)
        elif cfg.url and not cfg.file and cfg.url.rpartition("/")[2] in FOREIGN_SHA256:
            file = Path(download_cached_file(cfg.url, check_hash=False, cache_dir=kwargs.get("cache_dir")))
            _check_sha256(file, FOREIGN_SHA256[file.name], "delete it to fetch it again")
            kwargs["pretrained_cfg_overlay"] = {**(kwargs.get("pretrained_cfg_overlay") or {}), "file": str(file)}
    return build_model_with_cfg(network, variant, pretrained, **kwargs)


def _packaged_sha256() -> dict[str, str]:
    lines = [line.split() for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines()]
    return {name: digest for digest, name in lines}


def _check_sha256(path: Path, published: str | None, remedy: str) -> None:
    if not path.is_file():
        raise RuntimeError(f"{path} is missing: {remedy}")
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != published:
        raise RuntimeError(f"{path} is damaged: its SHA-256 is {got}, published is {published}; {remedy}")


def from_original(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the AdderNet authors' checkpoints (`module.` in front, filters named `adder`) to this package's."""
    return {_rename(key.removeprefix("module."), "adder", "weight"): value for key, value in state_dict.items()}


def to_original(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The inverse of :func:`from_original`."""
    filters = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Adder2d)}
    return {
        "module." + (_rename(key, "weight", "adder") if key in filters else key): value
        for key, value in state_dict.items()
    }


def _rename(key: str, old: str, new: str) -> str:
    return key.removesuffix(old) + new if key.endswith("." + old) else key


def drop_other_classes(state_dict: dict[str, Tensor], model: nn.Module, logits_norm: str) -> dict[str, Tensor]:
    """Without the BatchNorm on the logits, if `model` has another number of classes.

    timm drops the classifier's own weight and bias in this case, but does not know of what follows it.
    """
    weight = state_dict.get(f"{logits_norm}.weight")
    if weight is None or weight.shape[0] == model.num_classes:
        return state_dict
    return {key: value for key, value in state_dict.items() if not key.startswith(f"{logits_norm}.")}


def repeat_input_channels(state_dict: dict[str, Tensor], layer: str, norm: str, in_chans: int) -> dict[str, Tensor]:
    """With the filters of an adder layer repeated for `in_chans` channels, and the BatchNorm behind it to match.

    n copies of a channel are n times as far from n copies of a filter. (timm's rule, filters divided by n, is a
    convolution's.)
    """
    weight = state_dict.get(f"{layer}.weight")
    if weight is None or weight.shape[1] == in_chans:
        return state_dict
    times = in_chans / weight.shape[1]
    return state_dict | {
        f"{layer}.weight": weight[:, torch.arange(in_chans) % weight.shape[1]],
        f"{norm}.running_mean": state_dict[f"{norm}.running_mean"] * times,
        f"{norm}.running_var": state_dict[f"{norm}.running_var"] * times**2,
    }
