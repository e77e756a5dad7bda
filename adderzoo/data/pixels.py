"""The one decoder of image files, under every command: upright pixels of 8 or 16 bits, gray or RGB, with or without
alpha.

Decoding is Pillow's, which checks the bytes that it is given. Of 16-bit colors Pillow keeps the upper bytes; here it
decodes such a file twice, once for each half.
"""

import io
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from .folders import image_formats

_MODES = {1: "L", 3: "RGB"}
_GRAY = ("1", "L", "LA", "La")
# What decoders of bytes put into a pixel of 16-bit colors, and the mode of Pillow that has its samples.
_COLORS16 = {"RGB": "RGB", "RGBA": "RGBA", "RGBX": "RGBA", "RGBa": "RGBA"}
# Formats whose gray values of 16 bits are shares of white; None is an image that comes from no file.
_WHITE16 = (None, "IM", "JPEG2000", "PNG", "PPM", "TIFF")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF


@dataclass(frozen=True)
class Pixels:
    """What an image shows.

    Attributes:
        color: (H, W, 3), RGB, or (H, W, 1), gray; uint8 or uint16, from black, 0, to white, the largest value; or, of
            what comes from no file, float32, from black, 0, to white, 1.
        alpha: (H, W, 1), of the same type, from transparent, 0, to opaque; or None.
    """

    color: np.ndarray
    alpha: np.ndarray | None = None


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image file, opened by Pillow; whatever goes wrong in the block becomes an error that names it.

    Raises:
        ValueError: naming the file, if it is none, it is damaged, truncated, of an unknown format, or too large: more
            than twice Pillow's `MAX_IMAGE_PIXELS`, which a small file can claim to be.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no regular file")
        # By its name Pillow would map some files into memory: a TIFF that is to be turned in a wrong way, and one that
        # shrinks meanwhile would end the process.
        with path.open("rb") as file, Image.open(file, formats=image_formats()) as image:
            if image.format == "PNG":
                _check_png(path)
            yield image
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"image {path} cannot be read: {_unknown(path)}") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise ValueError(f"image {path} cannot be read: {error or type(error).__name__}") from error


def _check_png(path: Path) -> None:
    """Compare the check sums of the pixels, which Pillow leaves out (ISO/IEC 15948)."""
    with path.open("rb") as file:
        file.seek(8)
        kind = b""
        while kind != b"IEND":
            header = file.read(8)
            if len(header) < 8:
                raise ValueError("image file is truncated")
            length, kind = int.from_bytes(header[:4]), header[4:]
            if kind not in (b"IDAT", b"fdAT"):
                file.seek(length + 4, 1)
            elif zlib.crc32(file.read(length), zlib.crc32(kind)) != int.from_bytes(file.read(4)):
                raise ValueError("its pixels are damaged, or truncated")


def _unknown(path: Path) -> str:
    """What keeps Pillow from opening a file."""
    with path.open("rb") as file, suppress(Exception):
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        kinds = {1: "integers", 2: "integers with a sign", 3: "floating point"}
        kind = kinds.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "of an unknown kind")
        bits = " + ".join(map(str, tags[_BITS_PER_SAMPLE]))
        return f"its pixels are {kind} ({bits} bits), which are not taken, or it is damaged"
    return "it is damaged, or of a format that is not known"


def read_pixels(image: Image.Image) -> Pixels:
    """The frame that an image file is at, turned upright if its EXIF orientation says so.

    Palettes, CMYK, YCbCr and LAB become RGB, single bits gray. Gray of 16 bits stays so, as do colors of 16 bits in
    PNG, TIFF and PPM; other formats' colors of more than 8 bits come as 8.

    Raises:
        ValueError: if the pixels are no shares of white: floating point, or integers of 32 bits or with a sign.
        Exception: nearly any of Pillow's, if the file is damaged.
    """
    check_size(image.size)
    channels = _sixteen_bits(image)
    if channels is None:
        channels = _eight_bits(image)
    channels = _upright(channels, orientation(image))
    colors = 1 if channels.shape[2] < 3 else 3
    return Pixels(channels[..., :colors], channels[..., colors:] if channels.shape[2] > colors else None)


def check_size(*sizes: tuple[int, int]) -> None:
    """Refuse what a small file can claim to hold: Pillow looks at the first frame alone.

    Raises:
        ValueError: if there are more pixels than in any one image that Pillow opens.
    """
    pixels = sum(width * height for width, height in sizes)
    if Image.MAX_IMAGE_PIXELS and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        frames = f" in {len(sizes)} frames" if len(sizes) > 1 else ""
        raise ValueError(f"it has {pixels:,} pixels{frames}, more than {2 * Image.MAX_IMAGE_PIXELS:,}")


def orientation(image: Image.Image) -> int:
    """How the EXIF of an image says that it has to be turned, from 1, not at all, to 8."""
    if image.format == "TIFF":  # which Pillow turns itself
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF makes Pillow raise nearly anything; the pixels are there none the less
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # What has become the upper side and the left side is the lower or the right one.
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        orientation
    ]
    return np.ascontiguousarray(pixels[::rows, ::columns])


# ------------------------------------------------------------------------------------------------------------- 16 bits


def _sixteen_bits(image: Image.Image) -> np.ndarray | None:
    """(H, W, C) uint16 of an image that has so many; None of others."""
    layout, _, order = _raw_mode(image).partition(";")
    if image.format == "PNG" and image.tell() and order == "16B":  # which Pillow composes of 8
        raise ValueError("it is an animation of 16 bits, which cannot be read beyond its first frame")
    if image.format == "PPM" and layout and _maxval(image) > 255:
        return _ppm(image)
    if image.mode not in ("I", "F") and _signed(image):  # which Pillow takes for bytes
        raise ValueError("its pixels are integers with a sign, of which it is not known what is white")
    if image.format == "TIFF" and _in_planes(image.tag_v2):  # type: ignore[attr-defined]
        raise ValueError("its colors of 16 bits lie in separate planes, which cannot be read")
    if order == "16B" and layout == "LA":  # as if each byte was a channel
        pixels = _decoded(image, "RGBA", "RGBA").astype(np.uint16)
        return pixels[..., ::2] << 8 | pixels[..., 1::2]
    if order in ("16B", "16L", "16N") and layout in _COLORS16:
        return _transparent_color(_by_halves(image, layout, order), image.info)
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating point" if image.mode == "F" else "integers of 32 bits, or with a sign"
        raise ValueError(f"its pixels are {kind} (mode {image.mode}), of which it is not known what is white")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    if image.format not in _WHITE16:
        raise ValueError(f"its pixels are integers of {image.format}, of which it is not known what is white")
    pixels = np.array(image).clip(0, 65535).astype(np.uint16)[..., None]
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(_BITS_PER_SAMPLE) == (12,):
            pixels = ((pixels.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
        if tags.get(_PHOTOMETRIC) == 0:  # which Pillow heeds up to 8 bits
            pixels = 65535 - pixels
    return _transparent_color(pixels, image.info)


def _raw_mode(image: Image.Image) -> str:
    """How the bytes that a decoder makes of the file hold the pixels, of an image that is not loaded yet."""
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    args = args[0] if isinstance(args, tuple) and args else args
    return args if isinstance(args, str) else ""


def _decoded(image: Image.Image, mode: str, raw_mode: str) -> np.ndarray:
    """(H, W, C) uint8: an image of its own of the same file, whose bytes are unpacked in another way."""
    with _file_again(image) as file, Image.open(file) as again:
        again.seek(image.tell())
        again._mode = mode
        again.tile = [
            tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
            for tile in again.tile
        ]
        return np.array(again)


def _file_again(image: Image.Image) -> BinaryIO:
    """The file of an image that is not loaded yet, with a position of its own."""
    file: Any = image.fp  # type: ignore[attr-defined]
    if isinstance(getattr(file, "name", None), str):
        return open(file.name, "rb")
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return io.BytesIO(content)


def _signed(image: Image.Image) -> bool:
    return image.format == "TIFF" and 2 in image.tag_v2.get(_SAMPLE_FORMAT, ())  # type: ignore[attr-defined]


def _in_planes(tags: Any) -> bool:
    """Of 16 bits, which Pillow takes for 8."""
    return tags.get(_PLANES) == 2 and len(tags.get(_BITS_PER_SAMPLE, ())) > 1 and 16 in tags[_BITS_PER_SAMPLE]


def _by_halves(image: Image.Image, layout: str, order: str) -> np.ndarray:
    mode = _COLORS16[layout]
    if order == "16N":
        order = "16L" if sys.byteorder == "little" else "16B"
    upper, lower = (_decoded(image, mode, f"{mode};{half}") for half in (order, {"16L": "16B", "16B": "16L"}[order]))
    pixels = upper.astype(np.uint16) << 8 | lower
    if layout == "RGBX":
        return pixels[..., :3]
    if layout == "RGBa":  # colors that are multiplied by alpha
        alpha = pixels[..., 3:].astype(np.uint64)
        color = (pixels[..., :3] * np.uint64(65535) + alpha // 2) // np.maximum(alpha, 1)
        pixels[..., :3] = color.clip(0, 65535)
    return pixels


def _transparent_color(pixels: np.ndarray, info: dict[Any, Any]) -> np.ndarray:
    """With alpha where PNG names a transparent color."""
    color = info.get("transparency")
    if color is None:
        return pixels
    alpha = np.where((pixels == np.array(color, np.uint16)).all(2, keepdims=True), 0, 65535).astype(np.uint16)
    return np.concatenate([pixels, alpha], 2)


def _maxval(image: Image.Image) -> int:
    """The value of white in a PPM or PGM that Pillow unpacks by itself, or has to decode; 0 of other images."""
    decoder, _, _, args = image.tile[0]  # type: ignore[attr-defined]
    return args[1] if decoder.startswith("ppm") else 65535 if "I;16B" in args else 0


def _ppm(image: Image.Image) -> np.ndarray:
    channels = 3 if image.mode == "RGB" else 1
    decoder, (_, _, width, height), offset, _ = image.tile[0]  # type: ignore[attr-defined]
    count = channels * width * height
    with _file_again(image) as file:
        file.seek(offset)
        data = file.read() if decoder == "ppm_plain" else file.read(2 * count)
    if decoder == "ppm_plain":  # numbers in letters, and comments
        values = np.array(re.sub(rb"#[^\r\n]*", b" ", data).split()[:count]).astype(np.uint32)
    else:
        values = np.frombuffer(data, ">u2").astype(np.uint32)
    if len(values) != count:
        raise ValueError("image file is truncated")
    white = _maxval(image)
    return ((values.clip(0, white) * 65535 + white // 2) // white).astype(np.uint16).reshape(height, width, channels)


# -------------------------------------------------------------------------------------------------------------- 8 bits


def _eight_bits(image: Image.Image) -> np.ndarray:
    """(H, W, C) uint8 of an image of any other mode."""
    image.load()
    if image.mode == "LAB":
        lab, rgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None
        image = converted
    mode = "L" if image.mode in _GRAY else "RGB"
    if image.has_transparency_data:
        mode = {"L": "LA", "RGB": "RGBA"}[mode]
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


# --------------------------------------------------------------------------------------------------------- classifiers


def image_mode(channels: int) -> str:
    """PIL's mode of images for a network with so many input channels.

    Raises:
        ValueError: if they are neither 1 nor 3.
    """
    if channels not in _MODES:
        raise ValueError(f"the network's input must have 1 or 3 channels to be fed with images, got {channels}")
    return _MODES[channels]


def read_image(path: Path, channels: int, background: int | None = None) -> Image.Image:
    """An image for a network with 1 or 3 input channels: see :func:`read_pixels`, and :func:`opaque_image`.

    Of an animation, or several pages, it is the first.

    Raises:
        ValueError: naming the file, as :func:`open_image` and :func:`read_pixels`; or if `channels` is neither 1 nor 3.
    """
    mode = image_mode(channels)
    with open_image(path) as image:
        return opaque_image(read_pixels(image), background).convert(mode)


def opaque_image(pixels: Pixels, background: int | None = None) -> Image.Image:
    """Pixels of 8 bits, without alpha, as a PIL image of mode "L" or "RGB".

    16 bits are divided by 257 and rounded. Behind transparent pixels is white, or black if what is visible is light (of
    a mean above half of white): a shape that is drawn in one color is seen either way.

    Args:
        pixels: What the image shows.
        background: From 0, black, to 255, white; None for as above.
    """
    color, alpha = (None if part is None else to_bytes(part) for part in (pixels.color, pixels.alpha))
    assert color is not None
    if alpha is not None and alpha.min() < 255:
        shares = alpha.astype(np.uint32)
        if background is None:
            visible = int(shares.sum()) * color.shape[2]
            background = 0 if 2 * int((color * shares).sum(dtype=np.uint64)) > 255 * visible else 255
        color = ((color * shares + background * (255 - shares) + 127) // 255).astype(np.uint8)
    return Image.fromarray(color[..., 0] if color.shape[2] == 1 else color)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """8 bits: of 16 divided by 257 and rounded, of float in [0, 1] times 255 and rounded; 8 stay as they are."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.float32:
        return np.rint(values * 255).astype(np.uint8)
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` gives it, of which the header alone is read.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    with open_image(path) as image:
        turned = orientation(image) >= 5  # by a quarter
        return (image.width, image.height) if turned else (image.height, image.width)
