"""PSNR and SSIM, held to their definitions, to scikit-image and to torchmetrics."""

import math

import numpy as np
import pytest
import torch
from pictures import random_images

from adderzoo.engine import psnr, quality, ssim


def noisy(seed: int, size: tuple[int, int] = (40, 33), sigma: float = 20) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and one like it, bytes."""
    image = np.asarray(random_images(1, size, seed=seed)[0])
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return image, (image + noise).clip(0, 255).round().astype(np.uint8)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def test_psnr_is_its_definition() -> None:
    x, y = torch.full((4, 5), 100.0), torch.full((4, 5), 100.0)
    assert psnr(x, y) == math.inf
    y[0, 0] = 110
    assert psnr(x, y) == pytest.approx(10 * math.log10(255**2 / (100 / 20)), abs=1e-12)
    assert psnr(x / 255, y / 255, white=1) == pytest.approx(psnr(x, y), abs=1e-4)


def test_ssim_is_its_definition_at_one_place() -> None:
    """An 11x11 image has one window: weighted moments, in numpy."""
    x, y = (image[:11, :11, 0].astype(float) for image in noisy(0))
    square = (np.arange(11) - 5.0) ** 2
    weights = np.exp(-(square[:, None] + square) / (2 * 1.5**2))
    weights /= weights.sum()
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
    cov = (weights * (x - mx) * (y - my)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_both_are_scikit_images(seed: int) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    x, y = (image[..., 0] for image in noisy(seed, sigma=5 + 20 * seed))
    mine = torch.from_numpy(x.copy()), torch.from_numpy(y.copy())
    assert psnr(*mine) == pytest.approx(metrics.peak_signal_noise_ratio(x, y, data_range=255), abs=1e-9)
    expected = metrics.structural_similarity(
        x.astype(float), y.astype(float), data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*mine) == pytest.approx(expected, abs=1e-9)


def test_both_are_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.image")
    x, y = (torch.from_numpy(image[..., 0].copy()) for image in noisy(5))
    batch = [image.double()[None, None] for image in (x, y)]
    assert psnr(x, y) == pytest.approx(metrics.peak_signal_noise_ratio(*batch, data_range=255.0).item(), abs=1e-5)
    _, places = metrics.structural_similarity_index_measure(*batch, data_range=255.0, return_full_image=True)
    assert ssim(x, y) == pytest.approx(places[..., 5:-5, 5:-5].mean().item(), abs=1e-9)  # the others see padding


@pytest.mark.parametrize("shave", [0, 2, 4])
def test_quality_is_that_of_the_luminance_inside_the_border(shave: int) -> None:
    color, metrics = pytest.importorskip("skimage.color"), pytest.importorskip("skimage.metrics")
    x, y = noisy(1)
    inner = (slice(shave, x.shape[0] - shave), slice(shave, x.shape[1] - shave))
    ours = quality(as_tensor(x), as_tensor(y), shave)
    x, y = (color.rgb2ycbcr(image)[(*inner, 0)] for image in (x, y))
    assert ours[0] == pytest.approx(metrics.peak_signal_noise_ratio(x, y, data_range=255), abs=1e-9)
    expected = metrics.structural_similarity(
        x, y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ours[1] == pytest.approx(expected, abs=1e-9)


def test_the_border_does_not_count() -> None:
    x, y = (as_tensor(image) for image in noisy(2))
    before = quality(x, y, 3)
    y[:, :3], y[:, -3:], y[:, :, :3], y[:, :, -3:] = 0, 255, 0, 255
    assert quality(x, y, 3) == before
    assert quality(x, x, 3) == (math.inf, 1.0)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of one shape, got \(3, 20, 20\) and \(3, 20, 21\)"):
        quality(torch.zeros(3, 20, 20), torch.zeros(3, 20, 21), 2)
    with pytest.raises(ValueError, match="image must have at least 15 pixels a side, got 20x14"):
        quality(torch.zeros(3, 14, 20), torch.zeros(3, 14, 20), 2)
    with pytest.raises(ValueError, match=r"image must be \(H, W\) of at least 11x11 pixels, got \(10, 30\)"):
        ssim(torch.zeros(10, 30), torch.zeros(10, 30))
