"""What layers take: batches and single images, whose channels are checked by the layer's own arguments.

Dimensions are counted as len(shape): TorchScript takes dim() of a convolution's output for 4, also of a single image.
"""

import torch
from torch import Tensor


@torch.jit.script_if_tracing  # a trace is to look at sizes again when it runs
def batched(input: Tensor, channels: int) -> Tensor:
    """(N, C, H, W) of a batch, or of a single image (C, H, W).

    Raises:
        RuntimeError: if it is neither, or C is not `channels`.
    """
    shape = input.shape
    if len(shape) == 4 and shape[1] == channels:
        return input
    if len(shape) != 3 and len(shape) != 4:
        raise RuntimeError(f"input must be (N, C, H, W) or (C, H, W), got shape {list(shape)}")
    if shape[-3] != channels:
        raise RuntimeError(f"input must have {channels} channels, got {shape[-3]} in shape {list(shape)}")
    return input.unsqueeze(0)


@torch.jit.script_if_tracing
def unbatched(output: Tensor, input: Tensor, addend: Tensor | None = None) -> Tensor:
    """(C, H, W) of a batch of one, if that was made of a single image, and of an addend that is none of a batch."""
    single = len(input.shape) == 3 and (addend is None or len(addend.shape) <= 3)
    return output.squeeze(0) if single else output


@torch.jit.script_if_tracing
def rows(input: Tensor, features: int) -> Tensor:
    """(N, features, 1, 1) of (..., features): images of one pixel.

    Raises:
        RuntimeError: if the last dimension is another.
    """
    if input.dim() == 0:
        raise RuntimeError(f"input must have {features} features in its last dimension, got a tensor of no dimensions")
    if input.shape[-1] != features:
        raise RuntimeError(f"input must have {features} features, got {input.shape[-1]} in shape {list(input.shape)}")
    return input.unsqueeze(0).flatten(0, -2)[:, :, None, None]  # reshape(-1, ...) cannot tell N of no elements
