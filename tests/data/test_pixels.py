"""The decoder of image files."""

import io
import itertools
import math
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import EpsImagePlugin, Image, ImageCms
from torchvision.io import ImageReadMode, decode_image

from adderzoo.data.pixels import open_image, read_image, read_pixels, read_size

RNG = np.random.default_rng(0)


def random_pixels(channels: int, dtype: Any = np.uint8, size: tuple[int, int] = (13, 17)) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (*size, channels), dtype=dtype)


def decoded(path: Path) -> np.ndarray:
    """(H, W, C)."""
    with open_image(path) as image:
        pixels = read_pixels(image)
    return pixels.color if pixels.alpha is None else np.concatenate([pixels.color, pixels.alpha], 2)


def png16(pixels: np.ndarray, interlaced: bool = False, chunks: bytes = b"") -> bytes:
    """A PNG of 16 bits by the standard, each row under a random filter."""
    height, width, channels = pixels.shape
    samples = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, width, 2 * channels).astype(int)
    passes = [(0, 0, 1, 1)]
    if interlaced:  # first row, first column, and the steps of each
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    data = b""
    for top, left, down, right in passes:
        part = samples[top::down, left::right]
        before = np.zeros_like(part[:1])
        for row in part if part.size else ():
            padded, upper = np.pad(row, ((1, 0), (0, 0)))[:-1], before[0]
            corner = np.pad(upper, ((1, 0), (0, 0)))[:-1]
            distances = np.abs([upper - corner, padded - corner, padded + upper - 2 * corner])
            paeth = np.where(
                (distances[0] <= distances[1]) & (distances[0] <= distances[2]),
                padded,
                np.where(distances[1] <= distances[2], upper, corner),
            )
            kind = int(RNG.integers(5))
            guess = (np.zeros_like(row), padded, upper, (padded + upper) // 2, paeth)[kind]
            data += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
            before = row[None]
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    packed = zlib.compress(data)
    parts = [chunk(b"IDAT", packed[start : start + 100]) for start in range(0, len(packed), 100)]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + b"".join(parts) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("interlaced", [False, True], ids=["rows", "interlaced"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(13, 17), (1, 1), (3, 40)])
def test_sixteen_bits_of_png_are_those_of_libpng(
    channels: int, size: tuple[int, int], interlaced: bool, tmp_path: Path
) -> None:
    expected = random_pixels(channels, np.uint16, size)
    path = tmp_path / "a.png"
    path.write_bytes(png16(expected, interlaced))
    theirs = decode_image(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    assert np.array_equal(theirs.permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(decoded(path), expected)


@pytest.mark.parametrize("tiled", [False, True], ids=["strips", "tiles"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_of_tiff(channels: int, compression: str | None, order: Any, tiled: bool, tmp_path: Path) -> None:
    expected = random_pixels(channels, np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif",
        expected[..., 0] if channels == 1 else expected,
        photometric="minisblack" if channels == 1 else "rgb",
        compression=compression,
        byteorder=order,
        extrasamples=["unassalpha"] if channels == 4 else None,
        tile=(16, 16) if tiled else None,
    )
    assert np.array_equal(decoded(tmp_path / "a.tif"), expected)


def test_inverted_twelve_bit_and_premultiplied_tiff(tmp_path: Path) -> None:
    gray = random_pixels(1, np.uint16)
    tifffile.imwrite(tmp_path / "inverted.tif", gray[..., 0], photometric="miniswhite")
    assert np.array_equal(decoded(tmp_path / "inverted.tif"), 65535 - gray)
    colors, alpha = random_pixels(3, np.uint16).astype(float), random_pixels(1, np.uint16) // 2 + 30000
    stored = np.concatenate([np.round(colors * (alpha / 65535)), alpha], 2).astype(np.uint16)
    tifffile.imwrite(tmp_path / "premultiplied.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    found = decoded(tmp_path / "premultiplied.tif").astype(float)
    assert np.abs(found[..., :3] - colors).max() <= 2
    assert np.array_equal(found[..., 3:], alpha)


@pytest.mark.parametrize("plain", [False, True], ids=["binary", "plain"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("white", [65535, 1023, 300])
def test_sixteen_bits_of_ppm(channels: int, white: int, plain: bool, tmp_path: Path) -> None:
    values = RNG.integers(0, white + 1, (5, 6, channels), dtype=np.uint16)
    kind = {(1, False): b"P5", (3, False): b"P6", (1, True): b"P2", (3, True): b"P3"}[channels, plain]
    numbers = b" # a comment\n".join(b"%d" % value for value in values.flatten())
    content = kind + b"\n6 5\n%d\n" % white + (numbers if plain else values.astype(">u2").tobytes())
    (tmp_path / "a.ppm").write_bytes(content)
    found = decoded(tmp_path / "a.ppm")
    assert found.dtype == np.uint16
    assert np.abs(found - values.astype(float) * 65535 / white).max() <= 0.5


def test_classifiers_get_sixteen_bits_divided_by_257(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(np.arange(65536) / 257).reshape(256, 256)
    (tmp_path / "gray.png").write_bytes(png16(values[..., None]))
    (tmp_path / "color.png").write_bytes(png16(np.stack([values] * 3, 2)))
    Image.fromarray(values).save(tmp_path / "gray.tif")
    tifffile.imwrite(tmp_path / "color.tif", np.stack([values] * 3, 2), photometric="rgb")
    (tmp_path / "gray.pgm").write_bytes(b"P5 256 256 65535\n" + values.astype(">u2").tobytes())
    for path in tmp_path.iterdir():
        assert np.array_equal(read_image(path, 1), expected), path
        assert np.array_equal(read_image(path, 3), np.stack([expected] * 3, 2)), path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "16.png", "16.tif", "rgb16.png", "rgb16.tif"])
def test_every_orientation_is_applied_once(orientation: int, suffix: str, tmp_path: Path) -> None:
    bright = np.zeros((20, 36, 3), np.uint8)
    bright[:10, :18] = 255  # the upper left quarter
    stored = {  # what a camera stores for that to be upright, by the EXIF standard
        1: bright,
        2: bright[:, ::-1],
        3: bright[::-1, ::-1],
        4: bright[::-1],
        5: bright.swapaxes(0, 1),
        6: np.rot90(bright),
        7: bright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(bright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    if suffix == "rgb16.png":
        path.write_bytes(png16(stored.astype(np.uint16) * 257, chunks=chunk(b"eXIf", exif.tobytes()[6:])))
    elif suffix == "rgb16.tif":
        tags = [(274, "H", 1, orientation)]
        tifffile.imwrite(path, stored.astype(np.uint16) * 257, photometric="rgb", extratags=tags)
    else:
        image = np.ascontiguousarray(stored)
        image = image[..., 0].astype(np.uint16) * 257 if "16" in suffix else image
        Image.fromarray(image).save(path, exif=exif)
    found = np.asarray(read_image(path, 3)).astype(int)
    assert read_size(path) == found.shape[:2] == (20, 36)
    assert np.abs(found - bright).mean() < 10  # JPEG and WebP lose a little


def test_damaged_exif_leaves_the_pixels(tmp_path: Path) -> None:
    image = Image.fromarray(random_pixels(3))
    for exif in (b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        image.save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(read_image(tmp_path / "a.png", 3), image)


# -------------------------------------------------------------------------------------------------------- transparency


@pytest.mark.parametrize("ink", [0, 255], ids=["black", "white"])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P", "rgb", "gray", "16 bits", "gray 16 bits"])
def test_a_shape_in_the_alpha_channel_is_seen(mode: str, ink: int, tmp_path: Path) -> None:
    shape = RNG.integers(0, 2, (9, 8)).astype(bool)
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    if mode in ("16 bits", "gray 16 bits"):
        other = 1000 if ink else 60000  # a transparent color that is another than the ink
        pixels = np.where(shape, 257 * ink, other)[..., None].repeat(1 if "gray" in mode else 3, 2)
        transparent = struct.pack(">H", other) * pixels.shape[2]
        path.write_bytes(png16(pixels.astype(np.uint16), chunks=chunk(b"tRNS", transparent)))
    elif mode in ("rgb", "gray"):
        other = 4 if ink else 200
        gray = Image.fromarray(np.where(shape, ink, other).astype(np.uint8))
        image = gray if mode == "gray" else gray.convert("RGB")
        image.save(path, transparency=other if mode == "gray" else (other,) * 3)
    elif mode == "P":
        image = Image.fromarray(shape.astype(np.uint8))
        image = image.convert("P")
        image.putpalette([ink] * 6)
        image.save(path, transparency=0)
    else:
        alpha = Image.fromarray((255 * shape).astype(np.uint8))
        image = Image.new("L", (8, 9), ink).convert("LA" if mode == "LA" else "RGBA")
        image.putalpha(alpha)
        image.convert(mode).save(path)
    for channels in (1, 3):
        found = np.asarray(read_image(path, channels)).reshape(9, 8, channels)
        assert np.array_equal(found, np.where(shape, ink, 255 - ink)[..., None].repeat(channels, 2))


def test_half_transparent_colors_are_mixed_with_the_background(tmp_path: Path) -> None:
    pixels = random_pixels(4)
    pixels[..., :3] //= 3  # dark: on white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(read_image(tmp_path / "a.png", 3)) - expected).max() <= 0.5 + 1e-9
    black = np.abs(np.asarray(read_image(tmp_path / "a.png", 3, background=0)) - pixels[..., :3] * alpha)
    assert black.max() <= 0.5 + 1e-9


# --------------------------------------------------------------------------------------------------------- conversions


def test_other_color_spaces_become_rgb(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(random_pixels(3, size=(3, 3)) // 2 + 64).resize((24, 18)))
    image = Image.fromarray(smooth)
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    image.convert("YCbCr").save(tmp_path / "ycbcr.tif")
    ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB").save(tmp_path / "lab.tif")  # type: ignore[union-attr]
    image.quantize(256).save(tmp_path / "palette.gif")
    for path in tmp_path.iterdir():
        assert np.abs(decoded(path) - smooth.astype(int)).mean() < 4, path
    image.convert("1").save(tmp_path / "bits.png")
    assert np.array_equal(decoded(tmp_path / "bits.png")[..., 0], np.asarray(image.convert("1")) * 255)


def test_the_first_frame_is_the_image(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), color) for color in ("red", "blue")]
    for suffix in ("gif", "png", "webp", "tif"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=100)
        found = np.asarray(read_image(tmp_path / f"a.{suffix}", 3)).astype(int)
        assert np.abs(found - (255, 0, 0)).max() <= 2, suffix


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_is_no_share_of_white_is_refused_by_name(tmp_path: Path) -> None:
    gray = random_pixels(1, np.uint8)[..., 0]
    color = random_pixels(3, np.uint16)
    for dtype, reason in {
        "float16": "floating point",
        "float32": "floating point",
        "float64": "floating point",
        "uint32": "integers of 32 bits",
        "int32": "integers of 32 bits",
        "int16": "with a sign",
        "int8": "with a sign",
    }.items():
        tifffile.imwrite(tmp_path / "a.tif", gray.astype(dtype))
        with pytest.raises(ValueError, match=rf"image .*a.tif cannot be read: its pixels are .*{reason}"):
            read_image(tmp_path / "a.tif", 3)
    tifffile.imwrite(tmp_path / "a.tif", color.astype("float32"), photometric="rgb")
    with pytest.raises(ValueError, match=r"image .*a.tif cannot be read: its pixels are floating point \(32 \+ 32"):
        read_image(tmp_path / "a.tif", 3)
    for dtype in ("int8", "int16"):
        tifffile.imwrite(tmp_path / "a.tif", color.astype(dtype), photometric="rgb")
        with pytest.raises(ValueError, match=r"image .*a.tif cannot be read: its pixels are integers with a sign"):
            read_image(tmp_path / "a.tif", 3)
    Image.fromarray(gray.astype("float32")).save(tmp_path / "a.pfm")
    with pytest.raises(ValueError, match=r"image .*a.pfm cannot be read: its pixels are floating point"):
        read_image(tmp_path / "a.pfm", 3)
    for compression in (None, "zlib"):
        planes = color.transpose(2, 0, 1).copy()
        tifffile.imwrite(
            tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", compression=compression
        )
        with pytest.raises(ValueError, match=r"a.tif cannot be read: its colors of 16 bits lie in separate planes"):
            read_image(tmp_path / "a.tif", 3)


def test_postscript_is_refused_whatever_its_name_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands it to Ghostscript, where that is installed."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("a program was run"))
    for name in ("a.eps", "a.png", "a"):
        Image.new("RGB", (8, 8)).save(path := tmp_path / name, "EPS")
        with pytest.raises(ValueError, match=re.escape(f"image {path} cannot be read: ") + ".* not known"):
            read_image(path, 3)


def test_bombs_truncated_files_and_pipes_are_named(tmp_path: Path) -> None:
    pixels = random_pixels(3, size=(60, 60))
    for suffix in ("png", "jpg", "tif", "webp", "gif", "bmp", "ppm", "16.png"):
        path = tmp_path / f"a.{suffix}"
        if suffix == "16.png":
            path.write_bytes(png16(pixels.astype(np.uint16)))
        else:
            Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(ValueError, match=rf"image .*a.{suffix} cannot be read: \S"):
            read_image(path, 3)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 16, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    )
    os.mkfifo(tmp_path / "pipe.png")
    flipped = bytearray(png16(random_pixels(3, np.uint16)))
    flipped[-40] ^= 1
    (tmp_path / "flipped.png").write_bytes(flipped)
    for name, reason in {"bomb": "exceeds limit", "pipe": "it is no regular file", "flipped": "damaged"}.items():
        with pytest.raises(ValueError, match=rf"image .*{name}.png cannot be read: .*{reason}"):
            read_image(tmp_path / f"{name}.png", 3)


# ------------------------------------------------------------------------------------------------------- damaged files


def samples() -> Iterator[tuple[str, bytes]]:
    """A small file of every kind."""
    small = Image.fromarray(random_pixels(4, size=(12, 16)))
    frames = [small.rotate(turn) for turn in (90, 180)]
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *(("png", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("tif", mode, {}) for mode in ("RGB", "RGBA", "CMYK", "YCbCr", "I;16", "P")),
        *(("tif", "RGB", {"compression": kind}) for kind in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")),
        ("tif", "1", {"compression": "group4"}),
        *(("jpg", mode, {"progressive": mode == "RGB"}) for mode in ("L", "RGB", "CMYK")),
        *(("webp", "RGBA", {"lossless": lossless}) for lossless in (False, True)),
        *((suffix, "RGBA", {"save_all": True, "append_images": frames}) for suffix in ("png", "gif", "webp", "tif")),
        *((suffix, "RGB", {}) for suffix in ("gif", "bmp", "dib", "ppm", "tga", "pcx", "sgi", "im", "mpo")),
        *((suffix, "RGB", {}) for suffix in ("jp2", "ico", "icns", "dds", "avif")),
        *(("tga", mode, {"compression": "tga_rle"}) for mode in ("P", "RGBA")),
        *((suffix, "1", {}) for suffix in ("xbm", "msp")),
    ]
    for suffix, mode, options in kinds:
        image = small if mode == "RGBA" else small.convert("L" if mode == "I;16" else "RGB").convert(mode)
        file = io.BytesIO()
        image.save(file, Image.registered_extensions()[f".{suffix}"], **options)
        yield f"{suffix} {mode} {' '.join(options)}", file.getvalue()
    for channels, interlaced in itertools.product((1, 2, 3, 4), (False, True)):
        yield f"png of 16 bits, {channels}", png16(random_pixels(channels, np.uint16), interlaced)
    for compression, order in itertools.product((None, "zlib"), "<>"):
        file = io.BytesIO()
        tifffile.imwrite(file, random_pixels(4, np.uint16), photometric="rgb", compression=compression, byteorder=order)  # type: ignore[arg-type]
        yield f"tif of 16 bits, {compression}", file.getvalue()
    yield "ppm of 16 bits", b"P6 16 12 65535\n" + random_pixels(6, size=(12, 16)).tobytes()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """With bytes changed, cut off, left out or repeated; often the check sums of PNG fit again."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(changed))
        match rng.randrange(8):
            case 0:
                del changed[place : place + rng.randrange(1, 9)]
            case 1:
                changed[place:place] = changed[place : place + rng.randrange(1, 9)]
            case 2:
                changed[place] = rng.choice((0, 1, 127, 128, 255))
            case _:
                changed[place] ^= 1 << rng.randrange(8)
        if len(changed) < 8:
            break
    if rng.randrange(8) == 0:
        del changed[rng.randrange(len(changed)) :]
    if changed.startswith(b"\x89PNG\r\n\x1a\n") and rng.randrange(4):
        place = 8
        while place + 12 <= len(changed):
            end = place + 8 + int.from_bytes(changed[place : place + 4])
            if end + 4 <= len(changed):
                changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[place + 4 : end]))
            place = end + 4
    return bytes(changed)


COUNT = 1000  # of each format, in equal parts of its kinds


def read_damaged(seed: int, count: int, folder: Path) -> None:
    """In a process that shall be there in the end: all damaged files are read, or refused with a ValueError."""
    from adderzoo.data.photos import read_photo

    Image.MAX_IMAGE_PIXELS = 100_000  # all the same, but fast
    rng, path, read, files = random.Random(seed), folder / "damaged", 0, 0
    kinds = list(samples())
    formats = Counter(name.split()[0] for name, _ in kinds)
    for name, content in kinds:
        for index in range(math.ceil(count / formats[name.split()[0]])):
            (folder / "last.txt").write_text(f"{name}, {index}")
            path.write_bytes(damaged(content, rng))
            for reader in (read_photo, lambda path: read_image(path, 3), read_size):
                try:
                    reader(path)
                    read += 1
                except ValueError as error:
                    if str(path) not in str(error):
                        raise
            files += 1
    print(f"{files} damaged files; {read} readings came to an end")


def test_damaged_files_of_every_format_end_no_process(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    command = f"from test_pixels import *; read_damaged({seed}, {COUNT}, Path({str(tmp_path)!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", command], env=environment, capture_output=True, text=True, timeout=500
    )
    last = (tmp_path / "last.txt").read_text()
    assert done.returncode == 0, (seed, last, done.stderr[-2000:])
    print(done.stdout)
