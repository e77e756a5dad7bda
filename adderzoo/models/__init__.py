"""The families, registered with timm when this package is imported."""

from ._builder import WEIGHTS
from .adder_lenet import LeNet5, adder_lenet5, cnn_lenet5
from .adder_resnet_cifar import ResNetCifar, adder_resnet20, adder_resnet32, cnn_resnet20, cnn_resnet32

__all__ = [
    "WEIGHTS",
    "LeNet5",
    "ResNetCifar",
    "adder_lenet5",
    "adder_resnet20",
    "adder_resnet32",
    "cnn_lenet5",
    "cnn_resnet20",
    "cnn_resnet32",
]
