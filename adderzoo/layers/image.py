"""What every super-resolution network and its evaluation know of images: luminance, and bicubic interpolation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .modules import TensorModule

# Of the Y of bytes, from black, 16, to white, 235.
LUMA_RANGE = 219


def luma(rgb: Tensor, white: float = 1.0) -> Tensor:
    """Y of YCbCr (ITU-R BT.601, studio range), as MATLAB's rgb2ycbcr computes it, without its rounding.

    Args:
        rgb: (..., 3, H, W), from 0 to `white`.
        white: 1 or 255.

    Returns:
        (..., 1, H, W), from 16/255 of `white` to 235/255 of it.
    """
    red, green, blue = rgb.unbind(-3)
    return ((65.481 * red + 128.553 * green + 24.966 * blue + 16.0 * white) / 255.0).unsqueeze(-3)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, which MATLAB's imresize and PIL use (PyTorch has a = -0.75).

    "Cubic Convolution Interpolation for Digital Image Processing", IEEE Transactions on Acoustics, Speech, and Signal
    Processing 29(6), 1981, eq. 15.
    """
    x = x.abs()
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


class BicubicUpsample(TensorModule):
    """Bicubic interpolation to `scale` times the size, as MATLAB's imresize does it in floating point.

    Pixels lie at the centers of their squares; beyond the border the nearest pixel counts. Results overshoot where the
    image has sharp edges, and are not clipped. Antialiasing makes no difference to upscaling.

    Shape: (N, C, H, W) to (N, C, scale * H, scale * W).

    Args:
        scale: An integer from 2.
        device: Of the weights.
        dtype: Of the weights.

    Raises:
        ValueError: if `scale` is less than 2.
    """

    weight: Tensor

    def __init__(self, scale: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if scale < 2:
            raise ValueError(f"scale must be an integer from 2, got {scale}")
        self.scale = scale
        # Each of the scale * scale pixels that a pixel becomes is a weighted sum of the 5x5 around it. A buffer of the
        # state dict: a network without memory of its own is filled from there.
        self.register_buffer("weight", torch.empty(scale * scale, 1, 5, 5, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight.is_meta:
            return
        phases = (torch.arange(self.scale, dtype=torch.float64) + 0.5) / self.scale - 0.5  # in pixels of the input
        taps = cubic(phases[:, None] - torch.arange(-2, 3))
        self.weight.copy_(torch.einsum("pi,qj->pqij", taps, taps).reshape(-1, 1, 5, 5))

    def forward(self, input: Tensor) -> Tensor:
        n, c, h, w = input.shape
        x = F.pad(input, (2, 2, 2, 2), mode="replicate").reshape(n * c, 1, h + 4, w + 4)
        x = F.pixel_shuffle(F.conv2d(x, self.weight), self.scale)
        return x.reshape(n, c, h * self.scale, w * self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"
