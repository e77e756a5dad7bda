"""Photographs, read and written."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from adderzoo.data.photos import Photo, check_photo, read_photo, write_photo

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
    """Colour type and pixels of a 16-bit PNG of this package, by the standard."""
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


def test_sixteen_bit_grey_of_pil_is_read_from_png_and_tiff(tmp_path: Path) -> None:
    expected = pixels(1, np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(expected[..., 0]).save(tmp_path / name)
        assert np.array_equal(channels_of(read_photo(tmp_path / name)), expected)


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    values = torch.arange(0, 65536, 16, dtype=torch.int32)
    write_photo(Photo(values.to(torch.uint16).reshape(1, 64, 64)), tmp_path / "a.bmp")
    expected = (values.double() / 257).round()
    assert torch.equal(read_photo(tmp_path / "a.bmp").color.flatten().double(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_exif_orientation_is_applied(orientation: int, bits: int, tmp_path: Path) -> None:
    expected = pixels(1, np.uint8 if bits == 8 else np.uint16)
    stored = {  # what a camera stores for that to be upright, by the EXIF standard
        1: expected,
        2: expected[:, ::-1],
        3: expected[::-1, ::-1],
        4: expected[::-1],
        5: expected.swapaxes(0, 1),
        6: np.rot90(expected),
        7: expected[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(expected, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored[..., 0])).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(channels_of(read_photo(tmp_path / "a.png")), expected)


def test_palettes_bits_and_inks_become_colours(tmp_path: Path) -> None:
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
def test_colour_profiles_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
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
