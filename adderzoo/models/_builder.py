"""Building a network through timm, with weights that are checked."""

import pickle
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError
from timm.models import PretrainedCfg, build_model_with_cfg, get_arch_pretrained_cfgs, resolve_pretrained_cfg
from torch import nn

from adderzoo import hub
from adderzoo.files.foreign import weights_in, why
from adderzoo.files.names import no_tag
from adderzoo.files.weights import is_quantized
from adderzoo.hub import from_hub, from_url, sha256

Kind = TypeVar("Kind", bound=nn.Module)

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

# Where networks with shift layers are from.
SHIFTADDNET = {"paper_ids": "arXiv:2010.12785", "paper_name": "ShiftAddNet: A Hardware-Inspired Deep Network"}

# SHA-256 of the weights that others publish, by file name.
FOREIGN_SHA256 = {"ResNet20-AdderNet.pth": "fe3ad7c15573d34cddd9b3ec2eed12d9c2c818e59cd7d0797a954d6f76ea375b"}


def weights_file(tag: str) -> str:
    """Path of the weights of a tag that lie inside the package."""
    return str(WEIGHTS / f"{tag}.safetensors")


def check_tag(name: str, argument: str = "model") -> None:
    """Refuse a tag that a network has none of, with what may have been meant.

    Args:
        name: Of the network, with or without a tag.
        argument: That has the name, for the error.

    Raises:
        ValueError: with what may have been meant.
    """
    network, _, tag = name.partition(".")
    if tag and name not in (known := get_arch_pretrained_cfgs(network)):
        raise no_tag(name, [each.partition(".")[2] for each in known], argument)


def build_model(network: type[Kind], variant: str, pretrained: bool, **kwargs: Any) -> Kind:
    """timm's `build_model_with_cfg`, which checks no file, behind the SHA-256 of a tag's weights.

    The weights of a tag are those in the package, else in huggingface_hub's cache, else on the Hub, or at a URL. A
    file, folder (`local-dir:`) or URL that the user names himself is his own business. What comes from a repository of
    the Hub that the user names (`hf-hub:`) must be what that says of it. A quantized network's file gives this network.

    Raises:
        ValueError: if the network has no such tag.
        OSError: if the file in the package, or what was downloaded, is not what was published, cannot be fetched, or is
            no checkpoint.
    """
    if isinstance(tag := kwargs.get("pretrained_cfg"), str):
        check_tag(f"{variant}.{tag}")
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
        elif cfg.file:
            file = weights_in(cfg.file)
        if file is not None and _is_quantized(file):
            return cast(Kind, _quantized(file, variant, kwargs))
    try:
        return build_model_with_cfg(network, variant, pretrained, **kwargs)
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        where = (kwargs.get("pretrained_cfg_overlay") or {}).get("file") or f"the file of {variant}"
        raise OSError(f"{where} is no checkpoint, or is damaged: {why(error)}") from error


def _is_quantized(path: Path) -> bool:
    try:
        return path.is_file() and is_quantized(path)
    except ValueError:  # it is damaged, as shows when it is loaded
        return False


def _quantized(path: Path, variant: str, arguments: dict[str, Any]) -> nn.Module:
    """The network of a quantized one's file, of which nothing can be changed any more."""
    from ._quantized import load_quantized_as

    if arguments.get("features_only"):
        raise ValueError(f"{path} is a quantized network, which gives no features")
    network = load_quantized_as(path, variant, arguments.get("num_classes"))
    channels: Any = getattr(network, "in_chans", None)
    if arguments.get("in_chans") not in (None, channels):
        raise ValueError(f"in_chans must be that of {path}, {channels}, got {arguments['in_chans']}")
    return network


def _checked_file(cfg: PretrainedCfg, cache_dir: str | Path | None) -> Path | None:
    """The file of published weights, which are what was published; None for what the user names himself."""
    if cfg.state_dict or cfg.source == "local-dir":
        return None
    if cfg.file and cfg.source != "hf-hub":
        file = Path(cfg.file)
        if file.parent != WEIGHTS:
            return None
        published = _published_sha256().get(file.name)
        if file.is_file() or published is None or not hub.HUB_ORGANIZATION or cfg.hf_hub_id != hub.hub_id(file.stem):
            _check_sha256(file, published, "install adderzoo again")
            return file
    if cfg.hf_hub_id:
        organization, _, tag = cfg.hf_hub_id.partition("/")
        ours = organization == hub.HUB_ORGANIZATION and not cfg.hf_hub_filename
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
