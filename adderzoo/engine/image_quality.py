"""How alike two images are, as super-resolution is judged."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adderzoo.layers.image import luma

_WINDOW, _SIGMA = 11, 1.5


def psnr(image: Tensor, reference: Tensor, white: float = 255.0) -> float:
    """Peak signal-to-noise ratio in decibels, 10 log10(white^2 / mean squared error); infinite for equal images.

    Args:
        image: Of any shape, such as (H, W).
        reference: Of the same.
        white: The largest value that a pixel can have.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_shapes(image, reference)
    error = (image.double() - reference.double()).square().mean().item()
    return 10 * math.log10(white**2 / error) if error else math.inf


def ssim(image: Tensor, reference: Tensor, white: float = 255.0) -> float:
    """Structural similarity, at most 1: its mean over the places where the window lies inside the image.

    "Image Quality Assessment: From Error Visibility to Structural Similarity" (IEEE Transactions on Image Processing
    13(4), 2004), eq. 13, with that paper's 11x11 Gaussian window of standard deviation 1.5, K1 0.01 and K2 0.03.

    Args:
        image: (H, W), of at least 11x11.
        reference: Of the same size.
        white: The largest value that a pixel can have.

    Raises:
        ValueError: if the shapes differ, or are too small.
    """
    _check_shapes(image, reference)
    if image.dim() != 2 or min(image.shape) < _WINDOW:
        raise ValueError(f"image must be (H, W) of at least {_WINDOW}x{_WINDOW} pixels, got {tuple(image.shape)}")
    x, y = image.double(), reference.double()
    window = torch.exp(-((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    window = (window / window.sum()).to(x.device)
    maps = torch.stack([x, y, x * x, y * y, x * y])[:, None]
    maps = F.conv2d(F.conv2d(maps, window[None, None, :, None]), window[None, None, None, :])
    mean_x, mean_y, square_x, square_y, product = maps[:, 0]
    var_x, var_y, covariance = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
    c1, c2 = (0.01 * white) ** 2, (0.03 * white) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean().item()


def quality(image: Tensor, reference: Tensor, shave: int) -> tuple[float, float]:
    """PSNR in decibels and SSIM as the field reports them: of the Y of YCbCr (BT.601), borders left out.

    Y is not rounded, as in the evaluation of EDSR and later networks; MATLAB's rgb2ycbcr rounds it, which makes 0.03 dB
    at 34 dB.

    Args:
        image: (3, H, W), RGB bytes.
        reference: Of the same size.
        shave: Width of the border that does not count, in pixels: the scale.

    Raises:
        ValueError: if the sizes differ, or nothing is left to compare.
    """
    _check_shapes(image, reference)
    height, width = image.shape[-2:]
    if min(height, width) < 2 * shave + _WINDOW:
        raise ValueError(f"image must have at least {2 * shave + _WINDOW} pixels a side, got {width}x{height}")
    inner = (0, slice(shave, height - shave), slice(shave, width - shave))
    x, y = (luma(each.double(), 255)[inner] for each in (image, reference))
    return psnr(x, y), ssim(x, y)


def _check_shapes(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise ValueError(f"image and reference must be of one shape, got {(*image.shape,)} and {(*reference.shape,)}")
