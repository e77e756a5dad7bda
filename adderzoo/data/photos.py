"""Photographs as they lie on disk, and back: grey or colour, with or without alpha, of 8 or 16 bits."""

import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_PNG = b"\x89PNG\r\n\x1a\n"
_WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class Photo:
    """An image.

    Attributes:
        color: (3, H, W), RGB, or (1, H, W), grey; uint8 or uint16.
        alpha: (1, H, W), of the same type, or None.
        icc_profile: What the colours mean, if the file says so.
    """

    color: Tensor
    alpha: Tensor | None = None
    icc_profile: bytes | None = None


def read_photo(path: Path) -> Photo:
    """An image file, turned upright if its EXIF orientation says so.

    Palettes become colours, CMYK becomes RGB. 16 bits are those of PNG, and of grey TIFF.

    Raises:
        ValueError: naming the file, if it cannot be read, or its pixels are no shares of white (32 bits, float).
    """
    try:
        content = path.read_bytes()
        if content.startswith(_PNG) and content[24] == 16:  # PIL makes bytes of 16-bit colours
            with Image.open(path) as header:
                icc_profile = header.info.get("icc_profile")
            return _photo(_decode16(content), icc_profile)
        with Image.open(path) as file:
            icc_profile = file.info.get("icc_profile")
            image = ImageOps.exif_transpose(file)
            mode = _mode(image)
            if mode == "RGB" and image.mode == "CMYK":
                icc_profile = None  # it is that of the inks
            pixels = np.array(image if mode == image.mode else image.convert(mode))
    except Exception as error:  # a damaged file makes PIL raise nearly anything
        raise ValueError(f"image {path} cannot be read: {error}") from error
    if pixels.dtype.newbyteorder("=") == np.uint16:  # of either byte order
        pixels = pixels.astype(np.uint16)
    return _photo(torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1), icc_profile)


def _decode16(content: bytes) -> Tensor:
    """A 16-bit PNG, as (C, H, W)."""
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError as error:
        raise ValueError(f"16-bit PNG needs a torchvision that decodes images: {error}") from error
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # in favour of a package for videos
        return decode_image(data, ImageReadMode.UNCHANGED, apply_exif_orientation=True)


def _mode(image: Image.Image) -> str:
    """The one of PIL's modes that an image is read in."""
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}), of which it is not known what is white")
    if image.mode.startswith("I;16") or image.mode in ("L", "LA", "RGB", "RGBA"):
        return image.mode
    if image.mode == "1":
        return "L"
    return "RGBA" if image.has_transparency_data else "RGB"


def _photo(channels: Tensor, icc_profile: bytes | None) -> Photo:
    """Of (C, H, W): one or three colours, then alpha."""
    colors = 1 if len(channels) < 3 else 3
    return Photo(channels[:colors], channels[colors:] if len(channels) > colors else None, icc_profile)


def check_photo_path(path: Path) -> None:
    """Refuse a name by which no image can be written, before there is one.

    Raises:
        ValueError: naming the extension.
    """
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"OUT must end as an image file does, such as .png or .jpg, got {path}")


def write_photo(photo: Photo, path: Path) -> None:
    """Write an image file, of the format that its name ends in; 16 bits as PNG alone, else 8.

    Raises:
        ValueError: if the format has no alpha channel, and the image has one, or the name is no image file's.
        OSError: if the file cannot be written.
    """
    check_photo_path(path)
    suffix = path.suffix.lower()
    if photo.alpha is not None and suffix in _WITHOUT_ALPHA:
        raise ValueError(f"OUT must end in .png, .webp or .tif to keep the image's alpha channel, got {path}")
    channels = photo.color if photo.alpha is None else torch.cat([photo.color, photo.alpha])
    pixels = channels.permute(1, 2, 0).contiguous().numpy()
    if pixels.dtype == np.uint16:
        if suffix == ".png":
            path.write_bytes(_png16(pixels, photo.icc_profile))
            return
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if suffix in (".jpg", ".jpeg") else {}
    try:
        image.save(path, icc_profile=photo.icc_profile, **options)
    except (KeyError, ValueError) as error:  # a format that PIL reads only, or that has no such images
        raise ValueError(f"{path} cannot be written: {error}") from error


def _png16(pixels: np.ndarray, icc_profile: bytes | None) -> bytes:
    """(H, W, C) of 16 bits as PNG (ISO/IEC 15948), which PIL writes in grey only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    samples = pixels.astype(">u2").reshape(height, width, channels).view(np.uint8).reshape(height, width, -1)
    # Filter 1, the difference from the pixel on the left, which packs far better than the pixels themselves.
    rows = samples.copy()
    rows[:, 1:] -= samples[:, :-1]
    lines = np.concatenate([np.ones((height, 1), np.uint8), rows.reshape(height, -1)], 1)
    profile = chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)) if icc_profile else b""
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        _PNG
        + chunk(b"IHDR", header)
        + profile
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
