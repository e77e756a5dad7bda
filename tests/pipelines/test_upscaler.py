"""adderzoo.Upscaler: images come back as they came, larger; against the network itself and MATLAB's interpolation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pictures import random_images
from PIL import Image

import adderzoo
from adderzoo.data import as_float, as_integers
from adderzoo.data.photos import Photo, read_photo, write_photo
from adderzoo.layers.image import BicubicUpsample

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bicubic() -> adderzoo.Upscaler:
    return adderzoo.Upscaler("bicubic", scale=3, device="cpu")


def by_matlab(channels: torch.Tensor) -> torch.Tensor:
    """(C, 3 H, 3 W) of the type that the image has; every channel by itself."""
    larger = BicubicUpsample(3)(as_float(channels).float()[None])[0]
    return (
        larger.clamp(0, 1).to(channels.dtype) if channels.is_floating_point() else as_integers(larger, channels.dtype)
    )


def test_the_image_is_what_the_network_makes_of_it() -> None:
    upscaler = adderzoo.Upscaler("adder_edsr_small_x2.bsds400", device="cpu", tile=9)
    (image,) = random_images(1, (20, 14))
    model = timm.create_model("adder_edsr_small_x2.bsds400", pretrained=True).eval()
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    with torch.inference_mode():
        expected = as_integers(model(as_float(x)[None])[0]).permute(1, 2, 0).numpy()
    larger = upscaler(image)
    assert (larger.size, larger.mode, upscaler.scale) == ((40, 28), "RGB", 2)
    assert np.abs(np.array(larger, np.int16) - expected).max() <= 1  # fused, and in tiles, it rounds differently
    assert adderzoo.Upscaler(device="cpu").name == "adder_edsr_small_x2.bsds400"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_arrays_and_tensors_come_back_as_they_came(
    bicubic: adderzoo.Upscaler, channels: int | None, dtype: type
) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((7, 5, channels or 1)) * (1 if dtype in (np.float32, np.float64) else np.iinfo(dtype).max)
    if channels in (2, 4):
        values[..., -1] = np.maximum(values[..., -1], values[..., -1].max() / 2)  # nothing wholly transparent
    array = values.astype(dtype)
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
    expected = by_matlab(tensor)
    larger = bicubic(array if channels else array[..., 0])
    assert larger.dtype == dtype
    assert larger.shape == ((21, 15, channels) if channels else (21, 15))
    got = torch.from_numpy(larger.reshape(21, 15, -1).astype(np.float64)).permute(2, 0, 1)
    step = 1e-6 if expected.is_floating_point() else 1
    assert (got - expected.double()).abs().max() <= step
    if channels is None:
        return
    result = bicubic(tensor)
    assert (result.dtype, result.shape) == (tensor.dtype, (channels, 21, 15))
    assert torch.equal(result.double(), got)
    several = bicubic(torch.stack([tensor, tensor]))
    assert several.shape == (2, channels, 21, 15)
    assert torch.equal(several[1], result)
    assert bicubic(np.stack([array, array])).shape == (2, 21, 15, channels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "1", "P"])
def test_pil_images_and_files_become_pil_images(bicubic: adderzoo.Upscaler, tmp_path: Path, mode: str) -> None:
    image = random_images(1, (9, 6), mode="RGBA")[0].convert("RGB" if mode == "P" else mode).convert(mode)
    image.save(tmp_path / "a.png")
    larger = bicubic(image)
    assert larger.size == (27, 18)
    assert larger.mode == {"1": "L", "P": "RGB"}.get(mode, mode)
    assert np.array_equal(np.array(larger), np.array(bicubic(tmp_path / "a.png")))
    assert np.array_equal(np.array(larger), np.array(bicubic([str(tmp_path / "a.png")])[0]))


def test_frames_of_a_folder_in_the_order_of_their_numbers(bicubic: adderzoo.Upscaler, tmp_path: Path) -> None:
    for index in (1, 2, 10):
        Image.new("L", (4, 4), index).save(tmp_path / f"{index}.png")
    assert [frame.getpixel((0, 0)) for frame in bicubic([tmp_path])] == [1, 2, 10]
    frames = bicubic.stream(Image.new("L", (4, 4), value) for value in (5, 6))
    assert next(frames).getpixel((0, 0)) == 5


def test_sixteen_bits_are_kept_by_files_and_gray(bicubic: adderzoo.Upscaler, tmp_path: Path) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 65536, (3, 6, 5), dtype=np.uint16))
    write_photo(Photo(pixels), tmp_path / "a.png")
    done = bicubic.write(tmp_path / "a.png", tmp_path / "b.png")
    got, expected = read_photo(tmp_path / "b.png").color, by_matlab(pixels)
    assert got.dtype == torch.uint16
    assert (got.int() - expected.int()).abs().max() <= 1
    assert (done.width, done.height, done.frames, done.loses_bits) == (15, 18, 1, False)
    assert str(done) == f"{tmp_path / 'b.png'}: 15x18 pixels, by bicubic"
    assert bicubic.write(tmp_path / "a.png", tmp_path / "b.jpg").loses_bits
    eight = np.array(bicubic(tmp_path / "a.png"), np.int16)
    assert np.abs(eight - (expected.int().permute(1, 2, 0).numpy() + 128) // 257).max() <= 1
    assert bicubic(Image.fromarray(pixels[0].numpy())).mode == "I;16"


def test_hidden_colors_do_not_show_in_float_either(bicubic: adderzoo.Upscaler) -> None:
    rows, columns = np.mgrid[:40, :40]
    shape = ((rows - 20) ** 2 + (columns - 20) ** 2 < 144)[..., None]
    results = []
    for hidden in ((0.8, 0.6, 0.4), (0, 1, 0)):
        image = np.concatenate([np.where(shape, (0.8, 0.6, 0.4), hidden), shape], 2)
        results.append(bicubic(image))
    visible = results[0][..., 3] > 0
    assert 0 < visible.sum() < visible.size
    assert np.allclose(results[0][visible], results[1][visible], atol=1e-6)


def test_progress_sees_every_tile() -> None:
    seen: list[int] = []

    def progress(tiles: list[Any]) -> list[Any]:
        seen.append(len(tiles))
        return tiles

    upscaler = adderzoo.Upscaler("bicubic", tile=4, progress=progress, device="cpu")
    upscaler(Image.new("RGB", (10, 7)))
    assert seen == [6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "adder_lenet5.digits"}, "must be a network for super-resolution, got 'adder_lenet5.digits'"),
        ({"scale": 5}, "no adder network has published weights that were measured at scale 5"),
        ({"model": "adder_edsr_small_x2", "scale": 3}, "scale must be 2 for adder_edsr_small_x2, got 3"),
        ({"model": timm.create_model("bicubic"), "scale": 3}, "scale must be that of bicubic, 2, got 3"),
        ({"model": "adder_edsr_x2"}, "adder_edsr_x2 has no published weights"),
        ({"tile": 0}, "tile must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adderzoo.Upscaler(**arguments)


def test_bad_images_are_named(bicubic: adderzoo.Upscaler, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images\[1\] must be in \[0, 1\]"):
        bicubic([np.zeros((4, 4)), np.full((4, 4), 2.0)])
    with pytest.raises(ValueError, match=r"\[folder\] is all images under it"):
        bicubic(tmp_path)
    with pytest.raises(ValueError, match="may have its channels first or last"):
        bicubic(torch.zeros(3, 5, 3))
