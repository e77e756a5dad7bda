"""What type checkers are told of a module's call, of which PyTorch says that it returns anything."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn


class TensorModule(nn.Module):
    """A module whose call returns a tensor."""

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...
