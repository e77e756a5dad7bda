"""Networks and tags: the published ones, and a test's own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
from timm.models import PretrainedCfg, _registry, get_pretrained_cfg
from torch import nn

from adderzoo.catalogue import network_names, task
from adderzoo.models import adder_edsr, adder_vdsr_net


def published_tags(network: str) -> list[str]:
    """Those of a network that have weights, the default one first, the others as they are sorted."""
    default = get_pretrained_cfg(network).tag
    return sorted((name.partition(".")[2] for name in timm.list_pretrained(network)), key=lambda t: (t != default, t))


def untrained_network() -> str:
    """A classifier whose only tag is `untrained`."""
    names = (name for name in network_names() if task(name) == "image-classification")
    return next(name for name in names if get_pretrained_cfg(name).tag == "untrained")


def add_tag(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> PretrainedCfg:
    """A further tag of a network, like its default one but for these values, until the test ends."""
    network, _, tag = name.partition(".")
    cfg = replace(get_pretrained_cfg(network), tag=tag, **values)
    monkeypatch.setitem(_registry._model_pretrained_cfgs, name, cfg)
    monkeypatch.setitem(_registry._model_with_tags, network, [*_registry._model_with_tags[network], name])
    return cfg


TOYS = ("adder_edsr_toy_x2.toy", "cnn_edsr_toy_x2.toy", "adder_vdsr_toy.toy", "cnn_vdsr_toy.toy")


def add_toys(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Small networks for super-resolution, whose weights lie in a folder: EDSR of a block, VDSR of three layers."""
    for name in TOYS:
        network = name.partition(".")[0]
        layer = "adder" if network.startswith("adder") else "conv"
        edsr = "edsr" in network
        like = f"{network.partition('_')[0]}_{'edsr_baseline_x2' if edsr else 'vdsr'}"
        _add_network(monkeypatch, network, like, _edsr(network, layer) if edsr else _vdsr(network, layer))
        add_tag(monkeypatch, name, file=str(folder / f"{name}.safetensors"), license="apache-2.0")


def _edsr(network: str, layer: str) -> Callable[..., nn.Module]:
    return lambda pretrained=False, **kwargs: adder_edsr._create(network, pretrained, layer, 1, 4, kwargs)


def _vdsr(network: str, layer: str) -> Callable[..., nn.Module]:
    small = {"conv_layer": layer, "depth": 3, "width": 4}
    return lambda pretrained=False, **kwargs: adder_vdsr_net._create(network, pretrained, **small | kwargs)


def _add_network(monkeypatch: pytest.MonkeyPatch, name: str, like: str, create: Callable[..., nn.Module]) -> None:
    """A further network of the family of another one, until the test ends; it has no tags yet."""
    create.__module__ = timm.model_entrypoint(like).__module__
    monkeypatch.setitem(_registry._model_entrypoints, name, create)
    monkeypatch.setitem(_registry._model_pretrained_cfgs, name, replace(get_pretrained_cfg(like), architecture=name))
    monkeypatch.setitem(_registry._model_with_tags, name, [])
