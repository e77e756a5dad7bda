"""Entry points of `torch.hub`: every network by its name, `pretrained=False` by default."""

dependencies = ["filelock", "safetensors", "timm", "torch", "torchvision", "tqdm"]

from adderzoo.models import (  # noqa: E402, F401 - torch.hub reads `dependencies` before it imports the rest
    adder_lenet5,
    adder_resnet20,
    adder_resnet32,
    cnn_lenet5,
    cnn_resnet20,
    cnn_resnet32,
)
