"""Tags of a test's own."""

from dataclasses import replace
from typing import Any

import pytest
from timm.models import PretrainedCfg, _registry, get_pretrained_cfg


def add_tag(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> PretrainedCfg:
    """A further tag of a network, like its default one but for these values, until the test ends."""
    network, _, tag = name.partition(".")
    cfg = replace(get_pretrained_cfg(network), tag=tag, **values)
    monkeypatch.setitem(_registry._model_pretrained_cfgs, name, cfg)
    monkeypatch.setitem(_registry._model_with_tags, network, [*_registry._model_with_tags[network], name])
    return cfg
