"""Running networks on whole images, and their evaluation."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pictures import random_images
from torch import Tensor, nn

from adderzoo.data import ImagePairs, as_float, as_integers, downscale
from adderzoo.engine import Execution, evaluate_super_resolution, quality, upscale
from adderzoo.engine.super_resolution import tiles

pytestmark = pytest.mark.usefixtures("one_thread")

# Bicubic interpolation as every paper on super-resolution reports it: PSNR in dB and SSIM.
PUBLISHED = {
    ("Set5", 2): (33.66, 0.9299),
    ("Set5", 3): (30.39, 0.8682),
    ("Set5", 4): (28.42, 0.8104),
    ("Set14", 2): (30.24, 0.8688),
    ("Set14", 3): (27.55, 0.7742),
    ("Set14", 4): (26.00, 0.7027),
    ("B100", 4): (25.96, 0.6675),
}


def network(name: str = "adder_edsr_baseline_x2", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    arguments = {"blocks": 2, "width": 4} if "edsr" in name else {"depth": 4, "width": 4}
    model: Any = timm.create_model(name, **arguments | kwargs)
    nn.init.normal_(model.conv2.weight, std=0.1)  # VDSR's is 0
    return model.eval()


@pytest.mark.parametrize(("name", "scale"), PUBLISHED)
def test_bicubic_interpolation_has_the_published_figures(name: str, scale: int, shared: Callable[[str], Path]) -> None:
    model = timm.create_model("bicubic", scale=scale)
    result = evaluate_super_resolution(model, ImagePairs(shared(f"data/sr/{name}/x{scale}"), scale))
    # Of Set14, two images are gray, which were evaluated as they are, not as RGB.
    decibels, similarity = (0.1, 0.003) if name == "Set14" else (0.05, 0.001)
    assert result.psnr == pytest.approx(PUBLISHED[name, scale][0], abs=decibels)
    assert result.ssim == pytest.approx(PUBLISHED[name, scale][1], abs=similarity)
    assert (len(result.images), result.scale) == ({"Set5": 5, "Set14": 14, "B100": 100}[name], scale)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("tile", [1, 7, 16, 100])
def test_tiles_make_the_whole_images_result(tile: int, scale: int) -> None:
    model = network("adder_vdsr", scale=scale).double()
    image = torch.rand(3, 23, 17, dtype=torch.float64)
    expected = model(image[None])[0]
    torch.testing.assert_close(upscale(model, image, tile), expected, rtol=0, atol=1e-12)


def test_tiles_of_edsr_make_the_whole_images_result() -> None:
    model = network().double()
    image = torch.rand(3, 30, 41, dtype=torch.float64)
    torch.testing.assert_close(upscale(model, image, 12), model(image[None])[0], rtol=0, atol=1e-12)
    assert not torch.allclose(upscale(_near_sighted(model), image, 12), model(image[None])[0], rtol=0, atol=1e-6)


def _near_sighted(model: Any) -> Any:
    model.radius = 1
    return model


@pytest.mark.parametrize(("height", "width", "side", "overlap"), [(23, 17, 7, 3), (5, 5, 5, 2), (1, 100, 9, 50)])
def test_tiles_cover_every_pixel_once_and_are_no_larger_than_they_may_be(
    height: int, width: int, side: int, overlap: int
) -> None:
    covered = np.zeros((height, width), dtype=int)
    for tile in tiles(height, width, side, overlap):
        covered[tile.rows, tile.columns] += 1
        for inner, outer, size in ((tile.rows, tile.outer_rows, height), (tile.columns, tile.outer_columns, width)):
            assert 0 < inner.stop - inner.start <= side
            assert outer == slice(max(inner.start - overlap, 0), min(inner.stop + overlap, size))
    assert (covered == 1).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
def test_integers_come_out_as_integers(dtype: torch.dtype) -> None:
    model = network("cnn_vdsr")
    image = as_integers(torch.rand(3, 12, 11), dtype)
    whole = upscale(model, as_float(image))
    assert whole.min() < 0 or whole.max() > 1
    assert torch.equal(upscale(model, image), as_integers(whole, dtype))
    assert torch.equal(upscale(model, image, 5)[:, :3, :3], as_integers(whole, dtype)[:, :3, :3])
    with pytest.raises(ValueError, match=r"image must be \(3, H, W\), got shape \(1, 3, 12, 11\)"):
        upscale(model, image[None])
    with pytest.raises(ValueError, match=r"image must be float, uint8 or uint16, got torch.int64"):
        upscale(model, image.long())


def test_no_more_is_computed_at_once_than_a_tile_with_its_overlap() -> None:
    model, seen = network(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    upscale(model, torch.rand(3, 40, 50), 10, progress=lambda parts: (part for part in parts))
    assert len(seen) == 20
    assert max(max(shape[2:]) for shape in seen) == 10 + 2 * model.radius


def test_self_ensemble_is_the_mean_over_flips_and_turns() -> None:
    model = network().double()
    image = torch.rand(3, 6, 9, dtype=torch.float64)
    x = image.numpy()
    results = []
    for flip in (False, True):
        for turns in range(4):
            turned = np.rot90(x[:, :, ::-1] if flip else x, turns, (1, 2))
            y = np.rot90(model(torch.from_numpy(turned.copy())[None])[0].detach().numpy(), -turns, (1, 2))
            results.append(y[:, :, ::-1] if flip else y)
    got = upscale(model, image, self_ensemble=True)
    np.testing.assert_allclose(got.numpy(), np.mean(results, 0), rtol=0, atol=1e-12)
    turned = upscale(model, image.flip(2), self_ensemble=True).flip(2)
    torch.testing.assert_close(turned, got, rtol=0, atol=1e-12)
    torch.testing.assert_close(upscale(model, image, 4, self_ensemble=True), got, rtol=0, atol=1e-12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, size in enumerate([(30, 41), (50, 32), (21, 20)]):
        random_images(1, size, seed=index)[0].save(tmp_path / f"{index}.png")
    return tmp_path


def test_evaluation_is_the_mean_of_the_images_one_by_one(folder: Path) -> None:
    model, pairs = network(), ImagePairs(folder, 2)
    result = evaluate_super_resolution(model.train(), pairs)
    assert not model.training
    rows = []
    for index, image in enumerate(result.images):
        small, large = pairs[index]
        with torch.no_grad():
            y = as_integers(model(small[None].float() / 255)[0])
        rows.append(quality(y, large, 2))
        assert (image.name, image.psnr, image.ssim) == (f"{index}.png", *rows[-1])
    assert (result.psnr, result.ssim) == pytest.approx(tuple(np.mean(rows, 0)))
    assert str(result).startswith(f"PSNR {result.psnr:.2f} dB, SSIM {result.ssim:.4f}, x2, 3 images, ")


def test_channels_last_autocast_tiles_and_half_precision_are_near(folder: Path) -> None:
    model, pairs = network("cnn_edsr_baseline_x2"), ImagePairs(folder, 2)
    psnr = evaluate_super_resolution(model, pairs).psnr
    executions = (Execution(channels_last=True), Execution(amp_dtype=torch.bfloat16))
    for arguments in (*({"execution": execution} for execution in executions), {"tile": 8}):
        assert evaluate_super_resolution(model, pairs, **arguments).psnr == pytest.approx(psnr, abs=0.1)
    assert evaluate_super_resolution(model.bfloat16(), pairs).psnr == pytest.approx(psnr, abs=0.1)


class _Oracle(nn.Module):
    """Knows the answer."""

    scale, radius = 2, 0

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer[None].float() / 255


def test_a_perfect_result_is_infinite_and_still_json(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    pairs = ImagePairs(folder, 2)
    result = evaluate_super_resolution(_Oracle(pairs[0][1]), pairs)
    assert (result.psnr, result.ssim) == (math.inf, 1.0)
    row = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert row["psnr"] is row["images"][0]["psnr"] is None


def test_what_cannot_be_evaluated_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="pairs must be for the network's scale, 2, got 3"):
        evaluate_super_resolution(network(), ImagePairs(folder, 3))
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        upscale(network(), torch.rand(3, 4, 4), 0)
    random_images(1, (14, 30))[0].save(folder / "0.png")
    with pytest.raises(ValueError, match=r"0.png: image must have at least 15 pixels a side, got 14x30"):
        evaluate_super_resolution(network(), ImagePairs(folder, 2))
    assert downscale(torch.zeros(3, 4, 4, dtype=torch.uint8), 2).shape == (3, 2, 2)
