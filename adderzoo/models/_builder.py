"""What the families share: building through timm, with checked weights, and the authors' checkpoint format."""

import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from adderzoo.files.foreign import why
from adderzoo.hub import HUB_ORGANIZATION, from_hub, from_url, hub_id, sha256
from adderzoo.layers import Adder2d

Network = TypeVar("Network", bound=nn.Module)

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

# Where networks with shift layers are from.
SHIFTADDNET = {"paper_ids": "arXiv:2010.12785", "paper_name": "ShiftAddNet: A Hardware-Inspired Deep Network"}

# SHA-256 of the weights that others publish, by file name.
FOREIGN_SHA256 = {"ResNet20-AdderNet.pth": "fe3ad7c15573d34cddd9b3ec2eed12d9c2c818e59cd7d0797a954d6f76ea375b"}

# What reads files that are more than weights: of such a file the network, of any other None. Rooms above this one add
# to it, since imports run downwards.
READERS: list[Callable[[Path], nn.Module | None]] = []


def read_network(path: Path, architecture: str, num_classes: int | None = None) -> nn.Module | None:
    """The network of a file that is more than weights, such as a quantized one; None for any other file.

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

    The weights of a tag are those in the package, else in huggingface_hub's cache, else on the Hub, or at a URL. A
    file, folder (`local-dir:`) or URL that the user names himself is his own business; a quantized network's file gives
    this network. What comes from a repository of the Hub that the user names (`hf-hub:`) must be what that says of it.

    Raises:
        OSError: if the file in the package, or what was downloaded, is not what was published, cannot be fetched, or is
            no checkpoint.
    """
    if pretrained:
        cfg = resolve_pretrained_cfg(
            variant,
            pretrained_cfg=kwargs.get("pretrained_cfg"),
            pretrained_cfg_overlay=kwargs.get("pretrained_cfg_overlay"),
        )
        file = _checked_file(cfg, kwargs.get("cache_dir"))
        if file is not None:  # "source" would send timm to the Hub again
            overlay = kwargs.get("pretrained_cfg_overlay") or {}
            kwargs["pretrained_cfg_overlay"] = {**overlay, "file": str(file), "source": None}
        elif cfg.file and (other := read_network(Path(cfg.file), variant, kwargs.get("num_classes"))) is not None:
            if kwargs.get("features_only"):
                raise ValueError(f"{cfg.file} is a quantized network, which gives no features")
            channels: Any = getattr(other, "in_chans", None)
            if kwargs.get("in_chans") not in (None, channels):
                raise ValueError(f"in_chans must be that of {cfg.file}, {channels}, got {kwargs['in_chans']}")
            return cast(Network, other)
    try:
        return build_model_with_cfg(network, variant, pretrained, **kwargs)
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        where = (kwargs.get("pretrained_cfg_overlay") or {}).get("file") or f"the file of {variant}"
        raise OSError(f"{where} is no checkpoint, or is damaged: {why(error)}") from error


def _checked_file(cfg: PretrainedCfg, cache_dir: str | Path | None) -> Path | None:
    """The file of published weights, which are what was published; None for what the user names himself."""
    if cfg.state_dict or cfg.source == "local-dir":
        return None
    if cfg.file and cfg.source != "hf-hub":
        file = Path(cfg.file)
        if file.parent != WEIGHTS:
            return None
        published = _published_sha256().get(file.name)
        if file.is_file() or published is None or cfg.hf_hub_id != hub_id(file.stem):
            _check_sha256(file, published, "install adderzoo again")
            return file
    if cfg.hf_hub_id:
        organization, _, tag = cfg.hf_hub_id.partition("/")
        ours = organization == HUB_ORGANIZATION and not cfg.hf_hub_filename
        published = _published_sha256().get(f"{tag}.safetensors") if ours else None
        if ours and published is None and cfg.source != "hf-hub":
            raise OSError(f"{cfg.hf_hub_id} is not loaded: the package does not know its SHA-256")
        return from_hub(cfg.hf_hub_id, published, cfg.hf_hub_filename, cache_dir)
    if isinstance(cfg.url, str) and (published := FOREIGN_SHA256.get(cfg.url.rpartition("/")[2])):
        return from_url(cfg.url, published, cache_dir)
    return None


def _published_sha256() -> dict[str, str]:
    """Of the weights in the package, which are those on the Hub too, by file name."""
    lines = [line.split() for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines()]
    return {name: digest for digest, name in lines}


def _check_sha256(path: Path, published: str | None, remedy: str) -> None:
    if not path.is_file():
        raise OSError(f"{path} is missing: {remedy}")
    if (got := sha256(path)) != published:
        raise OSError(f"{path} is damaged: its SHA-256 is {got}, published is {published}; {remedy}")


# What the names of BatchNorm's counters end with. None of the networks needs them, and some files do without.
COUNTERS = "num_batches_tracked"


def own_names(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict as a network names its tensors, without the prefix that wrappers have put before their names.

    The AdderNet authors' checkpoints have `module.` there, of DataParallel, and filters named `adder`; `torch.compile`
    makes it `_orig_mod.`, Lightning's modules `model.` or `net.`, and one may be inside another. A prefix is known by
    the network's names behind it, all or at least most of them. Counters of BatchNorm that are missing are 0.

    Raises:
        ValueError: if behind several prefixes there are all names of the network.
    """
    renamed = {_rename(key, "adder", "weight"): value for key, value in state_dict.items()}
    own = model.state_dict()
    fitting = without_prefix(renamed, {key for key in own if not key.endswith(COUNTERS)})
    for key in own:
        if key.endswith(COUNTERS) and key.removesuffix(COUNTERS) + "running_mean" in fitting:
            fitting.setdefault(key, torch.tensor(0))
    return fitting


def without_prefix(state_dict: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """The tensors behind the prefix that these names have in a state dict; all, if most have none.

    Raises:
        ValueError: if behind several prefixes there are all names.
    """
    counts: Counter[str] = Counter()
    for key in state_dict:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in names:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    fitting = [prefix for prefix, count in counts.items() if count == len(names)]
    if len(fitting) > 1 and "" not in fitting:
        raise ValueError(
            f"all names of the network are there several times, behind {', '.join(fitting)}: which ones? `adderzoo "
            "convert --key` takes one of these"
        )
    prefix, count = counts.most_common(1)[0] if counts else ("", 0)
    if not prefix or counts[""] == count or 2 * count <= len(names):
        return state_dict
    others = [key for key in state_dict if not key.startswith(prefix)]
    if others:
        warnings.warn(
            f"{len(others)} tensors are left out of the checkpoint, since the network's names are behind {prefix!r}: "
            f"{', '.join(others[:4])}{', ...' if len(others) > 4 else ''}",
            stacklevel=2,
        )
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def to_original(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """As the AdderNet authors' checkpoints have it: `module.` in front, and filters named `adder`."""
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
