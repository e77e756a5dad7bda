"""Luminance and bicubic interpolation, held to float64 by hand, to scikit-image and to PIL."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from adderzoo.layers.image import LUMA_RANGE, BicubicUpsample, cubic, luma

pytestmark = pytest.mark.usefixtures("one_thread")


def interpolated(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's imresize, pixel by pixel: u = x / scale + (1 - 1 / scale) / 2 counted from 1, the border repeated."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    def rows(a: np.ndarray) -> np.ndarray:
        out = np.zeros((a.shape[0] * scale, *a.shape[1:]))
        for x in range(1, len(out) + 1):
            u = x / scale + 0.5 * (1 - 1 / scale)
            for tap in range(int(np.floor(u)) - 2, int(np.floor(u)) + 4):
                out[x - 1] += kernel(u - tap) * a[min(max(tap, 1), len(a)) - 1]
        return out

    return rows(rows(image).swapaxes(0, 1)).swapaxes(0, 1)


@pytest.mark.parametrize("way", [lambda module: module, torch.jit.script, torch.fx.symbolic_trace, torch.compile])
@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_upsampling_is_matlabs(scale: int, way: Callable[[nn.Module], nn.Module]) -> None:
    x = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    y = way(BicubicUpsample(scale, dtype=torch.float64))(x)
    expected = np.stack([[interpolated(channel.numpy(), scale) for channel in image] for image in x])
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_upsampling_is_pils_where_no_border_is_near(scale: int) -> None:
    pixels = np.random.default_rng(0).random((12, 13), dtype=np.float32)
    expected = Image.fromarray(pixels).resize((13 * scale, 12 * scale), Image.Resampling.BICUBIC)
    y = BicubicUpsample(scale)(torch.from_numpy(pixels)[None, None])[0, 0].numpy()
    inner = (slice(2 * scale, -2 * scale),) * 2
    np.testing.assert_allclose(y[inner], np.asarray(expected)[inner], rtol=0, atol=1e-6)


def test_the_kernel_is_keys_which_reproduces_parabolas() -> None:
    taps = torch.arange(-3, 4, dtype=torch.float64)
    for phase in torch.linspace(-0.5, 0.5, 11, dtype=torch.float64):
        weights = cubic(phase - taps)
        for power in (0, 1, 2):
            torch.testing.assert_close((weights * taps**power).sum(), phase**power, rtol=0, atol=1e-14)


def test_upsampling_without_memory_is_filled_by_its_weights_or_anew() -> None:
    module = BicubicUpsample(2, device="meta")
    assert module(torch.empty(1, 3, 4, 5, device="meta")).shape == (1, 3, 8, 10)
    module.to_empty(device="cpu").reset_parameters()
    assert torch.equal(module.weight, BicubicUpsample(2).weight)
    with pytest.raises(ValueError, match="scale must be an integer from 2, got 1"):
        BicubicUpsample(1)


def test_luma_is_that_of_bt601() -> None:
    colors = {(0, 0, 0): 16.0, (255, 255, 255): 235.0, (255, 0, 0): 81.481, (0, 255, 0): 144.553, (0, 0, 255): 40.966}
    for color, expected in colors.items():
        rgb = torch.tensor(color, dtype=torch.float64)[:, None, None]
        torch.testing.assert_close(luma(rgb, 255).item(), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(luma(rgb / 255).item(), expected / 255, rtol=0, atol=1e-14)
    assert luma(torch.rand(2, 4, 3, 5, 6)).shape == (2, 4, 1, 5, 6)
    assert LUMA_RANGE == 235 - 16


def test_luma_is_scikit_images() -> None:
    color = pytest.importorskip("skimage.color")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    y = luma(torch.from_numpy(pixels).permute(2, 0, 1).double(), 255)
    np.testing.assert_allclose(y[0].numpy(), color.rgb2ycbcr(pixels)[..., 0], rtol=0, atol=1e-9)
