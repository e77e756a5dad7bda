"""Quantized networks for the tests of this folder."""

from typing import Any

import timm
import torch
from torch import nn

from adderzoo.inference import quantization
from adderzoo.microcontroller import observe


def network(name: str, **arguments: Any) -> nn.Module:
    """A network with published weights, or with random ones that keep images apart."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained="." in name, **arguments)
    if "." not in name:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                nn.init.uniform_(module.weight, -0.5, 1.5)
                nn.init.normal_(module.bias)
        nn.init.normal_(model.fc.weight, std=0.2)
        with torch.no_grad():
            model.train()(torch.randn(8, *model.pretrained_cfg["input_size"]))
    return model.eval()


def quantized(name: str, bits: int = 7, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """The network of bytes and its statistics."""
    model = network(name, **arguments)
    batches = [torch.randn(4, *model.pretrained_cfg["input_size"])]
    made = quantization.quantize(quantization.calibrate(model, batches, bits))
    return made, observe(made, batches)
