"""The families, registered with timm when this package is imported."""

from ._builder import WEIGHTS as WEIGHTS
from .adder_lenet import *  # noqa: F403 - register_model adds every entry point to its module's __all__
from .adder_resnet import *  # noqa: F403
from .adder_resnet_cifar import *  # noqa: F403
from .adder_vgg import *  # noqa: F403
