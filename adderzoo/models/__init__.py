"""The networks, a module a family, registered with timm when this package is imported."""

from ._builder import WEIGHTS as WEIGHTS
from ._super_resolution import SuperResolutionNet as SuperResolutionNet
from ._super_resolution import check_classifier as check_classifier
from ._super_resolution import is_super_resolution as is_super_resolution
from .adder_edsr import *  # noqa: F403 - timm makes the entry points each module's __all__
from .adder_edsr import EDSR as EDSR
from .adder_lenet import *  # noqa: F403
from .adder_lenet import LeNet5 as LeNet5
from .adder_lenet import LeNetPlusPlus as LeNetPlusPlus
from .adder_resnet import *  # noqa: F403
from .adder_resnet import ResNet as ResNet
from .adder_resnet_cifar import *  # noqa: F403
from .adder_vdsr_net import *  # noqa: F403
from .adder_vdsr_net import VDSR as VDSR
from .adder_vgg import *  # noqa: F403
from .adder_vgg import VGGSmall as VGGSmall
from .interpolation import *  # noqa: F403
from .interpolation import Bicubic as Bicubic
