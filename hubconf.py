"""Entry points of `torch.hub`: every network of the package by its name, `pretrained=False` by default.

    torch.hub.load("OWNER/adderzoo", "adder_lenet5", pretrained=True)
    torch.hub.load(CLONE, "adder_lenet5", source="local", pretrained=True, pretrained_cfg="digits")

The operator is compiled on first use, where there is a C++ compiler; else PyTorch's own operations stand in for it.
"""

dependencies = ["PIL", "filelock", "huggingface_hub", "numpy", "safetensors", "timm", "torch", "torchvision", "tqdm"]

from timm import model_entrypoint as _entry_point  # noqa: E402 - torch.hub reads `dependencies` first

from adderzoo.catalogue import network_names as _network_names  # noqa: E402

# From the package's table of networks, so that a new family needs no line here.
globals().update({_name: _entry_point(_name) for _name in _network_names()})
