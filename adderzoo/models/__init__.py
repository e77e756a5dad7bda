"""The families, registered with timm when this package is imported."""

from ._builder import WEIGHTS as WEIGHTS
from ._super_resolution import SuperResolutionNet as SuperResolutionNet
from ._super_resolution import check_classifier as check_classifier
from ._super_resolution import is_super_resolution as is_super_resolution
from .adder_edsr import *  # noqa: F403 - register_model adds every entry point to its module's __all__
from .adder_lenet import *  # noqa: F403
from .adder_resnet import *  # noqa: F403
from .adder_resnet_cifar import *  # noqa: F403
from .adder_vdsr_net import *  # noqa: F403
from .adder_vgg import *  # noqa: F403
from .interpolation import *  # noqa: F403
