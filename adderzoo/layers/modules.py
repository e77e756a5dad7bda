"""What type checkers are told of modules, of whose calls and attributes PyTorch says that they are anything."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn


class TensorModule(nn.Module):
    """A module whose call returns a tensor."""

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


class Network(TensorModule):
    """A network as timm makes it: what every function of this package may ask of one.

    Attributes:
        pretrained_cfg: What timm knows of its weights and its images.
        num_classes: Of a classifier; 0 of a network for super-resolution.
        scale: How many times as large a network for super-resolution makes images; classifiers have none.
    """

    if TYPE_CHECKING:
        pretrained_cfg: dict[str, Any]
        num_classes: int
        scale: int
