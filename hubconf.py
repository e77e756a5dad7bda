"""Entry points of `torch.hub`: every network of the package by its name, `pretrained=False` by default."""

dependencies = ["filelock", "safetensors", "timm", "torch", "torchvision", "tqdm"]

from timm import model_entrypoint as _entry_point  # noqa: E402 - torch.hub reads `dependencies` first

from adderzoo.hub import network_names as _network_names  # noqa: E402

# From the registry, so that a new family needs no line here.
globals().update({_name: _entry_point(_name) for _name in _network_names()})
