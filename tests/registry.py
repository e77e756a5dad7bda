"""Tags: the published ones, and a test's own."""

from dataclasses import replace
from typing import Any

import pytest
import timm
from timm.models import PretrainedCfg, _registry, get_pretrained_cfg

from adderzoo.hub import network_names, task


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
