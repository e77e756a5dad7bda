"""Photographs, read and written."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from adderzoo.data.photos import Photo, check_photo, read_photo, spread_colors, write_photo

RNG = np.random.default_rng(0)


def pixels(channels: int, dtype: Any = np.uint8, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    """(H, W, C) of all values."""
    return RNG.integers(0, np.iinfo(dtype).max + 1, (*size, channels), dtype=dtype)


def channels_of(photo: Photo) -> np.ndarray:
    channels = photo.color if photo.alpha is None else torch.cat([photo.color, photo.alpha])
    return channels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_eight_bits_are_pils(channels: int, mode: str, tmp_path: Path) -> None:
    expected = pixels(channels)
    Image.fromarray(expected[..., 0] if channels == 1 else expected, mode=None).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    photo = read_photo(tmp_path / "a.png")
    assert photo.color.dtype == torch.uint8
    assert np.array_equal(channels_of(photo), expected)
    assert (len(photo.color), photo.alpha is not None) == ({1: 1, 2: 1, 3: 3, 4: 3}[channels], channels % 2 == 0)
    write_photo(photo, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as again:
        assert again.mode == mode
        assert np.array_equal(np.asarray(again).reshape(expected.shape), expected)


def decoded(path: Path) -> tuple[int, np.ndarray]:
    """Color type and pixels of a 16-bit PNG of this package, by the standard."""
    content, position, data, header = path.read_bytes(), 8, b"", b""
    while position < len(content):
        size, kind = struct.unpack(">I4s", content[position : position + 8])
        body = content[position + 8 : position + 8 + size]
        crc = struct.unpack(">I", content[position + 8 + size : position + 12 + size])[0]
        assert crc == zlib.crc32(kind + body)
        data += body if kind == b"IDAT" else b""
        header += body if kind == b"IHDR" else b""
        position += 12 + size
    width, height, bits, color_type = struct.unpack(">IIBB", header[:10])
    assert bits == 16
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[color_type]
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 1).all()
    samples = np.cumsum(rows[:, 1:].reshape(height, width, 2 * channels), axis=1, dtype=np.uint8)
    return color_type, samples.view(">u2").astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_survive_as_png(channels: int, tmp_path: Path) -> None:
    expected = pixels(channels, np.uint16)
    tensor = torch.from_numpy(expected).permute(2, 0, 1)
    colors = 1 if channels < 3 else 3
    photo = Photo(tensor[:colors], tensor[colors:] if channels > colors else None)
    write_photo(photo, tmp_path / "a.png")
    color_type, got = decoded(tmp_path / "a.png")
    assert color_type == {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    assert np.array_equal(got, expected)
    again = read_photo(tmp_path / "a.png")
    assert again.color.dtype == torch.uint16
    assert np.array_equal(channels_of(again), expected)
    write_photo(photo, tmp_path / "a.webp")  # of 8 bits only
    assert read_photo(tmp_path / "a.webp").color.dtype == torch.uint8


def test_sixteen_bit_gray_of_pil_is_read_from_png_and_tiff(tmp_path: Path) -> None:
    expected = pixels(1, np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(expected[..., 0]).save(tmp_path / name)
        assert np.array_equal(channels_of(read_photo(tmp_path / name)), expected)


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    values = torch.arange(0, 65536, 16, dtype=torch.int32)
    write_photo(Photo(values.to(torch.uint16).reshape(1, 64, 64)), tmp_path / "a.bmp")
    expected = (values.double() / 257).round()
    assert torch.equal(read_photo(tmp_path / "a.bmp").color.flatten().double(), expected)


def test_palettes_bits_and_inks_become_colors(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(3, size=(8, 8)))
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("P").save(tmp_path / "transparent.png", transparency=3)
    image.convert("1").save(tmp_path / "bits.png")
    image.convert("CMYK").save(tmp_path / "inks.jpg")
    found = {path.name: read_photo(path) for path in tmp_path.iterdir()}
    assert {name: (len(photo.color), photo.alpha is not None) for name, photo in found.items()} == {
        "palette.png": (3, False),
        "transparent.png": (3, True),
        "bits.png": (1, False),
        "inks.jpg": (3, False),
    }
    assert set(found["bits.png"].color.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
def test_color_profiles_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_photo(Photo(torch.zeros(3, 4, 5, dtype=dtype), None, profile), tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").icc_profile == profile


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (tmp_path / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name, reason in {
        "missing.png": "No such file",
        "broken.png": "",
        "short.png": "",
        "float.tif": "its pixels are floating point",
    }.items():
        with pytest.raises(ValueError, match=rf"image .*{name} cannot be read: .*{reason}"):
            read_photo(tmp_path / name)
    photo = Photo(torch.zeros(3, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"OUT must end as an image file does that can be written, .*got .*a.txt"):
        check_photo(photo, tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a.webp cannot hold an image of 20000x16000 pixels in RGB"):
        check_photo(photo, tmp_path / "a.webp", scale=4000)
    for name in ("a.jpg", "a.bmp"):
        with pytest.raises(ValueError, match=r"in RGBA: .*; .png, .webp and .tif keep an alpha channel"):
            write_photo(replace(photo, alpha=torch.zeros(1, 4, 5, dtype=torch.uint8)), tmp_path / name)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def camera_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0132], exif[0x0112] = "Maker", "2020:02:03 04:05:06", orientation
    exif[0x8769] = {0x829A: 0.01, 0xA002: 7, 0xA003: 5}  # exposure time, and the size, which will be another
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return exif


@pytest.mark.parametrize("target", ["jpg", "png", "webp", "tif", "16.png", "16.tif"])
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
def test_exif_profile_and_resolution_are_kept(source: str, target: str, tmp_path: Path) -> None:
    image = Image.fromarray(pixels(3))
    image.save(tmp_path / f"a.{source}", exif=camera_exif().tobytes(), icc_profile=PROFILE, dpi=(300, 200))
    photo = read_photo(tmp_path / f"a.{source}")
    if "16" in target:
        photo = replace(photo, color=(photo.color.int() * 257).to(torch.uint16))
    write_photo(photo, tmp_path / f"b.{target}")
    with Image.open(tmp_path / f"b.{target}") as again:
        again.load()
        exif = again.getexif()
        assert (exif[0x010F], exif[0x0132], 0x0112 in exif) == ("Maker", "2020:02:03 04:05:06", False)
        assert dict(exif.get_ifd(0x8769)) == {0x829A: 0.01}
        assert dict(exif.get_ifd(0x8825)) == {1: "N", 2: (1.0, 2.0, 3.0)}
        assert again.info["icc_profile"] == PROFILE
        if source != "webp" and target != "webp":  # which has no place for it
            assert again.info["dpi"] == pytest.approx((300, 200), abs=0.1)
        assert again.size == (5, 7)  # upright


def test_profiles_of_other_colors_are_left_out(tmp_path: Path) -> None:
    Image.fromarray(pixels(1)[..., 0]).save(tmp_path / "a.png", icc_profile=PROFILE)
    assert read_photo(tmp_path / "a.png").icc_profile is None


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_survive_as_tiff(channels: int, tmp_path: Path) -> None:
    expected = pixels(channels, np.uint16)
    tensor = torch.from_numpy(expected).permute(2, 0, 1)
    colors = 1 if channels < 3 else 3
    write_photo(Photo(tensor[:colors], tensor[colors:] if channels > colors else None), tmp_path / "a.tif")
    found = tifffile.imread(tmp_path / "a.tif").reshape(5, 7, -1)
    assert np.array_equal(found[..., [0, 3]] if channels == 2 else found, expected)
    again = channels_of(read_photo(tmp_path / "a.tif"))
    assert np.array_equal(again[..., [0, 3]] if channels == 2 else again, expected)


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    with Image.open(path) as image:
        found = []
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            image.load()
            found.append((image.info.get("duration"), np.asarray(image.convert("RGBA")).astype(int)))
        return found


@pytest.mark.parametrize("target", ["gif", "png", "webp"])
@pytest.mark.parametrize("source", ["gif", "png", "webp"])
@pytest.mark.parametrize("plays", [0, 1, 4])
def test_animations_keep_frames_timing_and_loop(source: str, target: str, plays: int, tmp_path: Path) -> None:
    images = [Image.new("RGBA", (9, 8), color) for color in ((255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 0))]
    for image in images:
        image.putpixel((0, 0), (0, 0, 0, 0))
    loops = {} if source == "gif" and plays == 1 else {"loop": plays - 1 if source == "gif" and plays else plays}
    durations = [100, 250, 40]
    options: dict[str, Any] = {**loops, "disposal": 2} if source == "gif" else loops
    images[0].save(tmp_path / f"a.{source}", save_all=True, append_images=images[1:], duration=durations, **options)
    write_photo(read_photo(tmp_path / f"a.{source}"), tmp_path / f"b.{target}")
    found = frames_of(tmp_path / f"b.{target}")
    assert [duration for duration, _ in found] == durations
    for (_, frame), image in zip(found, images, strict=True):
        expected = np.asarray(image).astype(int)
        assert np.array_equal(frame[..., 3], expected[..., 3])
        assert (np.abs(frame - expected)[expected[..., 3] > 0] <= 3).all()
    again = read_photo(tmp_path / f"b.{target}").animation
    assert again is not None
    assert again.plays == plays


def test_a_still_image_before_an_animation_stays_one(tmp_path: Path) -> None:
    images = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=[100, 200], default_image=True)
    photo = read_photo(tmp_path / "a.png")
    write_photo(photo, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as again:
        assert (again.n_frames, again.default_image) == (3, True)  # type: ignore[attr-defined]
    assert [duration for duration, _ in frames_of(tmp_path / "b.png")] == [None, 100, 200]
    write_photo(photo, tmp_path / "b.gif")
    assert [duration for duration, _ in frames_of(tmp_path / "b.gif")] == [100, 200]


def test_all_pages_of_a_tiff_are_kept(tmp_path: Path) -> None:
    pages = [pixels(3), pixels(1, np.uint16, (9, 4)), pixels(3, np.uint16), pixels(4)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(
                page if page.shape[2] > 1 else page[..., 0],
                photometric="rgb" if page.shape[2] > 1 else "minisblack",
                extrasamples=["unassalpha"] if page.shape[2] == 4 else None,
                resolution=(300, 300),
                resolutionunit="INCH",
                metadata=None,
            )
    write_photo(read_photo(tmp_path / "a.tif"), tmp_path / "b.tif")
    found = [page.asarray().reshape(*page.shape[:2], -1) for page in tifffile.TiffFile(tmp_path / "b.tif").pages]
    assert all(np.array_equal(one, other) for one, other in zip(found, pages, strict=True))
    assert {frame.dpi for frame in read_photo(tmp_path / "b.tif").frames} == {(300, 300)}


def test_frames_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    images = [Image.new("RGB", (4, 4), color) for color in ("red", "lime")]
    for name in ("a.gif", "a.tif"):
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=100)
    animation, pages = (read_photo(tmp_path / name) for name in ("a.gif", "a.tif"))
    for name in ("b.jpg", "b.tif", "b.avif"):
        with pytest.raises(ValueError, match=r"OUT must end in .png, .webp or .gif to keep the image's 2 frames"):
            check_photo(animation, tmp_path / name)
    for name in ("b.jpg", "b.gif"):
        with pytest.raises(ValueError, match=r"OUT must end in .tif to keep the image's 2 pages"):
            check_photo(pages, tmp_path / name)


def test_frames_count_together_against_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [Image.new("L", (10, 10), shade) for shade in range(0, 250, 25)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 499)
    with pytest.raises(ValueError, match=r"image .*a.gif cannot be read: it has 1,000 pixels in 10 frames"):
        read_photo(tmp_path / "a.gif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colors_are_spread_as_layer_by_layer(dtype: Any) -> None:
    color = RNG.integers(0, np.iinfo(dtype).max + 1, (3, 300, 270), dtype=dtype)
    alpha = np.zeros((1, 300, 270), dtype)
    alpha[0, 250:262, 251:260] = 9  # over the corner of four blocks
    alpha[0, 5, 7] = 1
    distance = 5
    expected, known = color.astype(np.int64), alpha[0] > 0
    for _ in range(distance):
        before = known.copy()
        for row, column in np.argwhere(~before):
            near = (slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2))
            count = int(before[near].sum())
            if count:
                total = (expected[:, *near] * before[near]).sum((1, 2))
                expected[:, row, column] = (total + count // 2) // count
                known[row, column] = True
    found = spread_colors(torch.from_numpy(color), torch.from_numpy(alpha), distance)
    assert np.array_equal(found.numpy(), expected)
