"""Photographs as they lie on disk, and back: pixels, by :mod:`adderzoo.data.pixels`, and what a file says besides."""

import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, TiffImagePlugin
from torch import Tensor

from adderzoo.files.output import check_image_output

from .pixels import check_size, open_image, read_pixels, to_bytes

_PNG = b"\x89PNG\r\n\x1a\n"
_ONE_PICTURE = ("MPO", "PSD")  # formats whose other frames are parts of the first, or more of it
_ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")  # formats that keep the timing of frames
_BLOCK = 256  # pixels a side
_EXIF_OF_TIFF = {  # among the tags that say how its pixels are stored
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Copyright,
}


@dataclass(frozen=True)
class Animation:
    """How frames are shown.

    Attributes:
        durations: Milliseconds, of each frame.
        plays: How many times all are shown; 0 is without end.
        still: The first frame is no part of it, but what programs show that know no animations (PNG).
    """

    durations: tuple[float, ...]
    plays: int = 0
    still: bool = False


@dataclass(frozen=True)
class Photo:
    """An image: its only frame or its first, what else the file says, and the other frames.

    Attributes:
        color: (3, H, W), RGB, or (1, H, W), gray; uint8 or uint16, or, of what comes from no file, float in [0, 1].
        alpha: (1, H, W), of the same type, or None.
        icc_profile: What the colors mean, if the file says so.
        exif: Of the camera and its owner, without the orientation, which is applied.
        dpi: Pixels an inch, across and down.
        others: Further frames of an animation, or pages.
        animation: Their timing; pages have none.
    """

    color: Tensor
    alpha: Tensor | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    others: tuple["Photo", ...] = ()
    animation: Animation | None = None

    @property
    def frames(self) -> tuple["Photo", ...]:
        """All of them."""
        return (self, *self.others)


def read_photo(path: Path) -> Photo:
    """An image file, with all frames of an animation and all pages; turned upright if its EXIF orientation says so.

    The pixels are those of :func:`adderzoo.data.pixels.read_pixels`. Of an MPO, as telephones write, and a PSD, it is
    the picture alone.

    Raises:
        ValueError: naming the file, if it cannot be read, its pixels are no shares of white (32 bits, float), or all
            frames together have more pixels than one image may have.
    """
    with open_image(path) as image:
        count = 1 if image.format in _ONE_PICTURE else getattr(image, "n_frames", 1)
        frames, sizes, durations = [], [], []
        for index in range(count):
            if count > 1:
                image.seek(index)
            sizes.append(image.size)
            check_size(*sizes)
            frames.append(_read_frame(image))
            durations.append(image.info.get("duration"))
        timed = [duration for duration in durations if duration is not None]
        if count == 1 or not (timed or image.format in _ANIMATIONS):
            return replace(frames[0], others=tuple(frames[1:]))
        animation = Animation(
            tuple(float(duration or 0) for duration in durations), _plays(image), getattr(image, "default_image", False)
        )
        return replace(frames[0], others=tuple(frames[1:]), animation=animation)


def _plays(image: Image.Image) -> int:
    loop = image.info.get("loop")
    if image.format == "GIF":  # which counts what follows the first time, and does without for once
        return 1 if loop is None else loop and loop + 1
    return loop or 0


def _read_frame(image: Image.Image) -> Photo:
    pixels = read_pixels(image)
    color, alpha = (
        None if part is None else torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))
        for part in (pixels.color, pixels.alpha)
    )
    assert color is not None
    icc_profile = image.info.get("icc_profile")
    space = b"GRAY" if len(color) == 1 else b"RGB "
    if icc_profile is not None and icc_profile[16:20] != space:  # that of the inks, as an example
        icc_profile = None
    return Photo(color, alpha, icc_profile, _read_exif(image), _read_dpi(image))


def _read_exif(image: Image.Image) -> bytes | None:
    exif = Image.Exif()
    try:
        found = image.getexif()
        parts = {kind: dict(found.get_ifd(kind)) for kind in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
        for tag, value in found.items():
            if tag not in (*parts, ExifTags.Base.Orientation) and (image.format != "TIFF" or tag in _EXIF_OF_TIFF):
                exif[tag] = value
        for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight):  # no longer true
            parts[ExifTags.IFD.Exif].pop(tag, None)
        for kind, values in parts.items():
            if values:
                exif[kind] = values
        return exif.tobytes() if len(exif) else None
    except Exception:  # damaged EXIF makes Pillow raise nearly anything; the pixels are there none the less
        return None


def _read_dpi(image: Image.Image) -> tuple[float, float] | None:
    if image.format == "TIFF" and TiffImagePlugin.X_RESOLUTION not in image.tag_v2:  # type: ignore[attr-defined]
        return None  # Pillow's is 1
    try:
        across, down = (float(value) for value in image.info["dpi"])
    except (ArithmeticError, KeyError, TypeError, ValueError):  # none, or nonsense
        return None
    return (across, down) if 0 < across < math.inf and 0 < down < math.inf else None


def spread_colors(color: Tensor, alpha: Tensor, distance: int) -> Tensor:
    """An image with the visible colors spread into transparent pixels, whose own colors nobody was to see.

    A transparent pixel becomes the mean of its neighbors, of eight, that are visible or have got a color before;
    so, layer by layer, up to `distance` pixels from what is visible.

    Args:
        color: (C, H, W), uint8, uint16 or float.
        alpha: (1, H, W).
        distance: In pixels.
    """
    result, visible = color.clone(), alpha[0].numpy() > 0
    for part in _blocks(*visible.shape):
        if visible[part].all():
            continue
        # All that reaches it; a block at a time bounds the memory, and most are visible or far from what is.
        around = tuple(slice(max(side.start - distance, 0), side.stop + distance) for side in part)
        if visible[around].any():
            inner = tuple(
                slice(side.start - outer.start, side.stop - outer.start)
                for side, outer in zip(part, around, strict=True)
            )
            pixels = _spread(color[:, *around].numpy(), visible[around], distance)
            result[:, *part] = torch.from_numpy(pixels[:, *inner])
    return result


def _blocks(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top, left in itertools.product(range(0, height, _BLOCK), range(0, width, _BLOCK)):
        yield slice(top, min(top + _BLOCK, height)), slice(left, min(left + _BLOCK, width))


def _spread(color: np.ndarray, visible: np.ndarray, distance: int) -> np.ndarray:
    known = np.pad(visible, 1)
    color = np.pad(color, ((0, 0), (1, 1), (1, 1)))
    for _ in range(distance):
        grown = known[:-2] | known[1:-1] | known[2:]
        grown = np.pad(grown[:, :-2] | grown[:, 1:-1] | grown[:, 2:], 1)
        rows, columns = np.nonzero(grown & ~known)
        if not len(rows):
            break
        is_float = color.dtype.kind == "f"
        count = np.zeros(len(rows), np.uint32)
        total = np.zeros((len(color), len(rows)), color.dtype if is_float else np.uint32)
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            there = (rows + down, columns + right)
            count += known[there]
            total += color[:, *there] * known[there]
        color[:, rows, columns] = total / count if is_float else (total + count // 2) // count
        known = grown
    return color[:, 1:-1, 1:-1]


def check_photo(photo: Photo, path: Path, scale: int = 1) -> None:
    """Refuse a file that cannot hold an image, before it is made larger.

    Args:
        photo: The image.
        path: File to write.
        scale: How many times as large it will be.

    Raises:
        ValueError: as :func:`adderzoo.files.output.check_image_output`; if the format has no frames, no pages or no
            timing of frames, and the image has.
        OSError: as :func:`adderzoo.files.output.check_image_output`.
    """
    height, width = (scale * side for side in photo.color.shape[1:])
    has_alpha = any(frame.alpha is not None for frame in photo.frames)
    alpha = "A" if has_alpha and path.suffix.lower() != ".gif" else ""  # whose pixels are transparent or not
    check_image_output(path, "OUT", (width, height), ("L" if len(photo.color) == 1 else "RGB") + alpha)
    if not photo.others:
        return
    kind = _format(path)
    count = len(photo.frames)
    if photo.animation is None:
        if kind != "TIFF":
            raise ValueError(f"OUT must end in .tif to keep the image's {count} pages, got {path}")
    elif kind not in _ANIMATIONS or (kind == "AVIF" and photo.animation.plays):  # AVIF is shown without end
        raise ValueError(f"OUT must end in .png, .webp or .gif to keep the image's {count} frames, got {path}")


def loses_bits(photo: Photo, path: Path) -> bool:
    """Whether 16 bits become 8 in a file of that name."""
    return photo.color.dtype == torch.uint16 and _format(path) not in ("PNG", "TIFF")


def _format(path: Path) -> str:
    return Image.registered_extensions()[path.suffix.lower()]


def written_frames(photo: Photo, path: Path) -> tuple[Photo, ...]:
    """The frames that a file of that name has: without a PNG's still image that is no part of its animation."""
    hidden = photo.animation is not None and photo.animation.still and _format(path) != "PNG"
    return photo.others if hidden else photo.frames


def write_photo(photo: Photo, path: Path) -> None:
    """Write an image file, of the format that its name ends in; 16 bits as PNG or TIFF alone, else 8.

    GIF has at most 256 colors a frame, and pixels that are transparent or not. A PNG's still image that is no part of
    its animation is left out elsewhere.

    Raises:
        ValueError: as :func:`check_photo`.
        OSError: if the file cannot be written.
    """
    check_photo(photo, path)
    kind = _format(path)
    try:
        if kind == "TIFF":
            _write_tiff(photo, path)
        elif kind == "PNG" and photo.color.dtype == torch.uint16 and not photo.others:
            path.write_bytes(_png16(photo))
        else:
            images = [_image(frame) for frame in written_frames(photo, path)]
            if kind == "GIF":
                images = [_without_half_tones(image) for image in images]
            options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
            images[0].save(path, **options, **_about(photo), **_timing(photo, images[1:], kind))
    except (KeyError, ValueError) as error:  # a format that PIL reads only, or that has no such images
        raise ValueError(f"{path} cannot be written: {error}") from error


def _about(photo: Photo) -> dict[str, Any]:
    """What a file says besides the pixels, as Pillow takes it."""
    about = {"icc_profile": photo.icc_profile, "exif": photo.exif, "dpi": photo.dpi}
    return {key: value for key, value in about.items() if value is not None}


def _timing(photo: Photo, others: list[Image.Image], kind: str) -> dict[str, Any]:
    animation = photo.animation
    if animation is None:
        return {}
    durations, plays = list(animation.durations), animation.plays
    options: dict[str, Any] = {"save_all": True, "append_images": others}
    if kind == "PNG":
        options |= {"default_image": animation.still}
    if animation.still:
        durations = durations[1:]
    if kind == "GIF":
        options |= {"disposal": 2, "optimize": False}
        plays -= 1
    if kind != "PNG":  # which has fractions
        durations = [round(duration) for duration in durations]
    return options | {"duration": durations} | ({"loop": max(plays, 0)} if kind != "GIF" or plays else {})


def _pixels(photo: Photo) -> np.ndarray:
    """(H, W, C), with alpha where there is one."""
    channels = photo.color if photo.alpha is None else torch.cat([photo.color, photo.alpha])
    return channels.permute(1, 2, 0).contiguous().numpy()


def _image(photo: Photo) -> Image.Image:
    """A frame of 8 bits."""
    pixels = to_bytes(_pixels(photo))
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _without_half_tones(image: Image.Image) -> Image.Image:
    if "A" in image.getbands():
        image.putalpha(image.getchannel("A").point(lambda value: 255 if value >= 128 else 0))
    return image


def _write_tiff(photo: Photo, path: Path) -> None:
    with TiffImagePlugin.AppendingTiffWriter(path, new=True) as file:
        for index, page in enumerate(photo.frames):
            if index:
                page = replace(page, exif=_without_parts(page.exif))
            if page.color.dtype == torch.uint16:
                _tiff16(page, file)
            else:
                _image(page).save(file, "TIFF", **_about(page))
            file.newFrame()


def _without_parts(content: bytes | None) -> bytes | None:
    """EXIF without its parts: Pillow's pointers to those of a second page go wrong."""
    exif = Image.Exif()
    exif.load(content or b"")
    for kind in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        exif.pop(kind, None)
    return exif.tobytes() if len(exif) else None


def _tiff16(photo: Photo, file: Any) -> None:
    """A page of 16 bits (TIFF 6.0), which PIL writes in gray only; with alpha in RGB, as PIL reads no other."""
    pixels = _pixels(replace(photo, color=photo.color.expand(3, -1, -1)) if photo.alpha is not None else photo)
    pixels = pixels.astype("<u2")
    height, width, channels = pixels.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    exif = Image.Exif()
    exif.load(photo.exif or b"")
    for tag in exif:
        tags[tag] = exif.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else exif[tag]
    data = zlib.compress(pixels.tobytes(), 6)
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = width, height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (16,) * channels
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    tags[TiffImagePlugin.COMPRESSION] = 8  # deflate
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if channels < 3 else 2
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags[TiffImagePlugin.STRIPOFFSETS], tags[TiffImagePlugin.STRIPBYTECOUNTS] = 0, len(data)  # 0: behind the tags
    if photo.alpha is not None:
        tags[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha, by which the colors are not multiplied
    if photo.dpi:
        tags[TiffImagePlugin.RESOLUTION_UNIT] = 2  # inch
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = photo.dpi
    if photo.icc_profile:
        tags[TiffImagePlugin.ICCPROFILE] = photo.icc_profile
    file.seek(tags.save(file))
    file.write(data)


def _png16(photo: Photo) -> bytes:
    """An image of 16 bits as PNG (ISO/IEC 15948), which PIL writes in gray only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = _pixels(photo)
    height, width, channels = pixels.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    samples = pixels.astype(">u2").reshape(height, width, channels).view(np.uint8).reshape(height, width, -1)
    # Filter 1, the difference from the pixel on the left, which packs far better than the pixels themselves.
    rows = samples.copy()
    rows[:, 1:] -= samples[:, :-1]
    lines = np.concatenate([np.ones((height, 1), np.uint8), rows.reshape(height, -1)], 1)
    about = b""
    if photo.icc_profile:
        about += chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(photo.icc_profile))
    if photo.dpi:
        about += chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in photo.dpi), 1))  # a meter
    if photo.exif:
        about += chunk(b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        _PNG + chunk(b"IHDR", header) + about + chunk(b"IDAT", zlib.compress(lines.tobytes(), 6)) + chunk(b"IEND", b"")
    )
